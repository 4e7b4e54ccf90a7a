"""`save` and `load`: everything comes back, or nothing is changed and the error says why."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import line_dls
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn.files import FileError
from minilearn.learner import Learner
from minilearn.optim import SGD, Adam, Lookahead, Muon, OptimWrapper, RAdam
from minilearn.saved import load_model, save_model


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def learner(path: Path, opt_func: Any = Adam, seed: int = 0, model: nn.Module | None = None, **options: Any) -> Learner:
    torch.manual_seed(seed)
    learn = Learner(line_dls(), model or mlp(), F.mse_loss, opt_func, path=path, **options)
    learn.logger = lambda text: None
    return learn


def trained(path: Path, *args: Any, **options: Any) -> Learner:
    learn = learner(path, *args, **options)
    learn.fit(2, 0.01)
    return learn


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


OPTIMIZERS = [
    Adam,
    partial(SGD, mom=0.9),
    Muon,
    lambda params, lr: Lookahead(RAdam(params, lr)),
    torch.optim.SGD,
    partial(torch.optim.AdamW, amsgrad=True),
    partial(OptimWrapper, opt=torch.optim.RMSprop),
    torch.optim.Adagrad,
    torch.optim.LBFGS,
]
NAMES = ["Adam", "SGD", "Muon", "Lookahead", "torch.SGD", "torch.AdamW", "OptimWrapper", "Adagrad", "LBFGS"]


@pytest.mark.filterwarnings("ignore:LBFGS takes one group")
@pytest.mark.parametrize("opt_func", OPTIMIZERS, ids=NAMES)
def test_training_goes_on_from_a_file_as_it_would_have_gone_on(opt_func: Any, tmp_path: Path) -> None:
    learn = trained(tmp_path, opt_func)
    learn.save("here")
    other = learner(tmp_path, opt_func, seed=1).load("here")
    assert same_weights(learn.model, other.model)
    for one in (learn, other):
        one.fit(2, 0.01)
    assert same_weights(learn.model, other.model)


def test_a_file_lies_below_path_and_model_dir(tmp_path: Path) -> None:
    learn = learner(tmp_path, model_dir="kept")
    assert learn.save("a") == tmp_path / "kept" / "a.safetensors"
    assert learn.save("sub/b.safetensors") == tmp_path / "kept" / "sub" / "b.safetensors"
    assert learn.save(Path("v1.5")) == tmp_path / "kept" / "v1.5.safetensors"
    assert learn.save(tmp_path / "elsewhere" / "c") == tmp_path / "elsewhere" / "c.safetensors"
    for name in ("a", "sub/b", "v1.5", tmp_path / "elsewhere" / "c"):
        assert learn.load(name) is learn


@pytest.mark.parametrize("name", ["model.pth", "x/model.pt", "model.pkl"])
def test_a_name_of_pickles_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"minilearn's files are safetensors: '.*model' is enough"):
        learner(tmp_path).save(name)


@pytest.mark.parametrize("name", [None, 3, "", open])
def test_what_is_no_name_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="file must be a name or a path"):
        learner(tmp_path).save(name)


def test_weights_open_in_any_reader_of_the_format(tmp_path: Path) -> None:
    learn = trained(tmp_path)
    weights = safetensors.torch.load_file(learn.save("alone", with_opt=False))
    model = mlp()
    model.load_state_dict(weights)
    assert same_weights(model, learn.model)
    both = safetensors.torch.load_file(learn.save("both"))
    assert {name for name in both if not name.startswith("optimizer.")} == set(weights)


def test_without_an_optimizer_in_the_file_the_optimizer_stays_and_it_is_said(tmp_path: Path) -> None:
    learn = trained(tmp_path)
    learn.save("alone", with_opt=False)
    before = learn.opt.state_dict()
    with pytest.warns(RuntimeWarning, match="has no optimizer's state"):
        learn.load("alone")
    after = learn.opt.state_dict()
    assert all(torch.equal(after["state"][0][k], v) for k, v in before["state"][0].items() if isinstance(v, Tensor))
    learn.load("alone", with_opt=False)


def test_where_there_is_no_optimizer_to_miss_nothing_is_said(tmp_path: Path) -> None:
    learner(tmp_path).save("new")
    other = learner(tmp_path, seed=1).load("new")
    assert "opt" not in other.__dict__


def test_an_optimizer_is_made_where_there_is_none(tmp_path: Path) -> None:
    learn = trained(tmp_path)
    learn.save("x")
    other = learner(tmp_path).load("x")
    assert [g["lr"] for g in other.opt.param_groups] == [0.01, 0.01]
    assert [(g["layer"], g["no_wd"]) for g in other.opt.param_groups] == [(0, False), (0, True)]


def test_with_opt_false_leaves_the_optimizer_alone(tmp_path: Path) -> None:
    trained(tmp_path).save("x")
    other = learner(tmp_path).load("x", with_opt=False)
    assert "opt" not in other.__dict__


def test_loading_shares_no_tensor_with_its_source(tmp_path: Path) -> None:
    learn = trained(tmp_path)
    path = learn.save("x")
    first, second = learner(tmp_path).load("x"), learner(tmp_path).load("x")
    for learn in (first, second):
        tensors = [*learn.model.state_dict().values(), *(t for s in learn.opt.state.values() for t in s.values())]
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                tensor.fill_(7)
    assert safetensors.torch.load_file(path)["0.weight"].ne(7).all()


def test_parameters_stay_the_very_ones(tmp_path: Path) -> None:
    learn = trained(tmp_path)
    learn.save("x")
    before = [(p, p.data_ptr()) for p in learn.model.parameters()]
    learn.load("x")
    assert [(id(p), p.data_ptr()) for p in learn.model.parameters()] == [(id(p), place) for p, place in before]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("gone", None)
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("count", torch.tensor(3))
        self.extra = "kept"

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)).sum(1, keepdim=True)

    def get_extra_state(self) -> Any:
        return {"extra": self.extra}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["extra"]


def test_tied_weights_are_written_once_and_loaded_tied(tmp_path: Path) -> None:
    learn = trained(tmp_path, model=Tied())
    learn.model.extra = "mine"
    path = learn.save("tied", with_opt=False)
    assert set(safetensors.torch.load_file(path)) == {"first.weight", "count"}
    other = learner(tmp_path, model=Tied(), seed=1).load("tied", with_opt=False)
    assert torch.equal(other.model.last.weight, learn.model.first.weight)
    assert other.model.last.weight is other.model.first.weight
    assert other.model.extra == "mine"


def test_state_that_is_not_plain_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    model = Tied()
    model.extra = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"_extra_state\.extra is of type object, which cannot be saved"):
        learner(tmp_path, model=model).save("x")
    assert not (tmp_path / "models").exists()


class Versioned(nn.Linear):
    _version = 3
    seen: Any = None

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
        self.seen = metadata.get("version")
        super()._load_from_state_dict(state, prefix, metadata, *args)


def test_modules_are_told_the_version_that_their_weights_are_of(tmp_path: Path) -> None:
    save_model(tmp_path / "x", nn.Sequential(Versioned(3, 1)))
    model = nn.Sequential(Versioned(3, 1))
    load_model(tmp_path / "x", model)
    assert model[0].seen == 3


def test_a_lazy_model_is_saved_after_its_first_batch_and_loaded_before_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"before its first batch: weight has no shape yet"):
        save_model(tmp_path / "x", nn.LazyLinear(2))
    made = nn.LazyLinear(2)
    made(torch.ones(1, 3))
    save_model(tmp_path / "x", made)
    lazy = nn.LazyLinear(2)
    load_model(tmp_path / "x", lazy)
    assert torch.equal(lazy.weight, made.weight)


def test_the_model_within_data_parallelism_is_saved_and_loaded(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    save_model(tmp_path / "x", nn.DataParallel(model))
    assert set(safetensors.torch.load_file(tmp_path / "x.safetensors")) == {"weight", "bias"}
    other = nn.DataParallel(nn.Linear(3, 1))
    load_model(tmp_path / "x", other)
    assert torch.equal(other.module.weight, model.weight)


def test_numbers_take_on_the_models_dtype(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    save_model(tmp_path / "x", model)
    half = nn.Linear(3, 1).to(torch.bfloat16)
    load_model(tmp_path / "x", half)
    assert torch.equal(half.weight, model.weight.to(torch.bfloat16))


# ---- what does not fit ----


def refused(learn: Learner, name: str, match: str, **options: Any) -> None:
    before = {key: value.clone() for key, value in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        learn.load(name, **options)
    after = learn.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_missing_and_unexpected_names_are_listed(tmp_path: Path) -> None:
    trained(tmp_path).save("x")
    other = learner(tmp_path, model=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.ReLU()))
    refused(
        other, "x", r"does not fit, and nothing was loaded: the model has no 3\.weight, 3\.bias, which the file has"
    )
    smaller = nn.Sequential(nn.Linear(3, 1))
    learner(tmp_path, model=smaller).save("smaller", with_opt=False)
    refused(learner(tmp_path), "smaller", r"the file has no 1\.weight, 1\.bias, .* and 2 more, which the model has")


def test_other_shapes_are_listed(tmp_path: Path) -> None:
    trained(tmp_path).save("x")
    wide = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    refused(learner(tmp_path, model=wide), "x", r"0\.weight is \(4, 3\) in the file and \(5, 3\) in the model")


def test_a_wrapper_is_named_as_the_cause(tmp_path: Path) -> None:
    inner = nn.Linear(3, 1)
    holder = nn.Module()
    holder.module = inner
    save_model(tmp_path / "x", holder)
    with pytest.raises(ValueError, match=r"the file's names have 'module\.' in them, the model's do not"):
        load_model(tmp_path / "x", inner)
    save_model(tmp_path / "y", inner)
    with pytest.raises(ValueError, match=r"the model's names have 'module\.' in them, the file's do not"):
        load_model(tmp_path / "y", holder)


def test_a_renamed_layer_is_named_with_the_nearest(tmp_path: Path) -> None:
    save_model(tmp_path / "x", nn.ModuleDict({"header": nn.Linear(3, 1)}))
    with pytest.raises(ValueError, match=r"which the model has \(did you mean 'header\.weight'\?\)"):
        load_model(tmp_path / "x", nn.ModuleDict({"head": nn.Linear(3, 1)}))


def test_the_state_of_another_optimizer_is_refused_before_the_model_is_touched(tmp_path: Path) -> None:
    trained(tmp_path, SGD).save("x")
    refused(learner(tmp_path, Adam, seed=1), "x", "it is of SGD, and the Learner's is Adam. with_opt=False")


def test_other_groups_are_refused(tmp_path: Path) -> None:
    trained(tmp_path).save("x")
    refused(learner(tmp_path, seed=1, wd_bn_bias=True), "x", "another splitter, other layers or another wd_bn_bias")


def test_numbers_of_parameters_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = trained(tmp_path)
    state = learn.opt.state_dict()
    state["param_groups"][0]["params"][0] = [1]
    monkeypatch.setattr(learn.opt, "state_dict", lambda: state)
    learn.save("x")
    refused(learner(tmp_path, seed=1), "x", "it has no parameter groups")


def test_with_strict_false_what_fits_is_loaded_and_the_rest_is_said(tmp_path: Path) -> None:
    learn = trained(tmp_path)
    learn.save("x")
    wide = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 1))
    other = learner(tmp_path, model=wide, seed=1)
    said: list[str] = []
    other.logger = said.append
    other.load("x", strict=False)
    assert torch.equal(other.model[0].weight, learn.model[0].weight)
    text = "\n".join(said)
    assert "the file has no 4.weight, 4.bias, which the model has" in text
    assert "3.weight is (1, 4) in the file and (2, 4) in the model" in text
    assert "the optimizer's state: it is that of all the file's weights" in text


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_a_device_on_the_way_changes_nothing(device: Any, tmp_path: Path) -> None:
    learn = trained(tmp_path)
    learn.save("x")
    assert same_weights(learner(tmp_path, seed=1).load("x", device=device).model, learn.model)


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    trained(tmp_path).save("x")
    with pytest.raises(ValueError, match="the device 'cuda:97' is not there"):
        learner(tmp_path).load("x", device=97)


# ---- damage ----


def test_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    learn = trained(tmp_path)
    path = learn.save("x")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    before = {key: value.clone() for key, value in learn.model.state_dict().items()}
    with pytest.raises(FileError, match=r"x\.safetensors is damaged: its SHA-256"):
        learn.load("x")
    after = learn.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_values_that_are_no_saved_model_are_an_error(tmp_path: Path) -> None:
    from minilearn.tensor_files import write_tensors

    write_tensors(tmp_path / "x.safetensors", {}, {"model": {"tensor": "w"}}, kind="model")
    with pytest.raises(FileError, match="is no saved model"):
        load_model(tmp_path / "x", nn.Linear(3, 1))


def test_a_name_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    learn = learner(tmp_path)
    learn.save("best")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'best\.safetensors'"):
        learn.load("bets")


def test_saving_to_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(OSError, match="models"):
        learner(tmp_path).save("x")
