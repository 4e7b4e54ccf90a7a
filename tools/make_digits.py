"""Makes the digits that come with minilearn from scikit-learn's copy of the UCI data: `python tools/make_digits.py`.

Needs scikit-learn, which minilearn does not. The files come out the same, byte for byte, each time.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from minilearn.data.idx import write_idx

FOLDER = Path(__file__).parent.parent / "minilearn" / "data"

data = load_digits()
images = torch.from_numpy(data.images).to(torch.uint8)
labels = torch.from_numpy(data.target).to(torch.uint8)
assert images.shape == (1797, 8, 8)
assert int(images.max()) == 16
for name, values in (("images-idx3", images), ("labels-idx1", labels)):
    file = FOLDER / f"digits-{name}-ubyte.gz"
    write_idx(file, values)
    print(file, file.stat().st_size, "bytes")
