"""Models that go elsewhere, as graphs for plain torch or ONNX, and weights that come from elsewhere."""

import copy
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from minilearn import distributed
from minilearn.batches import prediction_of, split_batch
from minilearn.errors import describe
from minilearn.exported import write_exported
from minilearn.files import FileError, whole_file
from minilearn.foreign_weights import read_weights
from minilearn.losses import activation_of
from minilearn.saved import SavedLoop, load_weights, within
from minilearn.tensors import shape_text

ONNX_PACKAGES = ("onnx", "onnxscript")
TOLERANCE = 1e-4
"""How far the exported graph's answers may be from the model's, relative and absolute, in float32."""


def import_weights(path: str | Path, model: nn.Module, strict: bool = True) -> list[str]:
    """Loads the weights of a file that was made elsewhere with ``torch.save`` into a model.

    A file is never code: it may hold tensors and plain values and nothing else (`minilearn.foreign_weights`). Weights
    are looked for in the file itself, or under ``state_dict``, ``model_state_dict``, ``model`` or ``module``.

    Args:
        path: the file, with its suffix: ``.pth``, ``.pt``, ``.bin``, ``.ckpt``.
        model: the model, of the same names and shapes.
        strict: refuse what does not fit. Otherwise just that is left out.
    Returns:
        What was left out, a sentence each; nothing where `strict`.
    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is damaged, or holds anything beside weights; there is no way around that. Where you trust the
            file, open it in a program of your own and save its ``state_dict()``.
        ValueError: it does not fit, and the model has not been changed.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be a file, got {describe(path)}")
    return load_weights(Path(path), model, read_weights(Path(path)), strict)


class ToExport(nn.Module):
    """A model between what is done to its input and to its output, in one module.

    Args:
        model: the model.
        before: functions of the input, one after the other; there may be several inputs where there are none.
        after: a function of the output; None for none.
        names: the inputs' names where they come by name.
    """

    def __init__(
        self,
        model: nn.Module,
        before: Sequence[Callable[..., Any]],
        after: Callable[..., Any] | None,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, list(before), after
        if names:  # written out, as torch asks a forward for its names
            vars(self)["forward"] = _with_names(self.forward, names)
        self.parts = nn.ModuleList([part for part in (*before, after) if isinstance(part, nn.Module)])

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Predictions for a batch's inputs as the loader gives them."""
        for transform in self.before:
            inputs = (transform(*inputs),)
        output = prediction_of(self.model(*inputs, **named))
        return output if self.after is None else self.after(output)


