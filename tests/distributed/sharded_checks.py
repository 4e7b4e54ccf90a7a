"""What holds of sharded models: run by `test_sharded.py`, in several processes that go through this file in step."""

import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minilearn.callbacks import EMA, SWA, GradientClip, MixedPrecision
from minilearn.callbacks.gradient_clip import clip_adaptively_
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.materialize import allocate, materialize
from minilearn.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Lamb,
    Larc,
    Lion,
    Lookahead,
    Muon,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    ranger,
)
from minilearn.optim.pieces import piece_of
from minilearn.optim.steppers import sgd_step, whole
from minilearn.sharding import (
    checkpoint_activations,
    is_sharded_model,
    reshard,
    shard_model,
    sharding_units,
)

RANK, N = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
ROWS = 8
Make = Callable[[Any], torch.optim.Optimizer]


@whole
def by_its_mean(params: list[Tensor], grads: list[Tensor], *, lr: float) -> list[Tensor]:
    """A rule of a user's own that looks at each parameter as a whole."""
    for p, grad in zip(params, grads, strict=True):
        p.sub_(lr * grad / (1 + p.std(correction=0) + p.mean()))
    return grads


def by_its_median(params: list[Tensor], grads: list[Tensor], *, lr: float) -> list[Tensor]:
    """Another, which does not say so."""
    for p in params:
        p.sub_(0.01 * lr * p.median())
    return grads


OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: SGD(p, 0.1),
    "momentum": lambda p: SGD(p, 0.1, mom=0.9, wd=0.1),
    "Nesterov": lambda p: SGD(p, 0.1, mom=0.9, nesterov=True),
    "dampening and L1": lambda p: SGD(p, 0.1, mom=0.9, dampening=0.3, l1=0.01),
    "RMSProp": lambda p: RMSProp(p, 0.01, mom=0.9),
    "RMSProp centred": lambda p: RMSProp(p, 0.01, mom=0.9, centered=True, wd=0.1, decouple_wd=False),
    "Adagrad": lambda p: Adagrad(p, 0.1),
    "Adadelta": lambda p: Adadelta(p, wd=0.1),
    "Adam": lambda p: Adam(p, 0.01),
    "Adam with L2": lambda p: Adam(p, 0.01, wd=0.1, decouple_wd=False),
    "RAdam": lambda p: RAdam(p, 0.01),
    "NAdam": lambda p: NAdam(p, 0.01),
    "QHAdam": lambda p: QHAdam(p, 0.01, nu_2=0.8),
    "Lion": lambda p: Lion(p, 0.01),
    "Lamb": lambda p: Lamb(p, 0.01),
    "Lamb with L2": lambda p: Lamb(p, 0.01, wd=0.1, decouple_wd=False),
    "LARC": lambda p: Larc(p, 0.1),
    "LARS": lambda p: Larc(p, 0.1, clip=False, wd=0.1),
    "Muon": lambda p: Muon(p, 0.01),
    "Muon by Jordan's scale": lambda p: Muon(p, 0.01, match_adam=False, nesterov=False),
    "Lookahead": lambda p: Lookahead(SGD(p, 0.1, mom=0.9), k=2),
    "ranger": lambda p: ranger(p, 0.01, k=3),
    "a rule that looks at the whole": lambda p: Optimizer(p, [by_its_mean], lr=0.1),
    "one that does not say so": lambda p: Optimizer(p, [by_its_median, sgd_step], lr=0.1),
    "torch's AdamW": lambda p: torch.optim.AdamW(p, 0.01),
}


def net(seed: int = 3) -> nn.Sequential:
    """Parameters whose length the number of processes divides, does not divide, and exceeds."""
    torch.manual_seed(seed)
    layers = [nn.Linear(7, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1), nn.Linear(1, 40)]
    return nn.Sequential(*layers, nn.Linear(40, 60)).double()


def batches(steps: int = 5) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield tuple(torch.randn(ROWS, width, generator=generator, dtype=torch.float64) for width in (7, 60))  # type: ignore[misc]


def own(rows: Tensor) -> Tensor:
    return rows.chunk(N)[RANK]


def full(value: Any) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def difference(a: Tensor, b: Any) -> float:
    return float((a - full(b)).detach().abs().max() / a.detach().abs().max().clamp(min=1e-300)) if a.numel() else 0.0


def same_numbers(one: nn.Module, many: nn.Module, most: float = 1e-12) -> None:
    for (name, p), (other, q) in zip(one.named_parameters(), many.named_parameters(), strict=True):
        assert name == other
        assert difference(p, q) <= most, (name, difference(p, q))


