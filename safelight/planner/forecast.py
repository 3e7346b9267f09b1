"""What a set of optimizers would cost: the parts traced with those applied that a trace shows, then each one's predict.

Comes in: a Blueprint, a Target, the rates of a device. Goes out: a Cost for any set of choices. Remembers what it has
traced, as a search asks for the same again and again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from safelight.optimizers import words
from safelight.optimizers.precision import cast, chosen_dtypes, kept_tensors, kind_of, overflows
from safelight.optimizers.registry import Optimizer
from safelight.optimizers.streaming import blocks_of
from safelight.optimizers.target import Target
from safelight.planner.walks import DEFAULT_STEPS, EACH, ONE, Walk
from safelight.probe import packages
from safelight.probe.blueprint import Blueprint
from safelight.probe.rates import Rates
from safelight.simulate import inputs
from safelight.simulate.cost import PHASES, Cost, Phase, Weights, phase, phase_of
from safelight.simulate.fake import Fake, fake
from safelight.simulate.measurements import Correction, Measurement, correction
from safelight.simulate.shelf import Shelf
from safelight.simulate.trace import NOTHING, Trace, record, tensors

Chosen = tuple[Optimizer, Mapping[str, Any]]  # an optimizer with all its options
DTYPES = ("dtype", "vae-dtype")  # slots of what sets number formats, on which all other effects rest
OURS = "safelight.optimizers."
STEP_OPERATORS = 20  # of the scheduler and of guidance, on latents: their launches count, their work does not
ENCODERS = {f"vae.{pictures}": pictures for pictures in (ONE, EACH)}  # the VAE, where it makes latents of pictures
ENCODING = ("tiny-vae", "vae-tiling")  # of those that no trace shows, the ones that change the encoder as the decoder
TILES = "vae-tiles"  # the slot of what acts on pictures that are larger than a tile alone


@dataclass(frozen=True, slots=True)
class Seen:
    """One part: what one call takes (resident is 0), and its weights as the optimizers left them."""

    phase: Phase
    weights: Weights


@dataclass
class Forecast:
    """target: what is drawn, on what; its dtype is that of the plain weights. steps: of the scheduler, one for each
    evaluation of the model.

    measurements: of earlier runs, which correct what is predicted. traces: a folder that `keep` puts them in, for the
    next process.
    encodes, decodes: as in Walk. before: the walk that comes before this one, in whose costs it is counted.
    """

    blueprint: Blueprint
    target: Target
    rates: Rates
    steps: int = DEFAULT_STEPS
    measurements: tuple[Measurement, ...] = ()
    traces: Path | None = None
    encodes: str = ""
    decodes: bool = True
    before: "Forecast | None" = None
    _seen: dict[Any, Seen] = field(default_factory=dict)
    _fakes: dict[Any, Fake] = field(default_factory=dict)
    _traces: dict[Any, tuple[Trace, Weights]] = field(default_factory=dict)
    _effects: dict[Any, tuple[Seen, Seen]] = field(default_factory=dict)

    def of_batch(self, size: int) -> "Forecast":
        """The same for so many pictures at a time."""
        return self.of(replace(self.target, batch_size=size), self.rates)

    def of(self, target: Target, rates: Rates) -> "Forecast":
        """The same model drawn in another way, or elsewhere. What does not depend on that is shared: fake models know
        no shape, and traces no rates."""
        if target == self.target and rates is self.rates:
            return self
        same_formats = (target.dtype, _formats(target)) == (self.target.dtype, _formats(self.target))
        same_shape = replace(target, device=self.target.device) == self.target
        fakes = self._fakes if same_formats else {}
        traces = self._traces if same_formats and same_shape else {}
        before = self.before and self.before.of(_sized(target, self.before.target), rates)
        made = replace(self, target=target, rates=rates, before=before, _seen={}, _effects={})
        made._fakes, made._traces = fakes, traces
        return made

    def along(self, walks: Sequence[Walk]) -> "Forecast":
        """The same model, taken through these walks, one after the other; of the last one, with those before it."""
        made: Forecast | None = None
        for walk in walks:
            there = replace(self, before=None).of(_sized(self.target, walk), self.rates)
            made = replace(there, steps=walk.evaluations, encodes=walk.encodes, decodes=walk.decodes, before=made)
        assert made is not None, "there is a walk"
        return made

    @property
    def scene(self) -> inputs.Scene:
        target = self.target
        return inputs.Scene(target.width, target.height, target.frames, target.batch_size, target.guided)

    def cost(self, chosen: Sequence[Chosen] = (), *, roughly: bool = False) -> Cost:
        """`predicted`, corrected by what was measured of this model on this device, each walk by itself."""
        own = self.alone(chosen, roughly=roughly)
        return own if self.before is None else self.before.cost(chosen, roughly=roughly).then(own)

    def alone(self, chosen: Sequence[Chosen] = (), *, roughly: bool = False) -> Cost:
        """As `cost`, without the walk before."""
        own = self._walked(chosen, roughly=roughly)
        return own if not self.measurements else own.corrected(self.correction(chosen))

    def correction(self, chosen: Sequence[Chosen] = ()) -> Correction:
        run = self.run(chosen)
        return correction(self.measurements, **run)

    def run(self, chosen: Sequence[Chosen]) -> dict[str, Any]:
        """What tells one measurement from another."""
        target = self.target
        return {
            "device": target.device.name,
            "model": self.blueprint.name,
            "width": target.width,
            "height": target.height,
            "frames": target.frames,
            "batch_size": target.batch_size,
            "guided": target.guided,
            "plan": written(chosen),
            "versions": versions(),
        }

    def predicted(self, chosen: Sequence[Chosen] = (), *, roughly: bool = False) -> Cost:
        """Of one batch with these optimizers.

        roughly: where a trace shows several of them at once, their single effects are multiplied instead of traced
        together, and an effect seen in one dtype stands for all: enough to choose between sets, with one trace for
        each optimizer.
        Raises CannotPredict for a denoiser that nobody knows how to call.
        """
        own = self._walked(chosen, roughly=roughly)
        return own if self.before is None else self.before.predicted(chosen, roughly=roughly).then(own)

    def _walked(self, chosen: Sequence[Chosen], *, roughly: bool) -> Cost:
        ordered = sorted(chosen, key=lambda choice: choice[0].stage)
        traced = self._traced(ordered, roughly=roughly)
        cost = self._with_predicted(traced, ordered)
        decode = cost.decode if self.decodes else cost.decode.idle
        if self.encodes:
            encoder = traced.changed("decode", **self._encoder(ordered, roughly=roughly))
            acting = [choice for choice in ordered if choice[0].name in ENCODING]
            encoded = self._with_predicted(encoder, acting).decode
            decode = replace(encoded, resident=decode.resident).then(decode)
        cost = replace(cost, decode=decode)
        return cost if self.steps else replace(cost.without("encode", "denoise"), steps=0, once=0.0)

    def _encoder(self, chosen: Sequence[Chosen], *, roughly: bool) -> dict[str, Any]:
        """Its seconds and its live bytes."""
        found = self._part(f"vae.{self.encodes}", chosen, roughly=roughly).phase
        return {"device": found.device, "host": found.host, "live": found.live}

    def _with_predicted(self, cost: Cost, ordered: Sequence[Chosen]) -> Cost:
        target = computing(self.target, ordered)
        for optimizer, options in ordered:
            if optimizer.slot == TILES and optimizer.fits(target, **options):
                continue  # the smaller of two walks may be no larger than a tile
            cost = optimizer.predict(cost, target, **options)
        return cost

    def _traced(self, chosen: Sequence[Chosen], *, roughly: bool) -> Cost:
        seen = {name: self._part(name, chosen, roughly=roughly) for name in self.blueprint.parts}
        calls = inputs.call(self.blueprint, self.scene).calls
        resident = sum(one.weights.total for one in seen.values())
        phases: Any = {}
        for name in PHASES:
            parts = [one.phase for part, one in seen.items() if phase_of(part) == name]
            phases[name] = replace(_one_after_the_other(parts, self.rates), resident=resident)
        steps = max(self.steps, 1)  # of none, what there is to predict of one is left out afterwards
        phases["denoise"] = phases["denoise"].times(calls * steps)
        beside = STEP_OPERATORS * steps * self.rates.launch
        phases["denoise"] = replace(phases["denoise"], host=phases["denoise"].host + beside)
        weights = {name: one.weights for name, one in seen.items()}
        return Cost(
            **phases,
            parts=weights,
            rates=self.rates,
            steps=steps,
            calls=calls,
            batch_size=self.target.batch_size,
        )

    def _part(self, name: str, chosen: Sequence[Chosen], *, roughly: bool) -> Seen:
        """With the optimizers applied that a trace shows there."""
        kind = kind_of(_component(name))
        shown = [choice for choice in chosen if kind in choice[0].traced]
        first = [choice for choice in shown if choice[0].slot in DTYPES]
        later = [choice for choice in shown if choice[0].slot not in DTYPES]
        if not roughly or not later or _key(name, shown) in self._seen:
            return self._looked(name, shown)
        return composed(self._looked(name, first), [self._effect(name, first, one) for one in later])

    def _effect(self, name: str, first: Sequence[Chosen], one: Chosen) -> tuple[Seen, Seen]:
        """The part without an optimizer and with it, in the dtype in which that was seen first."""
        key = _key(name, [one])
        if key not in self._effects:
            self._effects[key] = self._looked(name, first), self._looked(name, [*first, one])
        return self._effects[key]

    def _looked(self, name: str, shown: Sequence[Chosen]) -> Seen:
        key = _key(name, shown)
        if key not in self._seen:
            if key not in self._traces:
                self._traces[key] = self._kept(key, name, shown)
            self._seen[key] = self._timed(*self._traces[key])
        return self._seen[key]

    def keep(self) -> None:
        """Leaves the traces for the next process."""
        if self.before is not None:
            self.before.keep()
        self.shelf.keep()

    def _kept(self, key: Any, name: str, shown: Sequence[Chosen]) -> tuple[Trace, Weights]:
        """What others' optimizers do may change at any time."""
        if not all(optimizer.apply.__module__.startswith(OURS) for optimizer, _ in shown):
            return self._look(name, shown)
        if (found := self.shelf.find(str(key))) is None:
            self.shelf.put(str(key), found := self._look(name, shown))
        return found

    @cached_property
    def shelf(self) -> Shelf:
        """What a trace depends on but for the optimizers; the rates, and what a device is called, are not among it."""
        import torch

        target = self.target
        situation = {
            "pipeline": self.blueprint.pipeline,
            "parts": {name: [part.cls, part.config] for name, part in self.blueprint.parts.items()},
            "scene": astuple(self.scene),
            "target": [target.dtype, target.text_is_encoded, target.adapters, target.disposable, _formats(target)],
            "threads": torch.get_num_threads(),
            "versions": [versions(), packages.version("transformers")],
        }
        return Shelf(self.traces, situation)

    def _look(self, name: str, shown: Sequence[Chosen]) -> tuple[Trace, Weights]:
        first = [choice for choice in shown if choice[0].slot == DTYPES[0]]
        later = [choice for choice in shown if choice[0].slot != DTYPES[0]]
        target, made = computing(self.target, shown), self._cast(first)
        with made.active(), ExitStack() as stack:
            if later:  # the pipeline is used again, even if the target's is not
                kinds = {kind for optimizer, _ in later for kind in optimizer.traced}
                stack.enter_context(kept_tensors(made.pipe, *(p for p in made.pipe.components if kind_of(p) in kinds)))
            for optimizer, options in later:
                optimizer.enter(stack, made.pipe, target, options)
            part = made.pipe.components[_component(name)]
            weights = weights_of(part)
            if not (_component(name) == "vae" and _is_upcast(target, part)):
                return self._record(name, part), weights
            stack.enter_context(kept_tensors(made.pipe, "vae"))
            _upcast(part)
            trace = self._record(name, part)
            return replace(trace, peak_bytes=trace.peak_bytes + weights_of(part).total), weights

    def _cast(self, first: Sequence[Chosen]) -> Fake:
        """A fake pipeline with number formats set, which stay (casting each weight takes longer than many a trace)."""
        key = _key("", first)
        if key not in self._fakes:
            made = fake(self.blueprint, self.target.dtype, self.target.device.kind)
            with made.active(), ExitStack() as stack:
                for optimizer, options in first:
                    optimizer.enter(stack, made.pipe, replace(self.target, disposable=True), options)
            self._fakes[key] = made
        return self._fakes[key]

    def _timed(self, trace: Trace, weights: Weights) -> Seen:
        return Seen(phase(trace, self.rates, self.target.device.kind, resident=0), weights)

    def _record(self, name: str, part: Any) -> Trace:
        import torch

        dtype = next((p.dtype for p in part.parameters() if p.is_floating_point()), torch.float32)
        if name == "vae":
            latents = inputs.latents(self.blueprint, self.scene, dtype)
            return record(lambda: part.decode(latents, return_dict=False), [latents], part)
        if name in ENCODERS:
            count = self.target.batch_size if ENCODERS[name] == EACH else 1
            pictures = torch.empty(count, 3, self.target.height, self.target.width, dtype=dtype)
            return record(lambda: part.encode(pictures, return_dict=False), [pictures], part)
        if name.startswith("text_encoder"):
            ids = inputs.text_ids(self.blueprint, name, self.scene)
            return record(lambda: part(ids), [ids], part)
        if name != self.blueprint.denoiser_name:
            return NOTHING  # a safety checker, a second denoiser that takes over: their weights count, no more
        given = inputs.denoiser_inputs(self.blueprint, self.scene, dtype)
        return record(lambda: part(**given, return_dict=False), tensors(given), part)


