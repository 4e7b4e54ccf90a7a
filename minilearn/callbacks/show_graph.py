"""The curve of the loss, drawn while the fit goes on."""

import io
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from minilearn.callback import Callback
from minilearn.callbacks.progress import ProgressCallback, in_notebook
from minilearn.plots import ORANGE, plot_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REDRAW_S = 1.0
"""Within an epoch the picture is drawn anew at most this often."""

PART = 0.02
"""How much of the time drawing may take within an epoch."""


class ShowGraph(Callback):
    """Draws the training and the validation loss in a notebook, in one picture that grows with the fit.

    It is drawn anew when an epoch ends (`after_epoch`), and within a long one (`after_batch`) at most once a second and
    so that drawing takes no more than a fiftieth of the time. The horizontal axis reaches to the end of the fit. The
    last picture stays in the notebook; no figure stays open. Elsewhere than in a notebook, within `learn.no_bar()` and
    `learn.no_logging()`, and where the Learner has a `logger` of its own, nothing is drawn; `figure` gives the picture
    in any case, to be saved.

    A batch costs 2 µs on a CPU. A picture takes about a tenth of a second and waits for the device. It only
    looks on, so a compiled step stays whole.
    """

    order = ProgressCallback.order + 1  # below the table
    acts_in_step = False
    run_search = False  # a search draws its own picture

    def __init__(self) -> None:
        self._handle: Any = None
        self._live = self._shown = False
        self._due = math.inf

    def figure(self) -> "Figure":
        """The picture as it stands now; pyplot has not heard of it, so that it need not be closed."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        recorder = self.learn.recorder
        figure = Figure(figsize=(6, 4), layout="constrained")
        ax = plot_loss(recorder.losses, stride=recorder.stride, ax=figure.subplots())
        ax.lines[-1].set_label("training (moving average)")
        ax.set(xlabel="training batch", ylabel="loss", title="")
        if "valid_loss" in recorder.metric_names:
            at = recorder.metric_names.index("valid_loss") - 1  # a row has no epoch
            points = [(i, row[at]) for i, row in zip(recorder.iters, recorder.values, strict=False)]
            known = [(i, loss) for i, loss in points if loss is not None]
            xs, ys = [i for i, _ in known], [loss for _, loss in known]
            ax.plot(xs, ys, "o-", color=ORANGE, linewidth=1.8, label="validation", clip_on=False, zorder=3)
        ax.set_xlim(0, max(self._batches_in_fit(), recorder.smooth_loss.count, 1))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, loc="upper right")
        return figure

    def before_fit(self) -> None:
        self._handle, self._shown = None, False
        self._live = self.learn.show_bar and self.learn.logger is print and in_notebook()

    def before_train(self) -> None:
        if self._live:
            self._due = time.monotonic() + REDRAW_S

    def after_batch(self) -> None:
        if self._due <= time.monotonic() and self.training:
            self._draw()

    def after_epoch(self) -> None:
        self._draw()

    def after_fit(self) -> None:
        self._draw()  # of a fit that was cancelled within an epoch

    def cleanup_fit(self) -> None:
        self._handle, self._live, self._due = None, False, math.inf

    def _draw(self) -> None:
        if not self._live:
            return
        started = time.monotonic()
        picture = io.BytesIO()
        self.figure().savefig(picture, format="png", dpi=100)
        display = sys.modules["IPython.display"]
        image = display.Image(data=picture.getvalue(), width=600)
        if self._handle is None:
            self._handle = display.display(image, display_id=True)
        else:
            self._handle.update(image)
        now = time.monotonic()
        self._due = now + max(REDRAW_S, (now - started) / PART)

    def _batches_in_fit(self) -> int:
        try:
            return self.n_epoch * len(self.dls.train)
        except TypeError:
            return 0  # the loader has no length


ShowGraphCallback = ShowGraph
"""fastai's name."""