def refused(what: Callable[[], object], *words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        what()
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---- optimizers ----


def check_every_optimizer_moves_pieces_as_it_moves_whole_parameters() -> None:
    for name, make in OPTIMIZERS.items():
        one, many = net(), net()
        shard_model(many, blocks=nn.Linear)
        opts = make(one.parameters()), make(many.parameters())
        for x, y in batches():
            F.mse_loss(one(x), y).backward()
            F.mse_loss(many(own(x)), own(y)).backward()
            for opt in opts:
                opt.step()
                opt.zero_grad()
        for p, q in zip(one.parameters(), many.parameters(), strict=True):
            assert difference(p, q) <= 1e-12, (name, tuple(p.shape), difference(p, q))
            assert piece_of(q).grad is None
            here, there = opts[0].state[p], opts[1].state[q]
            assert here.keys() == there.keys(), name
            for key, value in here.items():
                if isinstance(value, Tensor) and value.ndim:
                    assert there[key].placements == q.placements, (name, key)
                    assert difference(value, there[key]) <= 1e-12, (name, key)
                else:
                    assert value == there[key], (name, key)


def check_torchs_functions_for_checkpoints_take_the_state_and_give_it_back() -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    for make in (OPTIMIZERS["Adam"], OPTIMIZERS["momentum"], OPTIMIZERS["Muon"], OPTIMIZERS["ranger"]):
        models, opts = [net(), net()], []
        for model in models:
            shard_model(model, blocks=nn.Linear)
            opts.append(make(model.parameters()))
        steps = list(batches(4))
        for x, y in steps[:2]:
            F.mse_loss(models[0](own(x)), own(y)).backward()
            opts[0].step()
            opts[0].zero_grad()
        state = get_optimizer_state_dict(models[0], opts[0])
        assert any(isinstance(value, DTensor) for held in state["state"].values() for value in held.values())
        models[1].load_state_dict(models[0].state_dict())
        set_optimizer_state_dict(models[1], opts[1], state)
        for x, y in steps[2:]:
            for model, opt in zip(models, opts, strict=True):
                F.mse_loss(model(own(x)), own(y)).backward()
                opt.step()
                opt.zero_grad()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(full(p), full(q))
        whole_state = get_optimizer_state_dict(models[0], opts[0], options=StateDictOptions(full_state_dict=True))
        assert not any(isinstance(value, DTensor) for held in whole_state["state"].values() for value in held.values())


def check_a_state_of_one_process_is_taken_apart_where_it_is_loaded() -> None:
    one, many = net(), net()
    shard_model(many)
    opts = Adam(one.parameters(), 0.01), Adam(many.parameters(), 0.01)
    steps = list(batches(4))
    for i, (x, y) in enumerate(steps):
        if i == 2:
            many.load_state_dict(
                {name: nn.Parameter(value) for name, value in sharded_like(one, many).items()}, strict=True
            )
            opts[1].load_state_dict(opts[0].state_dict())
        F.mse_loss(one(x), y).backward()
        opts[0].step()
        opts[0].zero_grad()
        if i >= 2:
            F.mse_loss(many(own(x)), own(y)).backward()
            opts[1].step()
            opts[1].zero_grad()
    same_numbers(one, many)


def sharded_like(one: nn.Module, many: nn.Module) -> dict[str, Any]:
    from torch.distributed.tensor import distribute_tensor

    own_state: dict[str, Any] = many.state_dict()
    return {
        name: distribute_tensor(value, own_state[name].device_mesh, own_state[name].placements)
        for name, value in one.state_dict().items()
    }


def check_a_compiled_step_is_refused_in_words() -> None:
    from minilearn.optim.in_graph import StepInGraph

    model = shard_model(net())
    refused(lambda: StepInGraph(SGD(model.parameters(), 0.1)), "sharded over several processes")


def check_shards_of_two_axes_hold_whole_copies_of_pieces() -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, N // 2), mesh_dim_names=("copies", "pieces"))
    for make in (OPTIMIZERS["Adam"], OPTIMIZERS["Lamb"], OPTIMIZERS["Muon"]):
        one, many = net(), shard_model(net(), device_mesh=mesh)
        opts = make(one.parameters()), make(many.parameters())
        for x, y in batches(3):
            F.mse_loss(one(x), y).backward()
            F.mse_loss(many(own(x)), own(y)).backward()
            for opt in opts:
                opt.step()
                opt.zero_grad()
        same_numbers(one, many)


# ---- models ----


class Block(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.second(torch.tanh(self.first(self.norm(x)))))


class Words(nn.Module):
    """Tied weights, blocks in a list, and a buffer."""

    def __init__(self, words: int = 11, width: int = 6, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def check_all_begin_with_the_first_ones_numbers_and_tied_weights_stay_tied() -> None:
    torch.manual_seed(RANK)  # each its own
    model = Words().double()
    model.norm.running_mean.fill_(float(RANK))
    names, units = list(model.state_dict()), sharding_units(model)
    assert shard_model(model) is model
    assert units == list(model.blocks)
    assert all(is_sharded_model(unit) for unit in (model, *units))
    assert list(model.state_dict()) == names
    assert model.head.weight is model.embed.weight
    assert float(model.norm.running_mean.sum()) == 0
    torch.manual_seed(0)
    one = Words().double()
    same_numbers(one, model, 0)
    x = torch.arange(ROWS) % 11
    one.norm.eval()
    model.norm.eval()
    one.blocks[0].requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    opts = Adam(one.parameters(), 0.1), Adam(model.parameters(), 0.1)
    for _ in range(3):
        F.cross_entropy(one(x), x).backward()
        F.cross_entropy(model(own(x)), own(x)).backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
    same_numbers(one, model)
    assert model.head.weight is model.embed.weight
    assert model.blocks[0].first.weight.grad is None


def check_after_a_look_without_gradients_the_parameters_are_pieces_again() -> None:
    model = shard_model(net())
    params = list(model.parameters())
    with torch.no_grad():
        model(torch.ones(2, 7, dtype=torch.float64))
    assert all(p is q for p, q in zip(params, model.parameters(), strict=True))
    model(torch.ones(2, 7, dtype=torch.float64))
    assert not any(isinstance(p, DTensor) for p in model.parameters())
    reshard(model)
    assert all(p is q for p, q in zip(params, model.parameters(), strict=True))


def check_what_cannot_be_sharded_is_refused_by_name() -> None:
    refused(lambda: shard_model(nn.Sequential(nn.LazyLinear(3))), "'0.weight' has no shape yet", "run a batch")
    single = nn.Linear(2, 2)
    single.scale = nn.Parameter(torch.ones(()))
    refused(lambda: shard_model(single), "'scale' is a single number", "shape (1,)")
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    refused(lambda: shard_model(convolution), "'weight' does not lie in memory in order", "contiguous_format")
    refused(lambda: shard_model(shard_model(net())), "the model is sharded already")
    half = net()
    shard_model(half[0])
    refused(lambda: shard_model(half), "its part '0' is sharded already")
    refused(lambda: shard_model(nn.parallel.DistributedDataParallel(net())), "DistributedDataParallel", "model.module")
    refused(lambda: shard_model(net(), blocks=nn.Conv2d), "has no Conv2d", "Linear")
    refused(lambda: shard_model(Words(), blocks=nn.Embedding), "'embed' shares a parameter", "head.weight")
    refused(lambda: shard_model(Words(), blocks=nn.ModuleList), "'blocks' is only a list (ModuleList)")
    refused(lambda: shard_model(net(), blocks=[nn.Linear(2, 2)]), "blocks must be classes of modules")
    refused(lambda: shard_model(net(), mixed_precision=torch.float64), "mixed_precision must be")
    refused(lambda: shard_model(net), "model must be a module")


def check_half_precision_within_full_outside() -> None:
    one, many = Words(width=16), Words(width=16)
    many.load_state_dict(one.state_dict())
    seen: list[torch.dtype] = []
    many.blocks[0].first.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    shard_model(many, mixed_precision=torch.bfloat16)
    x = torch.arange(ROWS) % 11
    pred = many(own(x))
    F.cross_entropy(pred, own(x)).backward()
    assert seen == [torch.bfloat16]
    assert pred.dtype == torch.float32
    assert {p.dtype for p in many.parameters()} == {p.grad.dtype for p in many.parameters()} == {torch.float32}


# ---- activations ----


def check_activations_that_are_computed_again_change_no_number() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*[nn.Sequential(Block(6, 0.5), nn.BatchNorm1d(6)) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    made = []
    for sharded, again in ((False, False), (False, True), (True, False), (True, True)):
        torch.manual_seed(0)
        model = Deep().double()
        if again:
            checkpoint_activations(model, nn.Sequential)
        if sharded:
            shard_model(model)
        opt = SGD(model.parameters(), 0.1, mom=0.9)
        x = torch.randn(8, 6, dtype=torch.float64)
        for _ in range(3):
            model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
        made.append({name: full(value) for name, value in model.state_dict().items()})
        assert [name for name, _ in model.named_modules()] == [name for name, _ in Deep().named_modules()]
    for other in made[1:]:
        assert list(other) == list(made[0])
        for name, value in other.items():
            torch.testing.assert_close(value, made[0][name], rtol=1e-12, atol=1e-13, msg=name)


# ---- from the meta device ----


class Own(nn.Module):
    """A parameter and buffers of its own."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.empty(width))
        self.register_buffer("places", torch.empty(width, dtype=torch.int64), persistent=False)
        self.register_buffer("mask", torch.empty(width, dtype=torch.bool))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale)
        with torch.no_grad():
            self.places.copy_(torch.arange(len(self.places)))
            self.mask.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


def mixed() -> nn.Module:
    embed = nn.Embedding(9, 6, padding_idx=2)
    return nn.ModuleList(
        [embed, nn.MultiheadAttention(6, 2), Own(), nn.LSTM(3, 4), nn.BatchNorm1d(7), nn.Conv2d(3, 5, 3)]
    )


def check_a_model_from_the_meta_device_begins_as_one_that_was_made_in_one_process() -> None:
    torch.manual_seed(5)
    one = mixed()
    after = torch.get_rng_state()
    with torch.device("meta"):
        many = mixed()
    for part in many:
        shard_model(part)
    torch.manual_seed(5)
    assert materialize(many) is many
    assert torch.equal(torch.get_rng_state(), after)
    assert list(many.state_dict()) == list(one.state_dict())
    for name, value in {**one.state_dict(), "2.places": one[2].places}.items():
        assert torch.equal(full({**many.state_dict(), "2.places": many[2].places}[name]), value), name
    torch.manual_seed(5)
    with torch.device("meta"):
        alone = mixed()
    materialize(alone)
    for name, value in one.state_dict().items():
        assert torch.equal(alone.state_dict()[name], value), name


def check_it_trains_with_tied_weights_and_other_processes_random_numbers_go_on() -> None:
    torch.manual_seed(RANK)
    with torch.device("meta"):
        many = Words()
    before = torch.get_rng_state()
    materialize(shard_model(many))
    assert (RANK == 0) != torch.equal(before, torch.get_rng_state())
    assert many.head.weight is many.embed.weight
    assert len(list(many.parameters())) == len(list(Words().parameters()))
    x = torch.arange(ROWS) % 11
    opt = Adam(many.parameters(), 0.1)
    first = None
    for _ in range(20):
        loss = F.cross_entropy(many(x), x)
        first = first or loss.item()
        loss.backward()
        opt.step()
        opt.zero_grad()
    assert first is not None
    assert loss.item() < first / 2


def check_what_nobody_initialises_is_named_and_a_function_can_do_it() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.gain = nn.Parameter(torch.ones(3))
            self.register_buffer("steps", torch.arange(3))

    def made() -> nn.Module:
        with torch.device("meta"):
            return shard_model(nn.Sequential(Bare()))

    refused(lambda: materialize(made()), "'0.gain' and 1 more", "Bare has no reset_parameters()")

    def init(module: nn.Module) -> None:
        if isinstance(module, Bare):
            nn.init.constant_(module.gain, 2.0)
            module.steps = torch.arange(3)

    model = materialize(made(), init)
    assert torch.equal(full(model[0].gain), torch.full((3,), 2.0))
    assert model[0].steps.tolist() == [0, 1, 2]


def check_a_model_without_values_takes_those_that_are_loaded() -> None:
    one = net()
    with torch.device("meta"):
        many = shard_model(net())
    assert allocate(many) == list(one.state_dict())
    assert all(isinstance(p, DTensor) and bool(p.to_local().isnan().all()) for p in many.parameters())
    many.load_state_dict(sharded_like(one, many))
    same_numbers(one, many, 0)
    assert allocate(many) == []
    x, _ = next(batches())
    torch.testing.assert_close(many(x), one(x), rtol=1e-12, atol=1e-12)


# ---- callbacks ----


def check_gradients_are_clipped_by_the_norm_of_the_whole() -> None:
    for options in ({"max_norm": 0.01}, {"max_norm": 0.01, "norm_type": 1.0}, {"max_norm": 0.01, "norm_type": math.inf},
                    {"value": 1e-3}, {"max_norm": 100.0}):  # fmt: skip
        one, many = net(), net()
        shard_model(many)
        x, y = next(batches())
        F.mse_loss(one(x), y).backward()
        F.mse_loss(many(own(x)), own(y)).backward()
        clips = []
        for model in (one, many):
            clip = GradientClip(**options)
            clip.learn = type("", (), {"opt": SGD(model.parameters(), 0.1)})()  # type: ignore[assignment]
            clip.before_step()
            clips.append(clip)
        for p, q in zip(one.parameters(), many.parameters(), strict=True):
            assert difference(p.grad, q.grad) <= 1e-12, options
        if "value" not in options:
            assert difference(clips[0].norm, clips[1].norm) <= 1e-12


def check_gradients_are_clipped_adaptively_unit_by_unit() -> None:
    one, many = net(), net()
    shard_model(many)
    x, y = next(batches())
    F.mse_loss(one(x), y).backward()
    F.mse_loss(many(own(x)), own(y)).backward()
    before = [p.grad.clone() for p in one.parameters()]
    clip_adaptively_(one.parameters(), 0.01)
    clip_adaptively_(many.parameters(), 0.01)
    assert any(not torch.equal(p.grad, grad) for p, grad in zip(one.parameters(), before, strict=True))
    for p, q in zip(one.parameters(), many.parameters(), strict=True):
        assert difference(p.grad, q.grad) <= 1e-12, tuple(p.shape)


def fitted(model: nn.Module, cbs: list[Any], n_epoch: int = 2) -> Learner:
    x, y = [torch.cat(part) for part in zip(*batches(), strict=True)]
    dls = DataLoaders.from_tensors(x, y, x, y, bs=ROWS // N, shuffle=False, device="cpu")
    learn = Learner(dls, model, F.mse_loss, functools.partial(Adam, eps=1e-8), lr=0.01, cbs=cbs)
    with learn.no_logging():
        learn.fit(n_epoch)
    return learn


def check_an_average_of_sharded_weights_is_that_of_whole_ones() -> None:
    for make, count in ((lambda: EMA(0.9), 10), (lambda: SWA(0.0), 2)):
        one, many = net(), shard_model(net())
        averages = [make(), make()]
        fitted(one, [averages[0]])
        learn = fitted(many, [averages[1]])
        same_numbers(one, many, 1e-9)
        assert averages[0].n_averaged == averages[1].n_averaged == count
        for name, value in averages[0].average.items():
            assert difference(value, averages[1].average[name]) <= 1e-9, name
        opt = learn.opt
        with learn.no_logging():
            learn.fit(1)
        assert learn.opt is opt


def check_the_scaler_leaves_a_step_out_in_all_processes_where_one_gradient_is_infinite() -> None:
    model = shard_model(net().float())
    opt = SGD(model.parameters(), 0.1)
    scaling = MixedPrecision("fp16", init_scale=4.0)
    scaling.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaling.learn = type("", (), {"opt": opt})()  # type: ignore[assignment]
    from minilearn.callback import CancelStepException

    for overflow in (False, True):
        for i, p in enumerate(model.parameters()):
            p.grad = torch.ones_like(p) * 8
            local = p.grad.to_local()
            if overflow and i == 0 and RANK == 0:
                local[0, 0] = math.inf
        scaling._scaled = True
        scaling.scaler.scale(torch.ones(()))
        try:
            scaling.before_step()
            cancelled = False
        except CancelStepException:
            cancelled = True
        assert cancelled == overflow
        assert scaling.scaler.get_scale() == (2.0 if overflow else 4.0)
        if not overflow:
            assert all(bool((full(p.grad) == 2).all()) for p in model.parameters())


def check_pieces_are_written_and_read_by_torchs_distributed_checkpoint() -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    one, other = shard_model(net()), shard_model(net(4))
    opts = Adam(one.parameters(), 0.01), Adam(other.parameters(), 0.01)
    for x, y in batches(2):
        F.mse_loss(one(own(x)), own(y)).backward()
        opts[0].step()
        opts[0].zero_grad()
    shared = [tempfile.mkdtemp() if RANK == 0 else ""]
    dist.broadcast_object_list(shared)
    model_state, opt_state = get_state_dict(one, opts[0])
    dcp.save({"model": model_state, "opt": opt_state}, checkpoint_id=Path(shared[0]))
    model_state, opt_state = get_state_dict(other, opts[1])
    state = {"model": model_state, "opt": opt_state}
    dcp.load(state, checkpoint_id=Path(shared[0]))
    set_state_dict(other, opts[1], model_state_dict=state["model"], optim_state_dict=state["opt"])
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(full(p), full(q))
        for name, value in opts[0].state[p].items():
            held = opts[1].state[q][name]
            assert torch.equal(full(value), full(held)) if isinstance(value, Tensor) else value == held
