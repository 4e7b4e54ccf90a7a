"""How what a Learner is made of is found out: its model is called with one batch, and everything is put back."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from minilearn.batches import targets_taken
from minilearn.callback import CancelException
from minilearn.callbacks import DevicePlacement
from minilearn.data.loader import ANEW, length, no_batch
from minilearn.data.loaders import DataLoaders
from minilearn.graphs import call
from minilearn.hooks import Hooks, shapes_of, total_params
from minilearn.layered import LayeredLoop
from minilearn.optim import groups
from minilearn.optim.foreign import make_optimizer
from minilearn.restore import restored
from minilearn.summary_page import LayerRow, Summary
from minilearn.tensors import batch_size, leaves, shape_text


def summarize(learn: LayeredLoop) -> Summary:
    """What `Learner.summary` does: calls the model with one batch, and says what it is made of.

    The batch is the training loader's first one, put on the device by `DevicePlacement` and through the `before_batch`
    of the callbacks that take part in validation. The model is in evaluation mode and without gradients. Afterwards the
    Learner, its loaders' order and all random numbers are as they were (`restored`). The first call takes some seconds
    where torch's compiler, which its counter asks for, has not been imported yet.

    Raises:
        ValueError: the training loader gives no batch, or can be run through only once.
        RuntimeError: in the middle of a fit.
    """
    learn._not_running()
    learn.dls = DataLoaders.of(learn.dls)
    if hasattr(learn.dls.train, "__next__"):
        raise ValueError(f"summary would take a batch from a loader that can be run through only once. {ANEW}")
    with restored(learn):
        batch = next(iter(learn.dls.train), None)
        if batch is None:
            raise ValueError(no_batch("training loader", length(learn.dls.train)))
        xb = _prepared(learn, batch)
        watch = _Watch(learn.model)
        with watch, torch.no_grad():
            call(learn.model.eval(), xb)
        return _described(learn, xb, watch)


def layer_info(learn: LayeredLoop, *xb: Any) -> list[tuple[str, int | str, bool | str, Any, bool]]:
    """For each layer without children: class, parameters, trained or not, output shape, and if that is the input's.

    Args:
        learn: the Learner.
        xb: the model's inputs, on the model's device; only the first row of each is taken.
    Returns:
        A tuple a layer that was called, in the order in which they were added; parameters and trained are empty for a
        layer that has no `weight`.
    Source: fastai 2.8.12, `layer_info`.
    """

    def row(module: nn.Module, inputs: Any, output: Any) -> tuple[str, int | str, bool | str, Any, bool]:
        given, made = leaves(inputs), leaves(output)
        pairs = [(a, b) for a, b in zip(given, made, strict=False) if isinstance(a, Tensor) and isinstance(b, Tensor)]
        same = any(a.shape[1:] == b.shape[1:] for a, b in pairs)
        counted: tuple[int | str, bool | str] = total_params(module) if hasattr(module, "weight") else ("", "")
        return (type(module).__name__, *counted, shapes_of(output), same)

    first = tuple(part[:1] if isinstance(part, Tensor) else part for part in xb)
    with restored(learn), _all_called(learn.model):
        layers = [module for module in learn.model.modules() if next(module.children(), None) is None]
        with Hooks(layers, row) as hooks, torch.no_grad():
            learn.model.eval()(*first)
    return [found for found in hooks.stored if found is not None]


def _prepared(learn: LayeredLoop, batch: Any) -> Any:
    """A batch's inputs as the model gets them in validation; the model is on its device then."""
    learn._begin_part(learn.dls.train, training=False)
    learn._take(batch)
    learn.iter = 0
    with learn.no_logging(), torch.no_grad(), suppress(CancelException):
        for cb in learn.cbs:
            if isinstance(cb, DevicePlacement):
                cb.before_validate()
        learn.event("before_batch")
    return learn.xb


