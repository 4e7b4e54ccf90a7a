"""A fit's figures, pictures and graph for TensorBoard."""

import contextlib
import functools
import importlib.util
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks.figures import BatchFigures, FirstRows, is_first_set
from minilearn.callbacks.recorder import Recorder
from minilearn.errors import warn

if TYPE_CHECKING:
    from minilearn.loop import Loop


def _survives(event: Callable[["TensorBoard"], None]) -> Callable[["TensorBoard"], None]:
    """An event at which files that cannot be written any more end the logging, not the fit."""

    @functools.wraps(event)
    def method(self: "TensorBoard") -> None:
        if self._broken:
            return
        try:
            event(self)
        except OSError as error:
            self._broken = True
            warn(f"TensorBoard cannot write to {self.folder} ({error}): the fit goes on, not logged there")

    return method


class TensorBoard(Callback):
    """Writes a run that ``tensorboard --logdir runs`` shows.

    - `after_batch` in training: `train_loss` (the moving average), `raw_loss`, and each layer's hyperparameters
      (`lr_0`, `mom_0`, …), all against the number of training batches done; after the first batch the model's graph.
      In validation the first batch's first images are kept.
    - `after_epoch`: the validation loss and the metrics; histograms of the weights; those images with what the model
      said of them, where the inputs are images. Then all is on the disk: a run that is killed keeps it.
    - `cleanup_fit`: the files are closed, whatever ended the fit.

    Files that cannot be opened are an error. Where they cannot be written later on, as on a disk that is full, there is
    a warning, and the rest of the fit is not logged: a run is worth more than its log.

    All fits of one such object are one run, and its batches are counted on from fit to fit, as in `fine_tune`. A run
    that another object wrote into the same folder is no longer shown. A fit that goes on from a checkpoint goes on
    in its run's folder; what an interrupted run wrote there after the checkpoint is no longer shown.

    A `stride`-th batch costs about 300 µs of CPU time, a third of it in the loop and the rest in the thread that writes
    the file; any other 20 µs. Nothing waits for the device: from a GPU the losses come some hundred batches late. It
    only looks on, so a compiled step stays whole.

    Args:
        log_dir: the run's folder, below ``learn.path`` unless it is absolute; by default a new one below ``runs``,
            with the date and time as its name.
        trace_model: whether to draw the model's graph, by torch.jit.trace, in evaluation mode.
        log_preds: whether to draw images with predictions, about a tenth of a second an epoch.
        n_preds: how many of them, at least 1.
        hists: whether to draw histograms of the weights, which copies them to the CPU once an epoch.
        stride: every how many training batches to write losses and hyperparameters.
    Raises:
        ImportError: tensorboard is not installed.
        TypeError: `n_preds` or `stride` is no whole number.
        ValueError: `n_preds` or `stride` is less than 1.
    Source: the figures' names are those of fastai 2.8.12; the files are written by torch.utils.tensorboard.
    """

    order = Recorder.order + 1  # reads the row that the Recorder has made
    main_only = True
    acts_in_step = False
    run_search = False  # a search leaves no files

    folder: Path | None
    """The run's folder; None before the first fit."""

    def __init__(
        self,
        log_dir: str | Path | None = None,
        trace_model: bool = True,
        log_preds: bool = True,
        n_preds: int = 9,
        *,
        hists: bool = False,
        stride: int = 1,
    ) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError('TensorBoard needs the package tensorboard: pip install "minilearn[tensorboard]"')
        self.log_dir = Path(log_dir) if log_dir is not None else None
        self.trace_model, self.log_preds, self.hists = trace_model, log_preds, hists
        self.folder = None
        self._figures, self._first = BatchFigures(self._write, stride), FirstRows(n_preds)
        self._writer: Any = None
        self._before = self._written = 0
        self._in_fit = self._traced = self._broken = False

    @property
    def stride(self) -> int:
        """Every how many training batches losses and hyperparameters are written."""
        return self._figures.stride

    def state_dict(self) -> dict[str, Any]:
        """The run's folder, how many batches the fits before this one had, and the moving average."""
        folder = None if self.folder is None else os.path.relpath(self.folder, self.learn.path)
        return {"folder": folder, "before": self._before, "figures": self._figures.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the run that `state_dict` was taken of."""
        self._close()
        self.folder = None if state["folder"] is None else self.learn.path / state["folder"]
        self._before, self._traced = state["before"], self.folder is not None
        self._figures.load_state_dict(state["figures"])

    def before_fit(self) -> None:
        self._in_fit, self._broken = True, False
        self._figures.begin(self.learn.recorder.smooth_loss.beta)

    def before_epoch(self) -> None:
        self._open()

    @_survives
    def after_batch(self) -> None:
        learn = self.learn
        if not self._in_fit:
            return
        if learn.training:
            self._figures.take(learn, self._before + learn.train_iter)
            if self.trace_model and not self._traced:
                self._traced = True
                self._draw_graph()
        elif self.log_preds and learn.iter == 0 and is_first_set(learn):
            self._first.keep(learn)

    @_survives
    def after_epoch(self) -> None:
        self._write_rows()
        step = self._before + self.train_iter
        if self.hists:
            self._draw_weights(step)
        figure = self._first.figure(self.learn.loss_func)
        if figure is not None:
            self._open().add_figure("predictions", figure, step, close=False)
        self._first.forget()
        self._open().flush()

    @_survives
    def after_fit(self) -> None:
        self._write_rows()  # of an epoch that was cut short after its last figure

    def cleanup_fit(self) -> None:
        if not self._in_fit:
            return
        self._in_fit = False
        self._first.forget()
        self._end()
        self._close()  # where it is broken
        self._before += self.train_iter

    @_survives
    def _end(self) -> None:
        try:
            self._figures.read()
        finally:
            self._close()

    def _open(self) -> Any:
        """The writer, opened where the fit begins or goes on: what the folder holds from this batch on is not shown."""
        if self._writer is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of what tensorboard imports, about itself
                from torch.utils.tensorboard import SummaryWriter
            if self.folder is None:
                self.folder = self._new_folder()
            make: Any = SummaryWriter
            self._writer = make(str(self.folder), purge_step=self._before + self.train_iter + 1, flush_secs=20)
            self._written = len(self.learn.recorder.epochs)
        return self._writer

    def _new_folder(self) -> Path:
        if self.log_dir is not None:
            return Path(self.learn.path / self.log_dir)
        name = time.strftime("%Y-%m-%d_%H-%M-%S")
        folders = [self.learn.path / "runs" / f"{name}{suffix}" for suffix in ("", *(f"_{i}" for i in range(2, 1000)))]
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)  # taken: of two runs that begin at once each has its own
                return Path(folder)
        raise FileExistsError(f"{folders[0]} and its like are there already: give TensorBoard a log_dir")

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError) if self._broken else contextlib.nullcontext():
                writer.close()

    def _write(self, step: int, figures: dict[str, float]) -> None:
        """Writes figures as one event: a fifth of what one event each would cost."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._open().file_writer.add_summary(Summary(value=values), step)

    def _write_rows(self) -> None:
        """Writes the rows that the Recorder has made and that are not written yet."""
        self._figures.read()
        recorder = self.learn.recorder
        self._open()
        for i in range(self._written, len(recorder.epochs)):
            row = dict(zip(recorder.column_names[1:], recorder.values[i][1:], strict=True))
            known = {name: value for name, value in row.items() if value is not None}
            self._write(self._before + recorder.iters[i], known)
        self._written = len(recorder.epochs)

    def _draw_weights(self, step: int) -> None:
        for name, p in self.model.named_parameters():
            values = p.detach().float() if p.is_floating_point() else p.detach()
            values = values[values.isfinite()]
            if values.numel():
                self._open().add_histogram(name, values, step)

    def _draw_graph(self) -> None:
        learn = self.learn
        try:
            if not isinstance(learn.xb, tuple):
                raise TypeError("the batch's inputs go to the model by name")
            with _undisturbed(learn), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tracing, about what a trace cannot follow
                with contextlib.redirect_stdout(io.StringIO()):  # where torch prints an error before it raises it
                    self._open().add_graph(learn.model, learn.xb, use_strict_trace=False)
        except Exception as error:
            why = str(error).strip().split("\n")[0]
            warn(f"TensorBoard cannot draw the model's graph ({why}): trace_model=False leaves it out")


@contextlib.contextmanager
def _undisturbed(learn: "Loop") -> Iterator[None]:
    """A look at what the model does, in evaluation mode; afterwards modes, buffers and random numbers are as before."""
    modes: list[tuple[nn.Module, bool]] = [(module, module.training) for module in learn.model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in learn.model.buffers()]
    devices = {p.device for p in learn.model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        try:
            learn.model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, numbers in buffers:
                    buffer.copy_(numbers)


TensorBoardCallback = TensorBoard
"""fastai's name."""
