"""The linear job in other frameworks; `python benchmarks/peers.py NAME EPOCHS` is one of them, in its own process.

Each is written as its own documentation says, with what it prints, logs and saves switched off. Processes take turns;
in each an epoch warms up, and the epochs after it are timed, five times five. All start from the same weights; their
batches are in orders of their own, so the ends may differ by what chance makes of it: the loss by a tenth, the accuracy
by 0.01.
"""

import functools
import importlib.util
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from harness import Case, Measured, Setting, Skip, compared, in_process
from linear import BATCH, JOB, LR, Data, batch_accuracy, learner, load, mnist_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from minilearn.vision import torchvision  # noqa: F401 -- some of them import it, which fails beside torch's CPU build

Figures = tuple[float, float]
"""The last epoch's validation loss and accuracy."""
Train = Callable[[int], Figures]
"""Goes on for so many epochs."""


def loaders(data: Data) -> tuple[Any, Any]:
    """torch's, as its documentation makes them."""
    x, y, valid_x, valid_y = data
    return DataLoader(TensorDataset(x, y), BATCH, shuffle=True), DataLoader(TensorDataset(valid_x, valid_y), BATCH)


def ours(data: Data, model: nn.Module) -> Train:
    learn = learner(data, model)

    def train(epochs: int) -> Figures:
        learn.fit(epochs, LR)
        return tuple(learn.recorder.values[-1][1:])

    return train


def fastai(
    data: Data,
    model: nn.Module,
    *,
    bs: int = BATCH,
    lr: float = LR,
    mom: float = 0.0,
    loss_func: Callable[[Tensor, Tensor], Tensor] = mnist_loss,
    metric: Callable[[Tensor, Tensor], Tensor] = batch_accuracy,
    device: str = "cpu",
) -> Train:
    import fastai.callback.progress  # noqa: F401 -- gives a Learner its no_bar
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FastaiLoader
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    x, y, valid_x, valid_y = data
    train_dl = FastaiLoader(list(zip(x, y, strict=True)), bs=bs, shuffle=True)
    valid_dl = FastaiLoader(list(zip(valid_x, valid_y, strict=True)), bs=bs)
    dls = DataLoaders(train_dl, valid_dl, device=device)
    learn = Learner(dls, model, loss_func, opt_func=functools.partial(SGD, mom=mom), metrics=metric)

    def train(epochs: int) -> Figures:
        with learn.no_bar(), learn.no_logging():
            learn.fit(epochs, lr)
        return tuple(learn.recorder.values[-1][1:])

    return train


def lightning(data: Data, model: nn.Module) -> Train:
    import logging

    from lightning.pytorch import LightningModule, Trainer

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            loss = mnist_loss(self.model(x), y)
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            pred = self.model(x)
            self.log_dict({"loss": mnist_loss(pred, y), "accuracy": batch_accuracy(pred, y)})

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), LR)

    module, (train_dl, valid_dl) = Module(), loaders(data)

    def train(epochs: int) -> Figures:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, train_dl, valid_dl)
        return float(trainer.callback_metrics["loss"]), float(trainer.callback_metrics["accuracy"])

    return train


def keras(data: Data, model: nn.Module) -> Train:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    def loss(target: Any, pred: Any) -> Any:
        pred = k.ops.sigmoid(pred)
        return k.ops.mean(k.ops.where(k.ops.equal(target, 1), 1 - pred, pred), axis=-1)

    def accuracy(target: Any, pred: Any) -> Any:
        right = k.ops.equal(k.ops.greater(k.ops.sigmoid(pred), 0.5), k.ops.equal(target, 1))
        return k.ops.mean(k.ops.cast(right, "float32"), axis=-1)

    net = k.Sequential([k.Input((784,)), k.layers.Dense(1)])
    net.layers[-1].set_weights([p.detach().numpy() for p in (model.weight.T, model.bias)])
    net.compile(k.optimizers.SGD(LR), loss, metrics=[accuracy])
    x, y, valid_x, valid_y = (part.numpy() for part in data)

    def train(epochs: int) -> Figures:
        done = net.fit(x, y, BATCH, epochs, verbose=0, validation_data=(valid_x, valid_y))
        return done.history["val_loss"][-1], done.history["val_accuracy"][-1]

    return train


def skorch(data: Data, model: nn.Module) -> Train:
    from skorch import NeuralNet
    from skorch.callbacks import PassthroughScoring
    from skorch.helper import predefined_split

    class Net(NeuralNet):
        def get_loss(self, y_pred: Tensor, y_true: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return mnist_loss(y_pred, y_true)

        def validation_step(self, batch: Any, **kwargs: Any) -> Any:
            step = super().validation_step(batch, **kwargs)
            self.history.record_batch("valid_accuracy", batch_accuracy(step["y_pred"], batch[1]).item())
            return step

    x, y, valid_x, valid_y = data
    net = Net(
        model,
        criterion=nn.Identity,
        optimizer=torch.optim.SGD,
        lr=LR,
        batch_size=BATCH,
        iterator_train__shuffle=True,
        train_split=predefined_split(TensorDataset(valid_x, valid_y)),
        callbacks=[("accuracy", PassthroughScoring("valid_accuracy", lower_is_better=False))],
        callbacks__print_log=None,
    ).initialize()

    def train(epochs: int) -> Figures:
        net.partial_fit(TensorDataset(x, y), None, epochs=epochs)
        return net.history[-1]["valid_loss"], net.history[-1]["valid_accuracy"]

    return train


def ignite(data: Data, model: nn.Module) -> Train:
    from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
    from ignite.metrics import Average, Loss, RunningAverage

    train_dl, valid_dl = loaders(data)
    engine = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), LR), mnist_loss)
    RunningAverage(output_transform=lambda loss: loss).attach(engine, "train_loss")
    right = Average(output_transform=lambda output: ((output[0].sigmoid() > 0.5) == output[1]).float())
    evaluator = create_supervised_evaluator(model, {"loss": Loss(mnist_loss), "accuracy": right})

    @engine.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        evaluator.run(valid_dl)

    def train(epochs: int) -> Figures:
        engine.run(train_dl, max_epochs=engine.state.epoch + epochs)  # it counts on from the last run
        return evaluator.state.metrics["loss"], float(evaluator.state.metrics["accuracy"])

    return train


