"""Loaders: the fast path gives what torch's DataLoader gives; the rest goes torch's way."""

import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from minilearn.data import DataLoader, DataLoaders
from minilearn.data.loader import auto_workers

X, Y = torch.arange(30.0).reshape(10, 3), torch.arange(10).unsqueeze(1)


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """The same rows, one by one."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i], Y[i]


def equal(a: Any, b: Any) -> bool:
    """Whether two lists of batches hold the same tensors."""
    return len(a) == len(b) and all(
        torch.equal(p, q) and p.dtype == q.dtype
        for one, two in zip(a, b, strict=True)
        for p, q in zip(one, two, strict=True)
    )


FORMS = {
    "TensorDataset": TensorDataset(X, Y),
    "tuple of tensors": (X, Y),
    "list of rows": list(zip(X, Y, strict=True)),
    "rows with int": [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "rows with float": [(x, float(y)) for x, y in zip(X, Y, strict=True)],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"drop_last": True},
    {"sampler": [3, 1, 2, 9, 0]},
    {"sampler": range(9, -1, -1), "drop_last": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_batches_equal_torchs(form: str, options: dict[str, Any]) -> None:
    dataset = FORMS[form]
    for_torch = TensorDataset(*dataset) if isinstance(dataset, tuple) else dataset
    expected = torch.utils.data.DataLoader(for_torch, batch_size=4, **options)  # type: ignore[arg-type]
    mine = DataLoader(dataset, 4, **options)
    assert mine.columns is not None
    assert len(mine) == len(expected)
    assert equal(list(mine), list(expected))


def test_batch_sampler_decides() -> None:
    mine = DataLoader((X, Y), batch_sampler=[[1, 2], [9]])
    assert mine.columns is not None
    assert equal(list(mine), [(X[[1, 2]], Y[[1, 2]]), (X[[9]], Y[[9]])])


def test_rows_of_bare_tensors_give_bare_batches() -> None:
    for dataset in (X, list(X)):
        assert [tuple(batch.shape) for batch in DataLoader(dataset, 4)] == [(4, 3), (4, 3), (2, 3)]


@pytest.mark.parametrize("form", FORMS)
def test_shuffle_gives_every_row_once_in_a_new_order_each_epoch(form: str) -> None:
    loader = DataLoader(FORMS[form], 4, shuffle=True)
    first, second = (torch.cat([x for x, _ in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first[:, 0].sort().values, X[:, 0])
    assert torch.equal(second[:, 0].sort().values, X[:, 0])


def test_shuffle_keeps_rows_and_targets_together() -> None:
    for x, y in DataLoader((X, Y), 4, shuffle=True):
        assert torch.equal(x[:, :1], 3.0 * y)


def test_shuffle_is_reproduced_by_torch_manual_seed() -> None:
    loader = DataLoader((X, Y), 4, shuffle=True)
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(list(loader))
    assert equal(*runs)


def test_shuffle_is_reproduced_by_a_generator() -> None:
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(7)
        runs.append(list(DataLoader((X, Y), 4, shuffle=True, generator=generator)))
    assert equal(*runs)


def test_shuffle_is_one_permutation_of_torch() -> None:
    torch.manual_seed(7)
    order = torch.randperm(10)
    torch.manual_seed(7)
    (x, y), *_ = DataLoader((X, Y), 4, shuffle=True)
    assert torch.equal(x, X[order[:4]])
    assert torch.equal(y, Y[order[:4]])


@pytest.mark.parametrize(
    "sampler", [RandomSampler(range(10), replacement=True, num_samples=6), WeightedRandomSampler([1.0] * 10, 6)]
)
def test_other_samplers_are_asked(sampler: Any) -> None:
    loader = DataLoader((X, Y), 4, sampler=sampler)
    assert sum(len(x) for x, _ in loader) == 6


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        (Rows(), {}),
        (list(zip(X, Y, strict=True)), {"collate_fn": lambda rows: (torch.stack([x for x, _ in rows]), rows)}),
        ([(X[0], Y[0]), (X[0, :2], Y[0])], {"collate_fn": lambda rows: rows}),
        ((X, Y), {"num_workers": 1}),
    ],
    ids=["dataset", "collate_fn", "ragged", "worker"],
)
def test_the_rest_goes_torchs_way(dataset: Any, options: dict[str, Any]) -> None:
    loader = DataLoader(dataset, 4, **options)
    assert loader.columns is None
    assert len(list(loader)) == len(loader)


def test_worker_gives_the_same_batches() -> None:
    assert equal(list(DataLoader((X, Y), 4, num_workers=1)), list(DataLoader((X, Y), 4)))


def test_dataset_subclass_of_tensor_dataset_is_asked_row_by_row() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, i: int) -> tuple[Tensor, ...]:
            x, y = super().__getitem__(i)
            return 2 * x, y

    assert torch.equal(next(iter(DataLoader(Doubled(X, Y), 4)))[0], 2 * X[:4])


def test_batch_is_a_copy() -> None:
    data = torch.ones(4, 2)
    for batch in DataLoader(data, 4):
        batch.zero_()
    assert data.sum() == 8


def test_default_is_64_rows_a_batch() -> None:
    assert DataLoader(torch.zeros(100, 1)).batch_size == 64
    assert DataLoader(torch.zeros(100, 1), batch_size=10).batch_size == 10


def test_dataset_of_whole_batches() -> None:
    loader = DataLoader([X, X], batch_size=None)
    assert [tuple(batch.shape) for batch in loader] == [(10, 3), (10, 3)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("dataset", [(X[:0], Y[:0]), [], X[:0]])
def test_empty_dataset_is_refused(dataset: Any, shuffle: bool) -> None:
    with pytest.raises(ValueError, match="the dataset is empty: it has no rows"):
        DataLoader(dataset, 4, shuffle=shuffle)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataLoader((X, Y), 0), "bs must be a whole number of at least 1, got 0"),
        (lambda: DataLoader((X, Y), 2.5), "bs must be a whole number, got 2.5"),  # type: ignore[arg-type]
        (lambda: DataLoader((X, Y), 4, batch_size=4), "give bs or batch_size, not both: got bs=4, batch_size=4"),
        (lambda: DataLoader((X, Y[:3]), 4), "the columns of a dataset must have the same number of rows, got [10, 3]"),
        (lambda: DataLoaders.from_tensors(X, Y, X), "give both valid_x and valid_y, or neither"),
        (DataLoaders, "DataLoaders needs a training loader, and takes a validation loader after it"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert str(caught.value) == message


def test_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="drop_lats"):
        DataLoader((X, Y), 4, drop_lats=True)


def test_arrays_are_taken_as_tensors() -> None:
    x, y = X.numpy(), Y.numpy()
    assert equal(list(DataLoader((x, y), 4)), list(DataLoader((X, Y), 4)))
    assert equal(list(DataLoaders.from_tensors(x, y, bs=4, shuffle=False).train), list(DataLoader((X, Y), 4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataLoader(zip(X, Y, strict=True), 4), "got an object of zip. Make it a list: list(...)."),
        (lambda: DataLoader(None), "a dataset must have rows by number, dataset[0], got an object of NoneType."),
        (lambda: DataLoaders.from_tensors([[1.0]], Y), "train_x must be a tensor or an array, got an object of list"),
        (
            lambda: DataLoaders.from_tensors((X, Y), (X, Y)),
            "train_x must be a tensor or an array, got an object of tuple",
        ),
        (lambda: DataLoaders([DataLoader(X), DataLoader(X)]), "give the loaders one by one, DataLoaders(train, valid)"),
        (lambda: DataLoaders({"train": X}), "loader 0 is a dict, not an iterable of batches"),
        (lambda: DataLoaders([X], n_inp=-1), "n_inp must be a whole number of at least 1, got -1"),
        (lambda: DataLoader((X, Y), 4, batch_sampler=[[0]]), "give bs or batch_sampler, not both: got bs=4"),
    ],
)
def test_what_is_no_data_is_named(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert message in str(caught.value)


def test_batch_sampler_of_none_is_no_batch_sampler() -> None:
    assert len(DataLoader((X, Y), 4, batch_sampler=None)) == 3


def test_sampler_over_some_rows_gives_just_those() -> None:
    from torch.utils.data import SequentialSampler

    loader = DataLoader((X, Y), 4, sampler=SequentialSampler(range(6)))
    assert [len(x) for x, _ in loader] == [4, 2]


def test_pinning_without_an_accelerator_does_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says in its own way that there is no accelerator
        assert equal(list(DataLoader((X, Y), 4, pin_memory=True)), list(DataLoader((X, Y), 4)))


class Endless(IterableDataset[Tensor]):
    """Rows without a number, and without a length that it would tell."""

    def __iter__(self) -> Any:
        return iter(X)

    def __len__(self) -> int:
        raise NotImplementedError


def test_iterable_dataset_is_not_shuffled_and_needs_no_length() -> None:
    dls = DataLoaders.from_dsets(Endless(), bs=4)
    assert [len(batch) for batch in dls.train] == [4, 4, 2]


def test_one_batch_of_a_loader() -> None:
    assert torch.equal(DataLoader((X, Y), 4).one_batch()[0], X[:4])


def test_no_worker_is_started_unasked() -> None:
    assert DataLoader(Rows(), 4).num_workers == 0


def test_auto_workers_leave_one_core_to_the_training() -> None:
    loader = DataLoader(Rows(), 4, num_workers="auto")
    assert loader.num_workers == auto_workers() == min(8, len(os.sched_getaffinity(0)) - 1)
    assert loader.persistent_workers == (loader.num_workers > 0)


def test_auto_workers_go_by_the_cores_that_the_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert DataLoader(Rows(), 4, num_workers="auto").num_workers == 0
    finally:
        os.sched_setaffinity(0, before)


def test_auto_workers_give_the_same_batches_epoch_after_epoch() -> None:
    loader = DataLoader(Rows(), 4, num_workers="auto")
    loader.one_batch()  # leaves batches on their way behind
    assert equal(list(loader), list(DataLoader((X, Y), 4)))
    assert equal(list(loader), list(DataLoader((X, Y), 4)))


def test_what_auto_chooses_can_be_overridden() -> None:
    loader = DataLoader(Rows(), 4, num_workers="auto", persistent_workers=False)
    assert not loader.persistent_workers


def test_auto_workers_are_none_for_tensors() -> None:
    loader = DataLoader((X, Y), 4, num_workers="auto")
    assert loader.num_workers == 0
    assert loader.columns is not None


def test_auto_workers_are_none_for_an_iterable_dataset() -> None:
    """Each of them would give every row."""
    assert [len(batch) for batch in DataLoader(Endless(), 4, num_workers="auto")] == [4, 4, 2]


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ("many", "num_workers must be a whole number of at least 0 or 'auto', got 'many'"),
        (-1, "num_workers must be a whole number of at least 0, got -1"),
        (1.5, "num_workers must be a whole number, got 1.5"),
    ],
)
def test_bad_number_of_workers_is_refused(workers: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        DataLoader(Rows(), 4, num_workers=workers)
    assert str(caught.value) == message


@pytest.mark.parametrize("shuffle", [False, True])
def test_columns_go_to_a_device_and_the_data_stays(shuffle: bool) -> None:
    loader = DataLoader((X, Y), 4, shuffle=shuffle).to("meta")  # meta stands for a GPU: its tensors hold no numbers
    assert [(x.device.type, tuple(x.shape)) for x, _ in loader] == [
        ("meta", (4, 3)),
        ("meta", (4, 3)),
        ("meta", (2, 3)),
    ]
    assert torch.equal(torch.cat([x for x, _ in loader.to("cpu")]).sort(dim=0).values, X)


def test_order_of_a_sampler_goes_to_the_device_too() -> None:
    assert [len(x) for x, _ in DataLoader((X, Y), 4, sampler=[3, 1, 2, 9, 0]).to("meta")] == [4, 1]


def test_dataset_of_rows_stays_where_it_is() -> None:
    assert equal(list(DataLoader(Rows(), 4).to("meta")), list(DataLoader((X, Y), 4)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_gives_the_same_batches_for_the_same_seed() -> None:
    runs = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(7)
        loader = DataLoader((X, Y), 4, shuffle=True, pin_memory=False).to(device)
        batches = list(loader)
        assert {x.device.type for x, _ in batches} == {device}
        runs.append([(x.cpu(), y.cpu()) for x, y in batches])
    assert equal(*runs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"sampler": [3, 1, 2, 9, 0]}], ids=str)
def test_pinned_batches_equal_those_that_are_not(options: dict[str, Any]) -> None:
    runs = []
    for pin in (False, True):
        torch.manual_seed(7)
        batches = list(DataLoader((X, Y), 4, pin_memory=pin, **options))
        assert {x.is_pinned() for x, _ in batches} == {pin}
        runs.append(batches)
    assert equal(*runs)
