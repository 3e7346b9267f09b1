"""A plan as text: what a run takes plain and planned, each optimizer with its reason, and what the next plans would be.

Comes in: an Outlook. Goes out: lines, of 120 columns where the words allow it.
"""

import textwrap
from collections.abc import Iterator, Sequence

from safelight.planner.ahead import Outlook
from safelight.planner.forecast import written
from safelight.planner.goals import GOALS
from safelight.planner.plans import Step
from safelight.planner.presets import Verdict
from safelight.planner.reasons import seconds, size
from safelight.planner.walks import Walk
from safelight.simulate.cost import PHASES, Cost

WIDTH = 120
HANGING = 4  # columns that the later lines of a reason stand in, more than its first
COLUMN = 46
NAME = 27  # the longest of an optimizer
BATCHES_SHOWN = 8


def lines(outlook: Outlook, verdicts: Sequence[Verdict] = ()) -> list[str]:
    """verdicts: on what a preset's guide names."""
    blocks = [
        head(outlook),
        table(outlook),
        [f"-o {outlook.plan.written}"],
        list(choices(outlook)),
        list(neighbours(outlook)),
        list(batches(outlook)),
        list(judged(verdicts)),
    ]
    return [line for block in blocks if block for line in (*block, "")][:-1]


def head(outlook: Outlook) -> list[str]:
    """What is predicted, on what, and what the prediction rests on."""
    target, wish = outlook.target, outlook.wish
    device = target.device
    where = f"{device.name}, {size(device.free_bytes)} free"
    goal = f"goal {wish.goal}: {GOALS[wish.goal].summary}" if wish.auto else "as asked for, nothing is planned besides"
    goal += f"; {wish.pictures} will be made" if wish.pictures else ""
    loss = f"; may be {wish.speed.word} for speed, {wish.memory.word} to fit" if wish.auto else ""
    found = [f"{subject(outlook)}, on {where}", basis(outlook), f"{goal}{loss}"]
    return [line for text in (*found, *device.findings) for line in _wrapped(text)]


def subject(outlook: Outlook) -> str:
    """ "sdxl, 1024x1024, 20 steps with guidance, one at a time"; of two walks the first."""
    target, first = outlook.target, outlook.walks[0]
    frames = f", {target.frames} frames" if target.frames > 1 else ""
    guided = " with guidance" if target.guided else ""
    batch = "one at a time" if target.batch_size == 1 else f"{target.batch_size} at a time"
    begins = " from a picture" if first.encodes else ""
    return f"{outlook.blueprint.name}, {first.width}x{first.height}{frames}, {_steps(first)}{begins}{guided}, {batch}"


def _steps(walk: Walk) -> str:
    """ "30 steps (59 evaluations)"."""
    asked = f"{walk.steps} step{'' if walk.steps == 1 else 's'}"
    return asked if walk.evaluations == walk.steps else f"{asked} ({walk.evaluations} evaluations)"


def basis(outlook: Outlook) -> str:
    """Where the numbers come from: they are predictions, and say so."""
    device, source = outlook.target.device, outlook.machine.rates.source
    rates = f"from datasheets, not measured ({source})" if device.elsewhere else source
    because = outlook.forecast.correction(outlook.chosen).because
    corrected = f"corrected by {because}" if because else "no measurement corrects it"
    return f"predicted, nothing was run; rates {rates}; {corrected}"


# -- seconds and bytes -------------------------------------------------------------------------------------------------


def table(outlook: Outlook) -> list[str]:
    """Plain on the left, planned on the right."""
    plan = outlook.plan
    plain, planned = plan.plain, plan.cost
    assert plain is not None and planned is not None, "an outlook is always predicted"
    pictures = outlook.wish.paid_by
    rows = [("", *(f"{name:>8}   peak = weights + work" for name in ("plain", "planned")))]
    rows += [(name, *(_phase(cost, name) for cost in (plain, planned))) for name in PHASES]
    rows += [("all", *(_total(cost) for cost in (plain, planned)))]
    if planned.batch_size > 1 or planned.once:
        rows += [("a picture", *(f"{seconds(cost.per_picture(pictures)):>8}" for cost in (plain, planned)))]
    found = [f"  {name:10s}{before:{COLUMN}s}{after}".rstrip() for name, before, after in rows]
    return [*found, *_notes(outlook, plain, planned)]


def _phase(cost: Cost, name: str) -> str:
    phase = cost.phase(name)
    return f"{seconds(phase.seconds):>8}  {size(phase.peak_bytes):>8} = {size(phase.resident)} + {size(phase.live)}"


