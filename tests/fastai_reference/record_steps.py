"""Records the weights after fits of fastai with callbacks that change the step; run it where fastai 2.8.12 is.

python tests/fastai_reference/record_steps.py > tests/fastai_reference/steps.json
"""

import json
import math
import sys

import torch
from torch import nn

EPOCHS, LR, MOM = 2, 0.1, 0.9


def numbers(*shape, start):
    """Numbers that look like noise, the same everywhere."""
    n = math.prod(shape)
    return torch.sin(torch.arange(n, dtype=torch.float64) * 1.7 + start).float().reshape(shape)


def weights(rows, bs, cbs):
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(numbers(*p.shape, start=i) / 2)
    x, y = numbers(rows, 4, start=9), torch.arange(rows) % 3
    data = list(zip(x, y, strict=True))
    dls = DataLoaders(*(DataLoader(data, bs=bs, shuffle=False, num_workers=0) for _ in range(2)), device="cpu")
    learn = Learner(dls, model, nn.CrossEntropyLoss(), lambda p, lr: SGD(p, lr, mom=MOM), cbs=cbs)
    with learn.no_logging(), learn.no_bar():
        learn.fit(EPOCHS, LR)
    return [round(w, 9) for p in model.parameters() for w in p.detach().flatten().tolist()]


def record():
    import fastai
    from fastai.callback.fp16 import MixedPrecision
    from fastai.callback.training import GradientAccumulation, GradientClip

    figures = {
        "plain": weights(24, 4, []),
        "clip": weights(24, 4, [GradientClip(0.1)]),
        "clip_inf": weights(24, 4, [GradientClip(0.05, norm_type=math.inf)]),
        "accumulate_8": weights(24, 4, [GradientAccumulation(8)]),
        "accumulate_8_and_clip": weights(24, 4, [GradientAccumulation(8), GradientClip(0.1)]),
        "accumulate_8_in_batches_of_3": weights(27, 3, [GradientAccumulation(8)]),
        "accumulate_8_of_20_rows": weights(20, 4, [GradientAccumulation(8)]),
        "bf16_on_a_cpu": weights(24, 4, [MixedPrecision("bf16")]),
    }
    return {"fastai": fastai.__version__, "weights": figures}


if __name__ == "__main__":
    json.dump(record(), sys.stdout)
    print()
