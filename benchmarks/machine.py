"""The machine and the versions that a figure belongs to."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("minilearn", "torch", "torchvision", "numpy")


def cpu_name() -> str:
    """The processor, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """A package's version, None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def described(peers: tuple[str, ...] = ()) -> list[str]:
    """Lines on the machine, the system and the versions."""
    there = {package: installed(package) for package in (*PACKAGES, *peers)}
    load = f"; load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    return [
        f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread{load}.",
        f"{platform.system()}, Python {platform.python_version()}; "
        + ", ".join(f"{package} {found}" for package, found in there.items() if found)
        + ".",
    ]
