"""What one batch takes: seconds and bytes, phase by phase; from traces and the rates of a device.

Optimizers that a trace shows are in the traces; the others change a Cost by their `predict`. All of it is arithmetic:
nothing here touches a model or a device.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from safelight.probe.rates import COMPUTING, KINDS, Rates
from safelight.simulate.measurements import Correction
from safelight.simulate.trace import Trace, Work
from safelight.simulate.workspace import kept

PHASES = ("encode", "denoise", "decode")
# what torch holds of a card besides tensors: CUDA's context, its kernels, cuBLAS; seen as nvidia-smi less allocated
CONTEXT_BYTES = {"cuda": 600 * 2**20, "xpu": 600 * 2**20}
# of a card's memory: what the allocator cannot use in the middle of a run (fragments, rounding to 2 MiB)
FRAGMENTS = 0.05


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of one part. total: all of it. layer: its largest layer alone. blocks: of each repeated block, in order."""

    total: int
    layer: int
    blocks: tuple[int, ...] = ()

    def scaled(self, factor: float) -> "Weights":
        return Weights(
            round(self.total * factor), round(self.layer * factor), tuple(round(b * factor) for b in self.blocks)
        )


@dataclass(frozen=True, slots=True)
class Phase:
    """device: seconds by kind of work (rates.KINDS). host: seconds that calling the operators takes. waiting: seconds
    that neither hides, as for weights that are not there yet.

    resident: bytes of weights on the device. live: bytes that the work itself takes at its worst moment.
    queued: the host calls ahead while the device works, so that the longer of the two counts.
    """

    device: Mapping[str, float]
    host: float
    resident: int
    live: int
    queued: bool
    waiting: float = 0.0

    @property
    def seconds(self) -> float:
        working = sum(self.device.values())
        return self.waiting + (max(working, self.host) if self.queued else working + self.host)

    @property
    def peak_bytes(self) -> int:
        return self.resident + self.live

    def then(self, later: "Phase") -> "Phase":
        """Both, one after the other: seconds add up, and the one with the higher peak says what lies in memory."""
        device = {kind: seconds + later.device[kind] for kind, seconds in self.device.items()}
        highest = max(self, later, key=lambda phase: phase.peak_bytes)
        both = replace(highest, device=device, host=self.host + later.host, waiting=0.0)
        # the host does not call ahead from one into the other
        return replace(both, waiting=max(0.0, self.seconds + later.seconds - both.seconds))

    @property
    def idle(self) -> "Phase":
        """With nothing to do; the weights stay where they are."""
        return replace(self, device=dict.fromkeys(self.device, 0.0), host=0.0, waiting=0.0, live=0)

    def times(self, factor: float) -> "Phase":
        """All its seconds."""
        device = {kind: seconds * factor for kind, seconds in self.device.items()}
        return replace(self, device=device, host=self.host * factor, waiting=self.waiting * factor)

    def kinds(self, **factors: float) -> "Phase":
        """`phase.kinds(convolution=0.8, host=0.5)`: the seconds of single kinds of work."""
        device = {kind: seconds * factors.get(kind, 1.0) for kind, seconds in self.device.items()}
        return replace(self, device=device, host=self.host * factors.get("host", 1.0))


