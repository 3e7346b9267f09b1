"""A result as text: plain first, quality beside speed, and what was not measured said."""

from dataclasses import replace

import bench_sample
import pytest

from safelight.measure.results import Result, Round
from safelight.report import bench_figures, bench_text


@pytest.fixture(scope="module")
def result() -> Result:
    return bench_sample.result()


@pytest.fixture(scope="module")
def table(result):
    return bench_text.table(result)


@pytest.fixture(scope="module")
def markdown(result):
    return bench_text.markdown(result)


def with_rounds(result: Result, *rounds: Round) -> Result:
    """All plans with these rounds."""
    return replace(result, plans=tuple(replace(plan, rounds=rounds) for plan in result.plans[:3]))


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


# -- terminal ----------------------------------------------------------------------------------------------------------


def test_plain_comes_first_and_each_plan_says_how_many_times_as_fast(table):
    lines = table.splitlines()
    plain = next(i for i, line in enumerate(lines) if line.startswith("plain"))
    assert lines[plain].split()[1:4] == ["336", "ms", "1.00"]
    assert lines[plain + 1].split()[:4] == ["auto", "141", "ms", "2.38"]


def test_the_terminal_table_keeps_within_120_columns(table):
    assert max(map(len, table.splitlines())) <= 120


def test_quality_stands_beside_memory_with_the_worst_picture(table):
    line = next(line for line in table.splitlines() if line.startswith("auto") and "dB" in line)
    assert "566 MiB" in line
    assert "41.0 dB (worst 31.7 dB)" in line
    assert "0.011 (worst 0.043)" in line


def test_a_prediction_stands_beside_its_measurement_with_the_error(table):
    assert "310 ms (-8 %)    336 ms  500 MiB (-3 %)   518 MiB" in table
    assert "not predicted" in table


def test_what_took_no_effect_and_what_failed_is_said(table):
    assert "! vae-tiling               TOOK NO EFFECT: no tile was cut" in table
    assert "FAILED: DoesNotApply: first-block-cache needs a transformer" in table
    assert "! seed 9: seams at the borders of tiles" in table


def test_the_verdict_names_what_does_not_hold_and_every_requirement(table):
    verdict = table[table.index("INVALID") :]
    assert "proof: without: vae-tiling, wanted evidence of every optimizer" in verdict
    assert "enough runs" not in verdict
    assert "+ speed>=1.5 for auto: 2.39, met" in verdict
    assert "! psnr>=40 for auto: 38.2, NOT MET" in verdict


def test_a_valid_result_says_only_that(result):
    conditions = [one for one in result.verdict.conditions if one["ok"]]
    valid = replace(result, verdict=type(result.verdict).of(conditions), requirements=())
    assert bench_text.table(valid).rstrip().endswith("\nVALID")


def test_control_characters_do_not_reach_the_terminal(result):
    hostile = replace(result.plans[3], failure="\x1b[31mred\nand a second line")
    text = bench_text.table(replace(result, plans=(*result.plans[:3], hostile)))
    assert "\x1b" not in text
    assert "\\x1b[31mred and a second line" in text


# -- not measured ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [bench_text.table, bench_text.markdown])
def test_a_result_without_any_measurement_says_so_and_never_0(result, write):
    text = write(with_rounds(result))
    assert "not measured" in text
    assert "0.00" not in text
    assert " 0 ms" not in text


def test_peaks_that_nobody_measured_are_said(result):
    bare = with_rounds(result, Round(runs=({"total": 0.5, "denoise": 0.4},)))
    assert "not measured" in line_of(bench_text.table(bare), "plain  ").join(bench_text.table(bare).splitlines())
    row = bench_figures.rows(bare)[1]
    assert (row.peak, row.of_plain, row.peak_error, row.evaluation, row.first) == (None, None, None, None, None)


def test_bytes_of_tensors_are_not_held_against_bytes_of_a_process(result):
    process = bench_sample.round_of((0.1, 0.2, 0.1), 2**28, start=1.0, tensors=False)
    unlike = replace(result, plans=(result.plain, replace(result.plans[1], rounds=(process,))))
    row = bench_figures.rows(unlike)[1]
    assert row.peak == process.peaks["process_bytes"]
    assert row.of_plain is None
    assert row.peak_error is None


def test_seconds_are_of_one_picture_when_a_run_makes_several(result):
    four = replace(result.plain.rounds[0], images=4)
    row = bench_figures.rows(replace(result, plans=(replace(result.plain, rounds=(four,)),)))[0]
    assert row.seconds == pytest.approx(result.plain.summary().seconds / 4, rel=0.05)
    assert sum(bench_figures.stages_of(row.plan).values()) == pytest.approx(row.seconds, rel=0.02)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.00422, "4.22 ms"),
        (0.3354, "335 ms"),
        (0.9999, "1.00 s"),
        (9.5, "9.50 s"),
        (75.06, "75.1 s"),
        (744, "12.4 min"),
    ],
)
def test_durations_have_three_digits(value, said):
    assert bench_figures.duration(value) == said


# -- markdown ----------------------------------------------------------------------------------------------------------


def test_the_page_begins_with_the_exact_command_and_the_environment(markdown):
    assert "\n    safelight bench --model firstlight --plans 'auto; layerwise-casting,vae-tiling'\n" in markdown
    assert "torch 2.13.0+cpu" in markdown
    assert "memory_bytes 24.00 GiB" in markdown


def test_the_page_has_all_that_a_reader_needs(markdown):
    for title in (
        "Command",
        "Plain beside planned",
        "Seconds by stage",
        "Prediction",
        "Picture",
        "Conditions",
        "Plans",
    ):
        assert f"\n## {title}\n" in markdown
    assert "    -o dtype=bfloat16,channels-last,compile-blocks,deep-cache=3" in markdown
    assert "| proof | without: vae-tiling | evidence of every optimizer | NOT MET |" in markdown
    assert "- psnr>=40 for auto: 38.2, NOT MET" in markdown


def test_speed_stands_in_one_row_with_the_picture(markdown):
    row = line_of(markdown, "| auto | 141 ms")
    assert "| 2.38 | 41.0 dB (worst 31.7 dB) | 0.011 (worst 0.043) |" in row


def test_every_row_of_a_table_has_as_many_cells_as_its_head(markdown):
    counts: list[int] = []
    for line in markdown.splitlines():
        counts = [*counts, line.replace("\\|", "").count("|")] if line.startswith("|") else []
        assert len(set(counts)) <= 1, line


def test_a_pipe_a_tag_or_a_link_in_a_name_stays_text(result):
    named = replace(result.plans[1], name="a|b <b> [x](y)")
    text = bench_text.markdown(replace(result, plans=(result.plain, named)))
    assert "| a\\|b \\<b> \\[x\\](y) |" in text
