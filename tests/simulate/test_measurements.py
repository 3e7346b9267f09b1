"""What runs took is kept, also by several processes at once, costs no run its life, and corrects predictions."""

import itertools
import os
import random
import sqlite3
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, fields, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import EnvironmentProblem
from safelight.simulate.measurements import VERSION, Correction, Measurement, Store, correction, now

RUN = {"device": "RTX 3060", "model": "sd15@1a2b", "width": 512, "height": 768, "frames": 1, "batch_size": 2}
RUN |= {"guided": True, "plan": "dtype=bfloat16", "versions": "safelight 0.1.0, torch 2.13.0"}
PREDICTED = {"predicted_encode_seconds": 0.125, "predicted_step_seconds": 0.5, "predicted_decode_seconds": 2.0}
PREDICTED |= {"predicted_peak_bytes": 4_000}
NAMES = ("encode", "step", "decode", "peak")


def measurement(times=1.0, second=0, **changed):
    """A run that took so many times what was predicted, at this second."""
    taken = {name.removeprefix("predicted_"): value * times for name, value in PREDICTED.items()}
    taken["peak_bytes"] = round(taken["peak_bytes"])
    when = f"2026-01-31T12:{second // 60:02d}:{second % 60:02d}.000+00:00"
    return Measurement(**{"when": when, "steps": 20, **RUN, **PREDICTED, **taken, **changed})


def factors(found):
    return tuple(getattr(found, name) for name in NAMES)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache" / "measurements.sqlite", patience=0.1)


