"""Predictions over loaders of many kinds, and what one process may ask for alone, printed as JSON.

python prediction_fits.py FOLDER GLOBAL_BATCH ROWS ...
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, IterableDataset, WeightedRandomSampler

from minilearn.all import (
    ClassificationInterpretation,
    CollectData,
    DataLoader,
    DataLoaders,
    FetchPreds,
    Learner,
    accuracy,
    set_seed,
)


class Stream(IterableDataset[Any]):
    """Rows that come."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(self.x, self.y, strict=True)))


class Nested(nn.Module):
    """A model whose answer is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.layer(x), "pair": (x[:, 0], [x[:, 1:]])}


class Boxes(nn.Module):
    """A model that finds another number of things in each row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> list[Any]:
        return [{"found": row[row > 0]} for row in self.layer(x)]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    world, folder, batch = int(os.environ.get("WORLD_SIZE", "1")), Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps({rows: figures(folder, int(rows), batch // world) for rows in sys.argv[3:]}))


def loaders(x: Tensor, y: Tensor, bs: int) -> dict[str, Any]:
    rows = list(zip(x.tolist(), y.tolist(), strict=True))
    whole = DataLoader((x, y), bs)
    drawn = WeightedRandomSampler(torch.ones(len(x)), len(x), replacement=False)
    return {
        "tensors": whole,
        "shuffled": DataLoader((x, y), bs, shuffle=True, drop_last=True),
        "rows": DataLoader(rows, bs, shuffle=True, collate_fn=collate),
        "drawn": DataLoader((x, y), bs, sampler=drawn),
        "in batches": DataLoader((x, y), batch_sampler=BatchSampler(drawn, bs, drop_last=False)),
        "torch": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), bs, shuffle=True),
        "stream": DataLoader(Stream(x, y), bs),
        "a list": list(whole),
    }


def figures(folder: Path, rows: int, bs: int) -> dict[str, Any]:
    set_seed(4)
    x = torch.randn(rows, 4)
    y = x[:, :3].argmax(1)
    fetch, collect = FetchPreds(with_input=True), CollectData()
    dls = DataLoaders(DataLoader((torch.randn(33, 4), torch.arange(33) % 3), bs, shuffle=True), DataLoader((x, y), bs))
    learn = Learner(dls, nn.Linear(4, 3), F.cross_entropy, metrics=accuracy, cbs=[fetch, collect])
    found: dict[str, Any] = {}
    for kind, loader in loaders(x, y, bs).items():
        found[kind] = as_lists(learn.get_preds(dl=loader, with_input=True, with_loss=True, with_decoded=True))
        if kind != "shuffled" or rows > 16:  # it drops its last batch
            found[f"{kind}, valid"] = learn.validate(dl=loader)
    plain = DataLoader((x, y), bs)
    found["as they come"] = as_lists(learn.get_preds(dl=plain, reorder=False, act=lambda pred: pred))
    kept = folder / f"{rows}.npy"
    filed = learn.get_preds(dl=plain, save_preds=kept, save_targs=folder / f"{rows}-targets.npy")
    found["in a file"], found["in order"] = as_lists(filed), as_lists(learn.get_preds(dl=plain))
    assert sorted(folder.glob("*.npy"))
    with learn.no_logging():
        learn.fit(1, 0.01)
    found["fetched"] = as_lists(fetch.preds)
    found["collected"] = len(collect.data) > 0
    seen = ClassificationInterpretation.from_learner(learn)
    found["matrix"], found["losses"] = seen.confusion_matrix().tolist(), seen.losses.tolist()
    for model in (Nested(), Boxes()):
        other = Learner(dls, model, F.cross_entropy)
        found[type(model).__name__] = as_lists(other.get_preds(act=lambda pred: pred, with_input=True))
    found["one row"] = as_lists(learn.predict((x[0], y[0])))
    if int(os.environ.get("RANK", "0")) == 0:  # alone: nobody waits for anybody
        again = as_lists(learn.predict((x[0], y[0])))
        assert again == found["one row"]
        assert len(seen.top_losses(2, items=True)[2]) == min(2, rows)
        assert seen._rows([0])[2].tolist() == [int(y[0])]
        time.sleep(0.3)
    return found


def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.tensor([x for x, _ in rows]), torch.tensor([y for _, y in rows])


def as_lists(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: as_lists(part) for key, part in value.items()}
    return [as_lists(part) for part in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    main()
