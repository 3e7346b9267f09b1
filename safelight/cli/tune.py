"""safelight tune: measures the planner's plans, keeps to a picture's limits, and writes the best as a plan file.

Comes in: prompts, a goal, limits, the flags of generate. Goes out: a plan file, a journal of every measurement beside
it, a table or JSON on stdout; and an exit code: 5 where nothing inside the limits is better than plain, 130 after
Ctrl-C.
"""

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safelight import config
from safelight.cli import flags
from safelight.cli.bench import NOT_HERE, PROMPTS, Telling
from safelight.cli.draw import generate, hush, hyphens
from safelight.cli.planning import DRAWN, PICTURE
from safelight.cli.wanted import load_arguments, wanted
from safelight.errors import UsageError
from safelight.measure.frontier import GOALS
from safelight.optimizers import words
from safelight.report.terminal import harmless, say
from safelight.request import DENOISE, Request

if TYPE_CHECKING:
    from safelight.measure.frontier import Judge, Limit
    from safelight.measure.trial import Trials
    from safelight.measure.tune import Space, Tuned
    from safelight.planner.ahead import Outlook

NOTHING_FOUND = 5  # the exit code
LEAST_PICTURES = 3
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
# flag -> (metric, what is better)
LIMITS = {
    "max_lpips": ("lpips", "lower"),
    "min_psnr": ("psnr", "higher"),
    "min_ssim": ("ssim", "higher"),
    "max_flip": ("flip", "lower"),
}
USUAL_LIMIT = {"max_lpips": 0.05}
FLAGS = (
    click.option("--goal", type=click.Choice(GOALS), default="balanced", help="What is best; balanced by default."),
    click.option("--max-lpips", type=float, metavar="X", help="Of every picture, against plain's; 0.05 by default."),
    click.option("--min-psnr", type=float, metavar="DB", help="Likewise, such as 30."),
    click.option("--min-ssim", type=float, metavar="X", help="Likewise, such as 0.95."),
    click.option("--max-flip", type=float, metavar="X", help="Likewise, such as 0.1."),
    click.option("--budget", default="10min", metavar="TIME", help="On the wall: 90s, 10min (default), 1h."),
    click.option("--keep-steps", is_flag=True, help="Never fewer steps than plain has."),
    click.option("--out", "-O", metavar="FILE.toml", help="safelight-tune-0000.toml and on by default."),
    click.option("--resume", is_flag=True, help="Go on from the measurements beside --out, or beside the latest."),
)
OWN = ("goal", *LIMITS, "budget", "keep_steps", "out", "resume", "as_json", "quiet")
LEFT = (*NOT_HERE, "goal", "plan", "preset", "max_seconds")  # of generate's flags


@click.command(
    context_settings={"token_normalize_func": hyphens},
    params=[flag for flag in generate.params if flag.name not in LEFT],
)
@click.argument("prompts", nargs=-1, metavar="[PROMPT...]")
@flags.put(FLAGS)
def tune(prompts: tuple[str, ...], **values: Any) -> None:
    """Find the best plan by measuring, inside a limit of what a picture may lose, and write it as a plan file.

    Optimizers named by -o or --keep stay whatever they do. Every run also teaches the planner what it takes here.
    """
    began = time.monotonic()
    own = {name: values.pop(name) for name in OWN}
    given = flags.given(values)
    place, budget = _place(own["out"], resume=own["resume"]), _seconds(own["budget"])
    order = _order(prompts, given, own)
    from safelight.measure import tune as tuning
    from safelight.run import metadata

    metadata.check_folder(place.parent)
    outlook = _outlook(order)
    judge = _judge(order, outlook)
    space, trials = _space(outlook, keep_steps=own["keep_steps"]), _trials(order, outlook, place, resume=own["resume"])
    told, full = Telling(quiet=own["quiet"]), max(LEAST_PICTURES, len(order.prompts))
    try:
        found = tuning.tune(
            space,
            judge,
            trials,
            full=full,
            budget_seconds=budget,
            journal=trials.journal,
            tell=told,
            began=began,
        )
    except KeyboardInterrupt as error:
        from safelight.measure.trial import interrupted

        raise interrupted(len(trials.journal.entries), _journal(place)) from error
    _report(found, judge, order, place, as_json=own["as_json"])