def at_version(store, version):
    with closing(sqlite3.connect(store.path)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    return store


def damage(store):
    store.path.parent.mkdir(parents=True, exist_ok=True)
    store.path.write_bytes(b"this is no database" * 100)
    return store


# -- the file ----------------------------------------------------------------------------------------------------------


def test_what_was_added_comes_back_as_it_was_newest_first(store):
    rows = [measurement(second=2, guided=False), measurement(second=9, peak_bytes=None), measurement(1.5, second=5)]
    assert all(map(store.add, rows))
    assert store.rows() == [rows[1], rows[2], rows[0]]
    assert [type(value) for value in astuple(store.rows()[2])] == [type(value) for value in astuple(rows[0])]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KINDS = {
    str: TEXT,
    int: st.integers(0, 2**63 - 1),
    int | None: st.none() | st.integers(0, 2**63 - 1),
    float: st.floats(0, allow_infinity=False),
    bool: st.booleans(),
}


@settings(deadline=None)
@given(values=st.tuples(*(KINDS[field.type] for field in fields(Measurement))))
def test_any_measurement_comes_back_as_it_was(tmp_path_factory, values):
    store = Store(tmp_path_factory.mktemp("cache") / "m.sqlite")
    assert store.add(Measurement(*values))
    assert store.rows() == [Measurement(*values)]


@pytest.mark.parametrize("folder", ["a b", "100%", "what?mode=ro", "#1", "\u00e4\u4e16"], ids=ascii)
def test_the_file_may_lie_in_a_folder_of_any_name(tmp_path, folder):
    store = Store(tmp_path / folder / "m.sqlite")
    assert store.add(measurement())
    assert store.path.is_file()
    assert len(store.rows()) == 1


def test_without_a_file_there_are_no_rows_and_none_is_made(store):
    assert (store.rows(), store.clear()) == ([], 0)
    assert not store.path.parent.exists()


def test_an_empty_file_holds_no_rows(store):
    store.path.parent.mkdir()
    store.path.touch()
    assert store.rows() == []
    assert store.add(measurement())


def test_rows_are_those_of_a_device_and_of_a_model(store):
    rows = [measurement(second=i, device=d, model=m) for i, (d, m) in enumerate(itertools.product("ab", "xy"))]
    for row in rows:
        store.add(row)
    assert store.rows(device="a") == [rows[1], rows[0]]
    assert store.rows(model="y") == [rows[3], rows[1]]
    assert store.rows("a", "y") == [rows[1]]
    assert store.rows("A") == store.rows(model="\udcff") == []


def test_clear_deletes_what_rows_would_give_and_counts_it(store):
    for device, model in itertools.product("ab", "xy"):
        store.add(measurement(device=device, model=model))
    assert store.clear("a", "y") == 1
    assert store.clear(model="\udcff") == 0
    assert store.clear(device="b") == 2
    assert [(row.device, row.model) for row in store.rows()] == [("a", "x")]
    assert (store.clear(), store.rows()) == (1, [])


def test_only_the_newest_are_kept(tmp_path):
    store = Store(tmp_path / "m.sqlite", keep=3)
    for second in (4, 1, 5, 2, 3):
        assert store.add(measurement(second=second))
    assert [row.when[17:19] for row in store.rows()] == ["05", "04", "03"]


def test_now_is_utc_and_sorts_as_text():
    moments = [now() for _ in range(3)]
    assert moments == sorted(moments)
    assert datetime.fromisoformat(moments[0]).utcoffset() == timedelta(0)
    assert {len(moment) for moment in moments} == {29}


# -- several at once ---------------------------------------------------------------------------------------------------

ADDS = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from test_measurements import Store, measurement
store = Store(pathlib.Path(sys.argv[2]), patience=60)
sys.exit(not all([store.add(measurement(second=i, model=sys.argv[3])) for i in range(20)]))
"""


def test_processes_that_add_at_once_lose_nothing(store):
    started = [
        subprocess.Popen([sys.executable, "-c", ADDS, os.path.dirname(__file__), store.path, name])  # noqa: PTH120
        for name in "ab"
    ]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert [len(store.rows(model=name)) for name in "ab"] == [20, 20]


def test_threads_that_add_and_read_at_once_lose_nothing(tmp_path):
    store = Store(tmp_path / "m.sqlite", patience=60)

    def work(second):
        return store.add(measurement(second=second)) and len(store.rows())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))
    assert len(store.rows()) == 40


# -- a file of no use --------------------------------------------------------------------------------------------------


def test_a_locked_file_costs_no_run_its_life(store):
    store.add(measurement())
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.warns(UserWarning, match="held by another process"):
            assert store.add(measurement()) is False
        with pytest.raises(EnvironmentProblem, match="held by another process"):
            store.rows()
        with pytest.raises(EnvironmentProblem, match="held by another process"):
            store.clear()
    assert store.add(measurement())
    assert len(store.rows()) == 2


def test_a_damaged_file_costs_no_run_its_life_and_is_left_for_people_to_clear(store):
    with pytest.warns(UserWarning, match=r"is damaged .*delete it, or run safelight measurements --clear"):
        assert damage(store).add(measurement()) is False
    with pytest.raises(EnvironmentProblem, match=r"is damaged .*delete it, or run safelight measurements --clear"):
        store.rows()
    assert store.clear(device="RTX 3060") == 0
    assert list(store.path.parent.iterdir()) == []
    assert store.add(measurement())


def test_it_is_said_once(store):
    damage(store)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert [store.add(measurement()) for _ in range(3)] == [False] * 3
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE measurement",
        "ALTER TABLE measurement RENAME COLUMN steps TO stairs",
        "PRAGMA ignore_check_constraints = 1; UPDATE measurement SET step_seconds = 'slow'",
        "PRAGMA ignore_check_constraints = 1; UPDATE measurement SET peak_bytes = -1",
        "UPDATE measurement SET model = CAST(x'ff' AS TEXT)",
    ],
)
def test_rows_that_are_none_are_damage(store, sql):
    store.add(measurement())
    with closing(sqlite3.connect(store.path)) as db:
        db.executescript(sql)
    with pytest.raises(EnvironmentProblem, match="is damaged"):
        store.rows()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 200))
def test_whatever_happened_to_the_files_bytes_only_an_environment_problem_comes_of_it(tmp_path_factory, seed, count):
    store = Store(tmp_path_factory.mktemp("cache") / "m.sqlite", patience=0.1)
    for second in range(3):
        store.add(measurement(second=second))
    chance = random.Random(seed)
    content = bytearray(store.path.read_bytes())
    for _ in range(count):
        content[chance.randrange(len(content))] = chance.randrange(256)
    store.path.write_bytes(content[: chance.choice([None, -1, 4096, 5000])])
    for act in (store.rows, lambda: store.add(measurement()), store.clear):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                act()
            except EnvironmentProblem as problem:
                assert str(store.path) in str(problem)


@pytest.mark.parametrize(
    "changed",
    [
        {"step_seconds": float("nan")},
        {"predicted_decode_seconds": float("inf")},
        {"encode_seconds": -1.0},
        {"peak_bytes": -1},
        {"peak_bytes": 2**63},
        {"predicted_peak_bytes": 1.5},
        {"model": "no\udcff"},
        {"plan": None},
        {"plan": []},
        {"guided": 2},
    ],
    ids=ascii,
)
def test_what_is_no_measurement_is_not_kept_and_harms_no_other(store, changed):
    store.add(measurement())
    with pytest.warns(UserWarning, match="what this run took is not kept"):
        assert store.add(measurement(**changed)) is False
    assert store.rows() == [measurement()]


def test_a_file_of_a_newer_version_is_left_alone(store):
    store.add(measurement())
    before = at_version(store, VERSION + 1).path.read_bytes()
    with pytest.warns(UserWarning, match=f"version {VERSION + 1}"):
        assert store.add(measurement()) is False
    for act in (store.rows, store.clear):
        with pytest.raises(EnvironmentProblem, match=f"version {VERSION + 1}.*use the newer safelight"):
            act()
    assert store.path.read_bytes() == before


def test_a_file_of_an_older_version_is_begun_anew(store):
    store.add(measurement())
    at_version(store, VERSION - 1)
    assert store.rows() == []
    assert store.add(measurement(second=7))
    assert store.rows() == [measurement(second=7)]


def test_where_no_folder_can_be_made_a_run_goes_on(tmp_path):
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "m.sqlite")
    with pytest.warns(UserWarning, match="cannot use .*m.sqlite"):
        assert store.add(measurement()) is False


def test_a_folder_in_place_of_the_file_is_named_and_kept(tmp_path):
    store = Store(tmp_path)
    for act in (store.rows, store.clear):
        with pytest.raises(EnvironmentProblem, match="cannot use"):
            act()
    with pytest.warns(UserWarning, match="cannot use"):
        assert store.add(measurement()) is False
    assert tmp_path.is_dir()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write every file")
def test_a_file_that_may_not_be_written_is_still_read(store):
    store.add(measurement())
    store.path.chmod(0o400)
    store.path.parent.chmod(0o500)
    assert len(store.rows()) == 1
    with pytest.warns(UserWarning, match="cannot use"):
        assert store.add(measurement()) is False
    with pytest.raises(EnvironmentProblem, match="cannot use"):
        store.clear()
    store.path.parent.chmod(0o700)


# -- the correction ----------------------------------------------------------------------------------------------------

TIMES = st.floats(0.01, 100)


@given(count=st.integers(1, 12))
def test_what_was_predicted_rightly_is_not_corrected(count):
    found = correction([measurement(second=i) for i in range(count)], **RUN)
    assert factors(found) == (1.0, 1.0, 1.0, 1.0)
    assert found.because == f"{min(count, 5)} measurement{'s' if count > 1 else ''} of this very run"


@given(times=TIMES, count=st.integers(1, 12))
def test_runs_that_took_k_times_what_was_predicted_are_corrected_by_k(times, count):
    row = measurement(times, predicted_peak_bytes=10**9, peak_bytes=round(10**9 * times))
    found = correction([replace(row, when=measurement(second=i).when) for i in range(count)], **RUN)
    assert factors(found) == pytest.approx((times,) * 4)


@given(times=TIMES, width=st.integers(8, 4096).filter(lambda width: width != RUN["width"]))
def test_other_sizes_of_the_same_plan_correct_all_within_bounds(times, width):
    row = measurement(times, width=width, predicted_peak_bytes=10**9, peak_bytes=round(10**9 * times))
    found = correction([row], **RUN)
    assert factors(found) == pytest.approx((min(max(times, 0.25), 4),) * 4)
    assert found.because == "1 measurement of this model here"


@pytest.mark.parametrize(
    "changed", [{"height": 64}, {"frames": 9}, {"batch_size": 1}, {"guided": False}, {"plan": ""}], ids=str
)
def test_the_very_run_counts_alone_where_it_was_measured(changed):
    rows = [measurement(3.0, second=1), *(measurement(second=s, **changed) for s in range(2, 9))]
    assert factors(correction(rows, **RUN)) == pytest.approx((3, 3, 3, 3))
    assert correction(rows, **{**RUN, **changed}) == Correction(because="5 measurements of this very run")


def test_the_peak_is_learned_from_the_same_plan_alone():
    other = measurement(2.0, plan="model-offload")
    assert factors(correction([other], **RUN)) == (2.0, 2.0, 2.0, 1.0)
    same = measurement(3.0, second=1, width=64)
    assert correction([other, same], **RUN).peak == 3.0
    assert correction([other, same], **RUN).step == 2.5


@pytest.mark.parametrize("changed", [{"device": "RTX 3090"}, {"model": "sdxl"}, {"versions": "torch 3"}], ids=str)
def test_runs_elsewhere_of_others_or_with_other_versions_say_nothing(changed):
    assert correction([measurement(3.0, **changed)], **RUN) == correction([], **RUN) == Correction()


def test_only_the_newest_count_and_one_odd_run_among_them_moves_nothing():
    rows = [measurement(9.0, second=0)] * 20 + [measurement(2.0, second=s) for s in range(1, 5)]
    assert correction([*rows, measurement(80.0, second=5)], **RUN).step == 2.0
    similar = [measurement(2.0, second=s, width=64) for s in range(1, 10)]
    found = correction([measurement(3.0, width=64)] * 20 + similar, **RUN)
    assert (found.step, found.because) == (2.0, "9 measurements of this model here")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["", "predicted_"])
def test_a_part_that_took_or_was_predicted_nothing_does_not_count_for_its_factor(name, side):
    nothing = {f"{side}{name}_bytes" if name == "peak" else f"{side}{name}_seconds": 0}
    found = correction([measurement(2.0, **nothing)], **RUN)
    assert {other: getattr(found, other) for other in NAMES} == {
        other: 1.0 if other == name else 2.0 for other in NAMES
    }
    assert getattr(correction([measurement(3.0), measurement(2.0, second=1, **nothing)], **RUN), name) == 3.0


def test_a_peak_that_was_not_measured_does_not_count():
    assert factors(correction([measurement(2.0, peak_bytes=None)], **RUN)) == (2.0, 2.0, 2.0, 1.0)


def test_a_very_run_of_which_nothing_counts_leaves_the_word_to_the_others():
    silent = dict.fromkeys(PREDICTED, 0)
    rows = [measurement(second=1, **silent), measurement(2.0, width=64)]
    assert correction(rows, **RUN).because == "1 measurement of this model here"
    assert correction(rows[:1], **RUN) == Correction()


@given(
    runs=st.lists(st.tuples(TIMES, st.integers(0, 3), st.sampled_from([64, 512])), max_size=15).flatmap(
        lambda runs: st.tuples(st.just(runs), st.permutations(runs))
    )
)
def test_the_order_in_which_runs_were_written_changes_nothing(runs):
    first, second = ([measurement(times, second, width=width) for times, second, width in order] for order in runs)
    assert correction(first, **RUN) == correction(second, **RUN)


@given(rows=st.lists(st.tuples(TIMES, st.integers(0, 99)), min_size=1))
def test_a_factor_lies_among_what_was_measured(rows):
    found = correction([measurement(times, second) for times, second in rows], **RUN)
    times = [times for times, _ in rows]
    assert min(times) * 0.999 <= found.step <= max(times) * 1.001
