"""Batches whose rows are blended with each other, inputs and targets alike: MixUp and CutMix."""

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Beta

from minilearn.callback import Callback
from minilearn.checks import first_loss
from minilearn.errors import positive
from minilearn.losses import Loss, infer_loss
from minilearn.tensors import shape_text


class Blend(NamedTuple):
    """The target of a batch whose rows are blended in pairs."""

    first: tuple[Any, ...]
    """The targets of the rows."""
    second: tuple[Any, ...]
    """The targets of the rows that were blended into them."""
    lam: Tensor
    """The share of the first, float: of each row (batch,), or of all of them ()."""


class BlendedLoss:
    """A loss that takes a `Blend` as its target: ``lam·loss(pred, first) + (1 - lam)·loss(pred, second)``.

    With one `lam` for all rows that is all. With one a row, each row's losses are blended before they are reduced, for
    which the loss must be able to leave that to others (`unreduced`); any other target goes to the loss as it is.

    Args:
        loss_func: the loss.
    """

    def __init__(self, loss_func: Loss) -> None:
        self.loss_func = loss_func
        self.rows, self.reduction = unreduced(loss_func)

    def __call__(self, pred: Any, *yb: Any) -> Tensor:
        """The loss of predictions against a `Blend`, or against plain targets."""
        if len(yb) != 1 or not isinstance(yb[0], Blend):
            return self.loss_func(pred, *yb)
        first, second, lam = yb[0]
        if lam.ndim == 0 or self.rows is None:
            own, other = self.loss_func(pred, *first), self.loss_func(pred, *second)
            return torch.lerp(other, own, lam.to(own.dtype))
        # A row may have many losses, one a pixel say.
        own = self.rows(pred, *first).reshape(len(lam), -1)  # (batch, losses of a row)
        other = self.rows(pred, *second).reshape(len(lam), -1)
        blended = torch.lerp(other, own, lam.to(own.dtype)[:, None])
        return blended.sum() if self.reduction == "sum" else blended.mean()


def unreduced(loss_func: Loss) -> tuple[Loss | None, str]:
    """The loss without its reduction, and that reduction; None where it cannot do without.

    It can where it has an attribute `reduction`, or a keyword of that name.

    >>> torch.nn.CrossEntropyLoss().reduction, unreduced(torch.nn.CrossEntropyLoss())[0].reduction
    ('mean', 'none')
    """
    was = getattr(loss_func, "reduction", None)
    if isinstance(was, str):
        for make in (copy.copy, copy.deepcopy):  # a loss may keep it in a part that a shallow copy shares
            rows: Any = make(loss_func)
            rows.reduction = "none"
            if getattr(loss_func, "reduction", None) == was:
                return rows, was
            loss_func.reduction = was  # type: ignore[attr-defined]
    try:
        keyword = inspect.signature(loss_func).parameters.get("reduction")
    except (TypeError, ValueError):  # one written in C may not tell
        return None, "mean"
    if keyword is None or keyword.kind is keyword.POSITIONAL_ONLY or not isinstance(keyword.default, str):
        return None, "mean"
    return partial(loss_func, reduction="none"), keyword.default


