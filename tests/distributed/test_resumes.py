"""A run of several processes is gone on with: to the very numbers by as many, at the same row by more or fewer."""

import json
from collections import Counter
from pathlib import Path

import pytest
from processes import at_length, in_processes

RESUMES = Path(__file__).parent / "resumes.py"


@pytest.mark.parametrize(("world", "kinds"), [(2, []), pytest.param(4, ["columns", "rows"], marks=at_length)])
def test_as_many_processes_go_on_to_the_very_numbers(world: int, kinds: list[str]) -> None:
    printed = [json.loads(text) for text in in_processes(RESUMES, world, "same", *kinds, timeout_s=300)]
    kinds = [name.removesuffix(", interrupted") for name in printed[0] if name.endswith(", interrupted")]
    for rank, found in enumerate(printed):
        for kind in kinds:
            undisturbed, interrupted = found[f"{kind}, undisturbed"], found[f"{kind}, interrupted"]
            different = [name for name in undisturbed if undisturbed[name] != interrupted[name]]
            assert not different, (rank, kind, different)
    for kind in kinds:
        assert len({found[f"{kind}, undisturbed"]["weights"] for found in printed}) == 1, kind


def test_more_or_fewer_processes_go_on_at_the_same_row(tmp_path: Path) -> None:
    for world, steps in ((4, 2), (2, 3), (1, 3), (4, 0)):
        in_processes(RESUMES, world, "rows", tmp_path, steps, timeout_s=300)
    for folder in tmp_path.iterdir():
        seen = Counter(line for file in folder.glob("seen.*") for line in file.read_text().splitlines())
        assert seen == Counter(f"{epoch} {row}" for epoch in range(2) for row in range(101)), folder.name
