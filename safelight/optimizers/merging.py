"""Neighbouring tokens that look alike are averaged for attention, and get the same answer: attention over fewer tokens.

After "Token Merging for Fast Stable Diffusion" (Bolya and Hoffman 2023, arXiv 2303.17604); `matching` gives the numbers
of its reference, tomesd 0.1.3, which `tests/optimizers/tomesd.safetensors` holds. Above is the algorithm on tensors,
below how it is put into a UNet: by wrapping `forward` of single modules.

Tokens are [batch, tokens, channels]; a level's tokens lie on a grid of (height, width), row by row.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from safelight.errors import UsageError
from safelight.optimizers.registry import Fidelity, Proof, Stage, optimizer, swapped
from safelight.optimizers.steps import timestep_of
from safelight.optimizers.target import Target, denoiser

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

Move = Callable[["Tensor"], "Tensor"]


def matching(
    metric: "Tensor", grid: tuple[int, int], stride: tuple[int, int], ratio: float, generator: "Generator | None" = None
) -> tuple[Move, Move]:
    """(merge, unmerge): takes away int(tokens * ratio) tokens, and gives every token its answer back.

    metric: [batch, tokens, channels], what likeness is measured on. One token of each cell of `stride` stays a
    destination: the top left one, or with a (CPU) generator any; the others merge into the destination most like them,
    the most alike first. merge gives the tokens that were left alone, then the destinations.
    """
    import torch

    batch, tokens, _ = metric.shape
    here = metric.device
    destinations, sources = _cells(grid, stride, generator, here)
    removed = min(int(tokens * ratio), len(sources))
    if removed == 0 or len(destinations) == 0:
        return _same, _same
    unit = metric / metric.norm(dim=-1, keepdim=True)
    likeness = unit.index_select(1, sources) @ unit.index_select(1, destinations).transpose(1, 2)
    best, partner = likeness.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    gone, left = order[:, :removed], order[:, removed:]
    partner = partner.gather(1, gone)
    rows = torch.arange(batch, device=here)[:, None]  # of a picture's tokens, once all lie in one list
    place = metric.new_empty(batch, tokens, dtype=torch.long)  # of each token among the merged ones
    kept = left.shape[1]
    place.scatter_(1, sources[left], torch.arange(kept, device=here).expand(batch, kept))
    place.scatter_(1, sources[gone], kept + partner)
    place[:, destinations] = torch.arange(kept, kept + len(destinations), device=here)
    merge = partial(
        _merge,
        destinations=destinations,
        left=(sources[left] + rows * tokens).flatten(),
        gone=(sources[gone] + rows * tokens).flatten(),
        into=(partner + rows * len(destinations)).flatten(),
    )
    return merge, partial(_unmerge, place=(place + rows * (kept + len(destinations))).flatten(), tokens=tokens)


def _same(x: "Tensor") -> "Tensor":
    return x


def _merge(x: "Tensor", *, destinations: "Tensor", left: "Tensor", gone: "Tensor", into: "Tensor") -> "Tensor":
    """left, gone: rows of all pictures' tokens in one list; into: rows of all their destinations."""
    import torch

    batch, _, channels = x.shape
    flat = x.flatten(0, 1)
    sums = x.index_select(1, destinations).flatten(0, 1)
    # an index that is expanded over the channels of a flat list takes torch's fast path for whole rows
    means = sums.scatter_reduce(0, into[:, None].expand(-1, channels), flat.index_select(0, gone), "mean")
    kept = flat.index_select(0, left)
    return torch.cat([kept.view(batch, -1, channels), means.view(batch, -1, channels)], dim=1)


def _unmerge(x: "Tensor", *, place: "Tensor", tokens: int) -> "Tensor":
    return x.flatten(0, 1).index_select(0, place).view(x.shape[0], tokens, x.shape[-1])


def _cells(
    grid: tuple[int, int], stride: tuple[int, int], generator: "Generator | None", device: "torch.device"
) -> tuple["Tensor", "Tensor"]:
    """Positions of the destinations, one of each whole cell, and of all other tokens; both in reading order."""
    import torch

    (height, width), (high, wide) = grid, stride
    down, right = height // high, width // wide
    choice = torch.zeros(down, right, dtype=torch.long, device=device)
    if generator is not None:
        choice = torch.randint(high * wide, (down, right), generator=generator).to(device)
    row = torch.arange(down, device=device)[:, None] * high + choice // wide
    column = torch.arange(right, device=device)[None, :] * wide + choice % wide
    is_source = torch.ones(height * width, dtype=torch.uint8, device=device)
    is_source[(row * width + column).flatten()] = 0
    # a sort and not nonzero(), whose size is data: that would wait for the device and break a compiled graph
    order = is_source.argsort(stable=True)
    return order[: down * right], order[down * right :]


