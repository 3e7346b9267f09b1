"""Compiling, switched off inside."""

from contextlib import contextmanager

from safelight.optimizers import compile as compiling
from safelight.optimizers.registry import swapped

# dynamo alone: inductor takes a minute for each of these, and tests/optimizers/test_compile.py runs it
WRITTEN = {name: f"{name}.backend=eager" for name in ("compile", "compile-blocks", "compile-vae")}


@contextmanager
def stays_eager():
    """Every forward goes on as it was, and only the watching is there."""
    with swapped(compiling.Bucket, __call__=lambda self, *args, **kwargs: self.forward(*args, **kwargs)):
        yield


OFF = dict.fromkeys(("compile", "compile-blocks", "compile-vae"), stays_eager)
