"""Pictures to latents and back in as much memory as there is: whole, exact in strips, or in blended tiles.

Comes in: a VAE of diffusers and a tensor. Goes out: what the VAE itself would have made, or its rows. The exact way is
the usual one, as it is the fastest too; tiles are blended only where an approximation is allowed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from safelight.errors import OutOfMemory, SafelightError, UsageError
from safelight.vae import seams
from safelight.vae.blending import Blending
from safelight.vae.exact import Sink
from safelight.vae.families import BLENDED
from safelight.vae.graph import CannotWalk
from safelight.vae.running import Exact

HOW = ("auto", "whole", "exact", "fast", "blended")
FIDELITIES = ("exact", "rounding", "approximate")
WAYS = {"exact": ("whole",), "rounding": ("exact", "whole"), "approximate": ("exact", "fast", "blended")}
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass
class Engine:
    """How a VAE is run, with the plans that were made for it: one for many pictures.

    budget_bytes: beside weights and what is given; None for no limit. how: of HOW; "auto" is decided by `fidelity`:

    - "exact": whole, the same bits.
    - "rounding": in strips; whole where the VAE cannot be walked and there is no budget.
    - "approximate": in strips; where the VAE cannot be walked, or no exact plan fits the budget, "fast", and then in
      blended tiles.

    "fast" decodes in one pass that stores next to nothing, with the statistics of crops: an approximation of 40 dB
    where tiles have 22 (see sampling.py). Encoding is exact then, as it begins with what is largest.

    precision: of PRECISIONS, what the VAE computes in meanwhile, and what is given back; None for its own. In place of
    float16 that is float32 inside where float16 would be slow (on a CPU) or overflow (`force_upcast` in its config,
    whole and in tiles; strips scale what overflows, see fp16.py).
    """

    vae: Any
    budget_bytes: int | None = None
    how: str = "auto"
    fidelity: str = "rounding"
    precision: str | None = None
    _exact: dict[tuple[str, bool], Exact] = field(default_factory=dict)
    _tiled: dict[str, Blending] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("way", self.how, HOW),
            ("fidelity", self.fidelity, FIDELITIES),
            ("precision", self.precision or PRECISIONS[0], PRECISIONS),
        ):
            if value not in known:
                raise UsageError(f"{value!r} is no {name} of a VAE: {', '.join(known)} are there")
        if self.budget_bytes is not None and self._ways("decode") == ("whole",):
            raise UsageError("a VAE that is run whole keeps no budget: give none, or let it run in strips")

    def decode(self, latents: Any, sink: Sink | None = None) -> Any:
        """latents: (batch, channels, [frames,] height, width), unscaled, as `vae.decode` takes them.

        sink: takes (first row, rows) in the picture's order instead of the result, for pictures that do not fit in
        memory. Returns (batch, 3, [frames,] height, width), about -1 to 1; None with a sink. What is not a number is
        computed again in float32, unless rows of it are gone to a sink.

        Raises OutOfMemory for too small a budget, saying what the least is, CannotWalk for how="exact",
        SafelightError for a result that is not a number in float32 either.
        """
        return self._guarded("decode", latents, sink)

    def encode(self, pictures: Any) -> Any:
        """pictures: (batch, 3, [frames,] height, width), -1 to 1. Returns unscaled latents, the mode if they vary."""
        return self._guarded("encode", pictures, None)

    def _guarded(self, what: str, given: Any, sink: Sink | None) -> Any:
        import torch

        with torch.no_grad():
            if sink is not None:
                return self._coded(what, given, Checked(sink), self.precision)
            made = self._coded(what, given, None, self.precision)
            if is_finite(made):
                return made
            if made.dtype != torch.float32 and self.precision is None and is_finite(given):
                made = self._coded(what, given, None, "float32").to(made.dtype)
            if not is_finite(made):
                raise SafelightError(f"what the VAE {what}s is not a number, in {_named(made.dtype)}")
            return made

    def _coded(self, what: str, given: Any, sink: "Checked | None", precision: str | None) -> Any:
        for way in self._ways(what):
            try:
                return self._one_way(way, what, given, sink, precision)
            except (CannotWalk, OutOfMemory) as error:
                if way not in ("exact", "fast") or not self._may_go_on(error) or (sink is not None and sink.begun):
                    raise
        raise AssertionError("the last way raises or returns")

    def _ways(self, what: str) -> tuple[str, ...]:
        if self.how != "auto":
            return ("exact",) if (self.how, what) == ("fast", "encode") else (self.how,)
        return WAYS[self.fidelity]

    def _may_go_on(self, error: SafelightError) -> bool:
        """With the next way of "auto", once there is no exact plan, or none that fits."""
        if self.how != "auto":
            return False
        if self.fidelity == "approximate":
            return type(self.vae).__name__ in BLENDED
        return self.budget_bytes is None and isinstance(error, CannotWalk)

    def _one_way(self, way: str, what: str, given: Any, sink: Sink | None, precision: str | None) -> Any:
        import torch

        own = given.dtype
        with ExitStack() as stack:
            if name := precision or _instead_of_float16(self.vae, given, way):
                stack.enter_context(computing_in(self.vae, getattr(torch, name)))
                given = given.to(getattr(torch, name))
            asked = given.dtype if precision else own
            if way == "whole":
                made = _native(self.vae, what, given)
                if sink is not None:
                    sink(0, made)
            else:
                run = self._blending(what) if way == "blended" else self._strips(what, sampled=way == "fast")
                stack.enter_context(seams.running(self.vae, what, run, sink=sink))
                made = _native(self.vae, what, given)
            return None if sink is not None else made.to(asked)

    def _blending(self, what: str) -> Blending:
        if what not in self._tiled:
            self._tiled[what] = Blending(self.vae, what, budget_bytes=self.budget_bytes)
        return self._tiled[what]

    def _strips(self, what: str, *, sampled: bool) -> Exact:
        if (what, sampled) not in self._exact:
            self._exact[what, sampled] = seams.exact_of(self.vae, what, self.budget_bytes, sampled=sampled)
        return self._exact[what, sampled]


def decode(vae: Any, latents: Any, *, sink: Sink | None = None, **how: Any) -> Any:
    """Engine.decode, for one call. how: what an Engine takes."""
    return Engine(vae, **how).decode(latents, sink)


def encode(vae: Any, pictures: Any, **how: Any) -> Any:
    """Engine.encode, for one call. how: what an Engine takes."""
    return Engine(vae, **how).encode(pictures)


def _native(vae: Any, what: str, given: Any) -> Any:
    import torch

    if what == "decode":
        return vae.decode(given, return_dict=False)[0]
    made = vae.encode(given, return_dict=False)[0]
    return made if isinstance(made, torch.Tensor) or made is None else made.mode()


# -- number formats ----------------------------------------------------------------------------------------------------


def _instead_of_float16(vae: Any, given: Any, way: str) -> str | None:
    import torch

    if given.dtype != torch.float16:
        return None
    overflows = way != "exact" and getattr(vae.config, "force_upcast", False)
    return "float32" if given.device.type == "cpu" or overflows else None


@contextmanager
def computing_in(vae: Any, dtype: Any) -> Iterator[None]:
    """Its weights in `dtype` meanwhile; afterwards they are the same tensors as before."""
    before = [(tensor, tensor.data) for tensor in (*vae.parameters(), *vae.buffers()) if tensor.is_floating_point()]
    try:
        for tensor, data in before:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


@dataclass
class Checked:
    """A sink that takes no rows that are not numbers, and says so. Raises SafelightError."""

    sink: Sink
    begun: bool = False

    def __call__(self, first_row: int, rows: Any) -> None:
        if not is_finite(rows):
            raise SafelightError(f"row {first_row} of the picture is not a number in {_named(rows.dtype)}: try float32")
        self.begun = True
        self.sink(first_row, rows)


def is_finite(made: Any) -> bool:
    """Without a tensor of its size beside it, where it is."""
    import torch

    return bool(made.sum(dtype=torch.float32).isfinite()) or bool(made.isfinite().all())


def _named(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