@dataclass
class _Level:
    """What the blocks of one level share: its grid and, with reuse, the matching of the call under way."""

    factor: int
    grid: tuple[int, int] = (0, 0)
    kept: list[tuple[Move, Move]] = field(default_factory=list)


@dataclass
class _Layer:
    """tokens: (before, after) of the latest call. Written, never read back in a run: torch.compile would guard on it
    and compile anew."""

    tokens: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class _Wish:
    ratio: float
    stride: tuple[int, int]
    reuse: bool
    layers: tuple[str, ...]
    generator: "Generator | None"

    def moves(self, metric: "Tensor", level: _Level) -> tuple[Move, Move]:
        if level.kept:
            return level.kept[0]
        made = matching(metric, level.grid, self.stride, self.ratio, self.generator)
        if self.reuse:
            level.kept.append(made)
        return made


def levels_with_attention(config: Any) -> list[int]:
    """How often the latent was halved (1, 2, 4, ...) where a UNet's config puts transformer blocks, the largest grid
    first."""
    blocks = config["down_block_types"]
    found = [2**i for i, name in enumerate(blocks) if name == "CrossAttnDownBlock2D"]
    last = 2 ** (len(blocks) - 1)
    return found if last in found or config.get("mid_block_type") != "UNetMidBlock2DCrossAttn" else [*found, last]


def chosen_levels(config: Any, max_downsample: int) -> list[int]:
    """max_downsample 0: the highest level that has attention, and no other."""
    there = levels_with_attention(config)
    return there[:1] if max_downsample == 0 else [factor for factor in there if factor <= max_downsample]


