"""The first lessons' data: MNIST as tensors and as folders of images, and the digits that come with minilearn."""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from minilearn.data import DataError, URLs, digits, digits_sample, mnist, mnist_sample, untar_data
from minilearn.data.handwritten import MIRRORS, SHA256, Split
from minilearn.data.idx import read_idx, write_idx
from minilearn.vision import torchvision

DIGITS = Path(read_idx.__code__.co_filename).parent / "digits-images-idx3-ubyte.gz"


@contextmanager
def as_nobody() -> Iterator[None]:
    """As a user who may not write where root may; nothing to do where the tests are not run by root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Downloads come from an empty folder."""
    monkeypatch.setattr("minilearn.data.handwritten.MIRRORS", (f"{tmp_path.as_uri()}/nowhere/",))
    monkeypatch.delenv("MINILEARN_DATA", raising=False)


def check(split: Split, rows: tuple[int, int], target_shape: tuple[int, ...]) -> None:
    for x, y, n in ((split.train_x, split.train_y, rows[0]), (split.valid_x, split.valid_y, rows[1])):
        assert x.shape == (n, 784)
        assert x.dtype is torch.float32
        assert y.shape == (n, *target_shape)
        assert y.dtype is torch.int64
        assert 0 <= float(x.min()) < float(x.max()) <= 1


def test_digits_need_nothing(no_network: None) -> None:
    check(digits(), (1438, 359), ())
    check(digits_sample(), (267, 95), (1,))
    assert set(digits().train_y.tolist()) == set(range(10))


def test_digits_are_scikit_learns() -> None:
    images = read_idx(DIGITS)
    assert images.shape == (1797, 8, 8)
    assert int(images.max()) == 16
    # The first image of the data set, a zero, as scikit-learn's documentation shows it.
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_mnist_is_torchvisions(mnist_root: Path) -> None:
    split = mnist(mnist_root)
    check(split, (60_000, 10_000), ())
    # torchvision's own reader, on its own layout; a copy, as it unpacks beside the originals
    assert split.train_x.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert split.train_x.std().item() == pytest.approx(0.3081, abs=1e-4)


