"""Layers in another mode than the rest of the model, and models that keep something from batch to batch."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from minilearn.callback import Callback
from minilearn.callbacks.train_eval import TrainEval


def set_bn_eval(m: nn.Module, use_eval: bool = True) -> None:
    """Puts batch normalisation that is not trained, `m` itself or in it, into evaluation mode.

    Its running statistics then stay as they are. One without parameters cannot be frozen, and is left alone.

    Args:
        m: a module.
        use_eval: whether into evaluation mode; else into training mode.
    """
    for layer in m.modules():
        if isinstance(layer, _BatchNorm):
            params = list(layer.parameters())
            if params and not any(p.requires_grad for p in params):
                layer.train(not use_eval)


class BnFreeze(Callback):
    """Keeps the running statistics of frozen batch normalisation as they are: in training it is in evaluation mode.

    Without it they go on in frozen layers too. `Learner(train_bn=True)`, the default, trains batch normalisation in
    frozen layers, which then is not frozen: for this callback to have something to do, ``train_bn=False``. A batch
    costs nothing.
    """

    order = TrainEval.order + 1  # after the model is put into training mode
    run_search = True  # a search should train what a fit does

    def before_train(self) -> None:
        set_bn_eval(self.model)


class MCDropout(Callback):
    """Leaves dropout on in validation and predictions: several of them differ, by how sure the model is.

    That is of layers whose class has "dropout" in its name; dropout as a function within another layer's `forward`
    (in `nn.MultiheadAttention`, say) stays off. After the validation each has the mode that it had before. A batch
    costs nothing but the dropout.

    Source: Gal and Ghahramani 2016 (arXiv:1506.02142); `MCDropoutCallback` of fastai 2.8.
    """

    order = TrainEval.order + 1  # after the model is put into evaluation mode

    def __init__(self) -> None:
        self._modes: list[tuple[nn.Module, bool]] = []

    def before_validate(self) -> None:
        layers = [layer for layer in self.model.modules() if "dropout" in type(layer).__name__.lower()]
        self._modes = [(layer, layer.training) for layer in layers]
        for layer in layers:
            layer.training = True

    def after_validate(self) -> None:
        self._put_back()

    def cleanup_fit(self) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for layer, mode in self._modes:
            layer.training = mode
        self._modes = []


MCDropoutCallback = MCDropout


class ModelReset(Callback):
    """Calls the model's own `reset` before training, before validation and after the fit, whatever ended it.

    For models that keep something from batch to batch, as recurrent ones do with their hidden state. A batch costs
    nothing.

    Raises:
        ValueError: when a fit or a validation begins: the model has no method `reset`.
    """

    order = TrainEval.order + 1  # the mode is set
    run_search = True  # a search should not begin with what the last fit left behind

    def before_fit(self) -> None:
        self._look()

    def before_train(self) -> None:
        self._reset()

    def before_validate(self) -> None:
        self._look()
        self._reset()

    def cleanup_fit(self) -> None:
        if hasattr(self.model, "reset"):  # where there is none, that is the error on its way
            self._reset()

    def _look(self) -> None:
        if not callable(getattr(self.model, "reset", None)):
            raise ValueError(f"ModelReset needs a model with a method reset, got {type(self.model).__name__}")

    def _reset(self) -> None:
        model: Any = self.model
        model.reset()


ModelResetter = ModelReset
