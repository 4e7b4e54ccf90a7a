"""docs/optim.md: its rules are the papers', its accuracies are reached."""

import functools
import importlib.util
import inspect
import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from doc_pages import ROOT, split
from torch import Tensor

import minilearn.optim
from minilearn.data import Split, mnist
from minilearn.fits import ScheduledFits
from minilearn.learner import Learner
from minilearn.optim import Adam, Optimizer, steppers

PAGE = (ROOT / "docs" / "optim.md").read_text()


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLE = loaded(ROOT / "examples" / "mnist_optimizers.py")


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose header line begins so, row by row."""
    lines = PAGE[PAGE.index(f"\n| {header}") :].splitlines()[3:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


TABLE = {cells[0].strip("`"): cells[1:] for cells in rows("optimizer")}


@functools.cache
def rules_of_the_page() -> dict[str, Any]:
    """What the page's code defines before it trains anything."""
    names: dict[str, Any] = {}
    for block in split(PAGE)[0]:
        if block.language == "python" and not re.search(r"\blearn\b|backward|words", block.text):
            exec(block.text, names)
    return names


@functools.cache
def every_digit() -> Split:
    return mnist()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches are too small to gain by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Make = Callable[..., torch.optim.Optimizer]


def walk(opt_func: Make, steps: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Two parameters after some steps with gradients that are the same in each walk, and the optimizer."""
    params, gradient = start(dtype), gradients(steps, dtype)
    opt = opt_func(params)
    for grads in gradient:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        opt.step()
    return [p.detach() for p in params], opt


def start(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator).to(dtype).requires_grad_() for n in (5, 40_000)]


def gradients(steps: int, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [[torch.randn(n, generator=generator).to(dtype) for n in (5, 40_000)] for _ in range(steps)]


def test_adam_step_is_the_librarys_bit_for_bit() -> None:
    hypers = {"lr": 0.1, "mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5}
    shown, own = (
        walk(lambda params, rule=rule: Optimizer(params, [rule], **hypers), 20)[0]
        for rule in (rules_of_the_page()["adam_step"], steppers.adam_step)
    )
    assert all(torch.equal(a, b) for a, b in zip(shown, own, strict=True))


def test_adam_of_the_page_is_adam() -> None:
    shown, _ = walk(lambda params: rules_of_the_page()["AdamOfThisPage"](params, lr=0.1), 100)
    own, _ = walk(lambda params: Adam(params, lr=0.1), 100)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(shown, own, strict=True))


def test_adabelief_is_algorithm_2_of_its_paper() -> None:
    lr, beta1, beta2, eps, wd = 0.1, 0.9, 0.999, 1e-8, 0.1
    wanted = [p.detach().clone() for p in start()]
    m, s = ([torch.zeros_like(p) for p in wanted] for _ in range(2))
    for t, grads in enumerate(gradients(100), 1):
        for i, g in enumerate(grads):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            s[i] = beta2 * s[i] + (1 - beta2) * (g - m[i]) ** 2 + eps
            m_hat, s_hat = m[i] / (1 - beta1**t), s[i] / (1 - beta2**t)
            wanted[i] = wanted[i] * (1 - lr * wd) - lr * m_hat / (s_hat.sqrt() + eps)
    got, _ = walk(lambda params: rules_of_the_page()["AdaBelief"](params, lr=lr, wd=wd), 100)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(got, wanted, strict=True))


def test_signum_is_algorithm_2_of_its_paper() -> None:
    lr, beta = 0.1, 0.9
    wanted = [p.detach().clone() for p in start()]
    m = [torch.zeros_like(p) for p in wanted]
    for grads in gradients(100):
        for i, g in enumerate(grads):
            m[i] = beta * m[i] + (1 - beta) * g
            wanted[i] = wanted[i] - lr * m[i].sign()
    got, _ = walk(lambda params: rules_of_the_page()["Signum"](params, lr=lr), 100)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", ["AdaBelief", "Signum"])
def test_state_comes_back_from_a_file_exactly(name: str) -> None:
    make = rules_of_the_page()[name]
    through, _ = walk(lambda params: make(params, lr=0.1), 20, torch.float32)
    half, opt = walk(lambda params: make(params, lr=0.1), 10, torch.float32)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    params = [p.clone().requires_grad_() for p in half]
    again = make(params, lr=0.5)
    again.load_state_dict(torch.load(file, weights_only=True))
    for grads in gradients(20, torch.float32)[10:]:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        again.step()
    assert all(torch.equal(a, b) for a, b in zip(params, through, strict=True))


@pytest.mark.parametrize("name", ["AdaBelief", "Signum"])
def test_rule_is_one_that_compile_can_take(name: str) -> None:
    make = rules_of_the_page()[name]
    # The program that would be compiled is carried out as it is: no compiler, and no half a minute, is needed.
    with torch.compiler.set_stance("force_eager"):
        compiled, _ = walk(lambda params: make(params, lr=0.1, compile=True), 20)  # a failure warns
    plain, _ = walk(lambda params: make(params, lr=0.1), 20)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(compiled, plain, strict=True))


def test_table_has_every_optimizer() -> None:
    rules = {name for name in minilearn.optim.__all__ if name not in {"Optimizer", "OptimWrapper"}}
    assert {name.split("(")[0] for name in TABLE} == rules


def test_table_has_the_rates_and_accuracies_of_the_example() -> None:
    shown = {name: (float(cells[2]), float(cells[3].removesuffix("%"))) for name, cells in TABLE.items()}
    assert shown == {
        name: (lr_max, pytest.approx(100 * accuracy)) for name, (_, lr_max, accuracy) in EXAMPLE.SETTINGS.items()
    }


@pytest.mark.parametrize("name", TABLE)
def test_table_has_the_constructors_defaults(name: str) -> None:
    kind = getattr(minilearn.optim, name.partition("(")[0])
    defaults = {key: taken.default for key, taken in inspect.signature(kind).parameters.items()}
    unshown = {"decouple_wd": True, "nesterov": False, "dampening": 0.0, "centered": False, "wd": 0.0}
    for key in ("params", "lr", "opt", "options", "kwargs", "adam"):
        defaults.pop(key, None)
    if kind is minilearn.optim.Muon:
        unshown["nesterov"] = True
    hypers = {key: value for key, value in defaults.items() if not (key in unshown and unshown[key] == value)}
    if "(mom=" in name:  # given in the name
        hypers.pop("mom", None)
    elif not hypers.get("mom", 1):  # none is as if it were not there
        hypers.pop("mom")
    told = dict(part.split("=") for part in TABLE[name][1].replace("`", "").split(", ") if part != "–")
    assert {key: str(value) if isinstance(value, bool) else value for key, value in hypers.items()} == {
        key: value if value in {"True", "False"} else float(value) for key, value in told.items()
    }


def test_run_is_the_one_that_the_page_describes() -> None:
    words = " ".join(PAGE.split())
    assert f"The network has 784, {EXAMPLE.HIDDEN} (ReLU) and 10 units" in words
    assert f"batches of {EXAMPLE.BATCH} and by `fit_one_cycle({EXAMPLE.EPOCHS}, lr_max)`" in words


@pytest.mark.parametrize("name", TABLE)
def test_optimizer_reaches_its_accuracy_on_mnist(name: str, mnist_root: Path) -> None:
    assert EXAMPLE.train(name, every_digit(), seed=0) >= float(TABLE[name][3].removesuffix("%")) / 100


def test_schedules_are_all_those_that_there_are() -> None:
    fits = {name for name in vars(ScheduledFits) if name.startswith("fit_") or name == "fine_tune"}
    listed = {cells[0].strip("`") for cells in rows("fit ")}
    drawn = loaded(ROOT / "tools" / "draw_schedules.py").FITS
    assert listed == fits | {"fit"}
    assert {name.split("(")[0] for name in drawn} - {"ParamScheduler"} == listed
    assert all(hasattr(Learner, name) for name in listed)


def test_figures_are_whole_halves_of_a_percent() -> None:
    for cells in TABLE.values():
        doubled = 2 * float(cells[3].removesuffix("%"))
        assert math.isclose(doubled, round(doubled))
