"""benchmarks/prediction.py: a row holds what was predicted and what was measured, and the page says how far off."""

import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from safelight.firstlight import BUNDLED
from safelight.planner import wish
from safelight.probe.rates import KINDS

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALLEST = "firstlight 64 px, float32"


@pytest.fixture(scope="module")
def program():
    """The program as a module; the import path it needs is taken back."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield import_module("prediction")
    sys.path[:] = before


@pytest.fixture(scope="module")
def page(program):
    return program.page


def one(parts, quantities):
    command = [sys.executable, str(FOLDER / "prediction.py"), "--one", SMALLEST, parts, quantities]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_worker_tells_what_was_predicted_and_what_was_measured(program):
    wanted = [name for name in program.TARGETS["cpu"] if name != "taken"]  # which wants a process of its own
    for part in program.PARTS:
        (row,) = one(part, ",".join(wanted)).values()
        assert set(row["predicted"]) == set(row["measured"]) == set(wanted)
        assert all(0 < value < math.inf for key in ("predicted", "measured") for value in row[key].values())
        assert row["predicted"]["live"] == row["measured"]["live"], "no allocator's business: it is so to the byte"
        assert row["predicted"]["live"] < row["predicted"]["growth"]
        assert len(row["samples"]) == program.CASES["cpu"][SMALLEST].calls
        assert set(row["kinds"]) == {*KINDS, "host"}


def test_a_worker_measures_no_more_than_it_is_asked_for():
    (row,) = one("decode", "live").values()
    assert set(row["predicted"]) == set(row["measured"]) == {"live"}


def test_every_case_is_of_a_model_and_a_plan_that_there_are(program):
    fullsize = import_module("fullsize")
    for kind, cases in program.CASES.items():
        assert {case.model for case in cases.values()} <= {*BUNDLED, *fullsize.MODELS}
        for case in cases.values():
            assert bool(wish(case.plan).options) == bool(case.plan), f"{kind}: {case.name}"


def test_a_case_that_fails_is_told_with_its_reason(program):
    found = program.run("cpu", "no such case", ["decode"], ["live"])
    assert "no such case" in found["decode"]["error"]


BOOK = {
    "command": "python benchmarks/prediction.py",
    "machine": "A CPU",
    "versions": {"torch": "2.13.0"},
    "targets": {"live": 0.03, "seconds": 0.3},
    "rows": [
        {
            "case": "a case",
            "part": "denoise",
            "predicted": {"live": 2**20, "seconds": 1.0},
            "measured": {"live": 2**20, "seconds": 2.0},
            "kinds": {"matmul": [0.5, 1.0], "host": [0.0, 0.1]},
        },
        {"case": "a case", "part": "decode", "predicted": {"live": 2**21}, "measured": {"live": None}, "kinds": {}},
        {"case": "another", "part": "decode", "error": "took more than 10 minutes"},
    ],
}
PAGE = """\
| quantity | aim | within it | median | worst | where |
| --- | --- | --- | --- | --- | --- |
| live | 3% | 1 of 1 | 0.0% | +0.0% | a case, denoise |
| seconds | 30% | 0 of 1 | 50.0% | -50.0% | a case, denoise |
"""


def test_the_page_says_how_far_off_each_quantity_is_and_where_it_is_worst(page):
    written = page.markdown("cpu", BOOK)
    assert PAGE in written
    assert "| a case | denoise | 1 s | 2 s | -50.0% |" in written
    assert "| a case | denoise | 500 / 1e+03 | 0 / 100 |" in written
    assert "- another, decode: took more than 10 minutes" in written
    assert all(len(line) <= 120 for line in written.splitlines() if not line.startswith("|"))


def test_parts_of_a_case_join_into_one_row(program):
    rows = []
    program.join(rows, "a case", {"decode": {"measured": {"live": 1}, "machine": "A CPU"}})
    program.join(rows, "a case", {"decode": {"measured": {"taken": 2}, "machine": "A CPU"}})
    assert rows == [{"case": "a case", "part": "decode", "measured": {"live": 1, "taken": 2}, "machine": "A CPU"}]
