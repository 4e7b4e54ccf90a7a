"""What fastai's figures were recorded for: data, models and runs, told once for both sides.

Nothing here imports minilearn or fastai: a run gets the names that it uses as `api`, which is minilearn's front door in
the test and fastai's in the recording script. Data and weights are sines, so that they depend on no random numbers.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Figures = dict[str, Any]
Run = Callable[[Any], Figures]

TRAIN, VALID, BS, FEATURES, CLASSES = 83, 37, 16, 12, 3  # both sets end in a ragged batch


# ---- data and models ----


def wave(*shape: int, seed: float) -> Tensor:
    """Numbers in [-1, 1] without a pattern that a model could see, the same everywhere."""
    n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(n * n * 0.377 + n * seed).reshape(shape)


def rows(shape: tuple[int, ...] = (FEATURES,)) -> list[TensorDataset]:
    """Training and validation rows, whose class is the largest of three sums of their features."""
    x = wave(TRAIN + VALID, *shape, seed=1.3)
    y = (x.flatten(1) @ wave(math.prod(shape), CLASSES, seed=0.7)).argmax(1)
    x = x.float()
    return [TensorDataset(x[:TRAIN], y[:TRAIN]), TensorDataset(x[TRAIN:], y[TRAIN:])]


def loaders(api: Any, shape: tuple[int, ...] = (FEATURES,)) -> Any:
    """torch's loaders, unshuffled, in `DataLoaders`."""
    return api.DataLoaders(*(DataLoader(dset, BS) for dset in rows(shape)))


def filled(model: nn.Module) -> nn.Module:
    """The model with weights that are a formula; the weights of normalisation layers stay around 1."""
    for i, p in enumerate(model.parameters()):
        size = p[0].numel() if p.ndim > 1 else 4
        p.data = (wave(*p.shape, seed=2.1 + i) / math.sqrt(size)).float()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data += 1
    return model


def plain() -> nn.Module:
    """Two linear layers."""
    return filled(nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES)))


def normed() -> nn.Module:
    """Two linear layers with batch normalisation between them.

    What normalisation takes away again, a bias before it, has a gradient of rounding alone: there is none.
    """
    return filled(
        nn.Sequential(nn.Linear(FEATURES, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, CLASSES))
    )


def layered() -> nn.Module:
    """Three layers for `layers_of`, with batch normalisation in the first two."""
    first = nn.Sequential(nn.Linear(FEATURES, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh())
    second = nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh())
    return filled(nn.Sequential(first, second, nn.Linear(8, CLASSES)))


def convolved() -> nn.Module:
    """A convolution with batch normalisation, for rows of (1, 6, 6)."""
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES)]
    return filled(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Tanh(), *head))


MODELS = {"plain": plain, "normed": normed, "layered": layered, "convolved": convolved}


def layers_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """A splitter: the parameters of each of the model's parts."""
    return [list(part.parameters()) for part in model.children()]


# ---- what is noted of a run ----


def weights(model: nn.Module) -> dict[str, list[float]]:
    """Of each parameter and average its length, a sum with signs, and three of its numbers."""
    found = {}
    for name, value in model.state_dict().items():
        flat = value.double().flatten()
        mixed = flat @ wave(len(flat), seed=0.2)
        found[name] = [*(float(x) for x in (flat.norm(), mixed)), *flat[:3].tolist()]
    return found


