"""Fits with callbacks, losses and schedules of many kinds, with their figures as JSON: alone, or in several processes.

python callback_fits.py GLOBAL_BATCH CASE ...
"""

import json
import os
import sys
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import minilearn.all as ml
from minilearn import distributed
from minilearn.all import Callback, DataLoader, DataLoaders, Learner, accuracy, set_seed

ROWS = 57


class Reductions(Callback):
    """Counts the all-reduces of gradients."""

    order = ml.TrainEval.order + 1

    def __init__(self) -> None:
        self.count = 0

    def before_train(self) -> None:
        around: Any = self.learn.around
        if around is not None and self.epoch == 0:
            around.register_comm_hook(None, self.hook)

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self.count += bucket.is_last()
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


class Norms(Callback):
    """Keeps the norm of the gradients before each step."""

    order = ml.GradientClip.order + 1

    def __init__(self, clip: ml.GradientClip) -> None:
        self.clip, self.norms = clip, list[float]()

    def before_step(self) -> None:
        assert self.clip.norm is not None
        self.norms.append(float(self.clip.norm))


class NoLength:
    """Batches of which nobody knows how many there are."""

    def __init__(self, loader: Any) -> None:
        self.loader = list(loader)

    def __iter__(self) -> Any:
        return iter(self.loader)


