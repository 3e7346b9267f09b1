"""The optimizers of guidance, switched off inside."""

from contextlib import contextmanager

from safelight.optimizers import guidance
from safelight.optimizers.registry import swapped


@contextmanager
def never_past():
    with swapped(guidance, is_past=lambda run, fraction, sample: False):
        yield


@contextmanager
def in_one_call():
    with swapped(guidance, in_two_calls=lambda forward, args, kwargs: forward(*args, **kwargs)):
        yield


OFF = {"guidance-cutoff": never_past, "guidance-split": in_one_call}