class Notes:
    """What the run's callback has noted: rates and momenta of each layer, batch by batch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.momenta: list[list[float]] = []


def noting(api: Any, notes: Notes, *, momenta: bool) -> Any:
    """A callback that notes the hyperparameters with which each step is made."""

    class Noting(api.Callback):  # type: ignore[misc, name-defined]
        order = 70  # after the schedule of the batch

        def before_step(self) -> None:
            notes.rates.append(_by_layer(self.opt, "lr"))
            if momenta:
                notes.momenta.append(_by_layer(self.opt, "mom"))

    return Noting()


def _by_layer(opt: Any, name: str) -> list[float]:
    """One number a layer: a layer may be two groups, of which one is spared weight decay."""
    groups = getattr(opt, "param_groups", [])
    found = {
        group.get("layer", i): hypers[name] for i, (group, hypers) in enumerate(zip(groups, opt.hypers, strict=True))
    }
    return [float(found[layer]) for layer in sorted(found)]


def learner(api: Any, model: str, opt_func: Any, **options: Any) -> Any:
    """A Learner on the rows, with cross-entropy and two metrics."""
    shape = (1, 6, 6) if model == "convolved" else (FEATURES,)
    if model == "layered":
        options.setdefault("splitter", layers_of)
    metrics = [api.accuracy, api.error_rate]
    return api.Learner(loaders(api, shape), MODELS[model](), F.cross_entropy, opt_func, metrics=metrics, **options)


def of_fit(learn: Any, notes: Notes | None = None) -> Figures:
    """The history and the weights after a fit; epochs before its first, of which fastai makes rows, have no figures."""
    recorder = learn.recorder
    found: Figures = {
        "values": [[float(value) for value in row] for row in recorder.values if len(row)],
        "losses": [float(loss) for loss in recorder.losses],
        "lrs": [float(lr) for lr in recorder.lrs],
        "weights": weights(learn.model),
    }
    if notes is not None:
        found["rates"] = notes.rates
        if notes.momenta:
            found["momenta"] = notes.momenta
    return found


# ---- the runs ----


def optimizer(api: Any, opt: str, hypers: Figures | None = None) -> Any:
    """An `opt_func`: the optimizer of that name with its hyperparameters."""
    if opt == "Lookahead":
        return lambda params, lr: api.Lookahead(api.SGD(params, lr=lr, mom=0.9), **(hypers or {}))
    if opt == "OptimWrapper":
        return partial(api.OptimWrapper, opt=torch.optim.AdamW, **(hypers or {}))
    return partial(getattr(api, opt), **hypers) if hypers else getattr(api, opt)


def fits(opt: str, model: str = "plain", lr: float = 1e-2, *, of_learner: Figures | None = None, **hypers: Any) -> Run:
    """Three epochs at one rate."""

    def run(api: Any) -> Figures:
        learn = learner(api, model, optimizer(api, opt, hypers), **(of_learner or {}))
        with learn.no_logging(), learn.no_bar():
            learn.fit(3, lr)
        return of_fit(learn)

    return run


def scheduled(
    method: str,
    *args: Any,
    opt: str = "Adam",
    model: str = "plain",
    hypers: Figures | None = None,
    of_learner: Figures | None = None,
    **options: Any,
) -> Run:
    """A scheduled fit, with rates and momenta of every batch."""

    def run(api: Any) -> Figures:
        learn, notes = learner(api, model, optimizer(api, opt, hypers), **(of_learner or {})), Notes()
        momenta = opt != "SGD" or bool(hypers)
        with learn.no_logging(), learn.no_bar():
            getattr(learn, method)(*args, cbs=noting(api, notes, momenta=momenta), **options)
        return of_fit(learn, notes)

    return run


def fine_tuned(opt: str, *args: Any, **options: Any) -> Run:
    """`fine_tune`; each of its fits begins with clear averages, as they are in fastai after `freeze` and `unfreeze`."""

    def run(api: Any) -> Figures:
        class Clearing(api.Callback):  # type: ignore[misc, name-defined]
            order = -5

            def before_fit(self) -> None:
                self.opt.clear_state()

        learn, notes = learner(api, "layered", getattr(api, opt)), Notes()
        cbs = [Clearing(), noting(api, notes, momenta=opt != "SGD")]
        with learn.no_logging(), learn.no_bar():
            learn.fine_tune(*args, cbs=cbs, **options)
        return of_fit(learn, notes)

    return run


def frozen(n: int, *, train_bn: bool) -> Run:
    """A fit with the first layers frozen, then one with all of them."""

    def run(api: Any) -> Figures:
        learn = learner(api, "layered", api.SGD, train_bn=train_bn)
        with learn.no_logging(), learn.no_bar():
            learn.freeze_to(n)
            learn.fit(2, slice(0.05))
            first = of_fit(learn)
            learn.unfreeze()
            learn.fit(1, slice(1e-3, 1e-1))
        return {"frozen": first, "thawed": of_fit(learn)}

    return run


def one_after_another(api: Any) -> Figures:
    """Two fits with one optimizer, which goes on with its averages, then one with a new one."""
    learn = learner(api, "plain", api.Adam)
    found = {}
    with learn.no_logging(), learn.no_bar():
        for name, options in (("first", {}), ("second", {"wd": 0.1}), ("third", {"reset_opt": True})):
            learn.fit(1, 1e-2, **options)
            found[name] = of_fit(learn)
    return found


def validated(api: Any) -> Figures:
    """`validate` of each loader after a fit, and of one that is given."""
    learn = learner(api, "normed", api.SGD)
    with learn.no_logging(), learn.no_bar():
        learn.fit(1, 0.1)
        given = DataLoader(rows()[1], 7)
        results = [learn.validate(), learn.validate(ds_idx=0), learn.validate(dl=given)]
    return {"results": [[float(value) for value in result] for result in results]}


def interpreted(api: Any) -> Figures:
    """Losses, confusion matrix and most confused classes after a fit; of a model that never says the last class too."""
    found = {}
    for name, held_back in (("all classes", 0.0), ("one class never", 50.0)):
        learn = learner(api, "plain", api.SGD)
        learn.loss_func = api.CrossEntropyLossFlat()  # fastai makes answers by its own losses alone
        with learn.no_logging(), learn.no_bar():
            learn.fit(1, 0.1)
        learn.model[-1].bias.data[CLASSES - 1] -= held_back
        dl = api.DataLoader(rows()[1], bs=BS)
        dl.vocab = learn.dls.vocab = torch.arange(CLASSES).numpy()
        interp = api.ClassificationInterpretation.from_learner(learn, dl=dl)
        losses, numbers = interp.top_losses(5)
        found[name] = {
            "top losses": losses.tolist(),
            "their rows": numbers.tolist(),
            "least losses": interp.top_losses(3, largest=False)[0].tolist(),
            "confusion": interp.confusion_matrix().tolist(),
            "confused": [list(map(int, mistake)) for mistake in interp.most_confused(min_val=2)],
        }
    return found


def searched(opt: str, model: str, **options: Any) -> Run:
    """`lr_find`: its curve, its suggestions, and the weights afterwards, which are those from before."""

    def run(api: Any) -> Figures:
        learn = learner(api, model, getattr(api, opt))
        asked = [api.valley, api.steep, api.minimum, api.slide]
        with learn.no_logging(), learn.no_bar():
            found = learn.lr_find(show_plot=False, suggest_funcs=asked, **options)
        curve = getattr(learn, "lr_search", None) or learn.recorder
        return {
            "lrs": [float(lr) for lr in curve.lrs],
            "losses": [float(loss) for loss in curve.losses],
            "suggestions": {name: float(lr) for name, lr in found._asdict().items()},
            "weights": weights(learn.model),
        }

    return run


def schedules(api: Any) -> Figures:
    """Values of the schedules at written positions."""
    made = {
        "SchedNo": api.SchedNo(2.0, 1.0),
        "SchedLin": api.SchedLin(2.0, 0.5),
        "SchedCos": api.SchedCos(0.1, 1.0),
        "SchedExp": api.SchedExp(1e-3, 10.0),
        "SchedPoly": api.SchedPoly(1.0, 0.1, 2),
        "SchedPoly, a root": api.SchedPoly(0.1, 1.0, 0.5),
        "combine_scheds": api.combine_scheds(
            [0.25, 0.5, 0.25], [api.SchedLin(0.1, 1.0), api.SchedNo(1.0, 1.0), api.SchedCos(1.0, 0.0)]
        ),
        "combined_cos": api.combined_cos(0.25, 0.04, 1.0, 1e-5),
        "combined_cos, late": api.combined_cos(0.99, 0.95, 0.85, 0.95),
    }
    positions = [0.0, 0.1, 0.24, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0]
    return {name: [float(sched(at)) for at in positions] for name, sched in made.items()}


def _optimizer_cases() -> dict[str, Run]:
    """Each optimizer with its defaults and with its options, with and without batch normalisation."""
    cases: dict[str, Run] = {}
    l2 = {"wd": 0.1, "decouple_wd": False}
    options: dict[str, tuple[float, list[Figures]]] = {
        "SGD": (0.1, [{}, {"mom": 0.9}, {"wd": 0.1}, l2, {"mom": 0.9, **l2}, {"mom": 0.8, "wd": 0.1}]),
        "RMSProp": (1e-2, [{}, {"sqr_mom": 0.9, "wd": 0.1}, l2]),
        "Adam": (1e-2, [{}, {"wd": 0.0}, {"mom": 0.8, "sqr_mom": 0.95, "eps": 1e-3, "wd": 0.2}, l2]),
        # minilearn adds eps to the root before it is debiased, as torch and its paper's authors do: it must not matter.
        "RAdam": (1e-2, [{"eps": 1e-8}, {"mom": 0.8, "sqr_mom": 0.95, "eps": 1e-8, "wd": 0.2}, {"eps": 1e-8, **l2}]),
        "QHAdam": (1e-2, [{}, {"mom": 0.9, "sqr_mom": 0.99, "nu_1": 0.5, "nu_2": 0.8, "wd": 0.1}, l2]),
        # Its momentum comes after the scaling in minilearn. In fastai the weight decay of those that are spared it counts
        # in their rate: here none is.
        "Larc": (0.1, [{"mom": 0.0}, {"mom": 0.0, "clip": False, "wd": 0.1}, {"mom": 0.0, "eps": 0.1, **l2}]),
        "Lamb": (1e-2, [{}, {"mom": 0.8, "eps": 1e-3, "wd": 0.1}, l2]),
        "ranger": (1e-2, [{}, {"k": 3, "alpha": 0.8, "wd": 0.2}]),
        "Lookahead": (0.1, [{}, {"k": 4, "alpha": 0.3}]),
        # fastai's wrapper decays all parameters: here none is spared.
        "OptimWrapper": (1e-2, [{}, {"weight_decay": 0.2, "betas": (0.8, 0.95)}]),
    }
    for opt, (lr, several) in options.items():
        for hypers in several:
            for model in ("plain", "normed"):
                said = ", ".join(f"{name}={value}" for name, value in hypers.items())
                of_learner = {"wd_bn_bias": opt in ("Larc", "OptimWrapper")}
                cases[f"fit: {opt}({said}), {model}"] = fits(opt, model, lr, of_learner=of_learner, **hypers)
    return cases


CASES: dict[str, Run] = {
    **_optimizer_cases(),
    "fit: Adam, convolved": fits("Adam", "convolved"),
    "fit: Adam, wd of the Learner": fits("Adam", "normed", of_learner={"wd": 0.3}),
    "fit: Adam, wd for norms and biases too": fits("Adam", "normed", of_learner={"wd": 0.3, "wd_bn_bias": True}),
    "fit: SGD, L2 for norms and biases too": fits(
        "SGD", "normed", 0.1, of_learner={"wd_bn_bias": True}, wd=0.3, decouple_wd=False
    ),
    "fit: one after another": one_after_another,
    "validate": validated,
    "interpret": interpreted,
    "freeze_to(-1)": frozen(-1, train_bn=True),
    "freeze_to(1), norms frozen too": frozen(1, train_bn=False),
    "fit_one_cycle: Adam": scheduled("fit_one_cycle", 3, 1e-2),
    "fit_one_cycle: SGD": scheduled("fit_one_cycle", 2, 0.5, opt="SGD"),
    "fit_one_cycle: SGD with momentum": scheduled("fit_one_cycle", 2, 0.1, opt="SGD", hypers={"mom": 0.9}),
    "fit_one_cycle: OptimWrapper": scheduled(
        "fit_one_cycle", 2, 1e-2, opt="OptimWrapper", of_learner={"wd_bn_bias": True}
    ),
    "fit_one_cycle: all arguments": scheduled(
        "fit_one_cycle", 3, 1e-2, div=10.0, div_final=100.0, pct_start=0.4, wd=0.1, moms=(0.9, 0.7, 0.8), model="normed"
    ),
    "fit_one_cycle: layers, a slice": scheduled("fit_one_cycle", 2, slice(1e-4, 1e-2), model="layered"),
    "fit_one_cycle: layers, a slice's end": scheduled("fit_one_cycle", 2, slice(1e-2), model="layered"),
    "fit_one_cycle: layers, a list": scheduled("fit_one_cycle", 2, [1e-3, 2e-3, 1e-2], model="layered"),
    "fit_one_cycle: start_epoch": scheduled("fit_one_cycle", 4, 1e-2, start_epoch=2),
    "fit_flat_cos: Adam": scheduled("fit_flat_cos", 3, 1e-2),
    "fit_flat_cos: all arguments": scheduled("fit_flat_cos", 4, 5e-3, div_final=50.0, pct_start=0.5, wd=0.1, opt="ranger"),
    "fit_flat_cos: layers": scheduled("fit_flat_cos", 2, slice(1e-4, 1e-2), model="layered"),
    "fit_sgdr": scheduled("fit_sgdr", 2, 1, 1e-2),
    "fit_sgdr: longer cycles": scheduled("fit_sgdr", 2, 2, 0.1, cycle_mult=3, opt="SGD", model="normed"),
    "fit_sgdr: layers": scheduled("fit_sgdr", 2, 1, slice(1e-4, 1e-2), model="layered"),
    "fine_tune: SGD": fine_tuned("SGD", 2, 0.1),
    "fine_tune: Adam": fine_tuned("Adam", 2),
    "fine_tune: all arguments": fine_tuned(
        "Adam", 2, 5e-3, freeze_epochs=2, lr_mult=20, pct_start=0.5, div=3.0, div_final=100.0, moms=(0.9, 0.8, 0.9), wd=0.1
    ),
    "lr_find: SGD": searched("SGD", "plain"),
    "lr_find: Adam, to its end": searched("Adam", "normed", start_lr=1e-6, end_lr=1.0, num_it=60, stop_div=False),
    "lr_find: Adam, layers": searched("Adam", "layered", num_it=80),
    "schedules": schedules,
}  # fmt: skip