class TwoHeads(nn.Module):
    """A model of which one half takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    bs = int(sys.argv[1]) // world
    print(json.dumps({case: getattr(Cases(bs, world), case)() for case in sys.argv[2:]}))


class Cases:
    """Each method is a case, and gives its figures."""

    def __init__(self, bs: int, world: int) -> None:
        set_seed(3)
        self.bs, self.world = bs, world
        self.x = torch.randn(ROWS, 5)
        self.y = self.x[:, :3].argmax(1)

    def learner(self, model: nn.Module | None = None, loss: Any = F.cross_entropy, **options: Any) -> Learner:
        x, y = self.x, self.y
        train = options.pop("train", None) or DataLoader((x, y), self.bs, shuffle=True)
        model = model or nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        dls = DataLoaders(train, DataLoader((x[:9], y[:9]), self.bs), DataLoader((x[:1], y[:1]), self.bs))
        options = {"opt_func": partial(ml.SGD, mom=0.9), "metrics": accuracy, "lr": 0.1, **options}
        return Learner(dls, model, loss, **options)

    def fitted(self, learn: Learner, fit: Any = None) -> dict[str, Any]:
        with learn.no_logging():
            learn.fit(2) if fit is None else fit(learn)
        return {
            "values": learn.recorder.values,
            "weights": [t.tolist() for t in learn.model.state_dict().values()],
            "lrs": learn.recorder.lrs,
            "again": learn.validate(),
        }

    def accumulation(self) -> dict[str, Any]:
        found = {}
        for n_acc in (16, 40, 1000):
            count = Reductions()
            found[str(n_acc)] = self.fitted(self.learner(cbs=[ml.GradientAccumulation(n_acc), count]))
            steps = {16: 6, 40: 2, 1000: 0}[n_acc]  # and one that is left at the end of each epoch, by itself
            assert count.count == (steps if self.world > 1 else 0), (n_acc, count.count)
        lists = NoLength(DataLoader((self.x[:48], self.y[:48]), self.bs))
        found["no length"] = self.fitted(self.learner(cbs=ml.GradientAccumulation(40), train=lists))
        return found

    def clip(self) -> dict[str, Any]:
        clip = ml.GradientClip(0.05)
        norms = Norms(clip)
        found = self.fitted(self.learner(cbs=[clip, norms, ml.GradientAccumulation(24)]))
        return {**found, "norms": norms.norms}

    def averages(self) -> dict[str, Any]:
        norm = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))
        ema = self.fitted(self.learner(norm, cbs=ml.EMA(0.9)))
        return {"ema": ema, "swa": self.fitted(self.learner(cbs=ml.SWA(0.5)), lambda learn: learn.fit(3))}

    def schedules(self) -> dict[str, Any]:
        torchs = ml.TorchScheduler(partial(torch.optim.lr_scheduler.StepLR, step_size=3))
        return {
            "one cycle": self.fitted(self.learner(), lambda learn: learn.fit_one_cycle(2, 0.2)),
            "fine tune": self.fitted(
                self.learner(splitter=lambda m: [list(m[0].parameters()), list(m[2].parameters())]),
                lambda learn: learn.fine_tune(1, 0.1),
            ),
            "torch's": self.fitted(self.learner(cbs=torchs)),
            "short": self.fitted(self.learner(cbs=ml.ShortEpoch(0.5))),
            "skip": self.fitted(self.learner(), lambda learn: learn.fit(3, start_epoch=1)),
        }

    def search(self) -> dict[str, Any]:
        learn = self.learner()
        before = [p.detach().clone() for p in learn.model.parameters()]
        found = learn.lr_find(num_it=40, show_plot=False, suggest_funcs=("valley", "steep", "minimum"))
        same = all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters(), strict=True))
        return {
            "suggested": list(found), "lrs": learn.lr_search.lrs, "losses": learn.lr_search.losses, "back": same,
            "after": self.fitted(learn),
        }  # fmt: skip

    def losses(self) -> dict[str, Any]:
        weights = torch.tensor([0.2, 1.0, 3.0])
        ignored = self.y.clone()
        ignored[::3], self.y[:9] = -100, torch.tensor([0, 1, 2] * 3)
        found = {"weighted": self.fitted(self.learner(loss=nn.CrossEntropyLoss(weight=weights)))}
        found["flat"] = self.fitted(self.learner(loss=ml.CrossEntropyLossFlat(weight=weights)))
        found["ignores 1"] = self.fitted(self.learner(loss=nn.CrossEntropyLoss(ignore_index=1), metrics=None))
        self.y = ignored
        found["ignores -100"] = self.fitted(self.learner(loss=nn.CrossEntropyLoss(weights), metrics=None))
        found["plain -100"] = self.fitted(self.learner(loss=nn.CrossEntropyLoss(), metrics=None))
        model = nn.Sequential(nn.Linear(5, 3), nn.LogSoftmax(1))
        found["nll"] = self.fitted(self.learner(model, loss=nn.NLLLoss(weights), metrics=None))
        return found

    def hooked(self) -> dict[str, Any]:
        stats = ml.ActivationStats()
        found = self.fitted(self.learner(cbs=stats))
        assert len(stats.stats) > 0
        return found

    def unused(self) -> dict[str, Any]:
        if self.world > 1:
            with pytest.raises(RuntimeError, match=r"'unused.weight'.*find_unused=True"):
                self.fitted(self.learner(TwoHeads()))
        set_seed(3)
        cbs = ml.Distributed(find_unused=True) if self.world > 1 else None
        return self.fitted(self.learner(TwoHeads(), cbs=cbs))

    def norms(self) -> dict[str, Any]:
        """Batch normalisation looks at each process's rows alone: only what is left behind is looked at here."""
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        learn = self.learner(model, cbs=ml.SWA(0.5))
        found = self.fitted(learn)
        kept = distributed.gathered(found["weights"])
        assert all(other == kept[0] for other in kept)
        if self.world > 1:
            within = model[1]
            with pytest.raises(RuntimeError, match=r"sync_bn=True needs GPUs.*the model is on cpu"):
                self.fitted(self.learner(model, cbs=ml.Distributed(sync_bn=True)))
            assert model[1] is within
        return {"n": len(found["values"])}

    def mixed(self) -> dict[str, Any]:
        torch.set_default_dtype(torch.float32)
        self.x = self.x.float()
        learn = self.learner(cbs=[ml.MixedPrecision("fp16", init_scale=2.0**8), ml.GradientAccumulation(24)])
        half = self.fitted(learn)
        kept = distributed.gathered(half["weights"])
        assert all(other == kept[0] for other in kept)
        torch.set_default_dtype(torch.float64)
        return {"rounded": [round(row[1], 1) for row in half["values"]]}


if __name__ == "__main__":
    main()