def written(chosen: Iterable[Chosen]) -> str:
    """As -o takes it: "dtype=bfloat16,channels-last"; "" for plain. What is as it is by default is left out."""
    ordered = sorted(chosen, key=lambda choice: (choice[0].stage, choice[0].name))
    return ",".join(
        word for optimizer, options in ordered for word in words.said(optimizer, unlike(optimizer, options))
    )


def unlike(optimizer: Optimizer, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not as they are by default."""
    defaults = optimizer.defaults()
    return {name: value for name, value in options.items() if value != defaults[name]}


def versions() -> str:
    """What a prediction and a measurement must share to be compared."""
    return ", ".join(f"{name} {packages.version(name)}" for name in ("safelight", "torch", "diffusers"))


def _formats(target: Target) -> Any:
    """What of a device optimizers ask for."""
    device = target.device
    return device.kind, device.capability, device.fast_dtypes, device.features


def computing(target: Target, chosen: Iterable[Chosen]) -> Target:
    """The target with the dtype that its denoiser will have once `dtype` has acted."""
    for optimizer, options in chosen:
        if optimizer.name == "dtype":
            return replace(target, dtype=chosen_dtypes(target.device, **options)["denoiser"])
    return target


def composed(base: Seen, effects: Sequence[tuple[Seen, Seen]]) -> Seen:
    """What several optimizers take together, from a part without and with each of them: their factors multiplied."""

    def changed(value: Callable[[Seen], float]) -> float:
        return value(base) * prod(value(after) / value(before) for before, after in effects if value(before))

    def seconds(kind: str) -> float:
        return changed(lambda seen: seen.phase.device[kind])

    whole = replace(
        base.phase,
        device={kind: seconds(kind) for kind in base.phase.device},
        host=changed(lambda seen: seen.phase.host),
        live=round(changed(lambda seen: seen.phase.live)),
    )
    total = changed(lambda seen: seen.weights.total)
    return Seen(whole, base.weights.scaled(total / base.weights.total) if base.weights.total else base.weights)


def _one_after_the_other(phases: Sequence[Phase], rates: Rates) -> Phase:
    """Nothing stays alive in between."""
    device = {kind: sum(one.device[kind] for one in phases) for kind in phases[0].device} if phases else {}
    live = max((one.live for one in phases), default=0)
    return Phase(device, sum(one.host for one in phases), 0, live, rates.queued)


def _component(name: str) -> str:
    """Of the pipeline: "vae" of ENCODERS."""
    return name.partition(".")[0]


def _sized(target: Target, like: Walk | Target) -> Target:
    return replace(target, width=like.width, height=like.height)


def _key(name: str, shown: Iterable[Chosen]) -> Any:
    return (name, *((optimizer.name, tuple(sorted(options.items()))) for optimizer, options in shown))


def _is_upcast(target: Target, vae: Any) -> bool:
    """A VAE that overflows in float16 decodes in float32 (run/generate.py, and diffusers' own pipelines)."""
    import torch

    return overflows(target) and next(vae.parameters()).dtype == torch.float16


def _upcast(vae: Any) -> None:
    import torch

    cast(vae, torch.float32)


def weights_of(part: Any) -> Weights:
    """Bytes of parameters and buffers, each storage once."""
    return Weights(_bytes([part]), max((_bytes([m], deep=False) for m in part.modules()), default=0), _blocks(part))


def _blocks(part: Any) -> tuple[int, ...]:
    """Of the blocks that streamed-blocks divides it into."""
    return tuple(_bytes([block]) for block in blocks_of(part))


def _bytes(modules: list[Any], *, deep: bool = True) -> int:
    tensors = [t for m in modules for t in (*m.parameters(recurse=deep), *m.buffers(recurse=deep))]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
