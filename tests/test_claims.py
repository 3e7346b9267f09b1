"""docs/claims.md: made from the figures as they stand, and every claim says where it is from and what became of it."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from safelight.planner.claims import CLAIMS as KNOWN

ROOT = Path(__file__).parents[1]
NAMES = ("claims", "claims_figures", "claims_stated", "claims_measure", "claims_pictures")
# what a number or a mark of each guide was put to: these must not be lost from the page
MUST = {
    1: ("~800MB", "12-14 GB", "15-20 s", "20-30 steps", "s_tmax", "7.0-8.0", "16GB VRAM"),
    2: (
        "10-20x",
        "30% memory",
        "50-200x",
        "50% memory",
        "1.5-2x",
        "4-6GB",
        "2-4x",
        "20-30%",
        "15x",
        "25x",
        "40x",
        "8GB",
    ),
    3: (
        "10-30%",
        "8x",
        "5-15%",
        "10-20%",
        "15-40%",
        "1.3-1.5x",
        "1.2-1.3x",
        "1.5-2.0x",
        "10-15%",
        "overlap",
        "504 GB/s",
    ),
    4: ("strictly better", "4-6GB", "2-4x", "8-10GB", "0.2-0.3", "1024x1024"),
    5: ("slicing", "tiling", "casting", "QKV", "batch", "8-12GB", "16-24GB", "40GB+"),
}


@pytest.fixture(scope="module")
def made():
    """The modules by name; the import path they need is taken back."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield {name: import_module(name) for name in NAMES}
    sys.path[:] = before


@pytest.fixture(scope="module")
def all_claims(made):
    return [(guide, claim) for guide, claims in made["claims"].CLAIMS.items() for claim in claims]


def test_the_page_is_what_the_figures_make_of_it(made):
    assert made["claims"].PAGE.read_text() == made["claims"].markdown(), "run python benchmarks/claims.py"


def test_every_claim_names_its_guide_its_section_and_a_verdict(made, all_claims):
    for guide, claim in all_claims:
        assert guide in made["claims_stated"].GUIDES and claim.section and claim.says, claim
        assert claim.verdict in made["claims_stated"].VERDICTS, claim
        assert claim.found or claim.known, claim


@pytest.mark.parametrize("guide", MUST)
def test_what_a_guide_puts_a_number_to_is_there(made, guide):
    said = " ".join(claim.says for claim in made["claims"].CLAIMS[guide])
    assert not [number for number in MUST[guide] if number.lower() not in said.lower()]


def test_what_does_not_hold_has_a_figure_or_a_source(all_claims):
    bare = [claim.says for _, claim in all_claims if claim.verdict == "does not hold here" and not proof(claim)]
    assert not bare


def proof(claim):
    return claim.figures or claim.known or claim.sources


def test_every_figure_is_read_from_a_file_that_is_there(made, all_claims):
    names = {name for _, claim in all_claims for name in claim.figures}
    for name in names:
        values, files = made["claims_figures"].read([name])
        assert values[name] and files, name
        assert all((ROOT / "benchmarks" / file).is_file() for file in files), name


def test_every_figure_is_told_somewhere(made, all_claims):
    told = {name for _, claim in all_claims for name in claim.figures}
    assert set(made["claims_figures"].FIGURES) == told


def test_a_claim_refers_to_the_checks_that_the_planner_has(all_claims):
    assert all(name in KNOWN for _, claim in all_claims for name in claim.known)


def test_every_file_that_the_page_links_is_there(made):
    page = made["claims"].PAGE.read_text()
    linked = re.findall(r"\]\((\.\./[\w./-]+)\)", page)
    assert linked and all((ROOT / "docs" / path).resolve().is_file() for path in linked)


def test_a_figure_without_one_row_of_its_own_is_refused(made):
    reader = made["claims_figures"].Reader()
    with pytest.raises(LookupError, match="0 rows"):
        reader.one("no such plan")


def test_a_report_of_a_card_is_told_beside_its_claim(made, tmp_path):
    """As scripts/gpu-truth writes it: a row that was measured, and one that was not."""
    told = {"case": "sdxl", "status": "measured", "steps": 20, "seconds_per_step": 0.1, "peak_bytes": 8 * 2**30}
    rows = [told | {"plan": "", "seconds": 3.0}, told | {"plan": "vae-tiling", "seconds": 4.0}]
    rows.append({"case": "sdxl", "plan": "model-offload", "status": "failed", "why": "it did"})
    (tmp_path / "gpu-truth_card_2026-11-21.json").write_text(json.dumps({"card": "Some Card", "rows": rows}))
    stated = made["claims_stated"]
    claim = stated.Claim("8", "tiling", stated.HOLDS, gpu=(("sdxl", "vae-tiling"), ("sdxl", "model-offload")))
    found = list(stated.on_cards(claim, tmp_path))
    words = "On Some Card, sdxl, vae-tiling: 0.75 times as fast as plain, peak 8.00 GiB"
    assert found == [(words, "gpu-truth_card_2026-11-21.json")]


def test_rows_that_claims_would_have_of_a_card_are_rows_that_it_measures(made, all_claims):
    table = import_module("gpu_truth_table")
    known = {(row.case.name, row.plan) for row in table.rows({case.model for case in table.CASES})}
    asked = {pair for _, claim in all_claims for pair in claim.gpu}
    assert asked <= known, asked - known


def test_each_part_of_the_measurements_is_in_its_file(made):
    parts = {
        name for name, value in made["claims_figures"].book(made["claims_figures"].SMALL).items() if is_rows(value)
    }
    assert parts == set(made["claims_measure"].PARTS)


def is_rows(value):
    return isinstance(value, list) and bool(value)


def test_a_call_is_counted_without_its_weights_and_the_weights_beside(made):
    found = made["claims_measure"].counted(
        lambda: torch.nn.Linear(8, 16, bias=False), lambda model: lambda: model(torch.empty(2, 8))
    )
    assert found == {"peak_bytes": (2 * 8 + 2 * 16) * 4, "tflop": 2 * 2 * 8 * 16 / 1e12, "weight_bytes": 8 * 16 * 4}
