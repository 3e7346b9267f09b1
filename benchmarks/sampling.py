"""The samplers: how soon each is at its picture, on which schedule, how near to the published ones, at what cost.

nice -n 19 python benchmarks/sampling.py --out benchmarks/sampling_cpu_2026-11-21
python benchmarks/sampling.py --parts parity overhead --out /tmp/some

Draws with the bundled model on one thread; all parts take about 13 minutes of processor time. Writes OUT.json and
OUT.md anew after each part, and keeps what other parts, and sampling_judge.py, have put there. How each figure is
measured stands on the page.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sampling_page as page
import sampling_parity as parity
import sampling_worker as worker
from sampling_worker import Model
from torch import Tensor

from safelight.sampling import schedules
from safelight.sampling.samplers import SAMPLERS, Sampler
from safelight.sampling.schedulers import Recipe

PROMPTS = (
    "a red apple, 3d, on a blue background",
    "a dog, flat, on a white background",
    "a rocket, noto, on a yellow background",
    "a tree, 3d, on a green background",
    "a violin, 3d, on a purple background",
    "a whale, flat, on a blue background",
    "a pizza, noto, on a red background",
    "a bicycle, flat, on a gray background",
)
GUIDANCE = 3.0
COUNTS = (4, 6, 8, 10, 15, 20, 25, 30, 40, 60)
CONVERGED = 120  # evaluations
# every number of steps draws another picture: noise is drawn for each step, or guidance is added with each
UNLIMITED = ("DPM++ 2S a", "Euler a", "DPM2 a", "DPM fast", "Restart", "LCM")
FEW_COUNTS, LAST_COUNT = (20, 40), 60  # of these
DETERMINISTIC = ("Euler", "LMS", "DPM++ 2M", "UniPC", "PLMS", "Heun")
# the same levels, for this model and 20 steps
SAME = {
    "Uniform": ("Normal", "Linspace"),
    "Exponential": ("Polyexponential",),
    "Simple": ("Trailing", "Turbo"),
    "DDIM": ("Leading",),
}
EQUAL_COST = 20  # evaluations, for schedules beside one another
BATCH, BATCH_COUNT = 3, 10
BY_LABEL = {sampler.label: sampler for sampler in SAMPLERS}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="default: all")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="fewer, for a quick look")
    parser.add_argument("--page", action="store_true", help="only writes the page anew")
    parser.add_argument("--out", type=Path, required=True, help="OUT.md and OUT.json are written")
    args = parser.parse_args()
    with worker.one_thread():
        for part in [] if args.page else args.parts:
            add(args.out, part, list(PARTS[part](args.prompts)))
    book = json.loads(Path(f"{args.out}.json").read_text())
    Path(f"{args.out}.md").write_text(page.markdown(book))


def add(out: Path, part: str, rows: list[Row]) -> None:
    from safelight.probe.device import here

    file = Path(f"{out}.json")
    before = json.loads(file.read_text()) if file.exists() else {}
    told = {
        "schema": 1,
        "command": " ".join(["python", "benchmarks/sampling.py", *sys.argv[1:]]),
        "machine": here("cpu").name,
        "versions": {name: version(name) for name in ("torch", "diffusers")} | {"python": platform.python_version()},
    }
    file.write_text(json.dumps({**before, **told, part: rows}, indent=1) + "\n")


# -- pictures ----------------------------------------------------------------------------------------------------------


@cache
def model_of(prompts: int) -> Model:
    return worker.opened(PROMPTS[:prompts], GUIDANCE)


@cache
def picture(prompts: int, label: str, schedule: str | None, steps: int, eta: float | None = None) -> tuple[Tensor, int]:
    """(pictures of all prompts, evaluations). The seed of the i-th is i."""
    model, sampler = model_of(prompts), BY_LABEL[label]
    recipe = Recipe(sampler, schedule or schedules.find(sampler.schedule).name)
    options = {} if eta is None else {"eta": eta}
    found = worker.drawn(model, recipe, steps, range(model.pictures), options)
    return worker.pictures(model, found.latents), found.evaluations


def flow(prompts: int) -> Tensor:
    """Where the probability flow leads, which all samplers without noise come near to."""
    return picture(prompts, "DPM++ 2M", "karras", CONVERGED)[0]


def at(prompts: int, sampler: Sampler, count: int, reference: Tensor) -> Row:
    found, spent = picture(prompts, sampler.label, None, worker.steps_for(sampler, count))
    return {"asked": count, "evaluations": spent, "psnr": round(worker.psnr(found, reference), 2)}


# -- parts -------------------------------------------------------------------------------------------------------------


def convergence(prompts: int) -> Iterator[Row]:
    """How far each is from its limit, by evaluations."""
    other = picture(prompts, "Heun", "karras", worker.steps_for(BY_LABEL["Heun"], CONVERGED))[0]
    yield {"sampler": "the flow by Heun", "limit": "flow", "psnr": round(worker.psnr(other, flow(prompts)), 2)}
    for sampler in SAMPLERS:
        if sampler.evaluations(1) is None:
            yield unforeseen(prompts, sampler)
            continue
        limit = limit_of(sampler)
        counts: Sequence[int] = FEW_COUNTS if limit == "none" else COUNTS
        last = LAST_COUNT if limit == "none" else CONVERGED
        reference = flow(prompts) if limit == "flow" else at_own(prompts, sampler, last)
        yield {
            "sampler": sampler.label,
            "schedule": schedules.find(sampler.schedule).label,
            "limit": limit,
            "at": [at(prompts, sampler, count, reference) for count in counts],
        }


def limit_of(sampler: Sampler) -> str:
    """flow: the probability flow's picture. path: its own, on one Brownian path. own: its own. none: there is none."""
    if sampler.label in UNLIMITED:
        return "none"
    if sampler.brownian:
        return "path"
    return "own" if sampler.unguided else "flow"