# -- what is asked for -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """load: arguments of safelight.load, but for the request. request: with its seed."""

    load: Mapping[str, Any]
    request: Request
    prompts: tuple[str, ...]
    goal: str
    limits: "tuple[Limit, ...]"
    counted: int | None  # pictures that will be made, where a person said so

    def asked(self) -> dict[str, Any]:
        """As `opening.foreseen` takes it, but for what is planned."""
        request, load = self.request, self.load
        drawn = {name: getattr(request, name) for name in (*PICTURE, *DRAWN)}
        found = {
            **{name: load[name] for name in ("model", "device", "config_folder")},
            **drawn,
            "batch_size": min(request.batch_size, request.count),
            "denoise": DENOISE if request.init and request.denoise is None else request.denoise,
        }
        return {name: value for name, value in found.items() if value is not None}


def _order(prompts: tuple[str, ...], given: Mapping[str, Any], own: Mapping[str, Any]) -> Order:
    """All that can be wrong with it is found here, before a model is loaded. Raises SafelightError's children."""
    from safelight.measure.frontier import Limit
    from safelight.sampling import schedulers

    runs = [wanted(prompt, given) for prompt in prompts or _usual_prompts()]
    if any(run.get("lora") != runs[0].get("lora") for run in runs):
        raise UsageError("the prompts name different LoRAs: tune them one after the other")
    request = config.request(runs[0])
    request = replace(request, seed=request.seed or 0)
    request = replace(request, variation_seed=request.variation_seed or 0) if request.variation_strength else request
    schedulers.find(request.sampler, request.schedule)
    said = {name: own[name] for name in LIMITS if own[name] is not None} or USUAL_LIMIT
    load = load_arguments({**runs[0], "goal": own["goal"]}, request)
    del load["request"]
    return Order(
        load,
        request,
        tuple(run["prompt"] for run in runs),
        own["goal"],
        tuple(Limit(LIMITS[name][0], value, LIMITS[name][1]) for name, value in said.items()),
        request.count if "count" in given else None,
    )


def _usual_prompts() -> tuple[str, ...]:
    """The settings' own, where there is one."""
    prompt = str(config.settings().get("prompt", "")).strip()
    return (prompt,) if prompt else PROMPTS[:LEAST_PICTURES]