def test_mnist_equals_what_torchvision_reads(mnist_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256:
        if name.startswith("t10k"):
            data = gzip.decompress((mnist_root / "MNIST" / "raw" / f"{name}.gz").read_bytes())
            (raw / name).write_bytes(data)
            (raw / name.replace("t10k", "train")).write_bytes(data)  # torchvision looks whether they are there
    theirs = torchvision.datasets.MNIST(tmp_path, train=False)
    ours = mnist(mnist_root)
    assert torch.equal((ours.valid_x * 255).round().to(torch.uint8).reshape(-1, 28, 28), theirs.data)
    assert torch.equal(ours.valid_y, theirs.targets)


def test_mnist_sample_is_the_threes_then_the_sevens(mnist_root: Path) -> None:
    split = mnist_sample(mnist_root)
    check(split, (12_396, 2_038), (1,))
    assert int(split.train_y.sum()) == 6_131
    assert int(split.valid_y.sum()) == 1_010
    assert split.train_y[:6_131].all()


def test_mnist_is_found_in_the_users_folder_unpacked_too(
    mnist_root: Path, own_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINILEARN_DATA", str(own_data_folder / "nothing_there"))
    raw = own_data_folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256:
        (raw / name).write_bytes(gzip.decompress((mnist_root / "MNIST" / "raw" / f"{name}.gz").read_bytes()))
    check(mnist_sample(), (12_396, 2_038), (1,))


def test_untar_data_gives_a_folder_of_images(mnist_root: Path, own_data_folder: Path) -> None:
    path = untar_data(URLs.MNIST_SAMPLE)
    assert path == own_data_folder / "mnist_sample"
    counts = {
        f"{part}/{label}": len(list((path / part / label).glob("*.png")))
        for part in ("train", "valid")
        for label in "37"
    }
    assert counts == {"train/3": 6_131, "train/7": 6_265, "valid/3": 1_010, "valid/7": 1_028}
    first = min((path / "valid" / "3").iterdir(), key=lambda file: int(file.stem))
    split = mnist_sample()
    assert torch.equal(
        torch.from_numpy(__import__("numpy").array(Image.open(first))),
        (split.valid_x[0] * 255).round().to(torch.uint8).reshape(28, 28),
    )
    assert sorted(p.name for p in own_data_folder.iterdir()) == ["mnist_sample"]
    assert untar_data(URLs.MNIST_SAMPLE) == path


def test_untar_data_of_mnist_has_ten_folders_each(mnist_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256:
        shutil.copy(mnist_root / "MNIST" / "raw" / f"{name}.gz", raw)
    path = untar_data(URLs.MNIST, tmp_path)
    assert path == tmp_path / "mnist_png"
    for part, n in (("training", 60_000), ("testing", 10_000)):
        assert sorted(folder.name for folder in (path / part).iterdir()) == list("0123456789")
        assert sum(1 for _ in (path / part).glob("*/*.png")) == n


def test_missing_mnist_without_a_network_says_what_to_do(no_network: None, own_data_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        mnist()
    message = str(caught.value)
    assert "MNIST is not on this machine and cannot be downloaded" in message
    assert "train-images-idx3-ubyte.gz" in message
    assert str(own_data_folder / "MNIST" / "raw") in message
    assert "set MINILEARN_DATA to a folder that holds MNIST/raw" in message
    assert list((own_data_folder / "MNIST" / "raw").iterdir()) == []


def test_mnist_is_downloaded_checked_and_kept(
    mnist_root: Path, own_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "minilearn.data.handwritten.MIRRORS", (f"{(mnist_root / 'MNIST' / 'raw').resolve().as_uri()}/",)
    )
    monkeypatch.delenv("MINILEARN_DATA")
    check(mnist_sample(), (12_396, 2_038), (1,))
    raw = own_data_folder / "MNIST" / "raw"
    assert sorted(p.name for p in raw.iterdir()) == sorted(f"{name}.gz" for name in SHA256)


def test_download_of_the_wrong_bytes_is_refused_and_not_kept(
    own_data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in SHA256:
        shutil.copy(DIGITS, tmp_path / f"{name}.gz")
    monkeypatch.setattr("minilearn.data.handwritten.MIRRORS", (f"{tmp_path.as_uri()}/",))
    monkeypatch.delenv("MINILEARN_DATA", raising=False)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz sent is not what it should be: .*its SHA-256 is"):
        mnist()
    assert list((own_data_folder / "MNIST" / "raw").iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other"])
def test_damaged_mnist_file_is_named_and_not_used(mnist_root: Path, tmp_path: Path, damage: str) -> None:
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist_root / "MNIST" / "raw", raw)
    file = raw / "t10k-images-idx3-ubyte.gz"
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray((raw / "t10k-labels-idx1-ubyte.gz").read_bytes())
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is damaged: .*Delete it and get it again"):
        untar_data(URLs.MNIST_SAMPLE, tmp_path)
    assert not (tmp_path / "mnist_sample").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not begin like an IDX file"),
        (b"\x00\x00\x08", "does not begin like an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "does not begin like an IDX file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05\x01", "promises \\(5,\\) bytes but holds 1"),
        (b"\x00\x00\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff\x01", "bytes but holds 1"),
        (b"\x1f\x8bnot gzip at all", "cannot be unpacked"),
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_idx(file)


def test_idx_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a.gz", values)
    write_idx(tmp_path / "b.gz", values)
    assert torch.equal(read_idx(tmp_path / "a.gz"), values)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_folder_without_permission_is_named(mnist_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256:
        shutil.copy(mnist_root / "MNIST" / "raw" / f"{name}.gz", raw)
    for folder in (*list(tmp_path.parents)[:-2], tmp_path):
        folder.chmod(folder.stat().st_mode | 0o555)
    tmp_path.chmod(0o555)
    try:
        with as_nobody(), pytest.raises(DataError, match="cannot write to the data folder") as caught:
            untar_data(URLs.MNIST_SAMPLE, tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert "Permission denied" in str(caught.value)
    assert "path=..." in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["MNIST"]


def test_folder_that_cannot_be_made_is_named(no_network: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write to the data folder .*file/below"):
        mnist(tmp_path / "file" / "below")


def test_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    source.mkdir()
    (source / "train-images-idx3-ubyte.gz").write_bytes(os.urandom(1 << 20))
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import minilearn.data.handwritten as m\n"
        f"m.MIRRORS = ({source.as_uri() + '/'!r},)\n"
        "try: m.mnist()\n"
        "except m.DataError as error: print(error)\n"
    )
    env = {**os.environ, "XDG_DATA_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("MINILEARN_DATA", None)
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "cannot write to the data folder" in out
    assert "File too large" in out
    assert list((home / "minilearn" / "MNIST" / "raw").iterdir()) == []


def test_mirrors_are_encrypted() -> None:
    assert all(mirror.startswith("https://") for mirror in MIRRORS)
