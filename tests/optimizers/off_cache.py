"""The caches of text, switched off inside."""

from contextlib import contextmanager

from safelight.optimizers import cache
from safelight.optimizers.registry import swapped


@contextmanager
def never_the_same():
    """Two prompts are never taken for the same."""
    with swapped(cache, _key=lambda arguments: None):
        yield


OFF = {"prompt-cache": never_the_same}
