"""What is planned for a table of cards, models and goals, as texts to read: golden/*.txt.

After a change that is meant: python tests/planner/test_golden.py --write, and read the difference.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from safelight.errors import SafelightError
from safelight.optimizers.configs import target_of_blueprint
from safelight.planner import Forecast, plan, wish
from safelight.planner.presets import PRESETS
from safelight.probe import blueprint, cards
from safelight.probe.datasheets import CARDS

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    model: str
    card: str
    goal: str = "balanced"
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    batch_size: int = 1
    vram: str | None = None
    fidelity: str | None = None
    keep: str = ""
    preset: str | None = None

    @property
    def name(self):
        size = f"{self.width}x{self.height}" if self.width else ""
        frames = f"{self.frames}-frames" if self.frames else ""
        batch = f"batch-{self.batch_size}" if self.batch_size > 1 else ""
        goal = "" if self.preset else self.goal
        given = (self.vram, self.fidelity, self.keep.replace("=", "-"), self.preset and f"preset-{self.preset}")
        return "_".join(filter(None, [self.model, self.card, size, frames, batch, goal, *given]))

    @property
    def wishes(self):
        return {"goal": self.goal, "vram": self.vram, "fidelity": self.fidelity, "keep": self.keep}


def of_preset(name, model=None, card=None):
    asks = PRESETS[name].asks
    batch = asks.get("batch_size", 1)
    return Case(
        model or asks["model"],
        card or asks["device"],
        asks.get("goal"),
        asks.get("width"),
        asks.get("height"),
        batch_size=batch if isinstance(batch, int) else 4,
        vram=asks.get("vram"),
        fidelity=asks.get("fidelity"),
        preset=name,
    )


GOALS = ("balanced", "fast", "quality", "low-memory")
# cards of one generation share their traces, which take nearly all of the time; so do all goals
CASES = (
    *(Case("firstlight", "rtx-3060-12gb", goal) for goal in GOALS),
    Case("firstlight", "rtx-3060-12gb", "throughput", batch_size=16),
    Case("firstlight", "cpu-8-cores-avx2"),
    Case("firstlight", "cpu-8-cores-amx", "fast"),
    Case("firstlight", "t4-16gb"),
    *(Case("sd15", "rtx-3080-10gb", goal) for goal in GOALS),
    Case("sd15", "rtx-3080-10gb", "fast", fidelity="approximate"),
    Case("sd15", "rtx-3080-10gb", vram="2GiB"),
    Case("sd15", "rtx-3080-10gb", keep="vae-tiling=256"),
    Case("sd15", "rtx-3050-8gb", "fast"),
    Case("sd15", "rtx-3060-laptop-6gb", "low-memory"),
    Case("sd15", "rtx-3090-24gb", "fast"),
    Case("sd15", "t4-16gb", "fast"),
    *(of_preset(name, "sd15", "rtx-3080-10gb") for name in ("tier-1", "tier-2", "tier-3", "memory-constrained")),
    of_preset("sd15-1024-10gb"),
    *(Case("sdxl", "rtx-3080-10gb", goal) for goal in GOALS[1:]),
    Case("sdxl", "rtx-3090-24gb", "fast"),
    of_preset("sdxl-10gb"),
    of_preset("low-vram-4-6gb", card="rtx-3060-laptop-6gb"),
    Case("sd35-medium", "rtx-4060-ti-16gb"),
    Case("sd35-medium", "rtx-4090-24gb", "fast"),
    Case("flux1-dev", "rtx-4090-24gb"),
    Case("flux1-dev", "rtx-4090-24gb", vram="8GiB"),
    of_preset("balanced-16-24gb", card="rtx-4060-ti-16gb"),
    Case("wan21-1.3b", "rtx-4090-24gb", frames=5),
)


@cache
def _model(model):
    return blueprint.read(model)


@cache
def _generation(model, generation, **shape):
    """A forecast whose traces all cards of a generation share."""
    device, rates = cards.find(next(name for name in CARDS if _generation_of(name) == generation))
    return Forecast(_model(model), target_of_blueprint(_model(model), device, **shape), rates)


def _generation_of(card):
    device, _ = cards.find(card)
    return device.kind, device.capability, device.features


@cache
def forecast(model, card, width=None, height=None, frames=None, batch_size=1):
    shape = {"width": width, "height": height, "frames": frames, "batch_size": batch_size}
    made = _generation(model, _generation_of(card), **shape)
    device, rates = cards.find(card)
    return made.of(target_of_blueprint(_model(model), device, **shape), rates)


def text(case):
    """Seconds and bytes to two digits, so that another version's last bits change nothing."""
    made = forecast(case.model, case.card, case.width, case.height, case.frames, case.batch_size)
    try:
        found = plan(made.target, wish("auto", **case.wishes), forecast=made)
    except SafelightError as error:
        return f"{type(error).__name__}: {error}\n"
    rows = [("plain", found.plain), ("planned", found.cost)]
    lines = [f"-o {found.written}"]
    lines += [f"{name:8s} {_figures(cost)}" for name, cost in rows]
    lines += [f"{name:8s} {_step(step)}" for name, step in (("up", found.up), ("down", found.down))]
    return "\n".join(lines) + "\n"


def _figures(cost):
    once = f", {cost.once:.2g} s once" if cost.once else ""
    seconds = cost.seconds / cost.batch_size
    return f"{seconds:.2g} s a picture{once}, {cost.peak_bytes / 2**30:.2g} GiB in {cost.largest}"


def _step(step):
    if step is None:
        return "none"
    changed = [*(f"+ {name}" for name in step.adds), *(f"- {name}" for name in step.drops)]
    return f"{', '.join(changed)}: {_figures(step.cost)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_is_the_one_that_was_read_and_accepted(case):
    assert text(case) == (GOLDEN / f"{case.name}.txt").read_text(encoding="utf-8")


def test_the_table_is_long_enough_and_no_text_is_left_over():
    assert len({case.name for case in CASES}) == len(CASES) >= 30
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {case.name for case in CASES}


def write():
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.txt"):
        path.unlink()
    for case in CASES:
        (GOLDEN / f"{case.name}.txt").write_text(text(case), encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
