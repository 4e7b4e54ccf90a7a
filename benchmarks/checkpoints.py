"""What keeping a run costs: ResNet-18 with `checkpoint=` beside the same fit without, interleaved.

`python benchmarks/checkpoints.py` prints the ratio at the default interval, held against 1.02, and for information that
of a checkpoint every ten batches; exits with 1 where the bar is missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import Measured, Run, Setting, race
from models import random_images, resnet18

from minilearn.callbacks import Checkpoint
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD

BAR = 1.02
BATCH = 32


def fit(path: Path, kept: Checkpoint | None, rows: int) -> Run:
    """An epoch on random images of 64 by 64, which ends with its weights."""
    x, y, valid_x, valid_y = random_images(rows)
    torch.manual_seed(0)
    dls = DataLoaders.from_tensors(x, y, valid_x, valid_y, bs=BATCH, device="cpu")
    learn = Learner(dls, resnet18(), F.cross_entropy, SGD, 0.01, path=path)
    learn.logger = lambda text: None

    def run() -> list[torch.Tensor]:
        learn.fit(1, checkpoint=kept)
        return [p.detach() for p in learn.model.parameters()]

    return run


def measured(every_batches: int | None, setting: Setting, rows: int) -> Measured:
    """The ratio of a fit that is kept to one that is not."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = iter(range(1000))

        def kept() -> Run:
            # A folder of its own each time: a fit that is done is not done again.
            return fit(Path(folder), Checkpoint(f"run{next(rounds)}", every_batches), rows)

        return race(kept, lambda: fit(Path(folder), None, rows), setting.rounds(9, 3), tolerance=0.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; gives 1 where the bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of a shorter epoch")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    setting = Setting(args.quick)
    rows = setting.of(2560, 640)
    default = measured(None, setting, rows)
    often = measured(10, setting, rows)
    for name, found in (("default interval", default), ("every ten batches", often)):
        print(
            f"{name}: {found.figure:.3f} × ({found.low:.3f} to {found.high:.3f}) of a fit without, an epoch of"
            f" {rows // BATCH} batches: {found.ours} / {found.theirs}"
        )
    return 0 if default.figure <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
