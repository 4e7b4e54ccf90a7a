"""What a Learner tells about itself."""

from minilearn.inspection import inspect_learner
from minilearn.layered import LayeredLoop
from minilearn.optim.groups import Spread
from minilearn.preflight import Check
from minilearn.summary import summarize
from minilearn.summary_page import Summary


class DescribedLoop(LayeredLoop):
    """A loop that can say what it is made of."""

    def summary(self) -> Summary:
        """The layers with output shapes, parameters and multiply-adds, the memory, loss, optimizer and callbacks.

        The model is called with one training batch, and everything put back; see `minilearn.summary.summarize`.

        Returns:
            A `Summary`; its text is a page, which a notebook shows.
        """
        return summarize(self)

    def check(self, lr: Spread | None = None, steps: int = 3) -> Check:
        """Looks for what is wrong with the set-up, prints a page, and puts everything back (`inspect_learner`).

        Shapes through the model, what the loss compares with what, and each of `minilearn.preflight.ITEMS`, with the
        value seen and the fix: an error where it is surely wrong, a warning where it may be meant.

        Args:
            lr: the learning rate that is tried; by default the Learner's.
            steps: how many steps are taken with it.
        Returns:
            A `Check`: `findings`, and whether it is `ok`; its text is the page.
        """
        return inspect_learner(self, lr, steps)