@contextmanager
def _all_called(model: nn.Module) -> Iterator[None]:
    """Has every module called as it is written: not compiled, and not left out by torch's faster transformer."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if any(hasattr(module, "_orig_mod") for module in model.modules()):  # of torch.compile; its import takes long
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Using `torch.compile")  # beside torch's counter
        yield


class _Watch:
    """Notes what each module gives, how often it is called, and the work that is done in it."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes: dict[nn.Module, Any] = {}
        self.calls: dict[nn.Module, int] = {}
        self.flops: dict[nn.Module, float] = {}
        self.activation_bytes = 0
        self._model, self._counter = model, FlopCounterMode(display=False, custom_mapping=_uncounted())
        self._open: list[tuple[float, float]] = []  # for each module now at work: flops when it began, its children's
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(_all_called(self._model))
            stack.enter_context(self._counter)
            for module in self._model.modules():
                stack.callback(module.register_forward_pre_hook(self._begin).remove)
                stack.callback(module.register_forward_hook(self._end).remove)
            self._stack = stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._open.append((float(self._counter.get_total_flops()), 0.0))

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        before, of_children = self._open.pop()
        done = float(self._counter.get_total_flops()) - before
        if isinstance(module, nn.RNNBase) and not done:  # of cuDNN and oneDNN, whose work torch does not count
            done = 2.0 * _products(module, inputs[0])
        self.flops[module] = self.flops.get(module, 0.0) + done - of_children
        if self._open:
            start, others = self._open[-1]
            self._open[-1] = (start, others + done)
        self.shapes[module] = shapes_of(_as_container(output))
        self.calls[module] = self.calls.get(module, 0) + 1
        if next(module.children(), None) is None:
            taken = {part.untyped_storage().data_ptr() for part in leaves(inputs) if isinstance(part, Tensor)}
            for part in leaves(_as_container(output)):
                if isinstance(part, Tensor) and part.untyped_storage().data_ptr() not in taken:  # else in place
                    self.activation_bytes += part.numel() * part.element_size()


def _uncounted() -> dict[Any, Any]:
    """What torch's counter leaves out (2.13): attention as a CPU does it."""
    attention = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)

    def flops(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        return sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]

    return {} if attention is None else {attention: flops}


def _products(module: nn.RNNBase, x: Any) -> int:
    """The multiply-adds of a recurrent layer: each of its matrices meets each step of each row once."""
    steps = x.data.shape[0] if isinstance(x, PackedSequence) else x.numel() // x.shape[-1]
    return int(steps) * sum(p.numel() for p in module.parameters() if p.ndim == 2)


def _as_container(output: Any) -> Any:
    """What a module gives, where it is an object with tensors as its attributes: these by name."""
    if isinstance(output, (Tensor, tuple, list, Mapping)) or not hasattr(output, "__dict__"):
        return output
    return {name: part for name, part in vars(output).items() if isinstance(part, (Tensor, tuple, list, Mapping))}


def _described(learn: LayeredLoop, xb: Any, watch: _Watch) -> Summary:
    model = learn.model
    params, rows = list(model.parameters()), batch_size(xb)
    trained = [p for p in params if p.requires_grad]
    given = xb if isinstance(xb, Mapping) or len(xb) != 1 else xb[0]
    loss, own = learn.loss_func, "the model's own, where it gives one"
    return Summary(
        model=type(model).__name__,
        batch=shape_text(given),
        rows=list(_rows(model, watch, rows)),
        parameters=total_params(model)[0],
        trainable_parameters=sum(p.numel() for p in trained if not is_lazy(p)),
        multiply_adds=sum(watch.flops.values()) / 2 / rows,
        parameter_bytes=_bytes(params),
        buffer_bytes=_bytes(model.buffers()),
        gradient_bytes=_bytes(trained),
        optimizer_bytes=_state_bytes(learn),
        activation_bytes=watch.activation_bytes,
        loss=_name(loss) if loss is not None else own if targets_taken(model) else "the one that suits the first batch",
        optimizer=_optimizer(learn),
        frozen=_frozen(learn),
        callbacks=[type(cb).__name__ for cb in learn.cbs],
    )


