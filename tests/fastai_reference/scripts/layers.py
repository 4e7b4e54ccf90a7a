# ruff: noqa: F403, F405, B905 -- as people write them, for a notebook
"""Fine-tuning by hand: a splitter, frozen layers, a rate for each layer, and one cycle for all of them."""

from minilearn.all import *

x = torch.sin(torch.arange(90 * 12) ** 2 * 0.377).reshape(90, 12)
y = (x @ torch.cos(torch.arange(36) * 1.7).reshape(12, 3)).argmax(1)
data = [torch.utils.data.TensorDataset(x[:60], y[:60]), torch.utils.data.TensorDataset(x[60:], y[60:])]
dls = DataLoaders.from_dsets(*data, bs=16, shuffle=False, drop_last=False)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 10, bias=False), nn.BatchNorm1d(10), nn.Tanh())
        self.neck = nn.Sequential(nn.Linear(10, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.neck(self.body(x)))


def parts(model):
    return [list(model.body.parameters()), list(model.neck.parameters()), list(model.head.parameters())]


model = Net()
for p in parts(model)[0][:1] + parts(model)[1] + parts(model)[2]:
    p.data = torch.cos(torch.arange(p.numel()) * 2.3).reshape(p.shape) / 3

notes = []


class Rates(Callback):
    order = 70

    def before_step(self):
        hypers = [h for h, group in zip(self.opt.hypers, self.opt.param_groups) if not group.get("no_wd")]
        notes.append([h["lr"] for h in hypers] + [hypers[-1]["mom"]])


learn = Learner(dls, model, F.cross_entropy, opt_func=partial(Adam, sqr_mom=0.98), splitter=parts, metrics=error_rate)
with learn.no_bar(), learn.no_logging():
    learn.freeze()
    open_ones = [[p.requires_grad for p in part] for part in parts(model)]
    learn.fit(1, slice(1e-2))
    learn.freeze_to(-2)
    learn.opt.clear_state()
    learn.fit_one_cycle(1, slice(1e-4, 1e-2), cbs=Rates())
    learn.unfreeze()
    learn.opt.clear_state()
    learn.fit_one_cycle(2, [1e-4, 1e-3, 1e-2], pct_start=0.5, moms=(0.9, 0.8, 0.9), wd=0.1, cbs=Rates())

figures = {
    "open": [[float(is_open) for is_open in part] for part in open_ones],
    "rates": [[float(rate) for rate in row] for row in notes],
    "values": [[float(value) for value in row] for row in learn.recorder.values],
    "weights": [p.abs().sum().item() for p in model.parameters()],
}
