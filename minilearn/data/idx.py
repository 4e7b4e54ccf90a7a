"""IDX, the format of the MNIST database: a four-byte type and rank, the shape, then the bytes; often gzipped."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from minilearn.data.download import DataError

BYTE = 8
"""The type code of unsigned bytes, the only type that MNIST uses."""
GZIP = b"\x1f\x8b"
"""How a gzipped file begins; an IDX file begins with two zeros."""


def read_idx(path: Path, sha256: str | None = None) -> Tensor:
    """The bytes in an IDX file, gzipped or plain.

    Args:
        path: the file.
        sha256: of the uncompressed bytes, in hexadecimal; None to take what is there.
    Returns:
        uint8, in the shape that the file gives.
    Raises:
        DataError: the file is cut short, damaged, or not the one expected; it names the file.

    >>> read_idx(Path(__file__).parent / "digits-labels-idx1-ubyte.gz")[:5]
    tensor([0, 1, 2, 3, 4], dtype=torch.uint8)
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == GZIP:
            raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"it cannot be unpacked ({error})") from error
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
        raise _damaged(path, f"its SHA-256 is {hashlib.sha256(raw).hexdigest()}, expected {sha256}")
    rank = raw[3] if len(raw) >= 4 and raw[:3] == bytes((0, 0, BYTE)) else 0
    if not rank or len(raw) < 4 + 4 * rank:
        raise _damaged(path, "it does not begin like an IDX file of bytes")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    if len(raw) != 4 + 4 * rank + math.prod(shape):
        raise _damaged(path, f"it promises {shape} bytes but holds {len(raw) - 4 - 4 * rank}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * rank).reshape(shape)


def write_idx(path: Path, values: Tensor) -> None:
    """Writes uint8 `values`, of any shape, as a gzipped IDX file, the same bytes each time."""
    head = bytes((0, 0, BYTE, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.contiguous().numpy().tobytes(), 9, mtime=0))


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}. Nothing of it was used. Delete it and get it again.")
