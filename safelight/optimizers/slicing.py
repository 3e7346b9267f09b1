"""Attention in parts, where the scores of all tokens with all others would not fit: by heads, or by rows and columns.

Both give what whole attention gives, but for rounding. Where torch has a memory-efficient kernel (CUDA, CPU) the scores
are never stored, so that nothing is saved and time is lost; the gain is on devices without one, such as Apple's.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safelight.errors import DoesNotApply, UsageError
from safelight.optimizers.diversion import Call, attention_layers, diverted
from safelight.optimizers.merging import grid_at, levels_with_attention
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.target import Target, denoiser

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Count:
    """Of the latest run. parts: slices or chunks. calls: of attention."""

    parts: int = 0
    calls: int = 0

    def begin(self, _pipe: Any = None) -> None:
        self.parts = self.calls = 0

    def said(self, noun: str) -> str:
        return f"{self.parts} {noun} in {self.calls} attention calls" if self.parts > self.calls else ""


def _pointless(target: Target) -> str | None:
    """Scaled dot product attention, diffusers' default, has a memory-efficient kernel on all of these."""
    if target.device.kind == "mps":
        return None
    return "attention stores no scores here, as PyTorch's kernel computes them piece by piece: slices are only slower"


# -- by heads ----------------------------------------------------------------------------------------------------------

PLAIN_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "AttnAddedKVProcessor", "AttnAddedKVProcessor2_0")


def _slicing_fits(target: Target, size: int) -> str | None:
    if size < -1:
        raise UsageError(f"attention-slicing={size}: give heads at a time, 0 for half of them, or -1 for one by one")
    model = target.denoiser
    if not hasattr(model.cls, "set_attention_slice"):
        return f"diffusers slices the attention of UNets only, and ignores it in {model.cls.__name__}"
    heads = most_heads(model.config)
    if heads == 1 or size >= heads:
        return f"its layers have {heads} heads at most: nothing to slice"
    return None


def most_heads(config: Any) -> int:
    """Of a UNet's config: what diffusers calls attention_head_dim there is the number of heads."""
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    return max(heads) if isinstance(heads, list | tuple) else heads


@optimizer(
    stage=Stage.ATTENTION,
    slot="attention",
    fidelity=Fidelity.ROUNDING,
    source="https://huggingface.co/docs/diffusers/api/pipelines/overview#diffusers.DiffusionPipeline.enable_attention_slicing",
    fits=_slicing_fits,
    pointless=_pointless,
    traced=("denoiser",),
)
def attention_slicing(pipe: Any, target: Target, size: int = 0) -> Iterator[Proof]:
    """Compute so many heads at a time (0: half of them, -1: one): fewer scores at once, on devices such as mps."""
    layers = attention_layers(denoiser(pipe))
    _check_plain(layers)
    count = _Count()
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(swapped(layer, processor=layer.processor))
            layer.set_attention_slice(_heads(size, layer.sliceable_head_dim))
            stack.enter_context(swapped(layer, get_attention_scores=_counted_scores(layer, count)))
            stack.callback(layer.register_forward_pre_hook(lambda *_: _add_call(count)).remove)
        yield Proof(lambda: count.said("slices"), begin=count.begin)


def _check_plain(layers: list[Any]) -> None:
    """Raises DoesNotApply where diffusers would put its sliced processor in the place of one that does more."""
    names = sorted({type(layer.processor).__name__ for layer in layers} - {*PLAIN_PROCESSORS})
    if names:
        raise DoesNotApply(f"attention-slicing would replace {' and '.join(names)}, which does more: leave it out")