def _rows(model: nn.Module, watch: _Watch, batch: int) -> Iterator[LayerRow]:
    """The modules from the outside in; one that was met before stands there again, without what is in it."""
    met: dict[nn.Module, str] = {}
    owners: dict[Tensor, str] = {}

    def walk(module: nn.Module, path: str, depth: int) -> Iterator[LayerRow]:
        kind, output = type(module).__name__, watch.shapes.get(module)
        if module in met:
            yield LayerRow(path, depth, kind, output, 0, 0, None, 0.0, met[module])
            return
        met[module] = path
        own = [p for p in module.parameters(recurse=False) if p not in owners]
        shared = [owners[p] for p in module.parameters(recurse=False) if p in owners]
        owners.update(dict.fromkeys(own, path))
        count = sum(0 if is_lazy(p) else p.numel() for p in own)
        trained = any(p.requires_grad for p in own) if own else None
        same_as = shared[0] if shared else None
        work = watch.flops.get(module, 0.0) / 2 / batch
        yield LayerRow(path, depth, kind, output, watch.calls.get(module, 0), count, trained, work, same_as)
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(child, f"{path}.{name}" if path else name, depth + 1)

    return walk(model, "", 0)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(0 if is_lazy(t) else t.numel() * t.element_size() for t in tensors)


def _state_bytes(learn: LayeredLoop) -> int | None:
    """What the optimizer keeps; before its first step what it will keep, tried out on tensors without numbers."""
    opt = learn.__dict__.get("opt")
    if opt is not None and opt.state:
        return _held(opt)
    if opt is not None and learn.__dict__.get("_made", (None,))[0] is not opt:  # set by hand: how is not known
        return None
    try:
        found = learn.splitter(learn.model)
        given = groups.param_groups(learn.model, found, wd_bn_bias=learn.wd_bn_bias)
    except ValueError:  # there is no parameter
        return 0
    for group in given:
        group["params"] = [_without_numbers(p) for p in group["params"]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = make_optimizer(learn.opt_func, given, 1e-3, learn.model)
            trial.step()
            return _held(trial)
    except Exception:  # an optimizer that asks for a closure, or for numbers
        return None


def _without_numbers(p: Tensor) -> Tensor:
    """A parameter and a gradient that take no memory."""
    twin = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    twin.grad = torch.empty_like(twin) if p.requires_grad else None
    return twin


def _held(opt: Optimizer) -> int:
    return _bytes(value for state in opt.state.values() for value in state.values() if isinstance(value, Tensor))


def _optimizer(learn: LayeredLoop) -> str:
    opt = learn.__dict__.get("opt")
    return f"{_name(learn.opt_func)}, made when a fit begins" if opt is None else type(opt).__name__


def _frozen(learn: LayeredLoop) -> str:
    """How many layers there are to freeze, and which of them are frozen."""
    opt = learn.__dict__.get("opt")
    if opt is None:
        return f"{len(groups.as_layers(learn.splitter(learn.model)))} to freeze, none frozen"
    trained = [False] * groups.layer_count(opt)
    for group, layer in zip(opt.param_groups, groups.layer_numbers(opt), strict=True):
        norms = set(group.get("norms", ()))  # with `train_bn` they are trained in frozen layers too
        trained[layer] |= any(p.requires_grad for i, p in enumerate(group["params"]) if i not in norms)
    frozen = [str(layer) for layer, one in enumerate(trained) if not one]
    return f"{len(trained)} to freeze, {'number ' + ', '.join(frozen) if frozen else 'none'} frozen"


def _name(function: Any) -> str:
    function = getattr(function, "func", function)  # of a partial
    return getattr(function, "__name__", None) or type(function).__name__
