"""safelight bench: plain against plans in fresh processes, in seconds, bytes and picture, with a verdict.

Comes in: prompts, the plans' words, the flags of generate. Goes out: a JSON file, a table or that JSON on stdout,
perhaps a page; and an exit code: 3 where a plan failed, 5 where a requirement is not met, 130 after Ctrl-C.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safelight import config
from safelight.cli import flags
from safelight.cli.draw import generate, hyphens
from safelight.cli.flags import WORDS
from safelight.cli.wanted import load_arguments, wanted
from safelight.errors import Interrupted, PartlyDone, UsageError
from safelight.optimizers import words
from safelight.report.terminal import harmless, mib, say
from safelight.request import Request

if TYPE_CHECKING:
    from safelight.measure.bench import Job, News, Plan
    from safelight.measure.results import Requirement, Result

NOT_MET = 5  # the exit code
EVERY_SECONDS = 10.0  # of a process that runs long, how often a line says how far it is
# objects, styles and backgrounds that the bundled model knows, and every other model as well
PROMPTS = (
    "a red apple, 3d, on a blue background",
    "a dog, flat, on a white background",
    "a rocket, line art, on a yellow background",
    "a tree, 3d, on a green background",
    "a violin, 3d, on a pink background",
    "a whale, flat, on a blue background",
    "a pizza, flat, on a red background",
    "a bicycle, line art, on a white background",
)
# what generate does with its pictures' files: here there are many, beside the result
NOT_HERE = ("prompt", "out", "preview", "preview_every", "keep_first_pass", "source")
FLAGS = (
    click.option("--plans", metavar="WORDS;WORDS", help='Each as -o takes it: "auto; dtype=bfloat16; tiny-vae".'),
    click.option("--runs", type=click.IntRange(1), default=10, help="Measured of each plan, 10 by default."),
    click.option("--rounds", type=click.IntRange(1), help="Processes of each plan, 2 by default."),
    click.option("--warmup", type=click.IntRange(0), default=5, help="Runs before, at most; until two are alike."),
    click.option(
        "--require", default="", metavar="LIST", help="speed>=1.5,psnr>=30,lpips<=0.05,peak<=4GiB; or exit 5."
    ),
    click.option("--out", "-O", metavar="FILE.json", help="safelight-bench-0000.json and on by default."),
    click.option("--html", metavar="FILE", help="The result as one page, too."),
)
SAID = ("plan", "preset", *WORDS)  # flags that name a plan of their own
OWN = ("plans", "runs", "rounds", "warmup", "require", "out", "html", "as_json", "quiet")


@click.command(
    context_settings={"token_normalize_func": hyphens},
    params=[flag for flag in generate.params if flag.name not in NOT_HERE],
)
@click.argument("prompts", nargs=-1, metavar="[PROMPT...]")
@flags.put(FLAGS)
def bench(prompts: tuple[str, ...], **values: Any) -> None:
    """Measure plain against plans: seconds, memory, and what they did to the picture.

    Without --plans, --plan, --preset and -o it is what generate would run. Each plan has processes of its own.
    """
    own = {name: values.pop(name) for name in OWN}
    given = flags.given(values)
    place = _place(own["out"])
    job = _job(prompts, given, own, place)
    from safelight.measure import bench as measuring
    from safelight.run import metadata

    for folder in {place.parent, *([Path(own["html"]).expanduser().parent] if own["html"] else [])}:
        metadata.check_folder(folder)
    result = measuring.measure(job, Telling(quiet=own["quiet"]), lambda found: _write(found, place, None))
    _write(result, place, own["html"])
    _report(result, place, as_json=own["as_json"])
    _end(result)


# -- what is to be measured --------------------------------------------------------------------------------------------


def _place(out: str | None) -> Path:
    if out is None:
        numbers = [path.stem.rpartition("-")[2] for path in Path().glob("safelight-bench-*.json")]
        first = max((int(number) + 1 for number in numbers if number.isascii() and number.isdigit()), default=0)
        return Path(f"safelight-bench-{first:04d}.json")
    path = Path(out).expanduser()
    if path.suffix.lower() != ".json":
        raise UsageError(f"--out {out}: end it in .json")
    return path


def _job(prompts: tuple[str, ...], given: Mapping[str, Any], own: Mapping[str, Any], place: Path) -> "Job":
    """All that can be wrong with it is found here, before a model is loaded. Raises SafelightError's children."""
    from safelight.measure import quality, requirements
    from safelight.measure.bench import Job
    from safelight.sampling import schedulers

    runs = [wanted(prompt, given) for prompt in prompts or _settled_prompts()]
    if any(run.get("lora") != runs[0].get("lora") for run in runs):
        raise UsageError("the prompts name different LoRAs: bench them one after the other")
    request = _seeded(config.request(runs[0]))
    schedulers.find(request.sampler, request.schedule)
    limits = requirements.parse(own["require"], (*quality.METRICS, *quality.SET_METRICS))
    return Job(
        tuple(_plans(runs[0], request, given, own["plans"])),
        request.as_dict(),
        tuple(run["prompt"] for run in runs),
        place.with_name(f"{place.stem}-pictures"),
        place.parent,
        own["runs"],
        own["rounds"] or min(2, own["runs"]),
        own["warmup"],
        limits,
        ("safelight", *sys.argv[1:]),
    )


