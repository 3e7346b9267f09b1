"""benchmarks/vae.py: each way is measured beside whole, and the page says which goals are met."""

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ("whole", "tiling", "exact 0.60", "tiling as exact 0.60", "fast", "blended")
MEASURED = ("seconds", "cpu_seconds", "grown_bytes", "peak_bytes", "predicted_bytes", "result_bytes")


@pytest.fixture(scope="module")
def benchmark():
    """The modules by name; the import path they need is taken back."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield {name: import_module(f"vae_{name}") for name in ("cases", "models", "worker", "compare", "page")}
    sys.path[:] = before


@pytest.fixture(scope="module")
def case(benchmark):
    return benchmark["cases"].square("firstlight", "decode", 128, threads=0, ways=NAMES)


@pytest.fixture(scope="module")
def rows(benchmark, case, tmp_path_factory):
    """A tiny case, measured here; and once more in bfloat16, whole and exact."""
    folder, worker, way_of = tmp_path_factory.mktemp("results"), benchmark["worker"], benchmark["cases"].way_of
    half = replace(case, dtype="bfloat16", ways=("whole", "exact 0.60"))
    jobs = [(one, name) for one in (case, half) for name in one.ways]
    found = [(one, name, worker.measured(one, way_of(name), folder)) for one, name in jobs]
    return [json.loads(json.dumps({"case": one.name, "way": name, **asdict(one), **row})) for one, name, row in found]


def named(rows, way, dtype="float32"):
    return next(row for row in rows if (row["way"], row["dtype"]) == (way, dtype))


def test_every_way_has_its_figures(rows):
    for row in rows:
        assert all(row[name] > 0 for name in MEASURED if name != "grown_bytes"), row["way"]
        assert row["samples"] and row["seconds"] == pytest.approx(statistics.median(row["samples"]))
        assert ("to_whole" in row) == (row["way"] != "whole")


def test_a_short_call_is_timed_several_times_and_a_long_one_is_not_made_again(benchmark):
    calls_after, longest = benchmark["worker"].calls_after, benchmark["worker"].LONG_SECONDS
    made = [calls_after(seconds) for seconds in (0.0, 9.0, longest, longest + 1)]
    assert made == sorted(made, reverse=True) and made[0] > made[2] > 1 and made[3] == 0


def test_exact_is_the_whole_in_less_memory_and_tiles_are_not(rows):
    whole, exact, tiling, blended = (named(rows, name) for name in ("whole", "exact 0.60", "tiling", "blended"))
    assert exact["to_whole"]["largest"] < 5e-5 < min(row["to_whole"]["largest"] for row in (tiling, blended))
    assert exact["peak_bytes"] < 0.8 * whole["peak_bytes"]
    assert {"error", "step"} <= set(tiling["at_edges"])


def test_bytes_of_what_runs_without_numbers_are_those_of_the_run(rows):
    for name in ("whole", "tiling"):
        row = named(rows, name)
        assert row["predicted_bytes"] == pytest.approx(row["peak_bytes"], rel=0.02), name


@pytest.mark.parametrize("name", ["fast", "blended"])
def test_bytes_of_what_is_near_the_whole_are_nearly_those_that_were_predicted(rows, name):
    row = named(rows, name)
    assert row["predicted_bytes"] == pytest.approx(row["peak_bytes"], rel=0.1)


def test_16_bit_is_held_against_the_float32_result(rows):
    whole, exact = (named(rows, name, "bfloat16")["to_truth"]["rmse"] for name in ("whole", "exact 0.60"))
    assert 0 < exact < 2 * whole


def test_the_page_tells_goals_and_what_had_no_figure(benchmark, rows):
    failed = {**rows[0], "case": "another", "error": "no room"}
    book = {
        "command": "python benchmarks/vae.py",
        "device": "cpu",
        "machine": "A CPU",
        "picture": "",
        "versions": {"torch": "2.13.0"},
        "rows": [*rows, failed],
    }
    page = benchmark["page"].markdown(book)
    for title in ("Goals", "Beside whole", *benchmark["page"].SECTIONS, "Without a figure"):
        assert f"\n## {title}\n" in page
    assert "| difference | <= 5e-05 |" in page
    assert "- another, whole: no room" in page


def test_a_goal_is_met_at_its_limit_and_not_beyond(benchmark):
    goal = benchmark["cases"].Goal
    assert goal("time", 0.7).met(0.7) and not goal("time", 0.7).met(0.71)
    assert goal("faster", 1.8, least=True).met(1.8) and not goal("faster", 1.8, least=True).met(1.7)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_has_a_name_of_its_own_and_ways_that_there_are(benchmark, device):
    cases = benchmark["cases"].cases(device, compiled=True)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert [benchmark["cases"].way_of(name).name for name in case.ways] == list(case.ways)
        assert case.vae in benchmark["models"].VAES


@given(side=st.integers(8, 300), whole=st.integers(10**6, 10**10), share=st.floats(0.05, 0.9))
def test_the_tile_is_within_the_limit_where_any_is(benchmark, side, whole, share):
    tile = benchmark["worker"].best_tile((side, side), whole, whole // 500, int(share * whole))
    assert tile == 8 or (tile / side) ** 2 * whole <= share * whole
    assert benchmark["worker"].computed_latents((side, side), tile) >= side * side


def test_a_seam_is_a_step_in_the_error_at_an_edge(benchmark):
    reference = torch.zeros(1, 3, 16, 16)
    made = reference.clone()
    made[..., 8:, :] = 1e-3
    found = benchmark["compare"].at_edges(made, reference, {-2: [8]})
    assert found["step"] > 0 and found["step_elsewhere"] == 0
    assert benchmark["compare"].at_edges(made, reference, {-2: []}) == {}


def test_a_process_that_fails_is_told_with_its_reason(case, tmp_path):
    unknown = json.dumps({**asdict(case), "vae": "nobody's"})
    command = [sys.executable, str(FOLDER / "vae.py"), "--one", unknown, "whole", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "nobody's" in done.stderr
