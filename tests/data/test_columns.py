"""Columns cut into batches: several at a time, each a tensor of its own."""

import pytest
import torch
from torch import Tensor

from minilearn.data.columns import CHUNK_BYTES, batches, copied, fit_on

NARROW = torch.arange(30_000.0).reshape(10_000, 3)  # all of it in one chunk
WIDE = torch.arange(1_500_000.0).reshape(3_000, 500)  # many chunks


@pytest.mark.parametrize("bs", [1, 7, 64, 999, 5_000])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("data", [NARROW[:2_000], WIDE], ids=["narrow", "wide"])
def test_batches_are_the_rows_in_their_order(data: Tensor, shuffled: bool, bs: int) -> None:
    n = len(data)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)) if shuffled else None
    expected = (data if order is None else data[order]).split(bs)
    found = list(batches((data, torch.arange(n)), bs, n, order))
    assert [len(x) for x, _ in found] == [len(x) for x in expected]
    assert all(torch.equal(x, right) for (x, _), right in zip(found, expected, strict=True))
    assert torch.equal(torch.cat([y for _, y in found]), torch.arange(n) if order is None else order)


def test_rows_after_the_stop_are_left_out() -> None:
    assert [len(x) for (x,) in batches((NARROW[:10],), 4, 8, None)] == [4, 4]


@pytest.mark.parametrize("order", [None, torch.arange(100)], ids=["in order", "by index"])
def test_batch_changed_in_place_leaves_data_and_other_batches_alone(order: Tensor | None) -> None:
    data = torch.ones(100, 2)
    found = [x for (x,) in batches((data,), 8, 100, order)]
    found[1].zero_()
    assert data.sum() == 200
    assert [float(x.mean()) for x in found] == [1, 0, *[1] * 11]


@pytest.mark.parametrize("order", [None, torch.arange(100)], ids=["in order", "by index"])
def test_autograd_minds_no_change_to_another_batch(order: Tensor | None) -> None:
    weight = torch.ones(2, requires_grad=True)
    (first,), (second,), *_ = batches((torch.ones(100, 2),), 8, 100, order)
    loss = (first * weight).sum()
    second.zero_()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [8, 8]


def test_batch_may_require_a_gradient_and_its_neighbour_be_changed() -> None:
    (first,), (second,), *_ = batches((torch.ones(100, 2),), 8, 100, None)
    first.requires_grad_()
    second.zero_()
    (first**2).sum().backward()
    assert first.is_leaf
    assert torch.equal(first.grad, 2 * torch.ones(8, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [None, torch.arange(3_000)], ids=["in order", "by index"])
@pytest.mark.parametrize("bs", [10, 30])
def test_no_more_than_a_chunk_is_gathered_at_once(bs: int, order: Tensor | None) -> None:
    (x,) = next(batches((WIDE,), bs, len(WIDE), order))
    assert x.nbytes < x.untyped_storage().nbytes() <= CHUNK_BYTES


def test_batch_larger_than_a_chunk_has_memory_of_its_own() -> None:
    (x,) = next(batches((WIDE,), 1_000, len(WIDE), None))
    assert x.untyped_storage().nbytes() == x.nbytes > CHUNK_BYTES


def test_rows_without_numbers_are_cut_too() -> None:
    assert [tuple(x.shape) for (x,) in batches((torch.zeros(5, 0),), 2, 5, None)] == [(2, 0), (2, 0), (1, 0)]


def test_columns_keep_their_dtypes() -> None:
    columns = (NARROW.to(torch.uint8), NARROW.bool(), NARROW.bfloat16())
    assert [[part.dtype for part in batch] for batch in batches(columns, 10_000, 10_000, None)] == [
        [torch.uint8, torch.bool, torch.bfloat16]
    ]


def test_rows_are_copied_by_their_numbers() -> None:
    (rows,) = copied((NARROW,), torch.tensor([3, 5, 3]))
    assert torch.equal(rows, NARROW[[3, 5, 3]])


def test_memory_of_the_cpu_is_not_counted() -> None:
    assert fit_on([torch.empty(1 << 50, device="meta")], torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_data_that_takes_most_of_the_gpu_does_not_fit() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    free, _ = torch.cuda.mem_get_info(device)
    assert fit_on([torch.empty(free // 4, dtype=torch.uint8, device="meta")], device)
    assert not fit_on([torch.empty(free * 3 // 4, dtype=torch.uint8, device="meta")], device)
