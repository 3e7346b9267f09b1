"""The optimizers of number formats and layouts, switched off inside."""

from contextlib import contextmanager

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
    with swapped(precision, lay_out=lambda part: None):
        yield


OFF = {"dtype": no_cast, "channels-last": no_layout}