@dataclass(frozen=True, slots=True)
class Cost:
    """One batch of pictures. encode, denoise (all steps), decode: its phases. parts: the weights by component name.

    encode: of texts. decode: all that the VAE does, with what it encodes where a walk begins from pictures.
    steps: of the scheduler, one for each evaluation of the model: a sampler that asks twice a step has nearly twice the
    steps that a person asked for. calls: of the denoiser in each of them, more than 1 where guidance asks for its two
    predictions one after the other.
    once: seconds that are spent before the first batch only (compiling). host_bytes: of weights that wait in the host's
    memory. rates: of the device. batch_size: of the run.
    """

    encode: Phase
    denoise: Phase
    decode: Phase
    parts: Mapping[str, Weights]
    rates: Rates
    steps: int
    calls: int = 1
    batch_size: int = 1
    once: float = 0.0
    host_bytes: int = 0

    def phase(self, name: str) -> Phase:
        found: Phase = getattr(self, name)
        return found

    @property
    def phases(self) -> dict[str, Phase]:
        return {name: self.phase(name) for name in PHASES}

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def launches(self) -> float:
        """Operators that one call of the denoiser makes, on average."""
        return self.denoise.host / self.rates.launch / self.steps / self.calls

    @property
    def step_seconds(self) -> float:
        """Of one evaluation of the model, with both halves of guidance: not of a step that a person asked for, of which
        one may take two. Of two walks the average."""
        return self.denoise.seconds / self.steps

    @property
    def peak_bytes(self) -> int:
        """The highest of the phases."""
        return max(phase.peak_bytes for phase in self.phases.values())

    @property
    def largest(self) -> str:
        """The phase in which memory is highest."""
        return max(PHASES, key=lambda name: self.phase(name).peak_bytes)

    @property
    def slowest(self) -> str:
        return max(PHASES, key=lambda name: self.phase(name).seconds)

    def per_picture(self, pictures: float) -> float:
        """Seconds of one picture when so many are made: the batch's share, and that of what is spent once."""
        return self.seconds / self.batch_size + self.once / pictures

    def scaled(self, **factors: float) -> "Cost":
        """`cost.scaled(denoise=0.8)`: all seconds of the named phases."""
        changed: Any = {name: self.phase(name).times(factor) for name, factor in factors.items()}
        return replace(self, **changed)

    def corrected(self, by: Correction) -> "Cost":
        """As earlier measurements say."""
        cost = self.scaled(encode=by.encode, denoise=by.step, decode=by.decode)
        for name, phase in cost.phases.items():
            resident, live = round(phase.resident * by.peak), round(phase.live * by.peak)
            cost = cost.changed(name, resident=resident, live=live)
        return cost

    def changed(self, name: str, **fields: Any) -> "Cost":
        """With some fields of a phase replaced."""
        changed: Any = {name: replace(self.phase(name), **fields)}
        return replace(self, **changed)

    def kinds(self, phases: Iterable[str] = PHASES, **factors: float) -> "Cost":
        """`cost.kinds(["denoise"], convolution=0.8)`: the seconds of single kinds of work in some phases."""
        changed: Any = {name: self.phase(name).kinds(**factors) for name in phases}
        return replace(self, **changed)

    def without(self, *names: str) -> "Cost":
        """With nothing to do in these phases."""
        changed: Any = {name: self.phase(name).idle for name in names}
        return replace(self, **changed)

    def then(self, later: "Cost") -> "Cost":
        """Two walks of one batch, with the same weights: seconds add up, of memory the larger counts."""
        phases: Any = {name: self.phase(name).then(later.phase(name)) for name in PHASES}
        return replace(
            later,
            **phases,
            steps=self.steps + later.steps,
            once=self.once + later.once,
            host_bytes=max(self.host_bytes, later.host_bytes),
        )

    @property
    def weights(self) -> int:
        return sum(part.total for part in self.parts.values())

    def placed(self, *, encode: int, denoise: int, decode: int) -> "Cost":
        """With so many bytes of weights on the device in each phase, and all of them waiting in the host's memory."""
        resident = {"encode": encode, "denoise": denoise, "decode": decode}
        changed: Any = {name: replace(self.phase(name), resident=size) for name, size in resident.items()}
        return replace(self, host_bytes=self.weights, **changed)

    def reweighted(self, part: str, factor: float) -> "Cost":
        """With one part's weights stored in `factor` of their bytes, where they are resident whole."""
        before = self.parts[part].total
        after = self.parts[part].scaled(factor)
        changed: Any = {
            name: replace(phase, resident=phase.resident - before + after.total) for name, phase in self.phases.items()
        }
        return replace(self, parts={**self.parts, part: after}, **changed)


def phase_of(part: str) -> str:
    """In which phase a component works: "unet" -> "denoise"."""
    if part == "vae":
        return "decode"
    return "encode" if part.startswith(("text_encoder", "image_encoder")) else "denoise"


def phase(trace: Trace, rates: Rates, device_kind: str, *, resident: int) -> Phase:
    """Seconds by the roofline: of each operator the longer of computing and moving."""
    device = dict.fromkeys(KINDS, 0.0)
    for work, count in trace.works.items():
        device[work.kind] += count * operator_seconds(rates, work)
    live = trace.peak_bytes + trace.workspace_bytes.get("cpu" if device_kind == "cpu" else "cuda", 0)
    live += kept(device_kind, live)
    return Phase(device, trace.launches * rates.launch, resident, live, rates.queued)


def operator_seconds(rates: Rates, work: Work) -> float:
    if work.kind not in COMPUTING:
        return rates.seconds(work.kind, work.dtype, work.moved)
    computing = rates.seconds(work.kind, work.dtype, work.flops)
    if work.weights and not rates.queued:
        # oneDNN reads and writes the weights once more: half of the seconds of SD1.5's convolutions at 256 px
        computing += rates.seconds("copy", work.dtype, 2 * work.weights)
    return max(computing, rates.seconds("copy", work.dtype, work.moved))


def usable_bytes(device_kind: str, memory_bytes: int) -> int:
    """Of a device's memory, what tensors may take: not CUDA's context, not what lies in fragments."""
    return max(0, int((memory_bytes - CONTEXT_BYTES.get(device_kind, 0)) * (1 - FRAGMENTS)))