def at_own(prompts: int, sampler: Sampler, count: int) -> Tensor:
    return picture(prompts, sampler.label, None, worker.steps_for(sampler, count))[0]


def unforeseen(prompts: int, sampler: Sampler) -> Row:
    """DPM adaptive: no number of steps; and without the noise that it draws by itself it is on the flow."""
    found, spent = picture(prompts, sampler.label, None, EQUAL_COST, 0.0)
    drawing = picture(prompts, sampler.label, None, EQUAL_COST)[1]
    here = {"evaluations": spent, "psnr": round(worker.psnr(found, flow(prompts)), 2)}
    return {"sampler": sampler.label, "limit": "adaptive", "at": [here], "evaluations with noise": drawing}


def beside_schedules(prompts: int) -> Iterator[Row]:
    for schedule in schedules.SCHEDULES:
        same = SAME.get(schedule.label, ())
        if schedule.function is None or any(schedule.label in others for others in SAME.values()):
            continue
        row: Row = {"schedule": ", ".join((schedule.label, *same))}
        for label in DETERMINISTIC:
            steps = worker.steps_for(BY_LABEL[label], EQUAL_COST)
            found, spent = picture(prompts, label, schedule.name, steps)
            row[label] = {"evaluations": spent, "psnr": round(worker.psnr(found, flow(prompts)), 2)}
        yield row


def recorded(prompts: int) -> Iterator[Row]:
    yield from parity.recorded()


def overhead(prompts: int) -> Iterator[Row]:
    yield from parity.overhead()


def batches(prompts: int) -> Iterator[Row]:
    """The pictures of a batch against each alone: largest difference of latents and of values from 0 to 1."""
    model = model_of(prompts).only(0, BATCH)
    for sampler in SAMPLERS:
        recipe, steps = Recipe(sampler, schedules.find(sampler.schedule).name), worker.steps_for(sampler, BATCH_COUNT)
        together = worker.drawn(model, recipe, steps, range(BATCH)).latents
        alone = [worker.drawn(model.only(i, i + 1), recipe, steps, [i]).latents for i in range(BATCH)]
        apart = max(largest(together[i : i + 1], one) for i, one in enumerate(alone))
        shown = worker.pictures(model, together)
        seen = max(largest(shown[i : i + 1], worker.pictures(model, one)) for i, one in enumerate(alone))
        yield {"sampler": sampler.label, "latents": apart, "picture": seen}


def largest(some: Tensor, others: Tensor) -> float:
    return float((some - others).abs().max())


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "parity": recorded,
    "overhead": overhead,
    "convergence": convergence,
    "schedules": beside_schedules,
    "batches": batches,
}


if __name__ == "__main__":
    main()