def _heads(size: int, heads: int) -> int:
    return max(1, heads // 2) if size == 0 else 1 if size < 0 else min(size, heads)


def _counted_scores(layer: Any, count: _Count) -> Any:
    inner = layer.get_attention_scores  # called once for each slice

    def scores(*args: Any, **kwargs: Any) -> Any:
        count.parts += 1
        return inner(*args, **kwargs)

    return scores


def _add_call(count: _Count) -> None:
    count.calls += 1


# -- by rows and columns -----------------------------------------------------------------------------------------------


def _split_fits(target: Target, chunk: int, keys: int) -> str | None:
    if chunk < 1 or keys < 0:
        raise UsageError(f"split-attention={chunk}, keys={keys}: give tokens at a time, 1 or more; 0 keys for all")
    tokens = most_tokens(target)
    if tokens <= min(chunk, keys or chunk):
        return f"attention sees {tokens} tokens of the picture at most, no more than one chunk: give a smaller chunk"
    return None


def most_tokens(target: Target) -> int:
    """Tokens of the picture in the denoiser's largest attention; those of the text come on top."""
    blocks = target.vae.config.get("block_out_channels") if target.vae else None
    factor = 2 ** (len(blocks) - 1) if blocks else 8
    model = target.denoiser
    if "down_block_types" in model.config:
        levels = levels_with_attention(model.config)
        height, width = grid_at((target.height // factor, target.width // factor), levels[0]) if levels else (0, 0)
        return height * width
    patch = model.config.get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, list | tuple) else patch
    side = factor * patch * (2 if hasattr(target.pipeline, "_pack_latents") else 1)
    return (target.height // side) * (target.width // side)


@optimizer(
    stage=Stage.ATTENTION,
    slot="attention",
    fidelity=Fidelity.ROUNDING,
    source="https://arxiv.org/abs/2112.05682",
    fits=_split_fits,
    pointless=_pointless,
    traced=("denoiser",),
)
def split_attention(pipe: Any, target: Target, chunk: int = 1024, keys: int = 0) -> Iterator[Proof]:
    """Compute attention for so many tokens at a time, against so many keys at a time (0: all).

    chunk * keys scores are held at once for each head, whatever the picture's size.
    """
    count = _Count()

    def kernel(call: Call) -> Any:
        count.calls += 1
        count.parts += chunks_of(call, chunk, keys)
        return in_chunks(call, chunk, keys)

    with diverted(denoiser(pipe), kernel):
        yield Proof(lambda: count.said("chunks"), begin=count.begin)


def chunks_of(call: Call, chunk: int, keys: int = 0) -> int:
    """How many parts `in_chunks` computes a call in."""
    rows, columns = call.query.shape[-2], call.key.shape[-2]
    return -(-rows // chunk) * (1 if call.dropout_p else -(-columns // (keys or columns)))


def in_chunks(call: Call, chunk: int, keys: int = 0) -> "Tensor":
    """(batch, heads, queries, channels): the same as call.plain(), for `chunk` queries and `keys` keys at a time.

    keys 0 leaves the keys whole, and each chunk to torch's kernel. So does dropout, which a sum over keys has no
    place for.
    """
    import torch

    columns, parts = call.key.shape[-2], []
    whole = keys == 0 or call.dropout_p > 0 or columns <= keys
    for start in range(0, call.query.shape[-2], chunk):
        rows = slice(start, start + chunk)
        part = _rows(call, rows)
        parts.append(part.plain() if whole else _summed(part, keys))
    return torch.cat(parts, dim=-2)


def _rows(call: Call, rows: slice) -> Call:
    """The part of a call that is about these queries; what causal order hides from them becomes a mask."""
    query = call.query[..., rows, :]
    mask = _part(call.attn_mask, rows, slice(None))
    if call.is_causal:
        mask = query.new_ones(query.shape[-2], call.key.shape[-2]).tril(rows.start).bool()
    return Call(query, call.key, call.value, mask, call.dropout_p, False, call.scale, call.enable_gqa)


def _part(mask: "Tensor | None", rows: slice, columns: slice) -> "Tensor | None":
    """A mask's rows and columns; a side of 1 stands for all."""
    if mask is None:
        return None
    if mask.ndim > 1 and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    return mask[..., columns] if mask.shape[-1] > 1 else mask


def _summed(call: Call, keys: int) -> "Tensor":
    """Softmax as a running sum over chunks of keys, in float32, with the largest score so far taken out."""
    query = call.query.float() * (call.query.shape[-1] ** -0.5 if call.scale is None else call.scale)
    key, value = (_per_head(x, call) for x in (call.key, call.value))
    largest = query.new_full((*query.shape[:-1], 1), float("-inf"))
    total, output = largest.new_zeros(largest.shape), query.new_zeros(*query.shape[:-1], value.shape[-1])
    for start in range(0, key.shape[-2], keys):
        columns = slice(start, start + keys)
        scores = query @ key[..., columns, :].float().transpose(-2, -1)
        scores = _hidden(scores, _part(call.attn_mask, slice(None), columns))
        above = scores.amax(-1, keepdim=True).maximum(largest)
        base = above.masked_fill(above == float("-inf"), 0.0)  # as long as every key is hidden
        weights, fade = (scores - base).exp(), (largest - base).exp()
        total = total * fade + weights.sum(-1, keepdim=True)
        output = output * fade + weights @ value[..., columns, :].float()
        largest = above
    # a query that sees no key gets zeros, as from torch
    return (output / total.masked_fill(total == 0, 1.0)).to(call.query.dtype)


def _hidden(scores: "Tensor", mask: "Tensor | None") -> "Tensor":
    if mask is None:
        return scores
    return scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, float("-inf"))


def _per_head(x: "Tensor", call: Call) -> "Tensor":
    """With shared heads, each as often as the queries' heads use it."""
    return x.repeat_interleave(call.query.shape[-3] // x.shape[-3], -3) if call.enable_gqa else x
