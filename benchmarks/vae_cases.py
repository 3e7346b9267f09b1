"""What vae.py measures, the important first: cases, the ways each is computed in, and what those should reach.

No tensors here. Sides are pixels of the picture, shares are of what decoding or encoding whole takes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

GIB = 2**30
KINDS = ("whole", "tiling", "exact", "fast", "blended", "compiled")


@dataclass(frozen=True, slots=True)
class Way:
    """kind: of KINDS. share: of whole's bytes; the fastest exact plan within it, or diffusers' tiling with the tile
    that takes as much as that plan. budget_bytes: of the exact way, in bytes. Without both: the fastest, or the default
    tile."""

    kind: str
    share: float | None = None
    budget_bytes: int | None = None

    @property
    def name(self) -> str:
        limit = f"{self.share:.2f}" if self.share is not None else ""
        if self.budget_bytes is not None:
            limit = f"{self.budget_bytes / GIB:g}GiB"
        return " ".join(
            word for word in (self.kind, "as exact" * (self.kind == "tiling" and bool(limit)), limit) if word
        )


def way_of(name: str) -> Way:
    """The other way round: "exact 0.30", "exact 3GiB", "tiling as exact 0.30", "whole"."""
    kind, *rest = name.split()
    if kind not in KINDS:
        raise ValueError(f"{name!r} is none of {', '.join(KINDS)}")
    if not rest:
        return Way(kind)
    if rest[-1].endswith("GiB"):
        return Way(kind, budget_bytes=int(float(rest[-1].removesuffix("GiB")) * GIB))
    return Way(kind, share=float(rest[-1]))


def within(*shares: float) -> tuple[str, ...]:
    """Exact plans, each with diffusers' tiling in the same memory."""
    return tuple(name for share in shares for name in (f"exact {share:.2f}", f"tiling as exact {share:.2f}"))


@dataclass(frozen=True, slots=True)
class Case:
    """vae: of vae_models.VAES. what: decode or encode. height, width: pixels. threads: 0 for torch's own number.

    truth: how the float32 result is made that 16 bit is held against, "whole" or "exact" (where whole has no room);
    "" for none.
    """

    vae: str
    what: str
    height: int
    width: int
    dtype: str = "float32"
    threads: int = 1
    batch: int = 1
    frames: int = 1
    ways: tuple[str, ...] = ("whole", "tiling", *within(0.30, 0.17), "fast", "blended")
    truth: str = "whole"

    @property
    def size(self) -> str:
        return f"{self.width}" if self.width == self.height else f"{self.width}x{self.height}"

    @property
    def inputs(self) -> str:
        """Cases that are the same here have the same input, and so the same float32 result."""
        return f"{self.vae}-{self.what}-{self.size}-{self.batch}-{self.frames}"

    @property
    def name(self) -> str:
        words = [f"{self.vae} {self.what} {self.size} px {self.dtype}"]
        words += [f"{self.frames} frames"] if self.frames > 1 else []
        words += [f"batch {self.batch}"] if self.batch > 1 else []
        words += [f"{self.threads} threads"] if self.threads > 1 else []
        return ", ".join(words)


def square(vae: str, what: str, side: int, dtype: str = "float32", **rest: object) -> Case:
    return Case(vae, what, side, side, dtype, **rest)  # type: ignore[arg-type]


BOTH = ("float32", "bfloat16")
LARGE = ("whole", "tiling", *within(0.38, 0.22, 0.15), "fast", "blended")
ENCODE = ("whole", "tiling", *within(0.40), "blended")
VIDEO = ("whole", "tiling", "exact 0.50")
SMALL_WAYS = ("whole", "tiling", "exact 0.30", "exact 0.17", "blended")


