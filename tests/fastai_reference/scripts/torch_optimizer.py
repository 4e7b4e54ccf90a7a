# ruff: noqa: F403, F405 -- as people write them, for a notebook
"""torch's datasets and optimizers: a regression with OptimWrapper, a schedule of one's own, and the rate finder."""

from minilearn.all import *


class Line(torch.utils.data.Dataset):
    def __init__(self, first, last):
        self.rows = range(first, last)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        x = torch.sin(torch.arange(4) * (self.rows[i] + 1.3) ** 2 * 0.377)
        return x, x @ torch.tensor([1.0, -2.0, 0.5, 3.0]) + 0.1 * x[1:2]


dls = DataLoaders.from_dsets(Line(0, 50), Line(50, 80), bs=8, shuffle=False, drop_last=False, num_workers=0)
model = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1))
for p in model.parameters():
    p.data = torch.cos(torch.arange(p.numel()) * 2.3).reshape(p.shape) / 2

opt_func = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.8)
learn = Learner(dls, model, nn.MSELoss(), opt_func=opt_func, lr=0.02, metrics=[mse, mae])

with learn.no_bar(), learn.no_logging():
    found = learn.lr_find(num_it=60, end_lr=1, show_plot=False)
    learn.fit(2)
    first = [list(row) for row in learn.recorder.values]
    scheds = {
        "lr": combine_scheds([0.25, 0.75], [SchedLin(0.001, 0.03), SchedCos(0.03, 0.0)]),
        "mom": SchedNo(0.7, 0.7),
    }
    learn.fit(2, cbs=ParamScheduler(scheds))

x, y = dls.one_batch()
figures = {
    "suggestion": [float(found.valley)],
    "batch": [float(x.sum()), float(y.sum()), float(len(x))],
    "first": [[float(value) for value in row] for row in first],
    "values": [[float(value) for value in row] for row in learn.recorder.values],
    "lrs": [float(lr) for lr in learn.recorder.hps["lr"]],
    "moms": [float(mom) for mom in learn.recorder.hps["mom"]],
    "weights": [p.abs().sum().item() for p in model.parameters()],
}
