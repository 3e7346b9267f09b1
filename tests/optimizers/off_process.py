"""The settings of the process, switched off inside."""

from contextlib import contextmanager

from safelight.optimizers import process
from safelight.optimizers.registry import swapped


@contextmanager
def tf32_stays_off():
    with swapped(process, switch=lambda on: None):
        yield


@contextmanager
def no_search():
    with swapped(process, benchmark=lambda on: None):
        yield


OFF = {"tf32": tf32_stays_off, "cudnn-benchmark": no_search}