def _total(cost: Cost) -> str:
    return f"{seconds(cost.seconds):>8}  {size(cost.peak_bytes):>8} in {cost.largest}"


def _notes(outlook: Outlook, plain: Cost, planned: Cost) -> Iterator[str]:
    budget = outlook.plan.budget_bytes or 0
    left = [_left(cost, budget) for cost in (plain, planned)]
    yield from _wrapped(f"  {size(budget)} are there for tensors: plain {left[0]}, planned {left[1]}")
    yield from _second(outlook)
    if planned.once:
        yield f"  {seconds(planned.once)} once, before the first picture; shared by {outlook.wish.paid_by} here"
    if planned.host_bytes:
        yield f"  {size(planned.host_bytes)} of host memory hold the weights that wait"


def _second(outlook: Outlook) -> Iterator[str]:
    """Its part of the seconds above, and what it needs by itself."""
    if len(outlook.walks) == 1:
        return
    walk = outlook.walks[-1]
    sides = (("plain", outlook.forecast.alone()), ("planned", outlook.forecast.alone(outlook.chosen)))
    told = [f"{name} {seconds(cost.seconds)}, peak {size(cost.peak_bytes)} in {cost.largest}" for name, cost in sides]
    through = "; what enlarges the pictures is not counted" if walk.encodes else ""
    yield from _wrapped(f"  second pass {walk.width}x{walk.height}, {_steps(walk)}: {'; '.join(told)}{through}")


def _left(cost: Cost, budget: int) -> str:
    over = cost.peak_bytes - budget
    return f"needs {size(over)} more" if over > 0 else f"leaves {size(-over)}"


# -- what is taken and left --------------------------------------------------------------------------------------------


def choices(outlook: Outlook) -> Iterator[str]:
    """A line for each optimizer; what is taken first."""
    for choice in outlook.plan.choices:
        yield from _reason("+", written([(choice.optimizer, choice.options)]), choice.why)
    for name, why in outlook.plan.left.items():
        if outlook.wish.auto:  # otherwise each was not asked for
            yield from _reason(" ", name, why)


def neighbours(outlook: Outlook) -> Iterator[str]:
    """What the next step up and down would be."""
    plan = outlook.plan
    assert plan.cost is not None, "an outlook is always predicted"
    for step in (plan.up, plan.down):
        if step is not None:
            yield from _reason("", _distance(step, plan.cost), _change(step, plan.cost, outlook.wish.paid_by))


def _distance(step: Step, cost: Cost) -> str:
    more = step.cost.peak_bytes - cost.peak_bytes
    return f"with {size(abs(more))} {'more' if more > 0 else 'less'}:"


def _change(step: Step, cost: Cost, pictures: int) -> str:
    changed = ", ".join([*(f"+ {name}" for name in step.adds), *(f"- {name}" for name in step.drops)])
    gained = cost.per_picture(pictures) - step.cost.per_picture(pictures)
    pace = f"{seconds(abs(gained))} {'faster' if gained > 0 else 'slower'} a picture"
    return f"{changed}; {pace}, peak {size(step.cost.peak_bytes)}"


def batches(outlook: Outlook) -> Iterator[str]:
    """The batches that were weighed: pictures per second and peak."""
    found = outlook.batches
    if found is None:
        return
    yield f"batches: {found.largest} at a time fit at most, {found.best} at a time are planned here"
    for batch in found.tried[:BATCHES_SHOWN]:
        mark = "+" if batch.size == found.best else " "
        fits = "" if batch.fits else "  does not fit"
        yield f"{mark} {batch.size:4d}  {batch.per_second:8.3g} pictures/s  {size(batch.peak_bytes):>8}{fits}"


def judged(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What the guide of a preset names, and what becomes of it."""
    if verdicts:
        yield "what the guide names:"
    for verdict in verdicts:
        mark = "+" if verdict.taken else " "
        yield from _reason(mark, verdict.says, verdict.why)


def _reason(mark: str, name: str, why: str) -> list[str]:
    start = f"{mark} " if mark else ""
    return _wrapped(f"{start}{name:{NAME}s} {why}" if len(name) <= NAME else f"{start}{name}: {why}")


def _wrapped(text: str) -> list[str]:
    """Addresses are never broken, so that they can be followed."""
    indent = " " * (len(text) - len(text.lstrip()) + HANGING)
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    )
