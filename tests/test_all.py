"""The front door: what a star import gives, and what importing does not cost."""

import subprocess
import sys
from pathlib import Path

import pytest

import minilearn.all


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "heavy", ["torchvision", "matplotlib", "fastprogress", "IPython", "pandas", "safetensors", "torch._dynamo"]
)
def test_import_brings_nothing_heavy(heavy: str) -> None:
    assert python(f"import sys, minilearn; print('{heavy}' in sys.modules)") == "False"
    assert python(f"import sys, minilearn.all; print('{heavy}' in sys.modules)") == "False"


def test_star_import_gives_just_what_is_written_out() -> None:
    names = set(python("from minilearn.all import *; print(*[n for n in dir() if not n.startswith('__')])").split())
    assert names == set(minilearn.all.__all__)


def test_what_is_written_out_is_sorted_and_there_once() -> None:
    names = minilearn.all.__all__
    assert names == sorted(set(names))
    assert all(hasattr(minilearn.all, name) for name in names)


def test_what_the_lessons_use_is_there(tmp_path: Path) -> None:
    (tmp_path / "b.txt").touch()
    (tmp_path / "a.txt").touch()
    code = (
        "from minilearn.all import *\n"
        f"files = Path({str(tmp_path)!r}).ls().sorted()\n"
        "assert isinstance(files, L) and [f.name for f in files] == ['a.txt', 'b.txt']\n"
        "assert tensor(Image.new('L', (3, 2))).shape == (2, 3)\n"
        "assert tensor(np.zeros(3)).shape == (3,)\n"
        "assert F.l1_loss(tensor([1.0]), tensor([2.0])).item() == 1\n"
        "assert plt.figure().axes == []\n"
        "assert show_image(torch.zeros(1, 4, 4)).images[0].get_array().shape == (4, 4)\n"
        "print('done')"
    )
    assert python(code) == "done"
