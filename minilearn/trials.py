"""Trying a fit out before it is begun, and having it the same each time."""

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minilearn.callback import Callback, Callbacks
from minilearn.callbacks import Divergence, LRFinder, Recorder
from minilearn.callbacks.checkpoint import Kept
from minilearn.callbacks.lr_find import ON_THE_STEP
from minilearn.conversions import ConvertibleLoop
from minilearn.data.loader import ANEW, length
from minilearn.data.loaders import DataLoaders
from minilearn.data.rounds import Rounds
from minilearn.errors import whole
from minilearn.faults import name_cause
from minilearn.optim.groups import Spread
from minilearn.restore import restored
from minilearn.tensors import batch_size

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LEARNED, STANDS = 0.1, 0.95
"""The share of the first loss that is left where a batch counts as learned, and where it counts as not moved."""


@dataclass(frozen=True)
class Overfit:
    """What a training on one batch alone has reached; printed, what it means."""

    n: int
    """How many steps."""
    rows: int
    """How many rows the batch has."""
    lr: float
    """The learning rate of the last step."""
    losses: list[float] = field(repr=False)
    """The batch's loss before each step."""

    @property
    def learned(self) -> bool:
        """Whether the loss fell to a tenth of what it was; of one that began at or below zero, whether it fell."""
        first, last = self.losses[0], self.losses[-1]
        return last < first if first <= 0 else last <= LEARNED * first

    def __str__(self) -> str:
        first, last = self.losses[0], self.losses[-1]
        seen = f"one batch of {self.rows} rows, {self.n} steps: the loss went from {first:.4g} to {last:.4g}."
        if self.learned:
            return f"{seen} The model can learn it: model, loss and optimizer belong together."
        if last < STANDS * first:
            return (
                f"{seen} It learns, but has not learned the batch: try more steps (n=), another learning rate than"
                f" {self.lr:.2g}, and leave dropout, random transforms and weight decay out. Labels that contradict"
                " each other, or a model too small for the batch, end like this too."
            )
        return (
            f"{seen} It does not learn: try learning rates ten times higher and lower than {self.lr:.2g}; then look at"
            " whether the loss compares the right things, targets belong to their inputs, parameters are frozen, and"
            " the model's answer depends on its input."
        )


@dataclass(frozen=True)
class DryRun:
    """What a fit would go through and write."""

    parts: dict[str, int]
    """How many batches of each part were carried out: "training", then the validation sets by name."""
    files: list[Path]
    """The files that were written, where a fit would have them."""

    def __str__(self) -> str:
        batches = ", ".join(f"{n} of {part}" for part, n in self.parts.items())
        written = ", ".join(map(str, self.files)) or "none"
        return f"a dry run went through, in batches: {batches}. Files that a fit would write: {written}."


