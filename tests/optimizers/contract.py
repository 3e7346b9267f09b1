"""What the contract of tests/test_optimizers.py must know of single optimizers, from the off_*.py beside this file.

Each off_<kind>.py may define
    WRITTEN  name -> how it is asked for so that it fits a tiny pipeline ("vae-tiling=16"); the name itself by default
    BATCH    name -> pictures at a time that it needs; 1 by default
    PSNR     name -> dB that a ROUNDING optimizer must reach on a tiny pipeline; 80 by default
    ELSEWHERE name -> why its tensors come back to other addresses, with the same numbers
    OFF      name -> a context manager that switches the inside of the technique off, while everything that watches it
             stays where it is: the session must then end in DidNotEngage
"""

import importlib
from pathlib import Path

KINDS = sorted(path.stem for path in Path(__file__).parent.glob("off_*.py"))


def gathered(table):
    found = {}
    for kind in KINDS:
        found |= getattr(importlib.import_module(f"optimizers.{kind}"), table, {})
    return found