class Mixing(Callback):
    """What `MixUp` and `CutMix` share: the pairs of rows, and the targets and the loss that go with them.

    In each training batch, before the model sees it, the inputs are blended and the target becomes a `Blend`, for a
    loss that takes one (`BlendedLoss`); targets that are floats are blended themselves. Once the loss is known, and
    whatever ends the batch, the targets and the loss are as they were: metrics see them so, and validation is plain.
    An optimizer's own evaluations within its step see the blend again.

    Random numbers are torch's, of the batch's device; nothing waits for it, and a compiled step stays one graph.
    """

    order = 0  # among a user's own, as they were added: those before it change the batch that is blended
    run_valid = False
    acts_in_step = False  # batch and loss are replaced before the step, and put back after it

    def __init__(self, alpha: float) -> None:
        self.alpha = positive("alpha", alpha)
        self._shares: tuple[torch.device, Beta] | None = None
        self._blended: BlendedLoss | None = None
        self._unchecked = self._installed = False

    def before_fit(self) -> None:
        for cb in self.learn.cbs:
            if isinstance(cb, Mixing) and cb is not self:
                raise ValueError(f"{type(self).__name__} and {type(cb).__name__} would blend the same batch: one only")
        self._unchecked = True

    def before_batch(self) -> None:
        yb = self._plain_yb = self.yb
        if not yb or not all(isinstance(y, Tensor) and y.ndim for y in yb):
            raise ValueError(f"{type(self).__name__} needs targets that are tensors, one a row, got {shape_text(yb)}")
        self._plain_loss = self.learn.loss_func
        soft = all(y.is_floating_point() for y in yb)
        if not soft and self._plain_loss is None and self.learn._to_model:
            raise ValueError(
                f"{type(self).__name__} blends what loss_func takes, and there is none: the model computes its loss"
                " itself, of targets as they are. Give Learner(..., loss_func=...)"
            )
        blended = None if soft else self._for_blends(self._plain_loss)
        self._loss: Loss | None = self._plain_loss if soft else blended
        lam, others = self.blend(yb[0], by_row=soft or (blended is not None and blended.rows is not None))
        second = tuple(y[others] for y in yb)
        if soft:
            self._yb: tuple[Any, ...] = tuple(_lerp(other, y, lam) for other, y in zip(second, yb, strict=True))
        else:
            self._yb = (Blend(yb, second, lam),)
        self._install()

    def after_pred(self) -> None:
        if self._unchecked and isinstance(self._yb[0], Blend):
            self._look_at_first()
        self._unchecked = False

    def after_loss(self) -> None:
        self._put_back()

    def before_step(self) -> None:
        if self.learn._needs_closure:  # the optimizer evaluates the loss itself
            self._install()

    def after_step(self) -> None:
        self._put_back()

    def after_batch(self) -> None:
        self._put_back()

    def after_train(self) -> None:
        self._put_back()

    def after_epoch(self) -> None:
        self._put_back()

    def cleanup_fit(self) -> None:
        self._put_back()
        self.__dict__.update(_plain_yb=(), _yb=())  # the last batch

    def blend(self, like: Tensor, *, by_row: bool) -> tuple[Tensor, Tensor]:
        """Blends the batch's inputs.

        Args:
            like: a target (batch, …), for the number of rows and the device.
            by_row: whether each row may have a share of its own.
        Returns:
            The share of each row (batch,), or of all (), and the number of the row blended into each, (batch,).
        """
        raise NotImplementedError

    def _install(self) -> None:
        self.learn.loss_func, self.learn.yb = self._loss, self._yb
        self._installed = True

    def _put_back(self) -> None:
        if self._installed:
            self.learn.loss_func, self.learn.yb = self._plain_loss, self._plain_yb
            self._installed = False

    def _for_blends(self, loss_func: Loss | None) -> BlendedLoss | None:
        """The loss for a `Blend`: one object from batch to batch, as graphs are made of it."""
        if loss_func is None:
            return None
        if self._blended is None or self._blended.loss_func is not loss_func:
            self._blended = BlendedLoss(loss_func)
        return self._blended

    def _look_at_first(self) -> None:
        """Does for a fit's first batch what the loop does where targets are plain: chooses a loss, and checks it."""
        if self._plain_loss is None:
            self._plain_loss, why = infer_loss(self.pred, self._plain_yb)
            self.learn.logger(why)
            self._loss = self._for_blends(self._plain_loss)
            self._install()
        first_loss(self._plain_loss, self.pred, self._plain_yb, training=False)

    def _share(self, n: int, device: torch.device) -> Tensor:
        """Draws `n` numbers from the beta distribution."""
        place = device if device.type in ("cpu", "cuda") else torch.device("cpu")  # others cannot draw from it
        if self._shares is None or self._shares[0] != place:
            alpha = torch.tensor(self.alpha, device=place)
            self._shares = place, Beta(alpha, alpha, validate_args=False)  # which would wait for the device
        return self._shares[1].sample((n,)).to(device)


