"""Writes the sample files of the format that this minilearn writes, run once for each number: python tests/formats_samples.py

Files of older numbers stay as they are: they are the proof that they can still be read.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import Adam
from minilearn.tensor_files import FORMAT

HERE = Path(__file__).parent / "formats"


def learner(path: Path) -> Learner:
    """The Learner that the samples are of, before it has learnt anything."""
    x = torch.arange(24.0).reshape(8, 3) / 24
    dls = DataLoaders.from_tensors(x, x.sum(1, keepdim=True), bs=4, shuffle=False, device="cpu")
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    learn = Learner(dls, model, F.mse_loss, Adam, lr=0.01, path=path)
    learn.logger = lambda text: None
    return learn


def main() -> None:
    """Writes both samples."""
    if (HERE / f"model-{FORMAT}.safetensors").exists():
        sys.exit(f"the samples of format {FORMAT} are there, and stay as they are")
    with tempfile.TemporaryDirectory() as folder:
        learn = learner(Path(folder))
        with learn.no_bar():
            learn.fit(2, checkpoint="run")
        shutil.copy(learn.save("model"), HERE / f"model-{FORMAT}.safetensors")
        newest = sorted((Path(folder) / "run").glob("*.safetensors"))[0]
        shutil.copy(newest, HERE / f"checkpoint-{FORMAT}.safetensors")


if __name__ == "__main__":
    main()
