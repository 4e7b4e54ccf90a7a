"""Runs the scripts with fastai 2.8.12 in minilearn's place, and writes what they find into scripts.json.

Run by hand, where fastai is installed: ``python tests/fastai_reference/check_scripts.py``. The scripts are run as they
are; only what ``from minilearn.all import *`` gives is fastai's.
"""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch

WANTED = "2.8.12"
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Records every script's figures."""
    import fastai
    from fastai import basics
    from fastai.callback import all as callbacks

    assert fastai.__version__ == WANTED, f"the figures are those of fastai {WANTED}, not {fastai.__version__}"
    torch.set_num_threads(1)
    stand_in = ModuleType("minilearn.all")
    names = {**vars(basics), **vars(callbacks)}
    vars(stand_in).update({name: value for name, value in names.items() if not name.startswith("_")})
    sys.modules["minilearn"], sys.modules["minilearn.all"] = ModuleType("minilearn"), stand_in
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # lr_find leaves files
        for script in sorted((HERE / "scripts").glob("*.py")):
            torch.manual_seed(0)
            figures[script.stem] = runpy.run_path(str(script))["figures"]
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in figures.items()]
    (HERE / "scripts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(figures)} scripts")


if __name__ == "__main__":
    main()
