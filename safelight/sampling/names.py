"""What a person writes -> the sampler and the schedule it means: "dpm++ 2m karras", "k_euler_a", "DDIMScheduler"."""

from dataclasses import dataclass

from safelight.errors import UnknownName
from safelight.sampling.samplers import SAMPLERS, Sampler
from safelight.sampling.schedules import SCHEDULES, Schedule
from safelight.sampling.schedules import compared as normal

AUTOMATIC = "automatic"


@dataclass(frozen=True, slots=True)
class SamplerChoice:
    """schedule: its name; None where nothing was said, or "Automatic": the sampler's own."""

    sampler: Sampler
    schedule: str | None


def find(name: str) -> SamplerChoice:
    """A label, alias or diffusers class, and after it a schedule if one is meant, as A1111 wrote them up to 1.8.

    Case, spaces, hyphens and underscores do not count. Raises UnknownName with the nearest names.
    """
    asked = normal(name)
    if sampler := _samplers().get(asked):
        return SamplerChoice(sampler, None)
    for suffix, schedule in _schedules():
        sampler = _samplers().get(asked.removesuffix(suffix)) if asked.endswith(suffix) else None
        if sampler:
            return SamplerChoice(sampler, None if schedule.name == AUTOMATIC else schedule.name)
    labels = [sampler.label for sampler in SAMPLERS]
    pairs = [f"{label} {schedule.label}" for label in labels for schedule in SCHEDULES]
    raise UnknownName("sampler", name, labels, also=[*pairs, *(other for s in SAMPLERS for other in names_of(s)[1:])])


def names_of(sampler: Sampler) -> tuple[str, ...]:
    """All that a sampler is called, its label first."""
    return (sampler.label, *sampler.aliases, *sampler.cls)


def _samplers() -> dict[str, Sampler]:
    return {normal(name): sampler for sampler in SAMPLERS for name in names_of(sampler)}


def _schedules() -> list[tuple[str, Schedule]]:
    """Longest first: "SGM Uniform" ends in "Uniform"."""
    found = {(normal(name), row) for row in SCHEDULES for name in (row.name, row.label, *row.aliases)}
    return sorted(found, key=lambda pair: -len(pair[0]))
