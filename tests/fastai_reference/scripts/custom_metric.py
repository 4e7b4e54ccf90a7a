# ruff: noqa: F403, F405 -- as people write them, for a notebook
"""Metrics of one's own: a class, a function, and functions with arguments, over batches of differing size."""

from minilearn.all import *

x = torch.sin(torch.arange(83 * 6) ** 2 * 0.377).reshape(83, 6)
y = (x.sum(1, keepdim=True) > 0).float()


class Share(Metric):
    "Of the rows above a threshold, the share that should be."

    def __init__(self, thresh=0.5):
        self.thresh = thresh

    def reset(self):
        self.hits, self.answers = 0, 0

    def accumulate(self, learn):
        above = learn.pred.sigmoid() > self.thresh
        self.hits += (above & (learn.y == 1)).sum()
        self.answers += above.sum()

    @property
    def value(self):
        return self.hits / self.answers if self.answers > 0 else None

    @property
    def name(self):
        return f"share_{int(self.thresh * 100)}"


def mean_gap(pred, target):
    return (pred.sigmoid() - target).abs().mean()


def above(pred, target, thresh=0.5):
    return ((pred.sigmoid() > thresh) == (target == 1)).float().mean()


batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 53, 10)]
dls = DataLoaders(batches, [(x[53:70], y[53:70]), (x[70:], y[70:])])
model = nn.Linear(6, 1)
model.weight.data.fill_(0.05)
model.bias.data.fill_(-0.1)

metrics = [Share(), mean_gap, partial(above, thresh=0.6), AvgMetric(lambda p, t: p.mean())]
learn = Learner(dls, model, nn.BCEWithLogitsLoss(), lr=0.05, metrics=metrics)
with learn.no_bar(), learn.no_logging():
    learn.fit(3)
    rows = [[float(value) for value in row] for row in learn.recorder.values]
    smooth = [float(loss) for loss in learn.recorder.losses]
    shown = learn.validate()

figures = {
    "names": [name for name in list(learn.recorder.metric_names)[:6] if name != "lambda"],
    "values": rows,
    "validate": [float(value) for value in shown],
    "smooth": smooth,
}
