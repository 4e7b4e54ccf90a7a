"""Writes figures.json: what fastai 2.8.12 makes of the runs in reference_cases.py.

Run by hand, where fastai is installed: ``python tests/fastai_reference/record_figures.py``.
"""

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from reference_cases import CASES

WANTED = "2.8.12"


def rounded(value: Any) -> Any:
    """Figures with nine digits, in lists and dicts too."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.9g}")


def main() -> None:
    """Records every run."""
    import fastai
    from fastai import basics, interpret
    from fastai.callback import all as callbacks

    assert fastai.__version__ == WANTED, f"the figures are those of fastai {WANTED}, not {fastai.__version__}"
    torch.set_num_threads(1)
    api = SimpleNamespace(**{**vars(basics), **vars(callbacks), **vars(interpret)})
    out = Path(__file__).with_name("figures.json").resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # lr_find leaves files
        figures = {name: rounded(run(api)) for name, run in CASES.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in figures.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(figures)} runs, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
