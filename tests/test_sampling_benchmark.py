"""benchmarks/sampling.py: it draws what a session draws, every sampler has its figures, and the page tells them."""

import json
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import safelight
import safelight.sampling.levels
from safelight.sampling import schedulers, schedules
from safelight.sampling.samplers import SAMPLERS

ROOT = Path(__file__).parents[1]
LABELS = {sampler.label for sampler in SAMPLERS}
STEPS = 2


@pytest.fixture(scope="module")
def benchmark():
    """The modules by name; the import paths they need are taken back."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    names = ("worker", "page", "parity", "judge")
    yield {"main": main_file(), **{name: import_module(f"sampling_{name}") for name in names}}
    sys.path[:] = before


def main_file():
    """By its path: `sampling` is a folder of tests, too."""
    spec = spec_from_file_location("sampling_benchmark", ROOT / "benchmarks" / "sampling.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(benchmark):
    return benchmark["worker"].opened(benchmark["main"].PROMPTS[:2], benchmark["main"].GUIDANCE)


@pytest.fixture(scope="module")
def drawing():
    with safelight.load(device="cpu", optimize="none") as session:
        yield session


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", "Euler a", "DPM++ 2M SDE", "DDIM CFG++"])
def test_it_draws_what_a_session_draws(benchmark, model, drawing, name):
    worker = benchmark["worker"]
    found = worker.drawn(model, schedulers.find(name), STEPS, [0, 1])
    shown = worker.pictures(model, found.latents)[1].permute(1, 2, 0).numpy() * 255
    prompt = benchmark["main"].PROMPTS[1]
    wanted = drawing.generate(prompt, seed=1, steps=STEPS, guidance=3.0, sampler=name).pictures[0]
    assert found.evaluations == STEPS
    # a path over all noise levels is the session's where the schedule has both ends
    assert np.abs(shown - np.asarray(wanted.image)).max() < 1


def test_steps_are_the_most_that_take_no_more_evaluations(benchmark):
    for sampler in SAMPLERS:
        for count in (4, 20, 60):
            steps = benchmark["worker"].steps_for(sampler, count)
            if sampler.evaluations(steps) is not None:
                assert sampler.evaluations(steps) <= count < sampler.evaluations(steps + 1)


def test_every_sampler_is_held_against_what_it_has_for_a_limit(benchmark):
    limits = {sampler.label: benchmark["main"].limit_of(sampler) for sampler in SAMPLERS}
    assert set(limits.values()) == {"flow", "path", "own", "none"}
    assert all(limits[label] == "flow" for label in benchmark["main"].DETERMINISTIC)
    assert {label for label, limit in limits.items() if limit == "path"} == {s.label for s in SAMPLERS if s.brownian}


def test_schedules_that_share_a_row_are_the_same(benchmark):
    checkpoint = benchmark["parity"].checkpoint()
    levels = safelight.sampling.levels.Levels.of(checkpoint.cls, checkpoint.config)
    for label, others in benchmark["main"].SAME.items():
        for other in others:
            pair = [schedules.find(name).sigmas(benchmark["main"].EQUAL_COST, levels) for name in (label, other)]
            assert pair[0] == pytest.approx(pair[1], rel=1e-3), other


def test_every_sampler_ends_at_what_was_recorded(benchmark):
    rows = list(benchmark["parity"].recorded())
    assert {row["sampler"] for row in rows} == LABELS
    assert all(row["runs"] and row["float32"] < 1e-4 for row in rows)


def test_ours_and_diffusers_are_timed_on_the_same_work(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark["parity"], "RUNS", 3)
    rows = list(benchmark["parity"].overhead())
    assert {row["sampler"] for row in rows} == LABELS
    assert all((row["class"] is None) == (row["diffusers ms"] is None) and row["ms"] > 0 for row in rows)
    assert sum(row["class"] is not None for row in rows) >= 10


@given(numbers=st.lists(st.floats(0, 60), min_size=1, max_size=12), aim=st.floats(0, 60))
def test_a_sampler_is_near_from_the_count_on_after_which_it_never_is_far(benchmark, numbers, aim):
    at = [{"asked": i, "evaluations": i, "psnr": number} for i, number in enumerate(numbers)]
    found = benchmark["page"].evaluations_for({"at": at}, aim)
    if found is None:
        assert numbers[-1] < aim
    else:
        assert all(number >= aim for number in numbers[found:])
        assert found == 0 or numbers[found - 1] < aim


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=30))
def test_differences_of_pairs_are_means_with_their_standard_error(benchmark, pairs):
    some, others = zip(*pairs, strict=True)
    mean, error = benchmark["page"].paired(some, others)
    apart = torch.tensor(some, dtype=torch.float64) - torch.tensor(others, dtype=torch.float64)
    assert mean == pytest.approx(float(apart.mean()), abs=1e-9)
    assert error == pytest.approx(float(apart.std() / len(apart) ** 0.5), abs=1e-9)


def test_the_page_has_every_part_that_was_measured_and_no_other(benchmark):
    at = [{"asked": count, "evaluations": count, "psnr": count + 5.0} for count in (4, 20, 30)]
    rows = [
        {"sampler": "the flow by Heun", "limit": "flow", "psnr": 55.5},
        {"sampler": "Euler", "schedule": "Uniform", "limit": "flow", "at": at},
        {"sampler": "Euler a", "schedule": "Uniform", "limit": "none", "at": at[:2]},
        {"sampler": "DPM adaptive", "limit": "adaptive", "at": at[:1], "evaluations with noise": 67},
    ]
    judged = {"captions": 2, "evaluations": 20, "steps": 20, "schedule": None, "right": [0, 1], "likeness": 0.5}
    judged |= {"object top-1": 50.0, "object top-5": 50.0, "background": 100.0, "likeness of each": [0.4, 0.6]}
    book = {
        "machine": "A CPU",
        "versions": {"torch": "2.13.0"},
        "convergence": rows,
        "schedules": [{"schedule": "Karras", "Euler": {"evaluations": 20, "psnr": 20.0}}],
        "batches": [{"sampler": "Euler", "latents": 1e-5, "picture": 2e-3}],
        "judged": [
            judged | {"sampler": "DPM++ 2M"},
            judged | {"sampler": "Euler a", "captions": 610, "style": 90.5},
            judged | {"sampler": "Euler a", "right": [1, 1]},
        ],
    }
    page, titles = benchmark["page"].markdown(book), benchmark["page"].TITLES
    assert {part for part, title in titles.items() if f"## {title}\n" in page} == set(titles) - {"parity", "overhead"}
    assert "| Euler | Uniform | flow | 9.0 | 25.0 | 35.0 | 30 | over 30 |" in page
    assert "55.5 dB" in page
    assert "+0.000 +- 0.000; +1 -0" in page
    assert "| Euler a | its own | 20 | 610 | 50.0 | 50.0 | 100.0 | 90.5 |" in page
    assert "| 2.0e-03 (Euler) | NO |" in page


def test_what_was_judged_is_kept_when_other_parts_are_measured(benchmark, tmp_path):
    out = tmp_path / "page"
    benchmark["judge"].add(Path(f"{out}.json"), {"sampler": "Euler", "right": [1], "likeness of each": [0.5]})
    benchmark["main"].add(out, "parity", [{"sampler": "Euler"}])
    book = json.loads(Path(f"{out}.json").read_text())
    assert book["judged"][0]["sampler"] == book["parity"][0]["sampler"] == "Euler"


def test_recipes_that_are_judged_are_there(benchmark):
    for sampler, schedule, _ in benchmark["judge"].RECIPES:
        assert schedulers.find(sampler, schedule).label in LABELS