def grid_at(latent: tuple[int, int], factor: int) -> tuple[int, int]:
    """(height, width) of a level; each downsampling of a UNet halves and rounds up."""
    return -(-latent[0] // factor), -(-latent[1] // factor)


def _check(ratio: float, max_downsample: int, sx: int, sy: int) -> None:
    if not (1 <= sx <= 8 and 1 <= sy <= 8 and sx * sy > 1):
        raise UsageError(f"token-merging.sx={sx}, sy={sy}: give 1 to 8 each, and one of them above 1")
    most = min(0.75, 1 - 1 / (sx * sy))
    if not 0 < ratio <= most:
        raise UsageError(f"token-merging={ratio}: give a share above 0, to {most:.2g}")
    if max_downsample not in (0, 1, 2, 4, 8):
        raise UsageError(f"token-merging.max_downsample is {max_downsample}: give 1, 2, 4, 8, or 0 for the first level")


def _fits(target: Target, ratio: float, max_downsample: int, sx: int, sy: int, **_: bool) -> str | None:
    _check(ratio, max_downsample, sx, sy)
    model = target.denoiser
    if model.cls.__name__ != "UNet2DConditionModel":
        return f"{model.cls.__name__} is no UNet: its tokens of text and picture do not lie on one grid"
    there, levels = levels_with_attention(model.config), chosen_levels(model.config, max_downsample)
    if not there:
        return "this UNet has no transformer blocks"
    if not levels:
        return (
            f"this UNet's first self-attention is at 1/{there[0]} of the latent's size: give max_downsample={there[0]}"
        )
    if model.config.get("downsample_padding", 1) != 1:
        return "this UNet rounds odd sizes down"
    height, width = grid_at(_latent(target), levels[0])
    if height < sy or width < sx or height * width * ratio < 1:
        return f"at {target.width}x{target.height} pixels there are {height * width} tokens: nothing to merge"
    return None


def _latent(target: Target) -> tuple[int, int]:
    factor = 2 ** (len(target.vae.config["block_out_channels"]) - 1) if target.vae else 8
    return target.height // factor, target.width // factor


@optimizer(
    stage=Stage.ATTENTION,
    slot="tokens",
    fidelity=Fidelity.APPROXIMATE,
    source="https://arxiv.org/abs/2303.17604",
    fits=_fits,
    traced=("denoiser",),
)
def token_merging(
    pipe: Any,
    target: Target,
    ratio: float = 0.5,
    max_downsample: int = 0,
    sx: int = 2,
    sy: int = 2,
    random: bool = False,
    reuse: bool = False,
    merge_crossattn: bool = False,
    merge_mlp: bool = False,
) -> Iterator[Proof]:
    """Attend over fewer tokens: this share of them is averaged with a neighbour that looks alike.

    max_downsample: levels down to this factor below the latent; 0 is the highest level that has attention (in SDXL and
    firstlight that is 2: with 1 nothing would merge there). sx, sy: one token of each such cell is never merged away.
    random: which one is drawn anew for each block and step, from the timestep, so that runs repeat.
    reuse: the first block of a level matches for all blocks of it in a step; tomesd matches in each. Not by default:
    on firstlight at 0.5 it was 0.7 to 4 dB worse in five pictures of six, and at 64x64 tokens matching takes a tenth
    of the time that merging saves.
    merge_crossattn, merge_mlp: merge there, too; not recommended.
    """
    import torch

    model = denoiser(pipe)
    layers = ("attn1", *(("attn2",) if merge_crossattn else ()), *(("ff",) if merge_mlp else ()))
    wanted = _Wish(ratio, (sy, sx), reuse, layers, torch.Generator("cpu") if random else None)
    levels = {factor: _Level(factor) for factor in chosen_levels(model.config, max_downsample)}
    seen: list[_Layer] = []
    with ExitStack() as stack:
        for factor, block in blocks_by_level(model):
            if factor in levels:
                seen += _wrap(stack, block, levels[factor], wanted)
        hook = model.register_forward_pre_hook(partial(_enter, list(levels.values()), wanted), with_kwargs=True)
        stack.callback(hook.remove)
        yield Proof(partial(_evidence, seen), begin=lambda pipe: _forget(seen))


def blocks_by_level(model: Any) -> Iterator[tuple[int, Any]]:
    """(factor, block) for each BasicTransformerBlock of a UNet: 1 at the latent's own size, 2 at half of it, ..."""
    from diffusers.models.attention import BasicTransformerBlock

    last = len(model.down_blocks) - 1
    sides = [(2**i, part) for i, part in enumerate(model.down_blocks)]
    sides += [(2**last, model.mid_block)] if model.mid_block is not None else []
    sides += [(2 ** (last - i), part) for i, part in enumerate(model.up_blocks)]
    for factor, part in sides:
        yield from ((factor, block) for block in part.modules() if isinstance(block, BasicTransformerBlock))


def _enter(levels: list[_Level], wanted: _Wish, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before each call of the denoiser: the grids of this latent, no matching yet, and the step's random numbers."""
    sample = args[0] if args else kwargs["sample"]
    for level in levels:
        level.grid = grid_at(tuple(sample.shape[-2:]), level.factor)
        level.kept.clear()
    if wanted.generator is not None:
        # from the timestep: the same in every run and in both halves of a split guidance batch, whoever starts them
        wanted.generator.manual_seed(int(1000 * float(timestep_of(args, kwargs))))


def _wrap(stack: ExitStack, block: Any, level: _Level, wanted: _Wish) -> list[_Layer]:
    """Wraps a block, to match its tokens as they enter (as tomesd does), and the layers that merge."""
    current: list[tuple[Move, Move]] = []
    inner = block.forward

    def forward(hidden_states: "Tensor", *args: Any, **kwargs: Any) -> Any:
        current[:] = [wanted.moves(hidden_states, level)]
        return inner(hidden_states, *args, **kwargs)

    stack.enter_context(swapped(block, forward=forward))
    records = []
    for name in wanted.layers:
        if (layer := getattr(block, name)) is not None:
            records.append(_Layer())
            stack.enter_context(swapped(layer, forward=_merging(layer.forward, current, records[-1])))
    return records


def _merging(inner: Callable[..., Any], current: list[tuple[Move, Move]], record: _Layer) -> Callable[..., Any]:
    def forward(hidden_states: "Tensor", *args: Any, **kwargs: Any) -> Any:
        merge, unmerge = current[0]
        merged = merge(hidden_states)
        record.tokens = (hidden_states.shape[1], merged.shape[1])
        return unmerge(inner(merged, *args, **kwargs))

    return forward


def _forget(seen: list[_Layer]) -> None:
    for layer in seen:
        layer.tokens = (0, 0)


def _evidence(seen: list[_Layer]) -> str:
    tokens = sorted({layer.tokens for layer in seen if layer.tokens[1] < layer.tokens[0]}, reverse=True)
    merged = sum(layer.tokens in tokens for layer in seen)
    sizes = ", ".join(f"{before} -> {after}" for before, after in tokens)
    return f"{sizes} tokens in {merged} of {len(seen)} layers" if merged else ""
