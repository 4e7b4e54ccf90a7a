"""What a Learner tells about itself."""

from minilearn.layered import LayeredLoop
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
