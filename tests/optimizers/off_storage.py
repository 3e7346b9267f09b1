"""Smaller storage of weights, switched off inside."""

from contextlib import contextmanager

from safelight.optimizers import storage
from safelight.optimizers.registry import swapped

ELSEWHERE = {"layerwise-casting": "originals are not kept in memory, and come back from a file"}


@contextmanager
def weights_stay_large():
    with swapped(storage, shrink=lambda layer, storage: None):
        yield


OFF = {"layerwise-casting": weights_stay_large}
