"""The loaders of a Learner: how they are made, where their data goes, and their transforms."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from minilearn.data import DataLoader, DataLoaders, IntToFloat, RandomFlip
from minilearn.tensors import default_device

X, Y = torch.arange(30.0).reshape(10, 3), torch.arange(10).unsqueeze(1)


def double(x: Tensor) -> Tensor:
    return 2 * x


def forget(x: Tensor) -> Any:
    x + 1


def test_from_tensors_makes_a_shuffled_and_an_ordered_loader() -> None:
    dls = DataLoaders.from_tensors(X, Y, X, Y, bs=4)
    assert torch.equal(torch.cat([x for x, _ in dls.valid]), X)
    torch.manual_seed(0)
    assert not torch.equal(torch.cat([x for x, _ in dls.train]), X)
    assert len(dls) == 2
    assert dls[0] is dls.train
    assert dls[-1] is dls.valid
    assert len(dls.train_ds) == len(dls.valid_ds) == 10


def test_from_dsets_takes_any_dataset_and_torchs_options() -> None:
    dls = DataLoaders.from_dsets(TensorDataset(X, Y), TensorDataset(X, Y), bs=4, drop_last=True, shuffle=False)
    assert [len(loader) for loader in dls.loaders] == [2, 3]


def test_no_validation_loader_says_how_to_give_one() -> None:
    with pytest.raises(IndexError, match=r"there is no validation loader: give one, DataLoaders\(train, valid\)"):
        DataLoaders([X]).valid  # noqa: B018


def test_one_batch_is_the_first_of_training() -> None:
    x, _ = DataLoaders.from_tensors(X, Y, bs=4, shuffle=False).one_batch()
    assert torch.equal(x, X[:4])


def test_device_is_set_by_to() -> None:
    assert DataLoaders([X]).to("cpu").device == torch.device("cpu")


def test_cpu_is_to_the_cpu() -> None:
    assert DataLoaders([X], device="meta").cpu().device == torch.device("cpu")


def test_cuda_is_to_the_gpu_where_there_is_one() -> None:
    assert DataLoaders([X]).cuda().device == default_device()


def test_batch_size_by_torchs_name_goes_through_from_tensors() -> None:
    assert DataLoaders.from_tensors(X, Y, batch_size=5).train.bs == 5


def test_to_moves_the_columns_of_every_loader() -> None:
    dls = DataLoaders.from_tensors(X, Y, X, Y, bs=4).to("meta")
    assert {column.device.type for dl in dls.loaders for column in dl.columns} == {"meta"}
    assert X.device.type == "cpu"


def test_to_the_cpu_gives_the_numbers_back() -> None:
    dls = DataLoaders.from_tensors(X, Y, bs=10, shuffle=False).to("meta").to("cpu")
    assert torch.equal(dls.one_batch()[0], X)


def test_to_leaves_loaders_of_others_alone() -> None:
    batches = [(X, Y)]
    dls = DataLoaders(DataLoader((X, Y), 4), batches).to("meta")
    assert dls.valid is batches
    assert dls.valid[0][0] is X


def test_to_a_device_that_is_not_there_changes_nothing() -> None:
    dls = DataLoaders.from_tensors(X, Y, device="cpu")
    with pytest.raises(ValueError, match="the device 'cuda:99' is not there"):
        dls.to("cuda:99")
    assert dls.device == torch.device("cpu")


def test_bytes_stay_bytes() -> None:
    x, _ = DataLoaders.from_tensors(X.to(torch.uint8), Y, batch_tfms=IntToFloat()).one_batch()
    assert x.dtype is torch.uint8


@pytest.mark.parametrize("given", [double, [double], (double,)], ids=["one", "list", "tuple"])
def test_transforms_come_one_or_several(given: Any) -> None:
    for dls in (
        DataLoaders([X], batch_tfms=given),
        DataLoaders.from_tensors(X, Y, batch_tfms=given),
        DataLoaders.from_dsets(TensorDataset(X, Y), batch_tfms=given),
    ):
        assert dls.batch_tfms == [double]


def test_no_transforms_is_an_empty_list() -> None:
    assert DataLoaders([X]).batch_tfms == []


def test_one_batch_is_before_the_transforms() -> None:
    dls = DataLoaders.from_tensors(X, Y, bs=10, shuffle=False, batch_tfms=double)
    assert torch.equal(dls.one_batch()[0], X)


def test_transform_carries_them_out_in_their_order() -> None:
    dls = DataLoaders([X], batch_tfms=[double, lambda x: x + 1])
    assert torch.equal(dls.transform(X), 2 * X + 1)


def test_random_ones_take_part_where_training_is_meant() -> None:
    dls = DataLoaders([X], batch_tfms=RandomFlip(1))
    images = X.view(1, 10, 3)
    assert torch.equal(dls.transform(images), images)
    assert torch.equal(dls.transform(images, training=True), images.flip(-1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            IntToFloat,
            "batch_tfms must be functions of a batch's input, got the class IntToFloat: make one, IntToFloat()",
        ),
        ([double, 3], "batch_tfms must be functions of a batch's input, got 3"),
        ("IntToFloat", "batch_tfms must be functions of a batch's input, got 'IntToFloat'"),
    ],
)
def test_what_is_no_transform_is_named(given: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        DataLoaders.from_tensors(X, Y, batch_tfms=given)
    assert str(caught.value) == message


def test_transform_that_returns_nothing_is_named() -> None:
    with pytest.raises(TypeError, match=r"^batch_tfms: forget must return a tensor, got None$"):
        DataLoaders([X], batch_tfms=forget).transform(X)