def _seconds(asked: str) -> float:
    """ "10min" -> 600. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,3})?)\s*(s|min|h)\s*", asked, re.ASCII)
    if match is None or not float(match[1]):
        raise UsageError(f"--budget {asked!r:.40}: give such as 90s, 10min or 1h")
    return float(match[1]) * UNITS[match[2]]


def _place(out: str | None, *, resume: bool) -> Path:
    """Of the plan file."""
    if out is None:
        names = [path.stem.rpartition("-")[2] for path in Path().glob("safelight-tune-*.json")]
        numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
        if resume and not numbers:
            raise UsageError("--resume: there is no safelight-tune-*.json here; name the plan file by --out")
        number = max(numbers, default=-1) + (0 if resume else 1)
        return Path(f"safelight-tune-{number:04d}.toml")
    path = Path(out).expanduser()
    if path.suffix.lower() != ".toml":
        raise UsageError(f"--out {out}: end it in .toml")
    if resume and not _journal(path).exists():
        raise UsageError(f"--resume: there is no {_journal(path)} to go on from")
    return path


def _journal(place: Path) -> Path:
    return place.with_suffix(".json")


# -- what is searched --------------------------------------------------------------------------------------------------


def _outlook(order: Order) -> "Outlook":
    """With a plan for the goal, as all that was pinned has been checked for it. Raises what planning raises."""
    hush()
    from safelight import opening

    load = order.load
    counted: dict[str, Any] = {} if order.counted is None else {"pictures": order.counted}
    return opening.foreseen(
        **order.asked(),
        **counted,
        optimize=load["optimize"],
        without=load["without"],
        keep=load["keep"],
        goal=order.goal,
        vram=load["vram"],
        fidelity=load["fidelity"] or "approximate",
    )


def _judge(order: Order, outlook: "Outlook") -> "Judge":
    """Raises UsageError for a limit of a metric that is not defined for such small pictures."""
    from safelight.measure import quality
    from safelight.measure.frontier import Judge

    quality.chosen([limit.metric for limit in order.limits], outlook.target.width, outlook.target.height)
    return Judge(order.limits, order.goal, outlook.wish.paid_by)


def _space(outlook: "Outlook", *, keep_steps: bool) -> "Space":
    from safelight.measure.candidates import space

    made = space(outlook, fewer_steps=not keep_steps)
    outlook.forecast.keep()
    return made


def _trials(order: Order, outlook: "Outlook", place: Path, *, resume: bool) -> "Trials":
    from safelight.measure import quality
    from safelight.measure.journal import Journal
    from safelight.measure.trial import METRICS, Trials
    from safelight.planner.forecast import versions

    undefined = quality.left_out(outlook.target.width, outlook.target.height)
    metrics = [name for name in METRICS if name not in undefined]
    better = {name: quality.METRICS[name].better for name in metrics}
    files = {name: order.load[name] for name in ("model", "vae", "loras", "config_folder")}
    device = outlook.target.device.name
    request = order.request.as_dict()
    situation = {**files, "device": device, "request": request, "prompts": order.prompts, "versions": versions()}
    journal = Journal(_journal(place), situation, better)
    if resume:
        journal = Journal.read(_journal(place), situation, better)
        if journal.others:
            say(f"{_journal(place)}: {journal.others} measurements are of another request, device or version")
    folder = place.with_name(f"{place.stem}-pictures")
    return Trials(order.load, request, order.prompts, folder, journal, metrics)


# -- what was found ----------------------------------------------------------------------------------------------------


def _report(found: "Tuned", judge: "Judge", order: Order, place: Path, *, as_json: bool) -> None:
    """Exits with 5 where there is no winner; a plan file that was there stays then as it is."""
    from safelight.report import tune_text

    if found.winner is not None:
        _write(found, judge, order, place)
    if as_json:
        plan = None if found.winner is None else str(place)
        click.echo(json.dumps({**tune_text.document(found, judge), "file": plan}, indent=2))
    else:
        click.echo(tune_text.table(found, judge), nl=False)
    say(harmless(f"{_journal(place)}: every measurement"))
    if found.winner is None:
        say(f"safelight: nothing inside {tune_text.limits(judge)} is better than plain: no plan is written")
        sys.exit(NOTHING_FOUND)
    say(harmless(f"{place}: safelight generate --plan {place} runs it"))


def _write(found: "Tuned", judge: "Judge", order: Order, place: Path) -> None:
    """The plan as `safelight plan --toml` writes it, with what was measured in place of reasons."""
    from safelight import opening
    from safelight.report import plan_files, tune_text
    from safelight.run import metadata

    winner, request, load = found.winner, order.request, order.load
    assert winner is not None, "asked only where there is one"
    steps = {} if winner.setting.steps is None else {"steps": winner.setting.steps}
    outlook = opening.foreseen(**{**order.asked(), **steps}, optimize=winner.setting.options or words.NONE)
    effects = {part.name: tune_text.effect(part, judge) for part in found.parts}
    choices = tuple(replace(one, why=effects.get(one.optimizer.name, one.why)) for one in outlook.plan.choices)
    outlook = replace(outlook, plan=replace(outlook.plan, choices=choices, left={}))
    kept = {name: getattr(request, name) for name in ("guidance", "denoise", *DRAWN)}
    if request.hires is None:
        kept |= {name: None for name in DRAWN if name.startswith("hires")}
    kept |= {"model": load["model"], "device": load["device"], "vae": load["vae"], "lora": list(load["loras"]) or None}
    text = plan_files.toml(outlook, {**kept, "denoise": request.denoise})
    first, _, rest = text.partition("\n")
    told = f"# Tuned: {tune_text.headline(found, judge)}"
    metadata.stored(place, f"{first}\n#\n{harmless(told)}\n{rest}".encode())
