"""Mixed precision: the forward pass and the loss by autocast, and a scaler for the gradients of float16."""

import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from minilearn.callback import Callback, CancelStepException
from minilearn.callbacks.recorder import Recorder
from minilearn.errors import did_you_mean, in_range, positive, whole
from minilearn.optim.foreign import needs_closure
from minilearn.tensors import default_device, map_tensors


class AMPMode(Enum):
    """The two precisions of mixed precision, by fastai's names."""

    FP16 = "fp16"
    BF16 = "bf16"


DTYPES = {AMPMode.BF16: torch.bfloat16, AMPMode.FP16: torch.float16}
HALVES = frozenset(DTYPES.values())


class MixedPrecision(Callback):
    """Trains, validates and predicts in mixed precision: the model and the loss run under torch's autocast.

    `before_batch` enters autocast, `after_loss` leaves it, and so does whatever else ends a batch. Weights, gradients
    and the optimizer stay in float32; `pred` is float32 from this callback's `after_pred` on, and so is `loss`: metrics
    and other callbacks never see half precision.

    With float16 the loss that `backward` starts from is scaled up; before the step, the gradients are scaled back (so
    that `GradientClip` sees true ones), and a step with gradients that are infinite or nan is left out
    (`CancelStepException`), the scale is halved, the schedule goes on. For that torch's scaler reads one number a step
    from the device; not so with an optimizer whose kernel can leave the step out itself (torch's with ``fused=True``),
    where there is no cancel. bfloat16 has float32's range, and needs no scaler.

    With ``compile=True`` the model is compiled under autocast, the rest of the step is carried out as it is.

    On a CPU whose cores compute in float32 alone a batch of ten small layers takes 1.9 ms longer for its casts, with
    float16 1.2 ms; large layers win where there are cores for them.

    Args:
        amp_mode: "bf16", "fp16", an `AMPMode`, or one of torch's dtypes; by default bfloat16 where the device computes
            in it, else float16.
        init_scale: the first scale, greater than 0.
        growth_factor: by what the scale grows after `growth_interval` steps without an overflow, greater than 1.
        backoff_factor: by what it is multiplied after an overflow, in (0, 1).
        growth_interval: how many steps, at least 1.
    Raises:
        ValueError: an argument is not what it may be; or when a fit or a validation begins: the device has no autocast
            in this precision, or the model is of float64, which autocast leaves as it is, or (with a scaler) of
            float16; or the optimizer evaluates the loss itself, where autocast would not be.
    Source: `MixedPrecision` of fastai 2.8; Micikevicius et al. 2018 (arXiv:1710.03740).
    """

    order = Recorder.order - 40  # fastai's 10: what reads predictions and gradients comes after it

    dtype: torch.dtype | None
    """The precision; None until a fit or a validation has chosen it for its device."""
    scaler: GradScaler | None
    """The gradients' scaler, with float16; it goes on from fit to fit."""

    def __init__(
        self,
        amp_mode: AMPMode | str | torch.dtype | None = None,
        *,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self._asked = None if amp_mode is None else _dtype_of(amp_mode)
        self._options: dict[str, Any] = {
            "init_scale": positive("init_scale", init_scale),
            "growth_factor": in_range("growth_factor", growth_factor, 1, open_low=True),
            "backoff_factor": in_range("backoff_factor", backoff_factor, 0, 1, open_low=True),
            "growth_interval": whole("growth_interval", growth_interval, 1),
        }
        self.dtype, self.scaler = self._asked, None
        self._device_type = ""
        self._loaded: dict[str, Any] | None = None
        self._autocast: torch.autocast | None = None
        self._entered = self._scaled = False
        self._step: _Step | None = None

    def state_dict(self) -> dict[str, Any]:
        """The scaler's scale and how many steps it has held. Reading it waits for the device."""
        return {"scaler": self._loaded if self.scaler is None else self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with a scale that `state_dict` gave."""
        self._loaded = state["scaler"]
        if self.scaler is not None and self._loaded:
            self.scaler.load_state_dict(self._loaded)

    def before_fit(self) -> None:
        if needs_closure(self.opt):
            raise ValueError(
                f"MixedPrecision: {type(self.opt).__name__} evaluates the loss itself within its step, where autocast"
                " would not be: train in float32, learn.to_fp32()"
            )
        self._ready()

    def before_validate(self) -> None:
        self._ready()

    def before_batch(self) -> None:
        self._leave()
        autocast = self._autocast or self._ready()
        autocast.__enter__()  # type: ignore[no-untyped-call]
        self._entered = True

    def after_pred(self) -> None:
        self.learn.pred = map_tensors(in_float32, self.pred)

    def after_loss(self) -> None:
        self._leave()
        loss = self.learn.__dict__.get("loss")
        if loss is not None and loss.dtype in HALVES:
            self.learn.loss = loss.float()

    def before_backward(self) -> None:
        if self.scaler is not None:
            self.learn.loss_grad = self.scaler.scale(self.learn._root())
            self._scaled = True

    def before_step(self) -> None:
        self._leave()  # a step after a training part that was cancelled within its forward pass
        if self.scaler is None or not self._scaled or not _has_gradients(self.opt):
            return
        self._scaled = False
        self._step = step = _Step(self.opt)
        stands_in: Any = step
        self.scaler.unscale_(stands_in)
        self.scaler.step(stands_in)
        self.scaler.update()
        if not step.taken:
            raise CancelStepException

    def after_step(self) -> None:
        self._let_go()

    def after_cancel_batch(self) -> None:
        self._let_go()

    def after_cancel_train(self) -> None:
        self._let_go()

    def after_cancel_validate(self) -> None:
        self._let_go()

    def after_cancel_epoch(self) -> None:
        self._let_go()

    def after_cancel_fit(self) -> None:
        self._let_go()

    def cleanup_fit(self) -> None:
        self._let_go()
        self._autocast, self._scaled = None, False

    def _ready(self) -> torch.autocast:
        """Autocast for the model's device, and the scaler: made when a fit or a validation begins."""
        device = next((p.device for p in self.model.parameters()), self.dls.device or default_device())
        device = torch.device(device)
        self.dtype = dtype = self._asked or best_dtype(device)
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        if kinds == {torch.float64} or (dtype is torch.float16 and torch.float16 in kinds):
            found = "float64, which autocast leaves as it is" if torch.float64 in kinds else "float16"
            fix = "learn.model.float() makes them so"
            raise ValueError(f"MixedPrecision: the model's parameters must be float32, got {found}: {fix}")
        self._autocast = autocast_for(device, dtype)
        if dtype is not torch.float16:
            self.scaler = None
        elif self.scaler is None or self._device_type != device.type:
            kept = self.scaler.state_dict() if self.scaler is not None else self._loaded
            self.scaler, self._device_type = GradScaler(device.type, **self._options), device.type
            if kept:
                self.scaler.load_state_dict(kept)
        return self._autocast

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            assert self._autocast is not None
            self._autocast.__exit__(None, None, None)

    def _let_go(self) -> None:
        self._leave()
        if self._step is not None:
            self._step.let_go()
            self._step = None


class _Step:
    """Stands in for the optimizer before the scaler: the loop takes the step, or a cancel leaves it out.

    An optimizer whose kernel leaves the step out itself is given the tensor that says so, which nobody has to read.
    """

    grad_scale: Tensor | None
    found_inf: Tensor

    def __init__(self, opt: Optimizer) -> None:
        self._opt: Any = opt
        self.param_groups = opt.param_groups
        self.taken = False
        self._step_supports_amp_scaling = bool(getattr(opt, "_step_supports_amp_scaling", False))

    def step(self) -> None:
        """What the scaler calls where there is a step to take."""
        self.taken = True
        if self._step_supports_amp_scaling:
            self._opt.grad_scale, self._opt.found_inf = self.grad_scale, self.found_inf

    def let_go(self) -> None:
        """Takes back what the optimizer was given for this step."""
        if self._step_supports_amp_scaling:
            for name in ("grad_scale", "found_inf"):
                vars(self._opt).pop(name, None)


def best_dtype(device: torch.device) -> torch.dtype:
    """The precision for a device: bfloat16 where it computes in it, else float16."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    try:
        autocast_for(device, torch.bfloat16)
    except ValueError:
        return torch.float16
    return torch.bfloat16


def autocast_for(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """torch's autocast, tried on a small product: where it cannot, torch only warns and goes on in float32.

    Raises:
        ValueError: the device does not compute in this precision.
    """
    why = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it
            autocast = torch.autocast(device.type, dtype=dtype)
        with torch.no_grad(), autocast:
            one = torch.ones(1, 1, device=device)
            if (one @ one).dtype is dtype:
                return autocast
    except (RuntimeError, TypeError) as error:
        why = f" ({str(error).splitlines()[0]})"
    name = str(dtype).removeprefix("torch.")
    raise ValueError(f"MixedPrecision: autocast to {name} is not possible on the device '{device}'{why}")


def in_float32(value: Tensor) -> Tensor:
    """A tensor of half precision in float32; any other as it is."""
    return value.float() if value.dtype in HALVES else value


def _dtype_of(amp_mode: Any) -> torch.dtype:
    if isinstance(amp_mode, str):
        names = [mode.value for mode in AMPMode]
        if amp_mode not in names:
            raise ValueError(f"amp_mode must be 'bf16' or 'fp16', got {amp_mode!r}{did_you_mean(amp_mode, names)}")
        amp_mode = AMPMode(amp_mode)
    dtype = DTYPES.get(amp_mode, amp_mode)
    if dtype not in HALVES:
        raise ValueError(f"amp_mode must be 'bf16' or 'fp16', got {amp_mode!r}")
    found: torch.dtype = dtype
    return found


def _has_gradients(opt: Optimizer) -> bool:
    return any(p.grad is not None for group in opt.param_groups for p in group["params"])
