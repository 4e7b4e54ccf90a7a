# ruff: noqa: F403, F405 -- as people write them, for a notebook
"""A training with callbacks of one's own: noise on the input, a penalty, a warm-up, steps left out, early end."""

from minilearn.all import *

x = torch.sin(torch.arange(96 * 10) ** 2 * 0.377).reshape(96, 10)
y = (x @ torch.cos(torch.arange(30) * 1.7).reshape(10, 3)).argmax(1)
train = torch.utils.data.TensorDataset(x[:64], y[:64])
valid = torch.utils.data.TensorDataset(x[64:], y[64:])
dls = DataLoaders(torch.utils.data.DataLoader(train, 16), torch.utils.data.DataLoader(valid, 20))

model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
for p in model.parameters():
    p.data = torch.cos(torch.arange(p.numel()) * 2.3).reshape(p.shape) / 3

seen = []


class Perturb(Callback):
    "Moves the inputs in training."

    order = -5
    run_valid = False

    def __init__(self, size=0.1):
        self.size = size

    def before_batch(self):
        self.learn.xb = (self.x + self.size * torch.sin(torch.arange(self.x.numel())).reshape(self.x.shape),)


class Penalty(Callback):
    "Adds the square of the answers to what is trained on; the loss that is shown stays as it is."

    def __init__(self, weight):
        self.weight = weight

    def after_pred(self):
        self.answers = self.learn.pred

    def after_loss(self):
        if self.training:
            self.learn.loss_grad += self.weight * self.answers.square().mean()


class Watch(Callback):
    "Leaves out every fifth step, halves the rate in the second epoch, notes what it sees, ends in the third."

    order = Recorder.order + 1

    def before_fit(self):
        seen.append(("fit", self.n_epoch))

    def before_epoch(self):
        if self.epoch == 1:
            self.opt.set_hyper("lr", self.opt.hypers[-1]["lr"] / 2)

    def before_step(self):
        if self.train_iter % 5 == 4:
            raise CancelStepException()

    def after_batch(self):
        if self.training:
            seen.append((self.epoch, self.iter, self.n_iter, self.train_iter, round(self.pct_train, 4)))
            seen.append((self.loss.item(), self.opt.hypers[-1]["lr"]))

    def after_cancel_step(self):
        seen.append(("no step", self.train_iter))

    def after_validate(self):
        if self.epoch == 2:
            raise CancelFitException()

    def after_cancel_fit(self):
        seen.append(("end", self.epoch))


learn = Learner(dls, model, loss_func=F.cross_entropy, opt_func=SGD, metrics=[accuracy], cbs=[Perturb(0.2), Watch])
with learn.no_bar(), learn.no_logging():
    learn.fit(5, 0.2, cbs=Penalty(weight=0.01))
    learn.remove_cb(Watch)
    learn.fit(1, 0.1)

figures = {
    "seen": [[float(part) if not isinstance(part, str) else part for part in row] for row in seen],
    "weights": [p.abs().sum().item() for p in model.parameters()],
    "last": [float(value) for value in learn.recorder.values[-1]],
    "callbacks": sorted(type(cb).__name__ for cb in learn.cbs if isinstance(cb, (Perturb, Watch, Penalty))),
}
