"""Grids that are ready made: all samplers that fit a model, all VAEs, all presets.

Comes in: the name of one, and the model. Goes out: its axes. Reads configs and tables, and no weight.
"""

from collections.abc import Callable, Iterable, Mapping

from safelight.errors import DoesNotApply, UnknownName, UsageError
from safelight.measure.axes import OWN, PLAIN, Axis, axis
from safelight.planner.presets import PRESETS
from safelight.probe import vae_catalog
from safelight.probe.blueprint import Blueprint
from safelight.sampling import schedulers
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.samplers import SAMPLERS

TIER = "tier-"
STEPS = "steps=10,20,30"


def axes_of(name: str, model: Callable[[], Blueprint]) -> list[Axis]:
    """One or two, x first. model: is asked where it matters. Raises UnknownName, UsageError, what `model` raises."""
    if name not in COMPARISONS:
        raise UnknownName("comparison", name, COMPARISONS)
    return COMPARISONS[name](model)


def _samplers(model: Callable[[], Blueprint]) -> list[Axis]:
    """A1111's that fit the model, in its order."""
    scheduler = model().scheduler
    labels = [sampler.label for sampler in SAMPLERS]
    if scheduler is not None:
        checkpoint = Checkpoint(scheduler.cls.__name__, dict(scheduler.config))
        labels = [label for label in labels if _fits(label, checkpoint)]
    return [_axis("sampler", labels), axis(STEPS)]


def _fits(label: str, checkpoint: Checkpoint) -> bool:
    try:
        schedulers.check(schedulers.find(label), {}, checkpoint)
    except DoesNotApply:
        return False
    return True


def _vaes(model: Callable[[], Blueprint]) -> list[Axis]:
    """The model's own, and those of its family. Whether they can be had shows when each is loaded."""
    blueprint = model()
    own = blueprint.parts.get("vae")
    family = None if own is None else vae_catalog.family_of(vae_catalog.latents_of(own.config))
    rows = [row.name for row in vae_catalog.CATALOGUE if row.family == family]
    if not rows:
        raise UsageError(f"no other VAE is known to fit {blueprint.name}: name one, --x vae=own,FILE")
    return [_axis("vae", [OWN, *rows])]


def _presets(model: Callable[[], Blueprint]) -> list[Axis]:
    return [_axis("preset", [PLAIN, *(name for name in PRESETS if not name.startswith(TIER))])]


def _tiers(model: Callable[[], Blueprint]) -> list[Axis]:
    return [_axis("preset", [PLAIN, *(name for name in PRESETS if name.startswith(TIER))])]


def _axis(name: str, values: Iterable[str]) -> Axis:
    found = tuple(values)
    return Axis(name, found, found)


COMPARISONS: Mapping[str, Callable[[Callable[[], Blueprint]], list[Axis]]] = {
    "samplers": _samplers,
    "vaes": _vaes,
    "presets": _presets,
    "tiers": _tiers,
}