def cpu_cases() -> Iterator[Case]:
    for side in (1024, 512):
        yield from (square("sd15", "decode", side, dtype) for dtype in BOTH)
    yield square("sd15", "decode", 2048, "bfloat16", ways=LARGE, truth="exact")
    for side in (1024, 512):
        yield from (square("sd15", "encode", side, dtype, ways=ENCODE) for dtype in BOTH)
    yield from (square("sd15", "decode", 512, dtype, batch=4, ways=SMALL_WAYS) for dtype in BOTH)
    yield from (square("sd15", "decode", 1024, dtype, threads=2, ways=SMALL_WAYS) for dtype in BOTH)
    yield square("sd15", "encode", 1024, threads=2, ways=ENCODE)
    yield from (Case("wan-small", "decode", 256, 256, dtype, frames=17, ways=VIDEO) for dtype in BOTH)
    yield from (square("firstlight", "decode", side, dtype) for side in (1024, 512) for dtype in BOTH)
    yield square("firstlight", "decode", 2048, "bfloat16", ways=LARGE)
    yield from (square("firstlight", "encode", 1024, dtype, ways=ENCODE) for dtype in BOTH)
    yield square("sd15", "decode", 4096, "bfloat16", ways=("exact 3GiB",), truth="")
    yield square("sd15", "encode", 2048, "bfloat16", ways=ENCODE, truth="exact")
    yield square("sd15", "decode", 1024, batch=4, ways=SMALL_WAYS)
    yield Case("wan-small", "encode", 256, 256, frames=17, ways=VIDEO)


def card_cases() -> Iterator[Case]:
    half = ("float16", "bfloat16")
    ways = ("whole", "tiling", *within(0.35, 0.17), "fast", "blended")
    for side in (1024, 2048, 4096):
        made = (square("sd15", "decode", side, dtype, threads=0, ways=ways) for dtype in half)
        yield from made
    yield Case("wan", "decode", 480, 832, "bfloat16", 0, 1, 17, ("whole", "tiling", "exact 0.50"))
    yield from (square("sd15", "encode", side, "float16", threads=0, ways=ENCODE) for side in (1024, 2048))
    yield square("sd15", "decode", 1024, threads=0, ways=ways)


def cases(device: str, wanted: Sequence[str] = (), *, compiled: bool = False) -> list[Case]:
    """device: cpu, cuda, cuda:1. wanted: words in names, any of them; all without. compiled: as one more way."""
    made = cpu_cases() if device == "cpu" else card_cases()
    found = [case for case in made if not wanted or any(word in case.name for word in wanted)]
    return [
        replace(case, ways=(*case.ways, "compiled")) if compiled and "whole" in case.ways else case for case in found
    ]


# -- what is to be reached ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Goal:
    """figure: its name on the page. limit: the most, or the least where `least`."""

    figure: str
    limit: float
    least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit


DIFFERENCE = Goal("difference", 5e-5)  # float32, of values about -1 to 1
TRUTH = Goal("RMSE to the truth / whole's", 1.05)  # 16 bit
EDGES = Goal("error at edges / elsewhere", 1.05)
FASTER_THAN_TILING = Goal("times faster", 1.8, least=True)  # in the same memory
BLENDED_FASTER = Goal("times faster", 1.2, least=True)
BLENDED_DIFFERENCE = Goal("difference / tiling's", 1.0)
PREDICTED = Goal("error of predicted bytes", 0.10)
FAST_DB = Goal("PSNR to whole, dB", 40.0, least=True)
VIDEO_TIME = Goal("time / whole", 1.0)


def goals(case: Case, way: Way, device: str) -> list[Goal]:
    """Of an exact way against whole, and how near the fast one is; none for the others."""
    if way.kind == "fast":
        return [FAST_DB]
    if way.kind != "exact":
        return []
    if way.budget_bytes is not None:
        return [Goal("grown, GiB", way.budget_bytes / GIB)]
    found = [Goal("grown / whole", way.share)] if way.share is not None else []
    if case.frames > 1:
        found.append(VIDEO_TIME)
    elif time := TIMES.get((device.split(":")[0], case.what, way.share)):
        found.append(Goal("time / whole", time))
    return [*found, DIFFERENCE if case.dtype == "float32" else TRUTH, EDGES]


# the most that an exact plan within a share of whole's bytes may take, relative to whole's time
TIMES: dict[tuple[str, str, float | None], float] = {
    ("cpu", "decode", 0.30): 0.70,
    ("cpu", "decode", 0.17): 0.90,
    ("cpu", "encode", 0.40): 0.80,
    ("cuda", "decode", 0.35): 0.90,
}
