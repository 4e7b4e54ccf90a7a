"""The command line that the lessons share: --seed, --out and --short."""

import argparse
from pathlib import Path


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the lesson's docstring; a lesson may add options of its own before it parses."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers start (0)")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder for the pictures (this one)")
    parser.add_argument("--short", action="store_true", help="less data or fewer epochs, to try it out in seconds")
    return parser
