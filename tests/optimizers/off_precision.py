"""The optimizers of number formats and layouts, switched off inside."""

from contextlib import contextmanager

from torch import nn

from safelight.optimizers import precision
from safelight.optimizers.registry import swapped

WRITTEN = {"dtype": "dtype=bfloat16"}
PSNR = {"dtype": 28}  # bfloat16 has 8 bits of mantissa


@contextmanager
def no_cast():
    with swapped(precision, cast=lambda part, dtype: None):
        yield


@contextmanager
def no_layout():
    """Modules stay as they are when they are told another memory format."""
    to = nn.Module.to

    def deaf(self, *args, memory_format=None, **kwargs):
        return to(self, *args, **kwargs) if args or kwargs else self

    with swapped(nn.Module, to=deaf):
        yield


OFF = {"dtype": no_cast, "channels-last": no_layout}