def _settled_prompts() -> tuple[str, ...]:
    """The settings' own, where there is one."""
    prompt = str(config.settings().get("prompt", "")).strip()
    return (prompt,) if prompt else PROMPTS


def _seeded(request: Request) -> Request:
    """Seeds that nobody named are 0: every plan, and this command another day, begins from the same noise."""
    request = replace(request, seed=request.seed or 0)
    return replace(request, variation_seed=request.variation_seed or 0) if request.variation_strength else request


def _plans(run: Mapping[str, Any], request: Request, given: Mapping[str, Any], plans: str | None) -> "list[Plan]":
    from safelight.measure.bench import Plan

    arguments = load_arguments(run, request)
    del arguments["request"]
    if "count" not in given:
        arguments["pictures"] = None  # as many as the goal has in mind: a few runs stand for all that follow
    found = [_plan(text, arguments) for text in filter(None, map(str.strip, (plans or "").split(";")))]
    said = [name for name in SAID if name in given]
    if said or plans is None:
        text = _written(run)
        name = Path(given["plan"]).stem if "plan" in given else given.get("preset") or text
        found.append(Plan(str(name), text, arguments))
    return found


def _plan(text: str, arguments: Mapping[str, Any]) -> "Plan":
    """One of --plans. What the other flags say of a plan is for those that leave something to be planned."""
    from safelight.measure.bench import LIMITS, Plan

    planned = words.read(text).auto
    return Plan(text, text, {**arguments, **({} if planned else LIMITS), "optimize": text})


def _written(run: Mapping[str, Any]) -> str:
    asked = words.read(run["optimize"] or words.NONE)
    parts = [words.AUTO] if asked.auto else []
    return ",".join([*parts, *filter(None, [words.written(asked.options)])]) or words.NONE


# -- what a person sees ------------------------------------------------------------------------------------------------


class Telling:
    """A line when a process begins, when it fails, and now and then while it runs."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.latest = 0.0

    def __call__(self, news: "News") -> None:
        if self.quiet or (news.passing and time.monotonic() - self.latest < EVERY_SECONDS):
            return
        self.latest = time.monotonic()
        say(harmless(news.text + _left(news.left_seconds)))


def _left(seconds: float | None) -> str:
    """ "; about 3 min left, until 14:32"."""
    if seconds is None:
        return ""
    amount = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"; about {amount} left, until {time.strftime('%H:%M', time.localtime(time.time() + seconds))}"


def _write(result: "Result", place: Path, html: str | None) -> None:
    from safelight.run import metadata

    metadata.stored(place, result.to_json().encode())
    if html is not None:
        from safelight.report import html as pages

        metadata.stored(Path(html).expanduser(), pages.page(result, place.parent).encode())


def _report(result: "Result", place: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(result.to_json(), nl=False)
    else:
        from safelight.report import bench_text

        click.echo(bench_text.table(result), nl=False)
    say(f"{place}: every sample; the pictures lie beside it")


def _end(result: "Result") -> None:
    """Raises Interrupted and PartlyDone; exits where a requirement is not met."""
    runs = sum(len(round.runs) for plan in result.plans for round in plan.rounds)
    if result.interrupted:
        raise Interrupted(f"interrupted: {runs} runs were measured and are kept")
    if failed := [f"{plan.name}: {plan.failure}" for plan in result.plans if plan.failure]:
        raise PartlyDone(f"{len(failed)} of {len(result.plans)} plans failed: {'; '.join(failed)}")
    if missed := [one for one in result.requirements if not one.met]:
        found = "; ".join(f"{one.written} by {one.plan} ({_found(one)})" for one in missed)
        say(f"safelight: not met: {harmless(found)}")
        sys.exit(NOT_MET)


def _found(one: "Requirement") -> str:
    from safelight.measure.requirements import PEAK

    if one.found is None:
        return "not measured"
    return mib(int(one.found)) if one.written.startswith(PEAK) else f"{one.found:.4g}"
