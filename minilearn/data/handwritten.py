"""The data of the first lessons: handwritten digits, as tensors or as folders of PNG files."""

import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minilearn.data.download import (
    DataError,
    cannot_write,
    check_sha256,
    data_folders,
    download,
    one_process,
    unpack,
    writable_folder,
)
from minilearn.data.idx import read_idx
from minilearn.files import whole_folder

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Of the uncompressed bytes, so that a file that somebody packed anew is known all the same."""


class URLs:
    """The data sets that `untar_data` knows by name. MNIST_SAMPLE is the threes and sevens of MNIST."""

    MNIST = MIRRORS[0]
    MNIST_SAMPLE = f"{MIRRORS[0]}#3-and-7"


class Split(NamedTuple):
    """A data set in memory: ``DataLoaders.from_tensors(*mnist())``.

    `train_x` and `valid_x` are float32 (rows, 784), 28×28 grey pixels in [0, 1]; `train_y` and `valid_y` are int64.
    """

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor


class _Bytes(NamedTuple):
    """MNIST as it lies on disk: uint8 (rows, 28, 28) and uint8 (rows,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def mnist(path: str | Path | None = None) -> Split:
    """The MNIST database of handwritten digits: 60,000 to train on, 10,000 to validate on.

    It is looked for in `path`, or else in ``$MINILEARN_DATA`` and the user's data folder, there also below
    ``MNIST/raw`` (where torchvision keeps it); where it is nowhere, it is downloaded. It is checked each time.

    Returns:
        Pixels float32 (rows, 784) in [0, 1]; classes int64 (rows,).
    Raises:
        DataError: a file is damaged, or MNIST is not there and cannot be downloaded.
    Source: LeCun, Cortes and Burges, the MNIST database.
    """
    data = _mnist_bytes(path)
    return Split(
        _pixels(data.train_images), data.train_labels.long(), _pixels(data.test_images), data.test_labels.long()
    )


def mnist_sample(path: str | Path | None = None) -> Split:
    """The threes and sevens of MNIST: 12,396 to train on, 2,038 to validate on; the threes come first.

    Args:
        path: as in `mnist`.
    Returns:
        Pixels float32 (rows, 784) in [0, 1]; targets int64 (rows, 1), 1 for a three and 0 for a seven.
    Raises:
        DataError: as in `mnist`.
    """
    data = _mnist_bytes(path)
    train_x, train_y = _threes_and_sevens(data.train_images, data.train_labels)
    valid_x, valid_y = _threes_and_sevens(data.test_images, data.test_labels)
    return Split(_pixels(train_x), train_y, _pixels(valid_x), valid_y)


def digits() -> Split:
    """1,797 handwritten digits of 8×8 pixels that come with minilearn, enlarged to 28×28: MNIST's stand-in offline.

    Every fifth is kept for validation: 1,438 to train on, 359 to validate on.

    Returns:
        Pixels float32 (rows, 784) in [0, 1]; classes int64 (rows,).
    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
        (doi:10.24432/C50P49), CC BY 4.0; its test set, as scikit-learn's `load_digits` has it.
    """
    images, labels = _digits_bytes()
    held_out = torch.arange(len(images)) % 5 == 4
    return Split(
        _enlarged(images[~held_out]), labels[~held_out].long(), _enlarged(images[held_out]), labels[held_out].long()
    )


def digits_sample() -> Split:
    """The threes and sevens of `digits`, in the form of `mnist_sample`: 267 to train on, 95 to validate on."""
    images, labels = _digits_bytes()
    held_out = torch.arange(len(images)) % 5 == 4
    train_x, train_y = _threes_and_sevens(images[~held_out], labels[~held_out])
    valid_x, valid_y = _threes_and_sevens(images[held_out], labels[held_out])
    return Split(_enlarged(train_x), train_y, _enlarged(valid_x), valid_y)


def untar_data(url: str, path: str | Path | None = None, sha256: str | None = None) -> Path:
    """A folder with the data set `url`, unpacked; downloaded where it is not there yet.

    ``URLs.MNIST_SAMPLE`` gives ``train/3/…png train/7 valid/3 valid/7``, ``URLs.MNIST`` gives ``training/0 … 9`` and
    ``testing/0 … 9``; a file's name is its row in MNIST. They are made from MNIST's own files, wherever `mnist` finds
    them. Any other `url` is that of a tar archive.

    Args:
        url: one of `URLs`, or an archive's address.
        path: the folder to look and to write in, instead of ``$MINILEARN_DATA`` and the user's data folder.
        sha256: the archive's checksum, in hexadecimal; needed for an archive.
    Raises:
        ValueError: no checksum was given for an archive.
        DataError: no connection, no room, no permission, or the data is not what it should be. Nothing half-made is
            left behind.
    """
    if url == URLs.MNIST:
        return _images_folder("mnist_png", path, _write_mnist)
    if url == URLs.MNIST_SAMPLE:
        return _images_folder("mnist_sample", path, _write_sample)
    if sha256 is None:
        raise ValueError(f"give untar_data({url!r}, sha256=...): what cannot be checked is not unpacked")
    file_name = Path(urllib.parse.urlparse(url).path).name
    # Two archives of one name are told apart by their contents.
    name = f"{file_name.split('.')[0]}-{sha256[:8].lower()}"
    for folder in data_folders(path):
        if (folder / name).is_dir():
            return folder / name
    folder = writable_folder(path)
    with one_process(folder / name):
        if (folder / name).is_dir():
            return folder / name
        archive = download(url, folder / f"{name}.archive", lambda file: check_sha256(file, sha256))
        try:
            return unpack(archive, folder / name)
        finally:
            archive.unlink(missing_ok=True)


def _images_folder(name: str, path: str | Path | None, write: Callable[[_Bytes, Path], None]) -> Path:
    for folder in data_folders(path):
        if (folder / name).is_dir():
            return folder / name
    data = _mnist_bytes(path)
    folder = writable_folder(path)
    with one_process(folder / name):
        if not (folder / name).is_dir():
            try:
                with whole_folder(folder / name) as inside:
                    write(data, inside)
            except OSError as error:
                raise cannot_write(folder, error) from error
    return folder / name


def _write_mnist(data: _Bytes, folder: Path) -> None:
    _write_pngs(data.train_images, data.train_labels, folder / "training", range(10))
    _write_pngs(data.test_images, data.test_labels, folder / "testing", range(10))


def _write_sample(data: _Bytes, folder: Path) -> None:
    _write_pngs(data.train_images, data.train_labels, folder / "train", (3, 7))
    _write_pngs(data.test_images, data.test_labels, folder / "valid", (3, 7))


def _write_pngs(images: Tensor, labels: Tensor, folder: Path, classes: range | tuple[int, ...]) -> None:
    from PIL import Image

    pixels = images.numpy()
    for label in classes:
        (folder / str(label)).mkdir(parents=True)
        for row in (labels == label).nonzero().flatten().tolist():
            Image.fromarray(pixels[row]).save(folder / str(label) / f"{row}.png")


def _mnist_bytes(path: str | Path | None) -> _Bytes:
    return _Bytes(*(read_idx(_find(name, path), sha256) for name, sha256 in SHA256.items()))


def _find(name: str, path: str | Path | None) -> Path:
    """One of MNIST's four files, plain or gzipped, where it lies or after downloading it."""
    if (file := _lying(name, path)) is not None:
        return file
    folder = writable_folder(path) / "MNIST" / "raw"
    writable_folder(folder)
    with one_process(folder / f"{name}.gz"):
        return _lying(name, path) or _downloaded(name, folder, path)


def _lying(name: str, path: str | Path | None) -> Path | None:
    for folder in data_folders(path):
        for place in (folder / "MNIST" / "raw", folder / "raw", folder):
            for file in (place / name, place / f"{name}.gz"):
                if file.is_file():
                    return file
    return None


def _downloaded(name: str, folder: Path, path: str | Path | None) -> Path:
    failures = []
    for mirror in MIRRORS:
        try:
            return download(f"{mirror}{name}.gz", folder / f"{name}.gz", lambda file: read_idx(file, SHA256[name]))
        except DataError as error:
            failures.append(str(error))
    raise DataError(
        f"MNIST is not on this machine and cannot be downloaded: there is no {name}.gz in"
        f" {', '.join(str(folder / 'MNIST' / 'raw') for folder in data_folders(path))}.\n"
        + "".join(f"  {failure}\n" for failure in failures)
        + f"To use it, put its four files ({', '.join(f'{name}.gz' for name in SHA256)}) into {folder},"
        " or set MINILEARN_DATA to a folder that holds MNIST/raw."
    )


def _digits_bytes() -> tuple[Tensor, Tensor]:
    folder = Path(__file__).parent
    return read_idx(folder / "digits-images-idx3-ubyte.gz"), read_idx(folder / "digits-labels-idx1-ubyte.gz")


def _threes_and_sevens(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    threes, sevens = images[labels == 3], images[labels == 7]
    targets = torch.tensor([1] * len(threes) + [0] * len(sevens)).unsqueeze(1)
    return torch.cat([threes, sevens]), targets


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).float() / 255


def _enlarged(images: Tensor) -> Tensor:
    """8×8 images of 17 greys as 28×28 pixels in [0, 1], flat."""
    large = F.interpolate(images.unsqueeze(1).float() / 16, size=(28, 28), mode="bilinear", align_corners=False)
    return large.flatten(1)