class MixUp(Mixing):
    """Blends each row of a training batch with another: ``x ← lam·x + (1 - lam)·x[other]``, and the loss alike.

    `lam` is drawn for each row from Beta(alpha, alpha), the larger of it and 1 - lam, so that a row stays the greater
    part of itself; for all rows at once where the loss cannot leave its reduction to others (`unreduced`). A loss
    whose mean is weighted, as cross-entropy's with class weights, has the plain mean of the weighted losses, as in
    fastai. Targets that are floats are blended as the inputs are. What is replaced when: see `Mixing`.

    A batch of 32 small images costs 0.2 ms on a CPU; the loss is computed twice, 0.1 ms for a small one.

    Args:
        alpha: of the beta distribution, greater than 0: near 0 rows hardly change, at 1 any share is as likely.
    Raises:
        ValueError: `alpha` is not greater than 0; in a fit: inputs are no floats, or there are no targets.
    Source: Zhang et al. 2018 (arXiv:1710.09412); the shares and the loss as in fastai 2.8.

    >>> mixup = MixUp(0.2)
    """

    order = Mixing.order

    def __init__(self, alpha: float = 0.4) -> None:
        super().__init__(alpha)

    def blend(self, like: Tensor, *, by_row: bool) -> tuple[Tensor, Tensor]:
        """Blends all of the batch's inputs, row by row."""
        xb = self.xb
        parts = list(xb.values() if isinstance(xb, Mapping) else xb)
        if not all(isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in parts):
            raise ValueError(
                f"MixUp blends inputs that are floats, got {shape_text(xb)}: for images of bytes, batch_tfms=IntToFloat"
            )
        lam = self._share(len(like) if by_row else 1, like.device)
        lam = torch.maximum(lam, 1 - lam)
        lam = lam if by_row else lam[0]
        others = torch.randperm(len(like), device=like.device)
        mixed = [_lerp(x[others], x, lam) for x in parts]
        self.learn.xb = dict(zip(xb, mixed, strict=True)) if isinstance(xb, Mapping) else tuple(mixed)
        return lam, others


class CutMix(Mixing):
    """Pastes a box of another image into each image of a training batch; the loss is shared by area.

    The box is of one place and size for the batch: of the share 1 - lam of the image, `lam` from Beta(alpha, alpha),
    around a point drawn anywhere, and cut off at the edges; what is left of it is the other target's share. The batch
    itself is not written to. What is replaced when: see `Mixing`.

    A batch of 32 small images costs 0.4 ms on a CPU; the loss is computed twice, 0.1 ms for a small one.

    Args:
        alpha: of the beta distribution, greater than 0.
    Raises:
        ValueError: `alpha` is not greater than 0; in a fit: there is not one input (batch, …, height, width), or there
            are no targets.
    Source: Yun et al. 2019 (arXiv:1905.04899); the box as in fastai 2.8.

    >>> cutmix = CutMix(1.0)
    """

    order = Mixing.order

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def blend(self, like: Tensor, *, by_row: bool) -> tuple[Tensor, Tensor]:
        """Pastes the box; its share is the same for all rows."""
        x = self.x
        if not isinstance(x, Tensor) or x.ndim < 3:
            raise ValueError(f"CutMix needs one input (batch, …, height, width), got {shape_text(self.xb)}")
        height, width = x.shape[-2:]
        lam = self._share(1, x.device)
        others = torch.randperm(len(like), device=x.device)
        x1, x2 = _span(width, lam)
        y1, y2 = _span(height, lam)
        columns, rows = torch.arange(width, device=x.device), torch.arange(height, device=x.device)
        # A mask, as slicing by numbers that are on a GPU would wait for them.
        inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))  # (height, width)
        mixed = torch.where(inside, x[others], x)
        self.learn.xb = dict.fromkeys(self.xb, mixed) if isinstance(self.xb, Mapping) else (mixed,)
        return (1 - (x2 - x1) * (y2 - y1) / float(width * height))[0], others


def _span(size: int, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Where the box begins and ends on an axis, each (1,): around a point drawn on it."""
    half = torch.round(size * torch.sqrt(1 - lam)).long() // 2
    centre = torch.randint(0, size, (1,), device=lam.device)
    return (centre - half).clamp(0, size), (centre + half).clamp(0, size)


def _lerp(other: Tensor, own: Tensor, lam: Tensor) -> Tensor:
    """other + lam·(own - other), with a share for each row (batch,) or for all ()."""
    weight = lam.to(own.dtype)
    return torch.lerp(other, own, weight.reshape(-1, *[1] * (own.ndim - 1)) if lam.ndim else weight)
