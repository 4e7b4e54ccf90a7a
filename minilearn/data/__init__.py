"""Data: loaders (`loader`, `loaders`), what is done to batches on the device (`transforms`), digits (`handwritten`).

Beneath them: datasets as columns (`columns`), downloads (`download`), IDX files (`idx`).
"""

from minilearn.data.download import DataError
from minilearn.data.handwritten import Split, URLs, digits, digits_sample, mnist, mnist_sample, untar_data
from minilearn.data.loader import DataLoader
from minilearn.data.loaders import DataLoaders
from minilearn.data.transforms import IntToFloat, Normalize, RandomFlip, RandomShift

__all__ = [
    "DataError",
    "DataLoader",
    "DataLoaders",
    "IntToFloat",
    "Normalize",
    "RandomFlip",
    "RandomShift",
    "Split",
    "URLs",
    "digits",
    "digits_sample",
    "mnist",
    "mnist_sample",
    "untar_data",
]