class TrialLoop(ConvertibleLoop):
    """A Learner that can be tried out without a trace, whose fits may be deterministic and name an error's cause."""

    deterministic: bool = False

    def overfit_one_batch(self, n: int = 100, lr: Spread | None = None) -> Overfit:
        """Trains on the first training batch alone, `n` times over: can this model learn at all? Puts everything back.

        Of the Learner's callbacks those take part that act on the step, as in `lr_find`; nothing is validated or
        measured, and nothing printed but what was found.

        Args:
            n: how many steps, at least 2.
            lr: the learning rate; by default the Learner's.
        Returns:
            What was reached; its text says what that means.
        Raises:
            ValueError: `n` is less than 2, or the training loader can be run through only once.
            DivergenceError: the loss is not a finite number.
        """
        n = whole("n", n, 2)
        loader = self._training_loader("overfit_one_batch")
        recorder = Recorder(beta=0.0)  # each batch's loss as it is
        with self._on_trial("overfit_one_batch"):
            batch = next(iter(loader), None)
            self.cbs = [cb for cb in self.cbs if _acts_on_the_step(cb)]
            self.add_cbs([recorder, Divergence()])
            self.metrics = []
            self.dls.loaders = [Rounds([] if batch is None else [batch], n)]
            self.fit(1, lr)
            found = Overfit(n, batch_size(batch), recorder.lrs[-1], list(recorder.losses))
        self.logger(str(found))
        return found

    def dry_run(self, n_batches: int = 2, cbs: Callbacks = None, checkpoint: Kept = None) -> DryRun:
        """Takes two batches through every phase, callback and file that a fit would touch, and leaves no trace.

        One epoch is trained and every validation set gone through. Files go to a temporary folder in place of the
        Learner's `path` and of other folders that the library's callbacks were given, and are removed; then it is
        looked at whether they could have been written where they belong. What callbacks do elsewhere, such as on a
        server, they do.

        Args:
            n_batches: how many batches of each part, at least 1.
            cbs: callbacks as for the `fit` that is meant.
            checkpoint: as for that `fit`.
        Returns:
            What was gone through and would be written.
        Raises:
            ValueError: `n_batches` is less than 1, or a loader can be run through only once.
            OSError: a file could not be written where it belongs.
            Exception: whatever a fit would end with.
        """
        n_batches = whole("n_batches", n_batches, 1)
        self._training_loader("dry_run")
        with tempfile.TemporaryDirectory(prefix="minilearn_") as folder, self._on_trial("dry_run"):
            elsewhere = Path(folder).resolve()
            real = self.path
            self.path, given = elsewhere / "path", [cb() if isinstance(cb, type) else cb for cb in _several(cbs)]
            self.path.mkdir()
            self.model_dir = Path(_moved(self.model_dir, elsewhere))
            kept = copy.copy(checkpoint)
            with _moved_files([*self.cbs, *given, *([kept] if isinstance(kept, Callback) else [])], elsewhere):
                self.dls.loaders = [FirstOf(loader, n_batches) for loader in self.dls.loaders]
                self.fit(1, cbs=given, checkpoint=_moved(kept, elsewhere))
            files = [_real_place(file, elsewhere, real) for file in sorted(elsewhere.rglob("*")) if file.is_file()]
            parts = dict(zip(["training", *self.dls.valid_sets], [dl.given for dl in self.dls.loaders], strict=False))
        for file in files:
            _check_writable(file)
        found = DryRun(parts, files)
        self.logger(str(found))
        return found

    # ---- beneath ----

    def _fit(self, start_epoch: int) -> None:
        with deterministic_kernels(self._uses_cuda()) if self.deterministic else nullcontext():
            super()._fit(start_epoch)

    def _train(self) -> None:
        try:
            super()._train()
        except Exception as error:
            self._name_cause(error)
            raise

    def _validate(self, dl: Any, *, with_loss: bool = True) -> None:
        try:
            super()._validate(dl, with_loss=with_loss)
        except Exception as error:
            self._name_cause(error)
            raise

    def _name_cause(self, error: Exception) -> None:
        name_cause(error, self.__dict__.get("xb"), training=self.training)

    def _uses_cuda(self) -> bool:
        """Whether a fit runs on a CUDA GPU."""
        on_gpu = any(p.is_cuda for p in self.model.parameters())
        device = self.dls.device
        return torch.cuda.is_available() and (on_gpu or device is None or device.type == "cuda")

    def _training_loader(self, who: str) -> Any:
        """The training loader, once it is known that those needed can be run through again.

        Raises:
            ValueError: it cannot.
        """
        self._not_running()
        self.dls = DataLoaders.of(self.dls)
        for loader in self.dls.loaders if who == "dry_run" else [self.dls.train]:
            if hasattr(loader, "__next__"):
                raise ValueError(f"{who} would use up a loader, which can be run through only once. {ANEW}")
        return self.dls.train

    @contextmanager
    def _on_trial(self, who: str) -> Iterator[None]:
        """Silent, and everything is put back; `dls` may be changed."""
        with restored(self, self.splitter(self.model)):
            self.dls = copy.copy(self.dls)
            try:
                with self.no_logging(), self.no_bar():
                    yield
            except BaseException as error:
                error.add_note(f"raised in learn.{who}: the Learner is as it was before")
                raise