def accelerate(data: Data, model: nn.Module) -> Train:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, opt, train_dl, valid_dl = accelerator.prepare(model, torch.optim.SGD(model.parameters(), LR), *loaders(data))

    def train(epochs: int) -> Figures:
        for _ in range(epochs):
            model.train()
            for x, y in train_dl:
                opt.zero_grad()
                accelerator.backward(mnist_loss(model(x), y))
                opt.step()
            model.eval()
            loss = right = torch.zeros(())
            with torch.no_grad():
                for x, y in valid_dl:
                    pred, target = accelerator.gather_for_metrics((model(x), y))
                    loss = loss + mnist_loss(pred, target) * len(pred)
                    right = right + batch_accuracy(pred, target) * len(pred)
        return float(loss) / len(data[2]), float(right) / len(data[2])

    return train


MAKERS: dict[str, Callable[[Data, nn.Module], Train]] = {
    maker.__name__: maker for maker in (ours, fastai, lightning, keras, skorch, ignite, accelerate)
}
FULL = ("fastai", "lightning", "keras", "skorch")
"""Those that do as much as we do: a loop, metrics, callbacks."""
TIMES = 5
"""How often a process is timed: once takes 0.1 s where it is quick, in which a machine may do much else."""
PACKAGES = ("fastai", "lightning", "keras", "skorch", "pytorch-ignite", "accelerate")


def main(name: str, epochs: int) -> None:
    """Trains, and prints the seconds of an epoch and the last validation's figures."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train = MAKERS[name](load(), nn.Linear(784, 1))
    train(1)
    seconds, work = [], []
    for _ in range(TIMES):
        started, worked = time.perf_counter(), time.process_time()
        loss, accuracy = train(epochs)
        seconds.append((time.perf_counter() - started) / epochs)
        work.append((time.process_time() - worked) / epochs)
    middles = {"seconds": statistics.median(seconds), "work": statistics.median(work)}
    print(json.dumps({**middles, "loss": float(loss), "accuracy": float(accuracy)}))


Ends = list[dict[str, float]]
"""What a side's processes printed, one a round."""


@functools.cache
def rounds_of_all(setting: Setting) -> dict[str, tuple[Ends, Ends]]:
    """Of each peer that is there, our ends and its own. Ours run anew beside each: a machine is not long the same."""
    there = [name for name in MAKERS if name != "ours" and importlib.util.find_spec(name) is not None]
    found: dict[str, tuple[Ends, Ends]] = {name: ([], []) for name in there}
    for _ in range(setting.of(3, 1)):
        for name, (ours, theirs) in found.items():
            ours.append(end_of_ours := in_process("peers.py", "ours", 5))
            theirs.append(end := in_process("peers.py", name, 5))
            close = math.isclose(end["loss"], end_of_ours["loss"], rel_tol=0.1)
            close = close and abs(end["accuracy"] - end_of_ours["accuracy"]) <= 0.01
            assert close, f"{name} ended with {end}, ours with {end_of_ours}"
    return found


def ratio(peer: str, setting: Setting) -> Measured:
    """Ours beside a peer's; with the ratio of the processor's times, which is steadier on a machine that is shared."""
    ends = rounds_of_all(setting)[peer]
    seconds, work = ([[end[clock] for end in side] for side in ends] for clock in ("seconds", "work"))
    return compared(*seconds, note=f"{peer}; by the processor's time {compared(*work).figure:.3f}")


def beside(peer: str, setting: Setting) -> Measured:
    if importlib.util.find_spec(peer) is None:
        raise Skip("it is not installed: pip install -e '.[bench]'")
    return ratio(peer, setting)


def beside_best(setting: Setting) -> Measured:
    """Beside the one of `FULL` that ours is the least ahead of."""
    if not any(importlib.util.find_spec(peer) for peer in FULL):
        raise Skip("none of them is installed: pip install -e '.[bench]'")
    return max((ratio(peer, setting) for peer in FULL if peer in rounds_of_all(setting)), key=lambda one: one.figure)


CASES = [
    *(
        Case(f"linear, {peer}", "Learner.fit", peer, JOB, functools.partial(beside, peer), slow=True)
        for peer in MAKERS
        if peer != "ours"
    ),
    Case(
        "linear, best framework", "Learner.fit", f"the fastest of {', '.join(FULL)}", JOB, beside_best, 0.25, slow=True
    ),
]

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
