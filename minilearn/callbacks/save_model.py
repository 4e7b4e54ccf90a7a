"""The best model of a fit, or each epoch's, in a file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilearn.callbacks.tracker import Comparison, TrackerCallback
from minilearn.errors import whole
from minilearn.files import FileError
from minilearn.tensor_files import safetensors_path


class SaveModel(TrackerCallback):
    """Saves the model when a figure is the best so far (`learn.save`), and loads the best one when the fit has ended.

    It saves in `after_epoch`: what was validated is what is saved, also where averaged weights stand in for validation
    and go back before the next training part. It loads in `after_fit`, into the parameters that are there; a fit that
    an error or Ctrl-C has ended keeps its last weights, and the best are in the file. `last_saved_path` is the file
    last written, None where no epoch was better: then the last weights stay, and a line says so.

    A file of 100 MB takes 0.4 s of a CPU core, mostly for its SHA-256, beside the disk's time; a batch costs nothing.

    Args:
        monitor: as in `TrackerCallback`, as are `comp`, `min_delta` and `reset_on_fit`.
        comp: which of two figures is better.
        min_delta: by how much.
        fname: the file's name, as for `learn.save`.
        every_epoch: save after every epoch, or every so many, as ``fname_0``, ``fname_1``, …, whatever the figure is;
            nothing is loaded at the end.
        at_end: save the last weights too when the fit ends, under the same name, instead of loading the best.
        with_opt: whether the optimizer's state is saved and loaded.
        reset_on_fit: whether a fit begins without a best figure; otherwise the best of several fits is kept.
    Raises:
        TypeError: as in `TrackerCallback`; `fname` is no name.
        ValueError: as in `TrackerCallback`; `fname` has another format's suffix, such as ``.pth``; both `every_epoch`
            and `at_end` are given; when a fit begins: two save to the same file.
        FileError: when a fit begins: the folder cannot be written to.
    Source: arguments and order of fastai 2.8.
    """

    order = TrackerCallback.order + 1  # fastai's 61: before EarlyStopping, which may end the fit with this very epoch

    last_saved_path: Path | None

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comparison = None,
        min_delta: float = 0.0,
        fname: str | Path = "model",
        every_epoch: bool | int = False,
        at_end: bool = False,
        with_opt: bool = False,
        reset_on_fit: bool = True,
    ) -> None:
        super().__init__(monitor, comp, min_delta, reset_on_fit)
        if every_epoch and at_end:
            raise ValueError(
                "every_epoch and at_end cannot both be asked for: every epoch's file has the last one's too"
            )
        self.fname = str(safetensors_path(fname, "fname").with_suffix(""))
        self.every_epoch = every_epoch if isinstance(every_epoch, bool) else whole("every_epoch", every_epoch)
        self.at_end, self.with_opt = at_end, with_opt
        self.last_saved_path = None

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far, and its file."""
        path = None if self.last_saved_path is None else str(self.last_saved_path)
        return {**super().state_dict(), "last_saved_path": path}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from the best figure, and its file, of a fit that was interrupted."""
        super().load_state_dict(state)
        path = state["last_saved_path"]
        self.last_saved_path = None if path is None else Path(path)

    def before_fit(self) -> None:
        if not self.every_epoch:
            super().before_fit()
        if self.reset_on_fit:
            self.last_saved_path = None
        for cb in self.learn.cbs:
            if isinstance(cb, SaveModel) and cb is not self and cb.fname == self.fname:
                raise ValueError(f"two SaveModel would write the same file '{self.fname}': give one another fname")
        self._look_at_folder()

    def after_epoch(self) -> None:
        if self.every_epoch:
            if self.epoch % self.every_epoch == 0:
                self._save(f"{self.fname}_{self.epoch}")
            return
        super().after_epoch()
        if self.new_best:
            self._save(self.fname)
            self.learn.logger(f"epoch {self.epoch}: {self.monitor} is {self.best:g}, the best so far: saved")

    def after_fit(self) -> None:
        if self.at_end:
            self._save(self.fname)
        elif self.every_epoch:
            return
        elif self.last_saved_path is None:
            self.learn.logger(f"SaveModel: no epoch had a {self.monitor} to save the model for; the last weights stay")
        else:
            self.learn.load(self.last_saved_path.resolve(), with_opt=self.with_opt)

    def _save(self, name: str) -> None:
        self.last_saved_path = self.learn.save(name, with_opt=self.with_opt)

    def _look_at_folder(self) -> None:
        """Makes the folder now: a fit should not find out after its first epoch that it cannot save."""
        folder = (self.learn.path / self.learn.model_dir / self.fname).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"SaveModel cannot make the folder {folder}: {error.strerror or error}") from error
        if not os.access(folder, os.W_OK):
            raise FileError(f"SaveModel cannot write to the folder {folder}")


SaveModelCallback = SaveModel  # fastai's name
