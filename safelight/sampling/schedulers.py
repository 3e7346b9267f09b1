"""What a person calls a sampler -> the scheduler that a pipeline drives.

A name of A1111's, with its schedule or without, is one of our samplers (samplers.py). A name of a diffusers class is
that class, built from the checkpoint's config. No name at all is the checkpoint's own scheduler, as diffusers has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safelight.errors import DoesNotApply, UnknownName
from safelight.sampling import names, schedules
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.levels import Levels
from safelight.sampling.samplers import SAMPLERS, Evaluations, Sampler, once, once_and_one, twice

if TYPE_CHECKING:
    from safelight.sampling.driven import Walk


@dataclass(frozen=True, slots=True)
class Class:
    """A scheduler of diffusers. label: A1111's nearest name, for its readers. evaluations: of the model, by the steps.

    flow: for flow-matching models, and for those alone.
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Evaluations = once
    flow: bool = False


CLASSES = {
    "EulerDiscreteScheduler": Class("Euler"),
    "EulerAncestralDiscreteScheduler": Class("Euler a"),
    "HeunDiscreteScheduler": Class("Heun", evaluations=twice),
    "KDPM2DiscreteScheduler": Class("DPM2", evaluations=twice),
    "KDPM2AncestralDiscreteScheduler": Class("DPM2 a", evaluations=twice),
    "LMSDiscreteScheduler": Class("LMS"),
    "DPMSolverMultistepScheduler": Class("DPM++ 2M", {"algorithm_type": "dpmsolver++"}),
    "DPMSolverSinglestepScheduler": Class("DPM++ 2S", {"algorithm_type": "dpmsolver++"}),
    "DEISMultistepScheduler": Class("DEIS"),
    "UniPCMultistepScheduler": Class("UniPC"),
    "PNDMScheduler": Class("PLMS", {"skip_prk_steps": True}, evaluations=once_and_one),
    "DDIMScheduler": Class("DDIM", {"clip_sample": False, "set_alpha_to_one": False}),
    "DDPMScheduler": Class("DDPM", {"clip_sample": False}),
    "LCMScheduler": Class("LCM"),
    "TCDScheduler": Class("TCD"),
    "FlowMatchEulerDiscreteScheduler": Class("Euler", flow=True),
    "FlowMatchLCMScheduler": Class("LCM", flow=True),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """sampler: of ours, or the name of a diffusers class, or None for the checkpoint's own.

    schedule: a row's name, None for the sampler's own. label, schedule_label: as A1111 writes them.
    """

    sampler: Sampler | str | None = None
    schedule: str | None = None

    @property
    def label(self) -> str | None:
        return self.sampler.label if isinstance(self.sampler, Sampler) else self.sampler

    @property
    def schedule_label(self) -> str | None:
        return None if self.schedule is None else schedules.find(self.schedule).label

    def evaluations(self, steps: int) -> int:
        """Of the model, in so many steps; where the sampler finds out as it goes, a guess: the steps."""
        if isinstance(self.sampler, Sampler):
            return self.sampler.evaluations(steps) or steps
        row = CLASSES.get(self.sampler or "")
        return steps if row is None else row.evaluations(steps) or steps


def find(name: str | None, schedule: str | None = None) -> Recipe:
    """Case, spaces, hyphens and underscores do not count. Raises UnknownName, DoesNotApply for two schedules."""
    if name is None:
        return Recipe()
    asked = None if schedule is None else schedules.find(schedule).name
    if (cls := _class_named(name)) is not None:
        if asked not in (None, names.AUTOMATIC):
            raise DoesNotApply(f"{cls} has the schedule of its config: give A1111's name for --schedule {schedule}")
        return Recipe(cls)
    try:
        choice = names.find(name)
    except UnknownName as error:
        if not schedules.compared(name).endswith("scheduler"):
            raise
        raise UnknownName("sampler", name, CLASSES) from error
    if asked is not None and choice.schedule not in (None, asked):
        raise DoesNotApply(f"sampler {name!r} names the schedule {choice.schedule} and --schedule {schedule}: give one")
    said = asked or choice.schedule
    return Recipe(choice.sampler, None if said == names.AUTOMATIC else said)


def _class_named(name: str) -> str | None:
    return next((cls for cls in CLASSES if schedules.compared(cls) == schedules.compared(name)), None)


def check(recipe: Recipe, options: Mapping[str, float], checkpoint: Checkpoint, family: str | None = None) -> None:
    """Raises DoesNotApply where this model, this sampler, its schedule and its options do not go together."""
    sampler = recipe.sampler
    if not isinstance(sampler, Sampler):
        if options:
            which = sampler or f"the checkpoint's own scheduler ({checkpoint.cls})"
            raise DoesNotApply(f"{' and '.join(map(_flag, options))}: {which} takes none; name one of A1111's samplers")
        _check_class(sampler, checkpoint)
        return
    if ignored := [name for name in options if name not in sampler.options]:
        takers = [row.label for row in SAMPLERS if ignored[0] in row.options]
        raise DoesNotApply(f"{sampler.label} takes no {_flag(ignored[0])}: {', '.join(takers)} do")
    if checkpoint.is_flow:
        _check_flow(sampler, options)
    else:
        Levels.of(checkpoint.cls, checkpoint.own().config)  # an error now, where it does not say what they are
    if (grid := _schedule(recipe, checkpoint)) is not None and (reason := grid.refuses(checkpoint.is_flow, family)):
        raise DoesNotApply(reason)


def _check_class(cls: str | None, checkpoint: Checkpoint) -> None:
    if cls is None or cls == checkpoint.cls or CLASSES[cls].flow == checkpoint.is_flow:
        return
    kind = "flow-matching" if checkpoint.is_flow else "noise-predicting"
    fitting = [name for name, row in CLASSES.items() if row.flow == checkpoint.is_flow]
    raise DoesNotApply(f"sampler {cls!r} is not for a {kind} model: use {' or '.join(fitting[:3])}, or A1111's names")


def _check_flow(sampler: Sampler, options: Mapping[str, float]) -> None:
    if sampler.flow not in ("native", "scaled"):
        raise DoesNotApply(f"sampler {sampler.label!r} is not for a flow-matching model: {sampler.flow}")
    if options.get("s_churn"):
        raise DoesNotApply("s-churn is not for a flow-matching model: noise over its first share of 1 is none")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _schedule(recipe: Recipe, checkpoint: Checkpoint) -> schedules.Schedule | None:
    """The row of what is asked for or the sampler's own; None is the grid of the checkpoint's scheduler."""
    assert isinstance(recipe.sampler, Sampler)
    if recipe.schedule is None and checkpoint.is_flow:
        return None  # schedules of k-diffusion say nothing of the shift that a flow model was trained for
    return schedules.find(recipe.schedule or recipe.sampler.schedule)


def build(
    recipe: Recipe,
    checkpoint: Checkpoint,
    *,
    options: Mapping[str, float] | None = None,
    batch_size: int = 1,
    family: str | None = None,
    guidance: float | None = None,
    walk: "Walk | None" = None,
) -> Any:
    """A fresh scheduler: they carry the state of a run. `check` comes first.

    walk: only for samplers of ours, which `denoise` gives their noise; driven.py says what the others mean.
    """
    from safelight.sampling.driven import DrivenScheduler, Walk

    sampler = recipe.sampler
    if not isinstance(sampler, Sampler):
        assert walk is None, "image to image is for samplers of ours"
        if sampler is None or sampler == checkpoint.cls:
            return checkpoint.own()
        return checkpoint.built(sampler, **CLASSES[sampler].settings)
    grid = _schedule(recipe, checkpoint)
    return DrivenScheduler(
        sampler,
        None if grid is None else lambda n, levels: grid.sigmas(n, levels, family),
        checkpoint,
        options or {},
        batch_size=batch_size,
        walk=walk or Walk(),
        guidance=guidance,
    )