class FirstOf:
    """The first batches of a loader.

    Args:
        loader: the loader; what else is asked for, its `dataset` say, is its.
        n: how many batches at most.
    """

    def __init__(self, loader: Any, n: int) -> None:
        self.loader, self.n, self.given = loader, n, 0

    def __len__(self) -> int:
        n = length(self.loader)
        return self.n if n is None else min(n, self.n)

    def __iter__(self) -> Iterator[Any]:
        self.given = 0
        for batch in self.loader:
            self.given += 1
            yield batch
            if self.given == self.n:
                return

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying asks of an object before it has its attributes
            raise AttributeError(name)
        return getattr(self.loader, name)


@contextmanager
def deterministic_kernels(on_cuda: bool = False) -> Iterator[None]:
    """Has torch take only kernels that give the same numbers twice, for the length of a ``with`` block.

    Args:
        on_cuda: whether work is done on a CUDA GPU, where cuBLAS needs an environment variable.
    Raises:
        ValueError: that variable is missing. torch would fail at the first product of matrices.
        RuntimeError: within the block, by torch: an operation has no such kernel.
    """
    if on_cuda and os.environ.get(WORKSPACE) not in (":4096:8", ":16:8"):
        raise ValueError(
            f"deterministic=True on a CUDA GPU needs the environment variable {WORKSPACE}=:4096:8 (or :16:8), set"
            f" before the process begins, got {os.environ.get(WORKSPACE, 'none')}: {WORKSPACE}=:4096:8 python script.py"
        )
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags


def _acts_on_the_step(cb: Callback) -> bool:
    if isinstance(cb, (Recorder, LRFinder, Divergence)):
        return False
    return any(hasattr(type(cb), event) for event in ON_THE_STEP) if cb.run_search is None else cb.run_search


def _several(cbs: Callbacks) -> list[Any]:
    return [cbs] if isinstance(cbs, (Callback, type)) else list(cbs or ())


@contextmanager
def _moved_files(cbs: list[Callback], elsewhere: Path) -> Iterator[None]:
    """The absolute paths that callbacks name lie in a temporary folder for the length of a ``with`` block."""
    before = [(cb, dict(vars(cb))) for cb in cbs if _is_ours(cb)]
    try:
        for cb, attributes in before:
            vars(cb).update({name: _moved(value, elsewhere) for name, value in attributes.items()})
        yield
    finally:
        for cb, attributes in before:
            vars(cb).update(attributes)


def _is_ours(cb: Callback) -> bool:
    """Whether a callback is of this library: what other classes mean by their attributes cannot be known."""
    return any(kind.__module__.startswith("minilearn.") and kind is not Callback for kind in type(cb).__mro__[:-2])


def _moved(value: Any, elsewhere: Path) -> Any:
    """An absolute path in a temporary folder in place of its own; anything else as it is."""
    if not isinstance(value, (str, Path)) or not Path(value).is_absolute():
        return value
    return type(value)(elsewhere / "absolute" / Path(value).relative_to(Path(value).anchor))


def _real_place(file: Path, elsewhere: Path, real: Path) -> Path:
    """Where a file of the temporary folder would have been written."""
    below = file.relative_to(elsewhere)
    first, rest = below.parts[0], Path(*below.parts[1:])
    return real / rest if first == "path" else Path("/") / rest


def _check_writable(file: Path) -> None:
    """Refuses a file that could not be written: its folder, or the nearest one that there is, does not take it.

    Raises:
        OSError: so it is.
    """
    if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
        raise PermissionError(f"dry_run: a fit would write {file}, which is there and cannot be written to")
    folder = next((parent for parent in file.parents if parent.exists()), Path())
    if not folder.is_dir():
        raise NotADirectoryError(f"dry_run: a fit would write {file}, but {folder} is a file and no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"dry_run: a fit would write {file}, but the folder {folder} cannot be written to")
