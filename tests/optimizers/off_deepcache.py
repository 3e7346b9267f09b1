"""Reuse of deep features, switched off inside."""

from contextlib import contextmanager

from safelight.optimizers import deepcache
from safelight.optimizers.registry import swapped


@contextmanager
def every_call_is_full():
    enter = deepcache._Run.enter

    def full(self, sample, timestep):
        enter(self, sample, timestep)
        self.reuse = False

    with swapped(deepcache._Run, enter=full):
        yield


OFF = {"deep-cache": every_call_is_full}
