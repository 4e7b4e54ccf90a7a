"""torchvision imports and works beside any torch; each case in a process of its own."""

import subprocess
import sys

import torch


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)


def test_torchvision_imports_with_its_data_sets_transforms_and_models() -> None:
    done = python(
        "from minilearn.vision import torchvision\n"
        "import torch\n"
        "from torchvision import datasets, models, transforms\n"
        "from torchvision.transforms import v2\n"
        "x = torch.zeros(1, 3, 64, 64)\n"
        "assert models.resnet18().eval()(x).shape == (1, 1000)\n"
        "assert v2.RandomCrop(32)(x).shape[-1] == transforms.CenterCrop(32)(x).shape[-1] == 32\n"
        "print(torchvision.__version__)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_what_is_declared_is_just_what_the_import_needs() -> None:
    """Without the module the import fails where the library does not load, and with it works; else it does nothing."""
    plain = python("import torchvision")
    loads = python("from minilearn.vision import compat; print(compat.library_loads(), compat.declare_missing())")
    assert loads.returncode == 0, loads.stderr
    if loads.stdout.startswith("True"):
        assert plain.returncode == 0
    else:
        assert "operator torchvision::nms does not exist" in plain.stderr
    assert loads.stdout.split(" ", 1)[1].strip() == "[]"  # a second time there is nothing left to declare


def test_operator_without_its_library_says_so_when_it_is_called() -> None:
    done = python(
        "from minilearn.vision import compat, torchvision\n"
        "import torch\n"
        "boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])\n"
        "try: print(torchvision.ops.nms(boxes, torch.ones(1), 0.5).tolist())\n"
        "except RuntimeError as error: print('RuntimeError', \"Couldn't load custom C++ ops\" in str(error))\n"
        "print(compat.library_loads())\n"
    )
    answer, loads = done.stdout.splitlines()
    assert (answer, loads) in {("[0]", "True"), ("RuntimeError True", "False")}


def test_torchvision_that_was_imported_before_is_left_alone() -> None:
    done = python(
        "import torch\n"
        "library = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for op in ('nms', 'qnms'):\n"
        "    if not hasattr(torch.ops.torchvision, op):\n"
        "        library.define(f'{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "import torchvision as before\n"
        "from minilearn.vision import torchvision\n"
        "assert torchvision is before\n"
    )
    assert done.returncode == 0, done.stderr


def test_torch_is_one_that_minilearn_knows() -> None:
    assert tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 6)
