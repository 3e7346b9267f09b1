"""The allocator's settings, switched off inside."""

from contextlib import contextmanager, nullcontext

from safelight.optimizers import allocator
from safelight.optimizers.registry import swapped


@contextmanager
def deaf_allocator():
    with swapped(allocator, allocator_setter=lambda torch: lambda text: None):
        yield


OFF = {"expandable-segments": deaf_allocator, "lazy-modules": nullcontext}
