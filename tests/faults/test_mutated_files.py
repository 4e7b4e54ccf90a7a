"""Files with any byte changed, or with lies in them: a clear error, or the very numbers; never anything else."""

import mutated_files


def test_500_mutated_files_are_each_a_clear_error_or_read_as_they_were() -> None:
    came, wrong = mutated_files.run(500, seed=1, at_a_time=250)
    assert wrong == []
    assert sum(came.values()) == 500
