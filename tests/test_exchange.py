"""Models that leave as graphs and weights that come from elsewhere."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import minilearn
from minilearn.data import DataLoaders
from minilearn.data.transforms import IntToFloat, Normalize, RandomFlip
from minilearn.exchange import ONNX_PACKAGES, import_weights
from minilearn.files import FileError
from minilearn.foreign_weights import check_torch
from minilearn.learner import Learner
from minilearn.saved import save_model


def images_learner(path: Path, **options: Any) -> Learner:
    torch.manual_seed(0)
    x, y = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 4, (12,))
    tfms = [IntToFloat(), RandomFlip(), Normalize([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])]
    dls = DataLoaders.from_tensors(x, y, x, y, bs=4, device="cpu", batch_tfms=tfms)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 4)
    )
    learn = Learner(dls, model, nn.CrossEntropyLoss(), path=path, **options)
    learn.logger = lambda text: None
    with learn.no_bar():
        learn.fit(1)
    return learn


def rows_learner(path: Path, model: nn.Module, loss: Any = F.mse_loss) -> Learner:
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    return Learner(DataLoaders.from_tensors(x, y, x, y, bs=4, device="cpu"), model, loss, path=path)


# ---- export ----


def test_exported_model_gives_the_predictions_of_the_learner_from_the_loaders_inputs(tmp_path: Path) -> None:
    learn = images_learner(tmp_path)
    graph = minilearn.load_exported(learn.export("model.pt2"))
    preds, _ = learn.get_preds()
    torch.testing.assert_close(graph(learn.dls.valid_ds.tensors[0]), preds)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_exported_model_takes_batches_of_any_size(rows: int, tmp_path: Path) -> None:
    learn = images_learner(tmp_path)
    graph = minilearn.load_exported(learn.export())
    assert graph(torch.zeros(rows, 3, 8, 8, dtype=torch.uint8)).shape == (rows, 4)


def test_exported_model_runs_in_plain_torch_without_minilearn(tmp_path: Path) -> None:
    learn = images_learner(tmp_path)
    x = learn.dls.valid_ds.tensors[0]
    learn.export("model.pt2")
    torch.save(x, tmp_path / "x.pt")
    program = (
        "import sys, torch\n"
        "x = torch.load('x.pt', weights_only=True)\n"
        "preds = torch.export.load('model.pt2').module()(x)\n"
        "assert not any(name.startswith('minilearn') for name in sys.modules)\n"
        "print(preds.sum(1).allclose(torch.ones(12)), round(float(preds[3, 1]), 5))"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", str(round(float(learn.get_preds()[0][3, 1]), 5))]


def test_act_false_leaves_the_activation_out(tmp_path: Path) -> None:
    learn = images_learner(tmp_path)
    logits, _ = learn.get_preds(act=lambda pred: pred)
    graph = minilearn.load_exported(learn.export("logits.pt2", act=False))
    torch.testing.assert_close(graph(learn.dls.valid_ds.tensors[0]), logits)


def test_act_can_be_a_function(tmp_path: Path) -> None:
    learn = images_learner(tmp_path)
    graph = minilearn.load_exported(learn.export("classes.pt2", act=lambda pred: pred.argmax(1)))
    assert graph(learn.dls.valid_ds.tensors[0]).tolist() == learn.get_preds()[0].argmax(1).tolist()


def test_a_compiled_model_is_exported_as_the_plain_one(tmp_path: Path) -> None:
    learn = images_learner(tmp_path)
    plain = learn.export("plain.pt2").read_bytes()
    learn.model = torch.compile(learn.model, backend="eager")
    assert learn.export("compiled.pt2").read_bytes() == plain


def test_export_leaves_the_learner_as_it_was(tmp_path: Path) -> None:
    learn, alone = images_learner(tmp_path), images_learner(tmp_path)
    learn.export()
    for one in (learn, alone):
        torch.manual_seed(1)
        with one.no_bar():
            one.fit(1)
    assert all(torch.equal(a, b) for a, b in zip(learn.model.parameters(), alone.model.parameters(), strict=True))


def test_the_same_model_makes_the_same_file(tmp_path: Path) -> None:
    learn = images_learner(tmp_path)
    assert learn.export("a.pt2").read_bytes() == learn.export("b.pt2").read_bytes()


def test_an_exported_file_says_nothing_of_the_machine_it_was_made_on(tmp_path: Path) -> None:
    data = images_learner(tmp_path).export().read_bytes()
    assert b".py" not in data
    assert str(tmp_path).encode() not in data


def test_dict_batches_go_in_by_name(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, wide: Tensor, deep: Tensor) -> Tensor:
            return self.layer(wide + deep)

    batch = {"wide": torch.randn(4, 3), "deep": torch.randn(4, 3), "target": torch.randn(4, 1)}
    learn = Learner(DataLoaders([batch], [batch], device="cpu"), Named(), F.mse_loss, path=tmp_path)
    graph = minilearn.load_exported(learn.export())
    torch.testing.assert_close(graph(wide=batch["wide"], deep=batch["deep"]), learn.model(batch["wide"], batch["deep"]))


def test_a_recurrent_and_an_attentive_model_can_be_exported_and_loaded(tmp_path: Path) -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.rnn = nn.Embedding(10, 8), nn.GRU(8, 8, batch_first=True)
            self.layer, self.out = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                words = self.words(x)
            return self.out(self.layer(self.rnn(words)[0])[:, -1])

    x, y = torch.randint(0, 10, (8, 5)), torch.randint(0, 3, (8,))
    learn = Learner(
        DataLoaders.from_tensors(x, y, bs=4, device="cpu"), Attentive(), nn.CrossEntropyLoss(), path=tmp_path
    )
    graph = minilearn.load_exported(learn.export())
    torch.testing.assert_close(graph(x), learn.model.eval()(x).softmax(1))


def test_a_model_bound_to_one_batch_size_is_refused(tmp_path: Path) -> None:
    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.each = nn.Linear(3, 1), nn.Parameter(torch.zeros(3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.each

    with pytest.raises(ValueError, match="cannot be exported for batches of any size"):
        rows_learner(tmp_path, Bound()).export()
    assert not (tmp_path / "model.pt2").exists()


def test_a_model_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn_like(x[:, :1])

    with pytest.raises(ValueError, match="answers otherwise than its graph"):
        rows_learner(tmp_path, Noisy(3, 1)).export()


def test_an_operator_of_another_library_is_named(tmp_path: Path) -> None:
    @torch.library.custom_op("minilearn_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    class Foreign(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return twice(super().forward(x))

    with pytest.raises(ValueError, match=r"it calls 'torch\.ops\.minilearn_tests\.twice\.default'"):
        rows_learner(tmp_path, Foreign(3, 1)).export()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model", "model.pth", "model.safetensors"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file must end in \.pt2 or \.onnx"):
        rows_learner(tmp_path, nn.Linear(3, 1)).export(name)


def test_onnx_names_the_packages_that_are_missing_or_writes_the_file(tmp_path: Path) -> None:
    learn = rows_learner(tmp_path, nn.Linear(3, 1))
    try:
        for name in ONNX_PACKAGES:
            __import__(name)
    except ImportError:
        with pytest.raises(ModuleNotFoundError, match="pip install onnx"):
            learn.export("model.onnx")
    else:
        assert learn.export("model.onnx").stat().st_size > 100


def test_an_exported_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/model\.pt2"):
        minilearn.load_exported(tmp_path / "model.pt2")


# ---- import ----


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize(
    "held",
    [
        lambda weights: weights,
        dict,
        lambda weights: {"state_dict": weights, "epoch": 3, "lr": 0.1, "names": ["a", "b"], "none": None},
        lambda weights: {"model": weights, "opt": {"state": {0: {"mom": torch.ones(3)}}, "hypers": [(0.9, 0.99)]}},
    ],
    ids=["state_dict", "dict", "lightning", "fastai"],
)
def test_weights_made_elsewhere_come_in_bit_for_bit(held: Any, tmp_path: Path) -> None:
    model, other = mlp(), mlp()
    torch.save(held(model.state_dict()), tmp_path / "w.pth")
    assert import_weights(tmp_path / "w.pth", other) == []
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint16])
def test_every_dtype_comes_in(dtype: torch.dtype, tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self, value: Tensor) -> None:
            super().__init__()
            self.register_buffer("w", value)

    value = torch.arange(12).reshape(3, 4).T.to(dtype)
    torch.save({"w": value}, tmp_path / "w.pth")
    other = One(torch.zeros(4, 3, dtype=dtype))
    import_weights(tmp_path / "w.pth", other)
    assert other.w.view(torch.uint8).tolist() == value.contiguous().view(torch.uint8).tolist()


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    torch.save({**mlp().state_dict(), "0.bias": torch.zeros(5)}, tmp_path / "w.pth")
    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"0\.bias is \(5,\) in the file and \(4,\) in the model"):
        import_weights(tmp_path / "w.pth", model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_learner_imports_what_fits_and_says_what_not(tmp_path: Path) -> None:
    source = mlp()
    weights = OrderedDict(source.state_dict(), more=torch.ones(1))
    (tmp_path / "models").mkdir()
    torch.save(weights, tmp_path / "models" / "w.pth")
    learn, said = rows_learner(tmp_path, mlp()), []
    learn.logger = said.append
    assert learn.import_weights("w.pth", strict=False) is learn
    assert said == ["import_weights('w.pth', strict=False): the model has no more, which the file has"]
    assert torch.equal(learn.model[0].weight, source[0].weight)


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (mlp(), r"it names torch\.nn\.modules"),
        ({"w": torch.eye(2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"w": torch.ones(1).expand(9)}, r"a tensor of shape \(9,\) in a storage of 1 elements"),
        ({"epoch": 3}, "holds no state dict, but a dict of epoch"),
        ([torch.ones(2)], "holds no state dict, but list"),
    ],
    ids=["module", "sparse", "expanded", "no weights", "list"],
)
def test_a_file_of_anything_but_weights_is_refused(thing: Any, named: str, tmp_path: Path) -> None:
    torch.save(thing, tmp_path / "w.pth")
    with pytest.raises(FileError, match=named):
        import_weights(tmp_path / "w.pth", mlp())


def test_a_file_of_minilearn_is_not_for_import(tmp_path: Path) -> None:
    save_model(tmp_path / "w", mlp())
    with pytest.raises(FileError, match="no zip archive"):
        import_weights(tmp_path / "w.safetensors", mlp())


@pytest.mark.parametrize("version", ["2.6.0", "2.9.1+cu128"])
def test_a_torch_with_a_known_hole_is_refused(version: str) -> None:
    with pytest.raises(RuntimeError, match=r"needs torch 2\.10 or newer, and this is 2"):
        check_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0+git1"])
def test_a_torch_without_one_is_taken(version: str) -> None:
    check_torch(version)
