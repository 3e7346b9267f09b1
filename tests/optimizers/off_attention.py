"""The optimizers of attention, switched off inside."""

from contextlib import contextmanager, nullcontext

import torch.nn.attention

from safelight.optimizers.registry import swapped

WRITTEN = {"attention-backend": "attention-backend=math"}


@contextmanager
def any_kernel():
    """torch chooses the kernel itself, whatever it is held to."""
    with swapped(torch.nn.attention, sdpa_kernel=lambda *_: nullcontext()):
        yield


OFF = {"attention-backend": any_kernel}
