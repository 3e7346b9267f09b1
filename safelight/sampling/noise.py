"""The random numbers of a run, an image at a time: an image in a batch is the one that its seed alone gives.

The rules are A1111's (modules/rng.py), and so are the numbers with its RNG sources "CPU" and "NV": first noise, noise
of later steps from the same generators, variations between two seeds, Brownian noise for SDE samplers.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from safelight.errors import UnknownName, UsageError
from safelight.sampling.brownian import BrownianTree, Stream
from safelight.sampling.philox import Philox

if TYPE_CHECKING:
    from torch import Tensor


class TorchStream:
    """A seed's normal numbers as torch draws them on the processor; the same on every machine."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, shape: tuple[int, ...]) -> "Tensor":
        import torch

        return torch.randn(shape, generator=self._generator)


STREAMS: dict[str, Callable[[int], Stream]] = {"cpu": TorchStream, "nv": Philox}


class Noise:
    """seeds: one for each image. rng: cpu, or nv for the numbers of an NVIDIA card.

    variation_strength: 0..1, how far on the way from a seed's first noise to its variation seed's.
    seed_delta: what is added to the seeds for the noise after the first, but for Brownian noise; A1111's ENSD.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        rng: str = "cpu",
        variation_seeds: Sequence[int] | None = None,
        variation_strength: float = 0.0,
        seed_delta: int = 0,
    ) -> None:
        if rng not in STREAMS:
            raise UnknownName("source of random numbers", rng, STREAMS)
        _check_variation(len(seeds), variation_seeds, variation_strength)
        self.seeds, self.seed_delta = list(seeds), seed_delta
        self._stream = STREAMS[rng]
        self._variations = list(variation_seeds or ()) if variation_strength else []
        self._strength = variation_strength
        self._streams: list[Stream] = []
        self._shape: tuple[int, ...] = ()

    @property
    def is_special(self) -> bool:
        """Not what a torch generator on the processor gives first for each seed."""
        return bool(self._variations) or self._stream is not TorchStream

    def first(self, shape: tuple[int, ...]) -> "Tensor":
        """shape: channels, height, width. Gives (batch, channels, height, width), float32, on the processor.

        Begins anew each time: a second pass at another size takes its noise from the same seeds.
        """
        import torch

        self._shape = tuple(shape)
        self._streams = [self._stream(seed) for seed in self.seeds]
        noises = [stream.normal(self._shape) for stream in self._streams]
        if self._variations:
            others = [self._stream(seed).normal(self._shape) for seed in self._variations]
            noises = [slerp(self._strength, *pair) for pair in zip(noises, others, strict=True)]
        if self.seed_delta:
            self._streams = [self._stream(seed + self.seed_delta) for seed in self.seeds]
        return torch.stack(noises)

    def next(self) -> "Tensor":
        """What comes after, of the shape of the first."""
        import torch

        assert self._streams, "the first noise says the shape of the next"
        return torch.stack([stream.normal(self._shape) for stream in self._streams])

    def brownian(
        self, shape: tuple[int, ...], sigma_min: float, sigma_max: float
    ) -> "Callable[[float, float], Tensor]":
        """(sigma, next sigma) -> noise of unit variance, (batch, *shape): k-diffusion's BrownianTreeNoiseSampler.

        Two steps over the same sigmas get noise that agrees, however many lie between. A step of no length gets 0.
        """
        import torch

        low, high = sorted((_single(sigma_min), _single(sigma_max)))
        trees = [BrownianTree(low, high, seed, tuple(shape), self._stream) for seed in self.seeds]

        def noise(sigma: float, sigma_next: float) -> "Tensor":
            begin, end = torch.tensor(sigma), torch.tensor(sigma_next)
            if begin == end:
                return torch.zeros(len(trees), *shape)
            early, late = sorted((begin.item(), end.item()))
            moved = torch.stack([tree(early, late) for tree in trees])
            # time runs from the least sigma up, samplers go down
            return (moved if begin < end else -moved) / (end - begin).abs().sqrt()

        return noise


def _check_variation(images: int, seeds: Sequence[int] | None, strength: float) -> None:
    if not 0 <= strength <= 1:
        raise UsageError(f"variation strength {strength:g}: use 0 to 1")
    if strength and len(seeds or ()) != images:
        raise UsageError(f"variation strength {strength:g} with {len(seeds or ())} variation seeds for {images} images")


def _single(sigma: float) -> float:
    """k-diffusion's times are float32, and the tree tells times apart that differ by less."""
    import torch

    return torch.tensor(sigma, dtype=torch.float32).item()


def slerp(share: float, low: "Tensor", high: "Tensor") -> "Tensor":
    """From low (0) to high (1) along the sphere; (channels, height, width), each column a vector, as A1111 has it."""
    import torch

    dot = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1, keepdim=True)
    if dot.mean() > 0.9995:
        return low * share + high * (1 - share)  # this way round in A1111; the two are all but equal
    angle = dot.clamp(-1, 1).acos()
    scale = angle.sin()
    mixed = ((1 - share) * angle).sin() / scale * low + (share * angle).sin() / scale * high
    return torch.where(scale > 0, mixed, low)  # columns of one line: no way between, or no one way
