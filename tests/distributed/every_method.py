"""What a Learner can be asked for, one after the other in each of several processes: python every_method.py FOLDER."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from minilearn.all import ClassificationInterpretation, DataLoaders, Learner, accuracy, set_seed


def main() -> None:
    set_seed(0)
    x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
    dls = DataLoaders.from_tensors(x, y, x, y, bs=8)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    learn = Learner(dls, model, F.cross_entropy, metrics=accuracy, path=Path(sys.argv[1]))
    learn.logger = lambda text: None
    learn.fit(1, 0.1)
    before = learn.get_preds()[0]
    learn.lr_find(show_plot=False)
    learn.dry_run()
    learn.summary()
    learn.check()
    learn.overfit_one_batch(20)
    learn.profile(5)
    assert torch.equal(learn.get_preds()[0], before), "a trial left a trace"
    learn.fine_tune(1)
    learn.fit_flat_cos(1)
    learn.save("here")
    learn.fit(1, 0.1)
    learn.load("here")
    learn.predict((x[0], y[0]))
    learn.export("model.pt2")
    matrix = ClassificationInterpretation.from_learner(learn).confusion_matrix()
    print(json.dumps({"weights": [p.tolist() for p in model.parameters()], "matrix": matrix.tolist()}))


if __name__ == "__main__":
    main()
