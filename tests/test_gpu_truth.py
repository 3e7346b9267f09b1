"""scripts/gpu-truth: its table leaves no optimizer out in silence, its rows are told whatever happens to them."""

import importlib.util
import json
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from safelight.errors import UnknownName
from safelight.optimizers import OPTIMIZERS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu-truth"


@pytest.fixture(scope="module")
def script():
    """The program as a module; the import path it needs is taken back."""
    before = list(sys.path)
    loader = SourceFileLoader("gpu_truth", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_truth", loader))
    loader.exec_module(module)
    yield module
    sys.path[:] = before


@pytest.fixture
def table(script):
    return script.table


def run(*flags):
    return subprocess.run([sys.executable, SCRIPT, *map(str, flags)], capture_output=True, text=True)


def test_every_optimizer_is_measured_alone_or_left_out_with_a_reason(table):
    measured = {row.plan for row in table.rows(["sd15", "sdxl", "flux1-dev"])}
    alone = {name for plan in measured if len(names := table.names_in(plan)) == 1 for name in names}
    assert not OPTIMIZERS.keys() - alone - table.LEFT_OUT.keys()
    assert not alone & table.LEFT_OUT.keys()
    assert all(table.LEFT_OUT.values())


def test_every_plan_of_the_table_is_understood(table):
    from safelight.planner import wish

    for entry in table.ENTRIES:
        wish(entry.plan)


def test_plain_comes_before_all_else_of_its_case(table):
    rows = table.rows(["flux1-dev", "sdxl", "sd15"])
    for case in {row.case for row in rows}:
        assert [row.plan for row in rows if row.case == case].index("") == 0


def test_what_acts_on_the_process_has_one_of_its_own(table):
    groups = table.processes(table.rows(["sdxl"]))
    together = {row.plan for group in groups if len(group) > 1 for row in group}
    assert together >= {"channels-last", "fused-qkv", "dtype=float16"}
    assert not together & {"tf32", "auto", "compile-blocks", "model-offload", "attention-backend=flash"}


def test_only_takes_a_plan_or_an_optimizer_and_keeps_plain(table):
    assert [row.plan for row in table.rows(["firstlight"], ["channels-last"])] == ["", "channels-last"]
    dtypes = [row.plan for row in table.rows(["firstlight"], ["dtype"])]
    assert dtypes == ["", "dtype=float16", "dtype=bfloat16"]


@pytest.mark.parametrize(("models", "only"), [(["sd16"], []), (["sd15"], ["chanels-last"])], ids=["model", "plan"])
def test_an_unknown_name_is_an_error(table, models, only):
    with pytest.raises(UnknownName):
        table.rows(models, only)


def test_the_dry_run_lists_every_row_and_what_is_left_out(script, table):
    rows = table.rows(["sd15"])
    listed = "\n".join(script.dry_run(rows))
    assert all(row.plan in listed for row in rows)
    assert "left out: lazy-modules" in listed


def test_without_the_device_it_says_so_in_one_line():
    told = run("--device", "cuda:99")
    assert told.returncode == 4
    assert told.stderr.startswith("gpu-truth needs a CUDA device: ")
    assert told.stderr.count("\n") == 1


def test_rows_are_written_as_they_come_and_taken_over_on_resume(script, table, tmp_path):
    rows, out = table.rows(["firstlight"], ["channels-last"]), tmp_path / "truth_2026-01-02"
    head = {"card": "a card", "date": "2026-01-02", "command": "it", "versions": {"torch": "2"}, "about": "here"}
    script.Book(out, rows, head).note(rows[0], status="failed", why="OutOfMemory: 1 GiB")
    page = out.with_suffix(".md").read_text()
    assert "- firstlight: plain: OutOfMemory: 1 GiB" in page
    assert "- firstlight: channels-last: the minutes were over" in page
    again = script.Book(out, rows, head)
    again.resume()
    assert again.open(rows) == rows[1:]


def test_shares_are_of_the_plain_beside_or_of_a_step_where_the_steps_differ(script):
    plain = {"seconds": 10.0, "seconds_per_step": 0.4, "steps": 20}
    row = {"seconds": 6.0, "seconds_per_step": 1.2, "steps": 20}
    assert script.page.seconds_share(row, plain) == pytest.approx(0.6)
    assert script.page.seconds_share({**row, "steps": 4}, plain) == pytest.approx(3.0)
    assert script.page.seconds_share({**row, "plain_seconds": 12.0}, plain) == pytest.approx(0.5)
    assert script.page.seconds_share(row, None) is None


def test_a_run_on_the_cpu_writes_a_page_and_a_document(tmp_path):
    out = tmp_path / "gpu-truth_cpu_2026-01-02"
    flags = ("--device", "cpu", "--models", "firstlight", "--minutes", "1", "--only", "channels-last", "--out", out)
    assert run(*flags).returncode == 0
    document = json.loads(out.with_suffix(".json").read_text())
    plain, row = document["rows"]
    assert document["schema"] == 1
    assert [plain["status"], row["status"]] == ["measured", "measured"]
    assert row["seconds"] > 0
    assert row["peak_bytes"] > 0
    assert row["latents_differ"] < 1e-3
    assert "convolutions put channels last" in row["engaged"]["channels-last"]
    text = out.with_suffix(".md").read_text()
    assert "## Command" in text
    assert re.search(r"\| channels-last \| \d", text)
    assert str(tmp_path) not in text