def _with_names(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    def by_name(**named: Any) -> Any:
        return function(**named)

    kind = inspect.Parameter.KEYWORD_ONLY
    vars(by_name)["__signature__"] = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    return by_name


class ExchangingLoop(SavedLoop):
    """What a Learner gives to programs without minilearn, and takes from them."""

    def import_weights(self, file: str | Path, strict: bool = True) -> Self:
        """Loads the weights of a file made elsewhere, below ``path/model_dir`` or by its full path: `import_weights`.

        Args:
            file: the file, with its suffix.
            strict: refuse what does not fit. Otherwise just that is left out, and a line says what.
        Returns:
            The Learner.
        """
        for left_out in import_weights(self.path / self.model_dir / file, self.model, strict):
            self.logger(f"import_weights('{file}', strict=False): {left_out}")
        return self

    def export(self, file: str | Path = "model.pt2", act: bool | Callable[[Tensor], Tensor] = True) -> Path:
        """Writes the model as a graph that needs no minilearn and no source, for batches of any size: ``path/file``.

        The graph takes inputs as the loader gives them, and gives what `get_preds` gives: the loaders' `batch_tfms`
        that are for validation are a part of it, and so is the loss's activation. It is the model as it is in
        evaluation, in the precision of its weights, on the CPU; of a Learner that compiles, the plain model. It is
        traced with the first training batch, and its answers are compared with the model's.

        ``.pt2``: `load_exported` reads it, and so does ``torch.export.load(path).module()`` in plain torch.
        ``.onnx``: for other runtimes; needs the packages onnx and onnxscript.

        Args:
            file: a name, or an absolute path, that ends in ``.pt2`` or ``.onnx``.
            act: whether predictions go through the loss's activation (`losses.activation_of`), such as the softmax of
                cross-entropy; or a function to take instead.
        Returns:
            The file's path.
        Raises:
            ValueError: the model cannot be traced, is bound to one batch size, or answers otherwise than its graph; or
                the file ends otherwise.
            ModuleNotFoundError: packages for ONNX are missing.
            OSError: the file cannot be written; what had its name before stays.
        """
        path = self.path / _suffixed(file)
        if not distributed.is_main():  # of several processes one writes
            return path
        self._take_stock()
        args, named = self._example()
        module = self._to_export(act, list(named))
        with torch.no_grad():
            wanted = module(*args, **named)  # a transform may place its numbers when it is first called
        path.parent.mkdir(parents=True, exist_ok=True)
        program = _traced(module, args, named)
        _check_answers(program.module(), module, args, named, wanted)
        if path.suffix == ".onnx":
            _write_onnx(path, program)
        else:
            about = {"inputs": shape_text(args), "model": type(within(self.model)).__name__}
            write_exported(path, program, about)
        return path

    def _to_export(self, act: bool | Callable[[Tensor], Tensor], names: list[str]) -> nn.Module:
        """A copy on the CPU of the model and of what is around it, in evaluation."""
        if not isinstance(act, bool) and not callable(act):
            raise TypeError(f"act must be True, False or a function, got {describe(act)}")
        after = act if not isinstance(act, bool) else (activation_of(self.loss_func) if act else None)
        transforms = [t for t in self.dls.batch_tfms if not getattr(t, "train_only", False)]
        parts = within(self.model), transforms, after
        return ToExport(*copy.deepcopy(parts), names).to("cpu").eval()

    def _example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The first training batch's inputs on the CPU, by place and by name, of two rows or more."""
        xb, _ = split_batch(self.dls.one_batch(), self.dls.n_inp)
        args, named = ((), xb) if isinstance(xb, dict) else (tuple(xb), {})
        rows = [_rows(value) for value in (*args, *named.values())]
        return tuple(rows[: len(args)]), dict(zip(named, rows[len(args) :], strict=True))


def _suffixed(file: str | Path) -> Path:
    if not isinstance(file, (str, Path)) or not Path(file).name:
        raise TypeError(f"file must be a name or a path, got {describe(file)}")
    if Path(file).suffix not in (".pt2", ".onnx"):
        raise ValueError(f"file must end in .pt2 or .onnx, got '{file}'. learn.save is for going on with a model.")
    return Path(file)


def _rows(value: Any) -> Any:
    """An example of a few rows; of one row a trace would hold for one row only."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    rows = value[:3].detach().to("cpu", copy=True)
    return rows if len(rows) > 1 else torch.cat([rows, rows])


def _traced(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    def shapes(value: Any) -> Any:
        return {0: torch.export.Dim("batch")} if isinstance(value, Tensor) and value.ndim else None

    dynamic: dict[str, Any] = {name: shapes(value) for name, value in named.items()}
    if args:
        dynamic["inputs"] = tuple(map(shapes, args))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Of recurrent layers torch says that they change attributes; whether the graph is right is looked at later.
            warnings.simplefilter("ignore", UserWarning)
            return torch.export.export(module, args, named, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch has many for models that cannot be traced
        raise ValueError(
            "the model cannot be exported for batches of any size: torch.export says"
            f" {type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
        ) from error


def _check_answers(
    graph: nn.Module, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], wanted: Any
) -> None:
    """Compares the graph with the model, on the example and on a batch of another size."""

    def longer(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

    more, more_named = tuple(map(longer, args)), {name: longer(value) for name, value in named.items()}
    with torch.no_grad():
        for xs, by_name, right in ((args, named, wanted), (more, more_named, module(*more, **more_named))):
            try:
                torch.testing.assert_close(graph(*xs, **by_name), right, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
            except AssertionError as error:
                raise ValueError(
                    f"the model answers otherwise than its graph, as one that draws random numbers: {str(error)[:200]}"
                ) from None


def _write_onnx(path: Path, program: Any) -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"export to ONNX needs packages that are not here: pip install {' '.join(missing)}")
    with warnings.catch_warnings():  # torch warns of its own ways
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        made = torch.onnx.export(program, (), dynamo=True, verbose=False)
    assert made is not None  # it is where no file is given
    try:
        with whole_file(path) as file:
            made.save(file.name)
    except OSError as error:
        raise FileError(f"{path} was not written: {error.strerror or error}") from error
