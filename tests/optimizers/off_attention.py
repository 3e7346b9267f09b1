"""The optimizers of attention, switched off inside."""

from contextlib import contextmanager, nullcontext

import torch.nn.attention
from diffusers.models.attention_processor import Attention

from safelight.optimizers import slicing
from safelight.optimizers.registry import swapped

# the tiny UNet has 256 tokens, the transformer 64
WRITTEN = {"attention-backend": "attention-backend=math", "split-attention": "split-attention=32"}


@contextmanager
def any_kernel():
    """torch chooses the kernel itself, whatever it is held to."""
    with swapped(torch.nn.attention, sdpa_kernel=lambda *_: nullcontext()):
        yield


@contextmanager
def no_slices():
    """diffusers' layers keep their processor when they are told to slice."""
    with swapped(Attention, set_attention_slice=lambda *_: None):
        yield


@contextmanager
def one_chunk():
    """However few tokens are asked for, all are computed at once."""
    whole = slicing.chunks_of
    with swapped(slicing, chunks_of=lambda call, *_: whole(call, 2**20), in_chunks=lambda call, *_: call.plain()):
        yield


OFF = {"attention-backend": any_kernel, "attention-slicing": no_slices, "split-attention": one_chunk}
