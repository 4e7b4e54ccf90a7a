"""What people get wrong: each has an error that says what to do, and leaves the Learner usable."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import Divergence, DivergenceError, TerminateOnNaN
from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner
from minilearn.losses import mnist_loss
from minilearn.metrics import batch_accuracy
from minilearn.optim import SGD


def learner(dls: object = None, model: nn.Module | None = None, loss: object = F.mse_loss, **kwargs: object) -> Learner:
    learn = Learner(dls or line_dls(), model or nn.Linear(3, 1), loss, SGD, lr=0.1, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def still_works(learn: Learner) -> None:
    """The Learner can be used again: on good data, with a good loss."""
    learn.dls, learn.loss_func, learn.metrics = line_dls(), F.mse_loss, []
    learn.fit(1, reset_opt=True)
    assert len(learn.recorder.values) == 1
    assert learn.recorder.values[0][0] is not None


def classes_dls(targets: Tensor, features: int = 3) -> DataLoaders:
    return DataLoaders.from_tensors(torch.randn(len(targets), features), targets, bs=4, shuffle=False)


def test_model_without_parameters() -> None:
    learn = learner(model=nn.Identity())
    with pytest.raises(ValueError, match=r"the model \(Identity\) has no parameters to train: it has none at all"):
        learn.fit(1)
    learn.model = nn.Linear(3, 1)
    still_works(learn)


def test_model_with_all_parameters_frozen() -> None:
    with pytest.raises(ValueError, match="or all of them are frozen"):
        learner(model=nn.Linear(3, 1).requires_grad_(False)).fit(1)


def test_empty_list_as_a_loader() -> None:
    learn = learner(DataLoaders([]))
    with pytest.raises(ValueError, match="the training loader is empty: it has 0 batches"):
        learn.fit(1)
    still_works(learn)


def test_dataset_smaller_than_a_batch_that_is_dropped() -> None:
    x, y = torch.randn(3, 3), torch.randn(3, 1)
    with pytest.raises(ValueError, match=r"the training loader is empty.*fewer than one batch with drop_last=True"):
        learner(DataLoaders(DataLoader((x, y), 4, drop_last=True))).fit(1)


def test_empty_dataset_in_torchs_loader() -> None:
    empty = torch.utils.data.TensorDataset(torch.zeros(0, 3), torch.zeros(0, 1))
    learn = learner(DataLoaders(torch.utils.data.DataLoader(empty, 4)))
    with pytest.raises(ValueError, match=r"the training loader is empty.*Its dataset has no row"):
        learn.fit(1)
    still_works(learn)


def test_empty_validation_loader() -> None:
    learn = learner(DataLoaders(line_dls().train, []))
    with pytest.raises(ValueError, match="the validation loader is empty"):
        learn.fit(1)
    still_works(learn)


def test_generator_that_is_used_up() -> None:
    learn = learner(DataLoaders(batch for batch in line_dls().train))
    with pytest.raises(ValueError, match=r"the training loader can be run through only once, not 2 times\. Give an"):
        learn.fit(2)
    learn.fit(1)
    with pytest.raises(ValueError, match=r"the training loader gave no batch\. A generator can be run through only"):
        learn.fit(1)
    still_works(learn)


def test_dataset_in_the_place_of_a_loader() -> None:
    with pytest.raises(TypeError, match=r"loader 0 is a TensorDataset.*Use DataLoaders\.from_dsets"):
        DataLoaders(torch.utils.data.TensorDataset(torch.zeros(3)))


def test_batch_without_target_and_without_loss() -> None:
    learn = learner(DataLoaders([torch.randn(4, 3)]))
    with pytest.raises(ValueError, match=r"has no target, so there is no loss: its input is \(float32 \(4, 3\)\)"):
        learn.fit(1)
    still_works(learn)


def test_batch_without_target_trains_where_a_callback_gives_the_loss() -> None:
    class Autoencode(Callback):
        def after_pred(self) -> None:
            self.learn.loss = F.mse_loss(self.pred, self.x)

    learn = learner(DataLoaders([torch.randn(4, 3)]), nn.Linear(3, 3), cbs=Autoencode)
    before = learn.model.weight.clone()
    learn.fit(1)
    assert not torch.equal(learn.model.weight, before)
    assert learn.recorder.values[0][0] is not None


@pytest.mark.parametrize("loss", [F.mse_loss, nn.MSELoss(), F.l1_loss, nn.HuberLoss(), mnist_loss])
def test_targets_that_would_broadcast(loss: object) -> None:
    learn = learner(classes_dls(torch.tensor([0.0, 1.0, 1.0, 0.0])), loss=loss)
    with pytest.raises(
        ValueError,
        match=r"predictions are \(4, 1\) but targets are \(4,\): they would broadcast to \(4, 4\)\."
        r" Use targets\.unsqueeze\(1\)",
    ):
        learn.fit(1)
    still_works(learn)


def test_metric_whose_shapes_would_broadcast() -> None:
    learn = learner(classes_dls(torch.tensor([0.0, 1.0, 1.0, 0.0])), loss=None, metrics=batch_accuracy)
    learn.dls = DataLoaders(learn.dls.train, learn.dls.train)
    with pytest.raises(ValueError, match=r"batch_accuracy: predictions are \(4, 1\)") as caught:
        learn.fit(1)
    assert "raised by the metric 'batch_accuracy'" in caught.value.__notes__
    still_works(learn)


@pytest.mark.parametrize(
    "loss", [None, F.cross_entropy, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)]
)
@pytest.mark.parametrize("wrong", [3, -1])
def test_class_index_out_of_range(loss: object, wrong: int) -> None:
    learn = learner(classes_dls(torch.tensor([0, 1, 2, wrong])), nn.Linear(3, 3), loss=loss)
    with pytest.raises(ValueError, match=r"cross_entropy|CrossEntropyLoss") as caught:
        learn.fit(1)
    assert "class indices must be in [0, 3), as the model gives 3 classes" in str(caught.value)
    learn.model = nn.Linear(3, 1)
    still_works(learn)


def test_class_index_out_of_range_in_a_later_batch_is_explained() -> None:
    learn = learner(classes_dls(torch.tensor([0, 1, 2, 0, 0, 5])), nn.Linear(3, 3), loss=None)
    with pytest.raises(IndexError) as caught:
        learn.fit(1)
    assert any("class indices must be in [0, 3)" in note for note in caught.value.__notes__)


def test_ignored_index_is_no_class() -> None:
    learn = learner(classes_dls(torch.tensor([0, 1, 2, -100])), nn.Linear(3, 3), loss=nn.CrossEntropyLoss())
    learn.fit(1)
    assert len(learn.recorder.values) == 1


def test_targets_of_two_dimensions_for_cross_entropy() -> None:
    learn = learner(classes_dls(torch.tensor([[0], [1], [2], [0]])), nn.Linear(3, 3), loss=F.cross_entropy)
    with pytest.raises(ValueError, match=r"class indices have no last axis\. Use targets\.squeeze\(1\)"):
        learn.fit(1)


def test_loss_that_is_not_one_number() -> None:
    learn = learner(loss=lambda pred, target: (pred - target) ** 2)
    with pytest.raises(
        ValueError, match=r"the loss must be a tensor that holds one number, got float32 \(4, 1\).*\.mean\(\)"
    ):
        learn.fit(1)
    still_works(learn)


def test_nan_loss_ends_the_fit_and_the_learner_still_works() -> None:
    learn = learner(loss=lambda pred, target: (pred - target).mean() * float("nan"))
    with pytest.raises(DivergenceError, match=r"not a finite number since epoch 0, batch 0 \(batch 0 of this fit"):
        learn.fit(2)
    assert learn.recorder.values == []
    learn.loss_func = F.mse_loss
    still_works(learn)


def test_nan_loss_is_reported_and_training_goes_on_where_it_is_to() -> None:
    learn = learner(loss=lambda pred, target: (pred - target).mean() * float("nan"), cbs=Divergence("warn"))
    with pytest.warns(RuntimeWarning, match=r"not a finite number since epoch 0, batch 0 \(batch 0 of this fit"):
        learn.fit(2)
    assert len(learn.recorder.values) == 2
    assert str(learn.recorder.values[0][0]) == "nan"
    learn.model = nn.Linear(3, 1)
    still_works(learn)


def test_nan_loss_ends_the_fit_without_an_error_with_terminate_on_nan() -> None:
    batches = 0

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        nonlocal batches
        batches += 1
        return F.mse_loss(pred, target) * (float("nan") if batches == 2 else 1)

    learn = learner(line_dls(train_rows=40), loss=loss, cbs=TerminateOnNaN)
    said: list[str] = []
    learn.logger = said.append
    learn.fit(2)
    assert batches == 2
    assert learn.recorder.values == []
    assert said == ["the fit was ended: the loss of training batch 1 is not a finite number"]


def test_metric_that_raises() -> None:
    def bad(pred: Tensor, target: Tensor) -> Tensor:
        raise KeyError("mine")

    learn = learner(metrics=bad)
    with pytest.raises(KeyError) as caught:
        learn.fit(1)
    assert caught.value.__notes__ == [
        "raised by the metric 'bad'",
        "raised in Recorder.after_loss",
        "in epoch 0 of 1, validation batch 0 of 1 (counted from 0)",
    ]
    still_works(learn)


def test_metric_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"no metric 'acuracy'; did you mean 'accuracy'\?"):
        learner(metrics="acuracy")


def test_metric_that_is_no_function() -> None:
    with pytest.raises(TypeError, match=r"a metric must be a function \(pred, target\) -> scalar.*got 3"):
        learner(metrics=[3])


def test_ctrl_c_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupt(Callback):
        def after_batch(self) -> None:
            if self.epoch == 1 and self.training:
                os.kill(os.getpid(), signal.SIGINT)

    learn = learner(cbs=Interrupt)
    learn.logger = print
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3)
    trained = learn.model.weight.clone()
    assert len(learn.recorder.values) == 1  # the table so far stays
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert all(p.grad is None for p in learn.model.parameters())
    assert not hasattr(learn, "pred")
    learn.remove_cb(Interrupt)
    assert torch.equal(learn.model.weight, trained)
    still_works(learn)


def test_error_in_the_data_passes_through() -> None:
    class Broken:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield torch.randn(4, 3), torch.randn(4, 1)
            raise OSError("the disk is gone")

    learn = learner(DataLoaders(Broken()))
    with pytest.raises(OSError, match="the disk is gone") as caught:
        learn.fit(1)
    assert caught.value.__notes__ == ["in epoch 0 of 1, while fetching training batch 1 (counted from 0)"]
    still_works(learn)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_epoch": -1}, "n_epoch must be a whole number of at least 0, got -1"),
        ({"n_epoch": 1.5}, "n_epoch must be a whole number, got 1.5"),
        ({"n_epoch": 1, "lr": -1.0}, "lr must be a finite number of at least 0, got -1.0"),
        ({"n_epoch": 1, "lr": float("nan")}, "lr must be a finite number of at least 0, got nan"),
        ({"n_epoch": 1, "lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"n_epoch": 1, "wd": -0.1}, "wd must be a finite number of at least 0, got -0.1"),
        ({"n_epoch": 1, "start_epoch": -2}, "start_epoch must be a whole number of at least 0, got -2"),
    ],
)
def test_fit_refuses_bad_values(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        learner().fit(**kwargs)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_learner_refuses_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got the class Linear: make one"):
        Learner(line_dls(), nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"opt_func must be a class or a function, .* got 'adam'"):
        Learner(line_dls(), nn.Linear(3, 1), opt_func="adam")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loss_func must be a function or a module, got 'mse'"):
        Learner(line_dls(), nn.Linear(3, 1), loss_func="mse")  # type: ignore[arg-type]


def test_missing_validation_loader() -> None:
    learn = learner(DataLoaders(line_dls().train))
    with pytest.raises(IndexError, match="there is no loader 1: these DataLoaders hold the training loader, 0, alone"):
        learn.validate()
