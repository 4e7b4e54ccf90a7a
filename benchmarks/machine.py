"""The machine and the versions that a figure belongs to."""

import os
import platform
import shutil
import subprocess
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


def gpu_described() -> list[str]:
    """A line on the current CUDA GPU, its driver, torch and CUDA."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    memory = f"{found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} multiprocessors"
    versions = f"driver {driver()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return [f"{found.name}, {memory}; {versions}, cuDNN {torch.backends.cudnn.version()}."]


def driver() -> str:
    """The version of NVIDIA's driver, as its own tool tells it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return (done.stdout.strip().splitlines() or ["unknown"])[0] if done.returncode == 0 else "unknown"
