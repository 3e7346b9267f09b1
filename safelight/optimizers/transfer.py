"""What it costs when weights are not where they are computed with: the predictions of all that places them.

Bytes that lie on the device in each phase, and the seconds in which it waits for others to come.
"""

from dataclasses import dataclass, replace

from safelight.simulate.cost import PHASES, Cost, Phase, phase_of

# What is reached of the link's rate; H2D of a PCIe 4 card is about 24e9 bytes/s.
# Whole models, not pinned: SDXL on an A100 takes 16.1 s instead of 11.4 for 6.9 GB there and back, 3e9 bytes/s
# (huggingface.co/blog/simple_sdxl_optimizations); SD1.5 on an RTX 3060 4.3 s instead of 3.2, 5e9 (diffusers PR 2269).
NOT_PINNED = 0.2
# Layer by layer: the same blog has 67.0 s instead of 11.4 (2.8e9 bytes/s if it made 30 steps), FLUX.1-dev on an L20
# 335 s instead of 23.4 in 28 steps of 23.8 GB (2.1e9; cache-dit's page on offloading). Their hooks included.
ONE_BY_ONE = 0.1
# Pinned, layers or blocks, loaded ahead on a stream: FLUX.1 9.5 s for five calls (12.5e9 bytes/s; diffusers PR 11106).
# Gives cache-dit's 49, 41, 33, 26 s (L20, 28 steps, 1, 4, 8, 14 GB stay) as 53, 46, 37, 23.
AHEAD = 0.5
# bytes/s of a solid-state disk that reads in pieces of a layer; a common NVMe reads two to five times as much at a time
DISK = 1e9
# What a hook on each layer costs the host, in calls of an operator for each: accelerate's took half a millisecond a
# layer in the blog above. One on each block is not seen.
HOOKED_LAYER = 6.0


# -- what lies where ---------------------------------------------------------------------------------------------------


def in_phases(cost: Cost) -> dict[str, int]:
    """Bytes of the weights that each phase computes with."""
    return {phase: sum(part.total for name, part in cost.parts.items() if phase_of(name) == phase) for phase in PHASES}


def one_at_a_time(cost: Cost) -> dict[str, int]:
    """The most that lies on the device in each phase when models come in turn; text encoders come together."""
    turns: dict[str, dict[str, int]] = {phase: {} for phase in PHASES}
    for name, part in cost.parts.items():
        turn = turns[phase_of(name)]
        key = "text" if name.startswith("text_encoder") else name
        turn[key] = turn.get(key, 0) + part.total
    return {phase: max(turn.values(), default=0) for phase, turn in turns.items()}


def largest_layer(cost: Cost) -> dict[str, int]:
    return dict.fromkeys(PHASES, max((part.layer for part in cost.parts.values()), default=0))


# -- what it waits for -------------------------------------------------------------------------------------------------


def waiting(cost: Cost, phase: str, seconds: float) -> Cost:
    return cost.changed(phase, waiting=cost.phase(phase).waiting + seconds)


def hooked(cost: Cost, phase: str, factor: float) -> Cost:
    """The host does more for each operator."""
    return cost.changed(phase, host=cost.phase(phase).host * factor)


def beyond(phase: Phase, moving: float) -> float:
    """Seconds of moving that the phase's own work does not hide."""
    return max(0.0, moving - phase.seconds)


def _times(cost: Cost, phase: str) -> int:
    """How often a phase needs all of its weights."""
    return cost.steps * cost.calls if phase == "denoise" else 1


def link(cost: Cost, share: float) -> float:
    """bytes/s"""
    assert cost.rates.link, "a CPU has no link, and nothing to bring"
    return cost.rates.link * share


# -- the ways to place them --------------------------------------------------------------------------------------------


def in_turns(cost: Cost) -> Cost:
    """Whole models, each brought once for a batch; nothing is copied back."""
    cost, needed = cost.placed(**one_at_a_time(cost)), in_phases(cost)
    for phase, nbytes in needed.items():
        cost = waiting(cost, phase, nbytes / link(cost, NOT_PINNED))
    return cost


def layer_by_layer(cost: Cost) -> Cost:
    """Every layer for its own call, and the device waits for it."""
    needed = in_phases(cost)
    cost = cost.placed(**largest_layer(cost))
    for phase, nbytes in needed.items():
        cost = waiting(cost, phase, _times(cost, phase) * nbytes / link(cost, ONE_BY_ONE))
    return cost


def in_groups(cost: Cost, *, blocks: int, streams: bool) -> Cost:
    """Leaves, or so many blocks at a time (0: leaves); one group computes and with a stream another one comes."""
    needed, resident = in_phases(cost), dict.fromkeys(PHASES, 0)
    for name, part in cost.parts.items():
        rest, group = 0, part.layer
        if blocks and name != "vae":  # diffusers' blocks are what stands in lists; the rest of a model is one group
            rest, group = part.total - sum(part.blocks), blocks * max(part.blocks, default=0)
        resident[phase_of(name)] += rest + group * (2 if streams else 1)
    cost = cost.placed(**resident)
    for phase, nbytes in needed.items():
        cost = cost if blocks else hooked(cost, phase, HOOKED_LAYER)
        share = AHEAD if streams else NOT_PINNED if blocks else ONE_BY_ONE
        moving = _times(cost, phase) * nbytes / link(cost, share)
        cost = waiting(cost, phase, beyond(cost.phase(phase), moving) if streams else moving)
    return cost


@dataclass(frozen=True, slots=True)
class Divided:
    """A denoiser some of whose blocks flow. resident: bytes at the worst moment. moved: bytes in each call."""

    resident: int
    moved: int


def streamed(cost: Cost, denoiser: str, divided: Divided | None) -> Cost:
    """Some blocks stay, the others come ahead of their turn; models in turns. divided: None where it is refused, which
    costs as if nothing flowed."""
    cost = in_turns(cost)
    if divided is None:
        return cost
    others = max(
        (p.total for name, p in cost.parts.items() if phase_of(name) == "denoise" and name != denoiser), default=0
    )
    cost = cost.changed("denoise", resident=max(others, divided.resident))
    moving = _times(cost, "denoise") * divided.moved / link(cost, AHEAD)
    return waiting(cost, "denoise", beyond(cost.denoise, moving))


def from_disk(cost: Cost) -> Cost:
    """Nothing lies in memory for longer than its own call; what the disk's cache keeps is not counted on."""
    needed = in_phases(cost)
    cost = replace(cost.placed(**largest_layer(cost)), host_bytes=0)
    for phase, nbytes in needed.items():
        seconds = 1 / DISK + (1 / link(cost, ONE_BY_ONE) if cost.rates.link else 0.0)
        cost = waiting(cost, phase, _times(cost, phase) * nbytes * seconds)
    return cost


def without_encoders(cost: Cost) -> Cost:
    """The text encoders leave once the prompt is encoded, and come back for the next; on a CPU from a file."""
    away = sum(part.total for name, part in cost.parts.items() if name.startswith("text_encoder"))
    for phase in ("denoise", "decode"):
        cost = cost.changed(phase, resident=min(cost.phase(phase).resident, cost.weights - away))
    cost = waiting(cost, "encode", away / (link(cost, NOT_PINNED) if cost.rates.link else DISK))
    return replace(cost, host_bytes=cost.host_bytes + (away if cost.rates.link else 0))
