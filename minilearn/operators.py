"""torchvision's operators beside a torch whose build they were not compiled for, such as torch's CPU build.

torchvision's wheel in the package index is compiled against CUDA. Beside a torch without CUDA its library cannot be
loaded, and ``import torchvision`` ends in ``RuntimeError: operator torchvision::nms does not exist``: while it is
imported, it describes its operators to torch's compiler, and describing one that nobody declared is an error.

So `ready_for_torchvision` declares those operators, by their schemas alone; it is called before torchvision is
imported, or something that imports it, as torchmetrics does. Data sets, transforms and models are plain Python and
work; an operator that needs the library (`torchvision.ops.nms` and its like) says so when it is called. Where the
library can be loaded, nothing is declared and torchvision is whole.

Needed for torchvision up to 0.28 at least; it can go when torchvision's import no longer needs its library.
"""

import importlib.machinery
import importlib.util
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""The operators that torchvision describes while it is imported: `nms`, and `qnms` in 0.28."""

_declared: list[torch.library.Library] = []
"""A declaration lasts as long as its Library object: they are kept here."""


def library_loads() -> bool:
    """Whether torchvision's compiled operators fit this torch; loads them where they do.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("torchvision is not installed: pip install torchvision")
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = Path(found.origin).parent / f"_C{suffix}"
        if library.exists():
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError:
                return False
            return True
    return False


def declare_missing() -> list[str]:
    """Declares the operators of `SCHEMAS` that torch does not know yet, and gives their names."""
    missing = [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in missing:
            library.define(SCHEMAS[name])  # type: ignore[no-untyped-call]
        _declared.append(library)
    return missing


def ready_for_torchvision() -> None:
    """Makes ``import torchvision`` work, or does nothing where it would anyway.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if not library_loads():
        declare_missing()
