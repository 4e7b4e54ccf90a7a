"""Data: loaders (`loader`), the first lessons' digits (`handwritten`), downloads (`download`), IDX files (`idx`)."""

from minilearn.data.download import DataError
from minilearn.data.handwritten import Split, URLs, digits, digits_sample, mnist, mnist_sample, untar_data
from minilearn.data.loader import DataLoader, DataLoaders

__all__ = [
    "DataError",
    "DataLoader",
    "DataLoaders",
    "Split",
    "URLs",
    "digits",
    "digits_sample",
    "mnist",
    "mnist_sample",
    "untar_data",
]
