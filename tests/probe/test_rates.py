"""What is told of a device's speed: curves without gaps, all kinds and dtypes, within the time, and kept in a file."""

import json
import math
from dataclasses import replace
from datetime import date
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight.probe import speed
from safelight.probe.device import GIB, Device
from safelight.probe.operations import Operation, operations
from safelight.probe.rates import COMPUTING, KINDS, Curve, Rates

CPU = Device("cpu", 0, "Some CPU (R) 3000", 8 * GIB, 4 * GIB, fast_dtypes=("float32", "bfloat16"))
CARD = Device("cuda", 0, "Card", GIB, GIB, (8, 0), ("float32", "bfloat16", "float16"), features=("tf32",))

sizes = st.floats(1e3, 1e13)
times = st.floats(1e-7, 10.0)


@st.composite
def curves(draw):
    works = sorted(draw(st.lists(st.integers(10, 43), min_size=1, max_size=6, unique=True)))
    seconds = sorted(draw(st.lists(times, min_size=len(works), max_size=len(works))))
    return Curve(tuple((2.0**work, took) for work, took in zip(works, seconds, strict=True)))


# -- curves ------------------------------------------------------------------------------------------------------------


@given(curves(), sizes, sizes)
def test_more_work_is_never_quicker(curve, one, other):
    less, more = sorted((one, other))
    assert curve.seconds(less) <= curve.seconds(more) * (1 + 1e-12)


@given(curves())
def test_a_curve_goes_through_its_points_without_a_step(curve):
    for work, seconds in curve.points:
        for near in (work * (1 - 1e-12), work, work * (1 + 1e-12)):
            assert curve.seconds(near) == pytest.approx(seconds, rel=1e-6)


@given(curves(), st.floats(1, 1e3))
def test_beyond_the_last_point_seconds_grow_with_the_work(curve, factor):
    work, seconds = curve.points[-1]
    assert curve.seconds(work * factor) == pytest.approx(seconds * factor)


@given(st.floats(1e6, 1e15), times, sizes)
def test_a_straight_curve_is_the_rate_but_never_less_than_its_least(rate, least, work):
    assert Curve.straight(rate, least).seconds(work) == pytest.approx(max(least, work / rate))


# -- as a table --------------------------------------------------------------------------------------------------------

full_rates = st.builds(
    Rates,
    st.fixed_dictionaries({kind: st.fixed_dictionaries({"float32": curves(), "bfloat16": curves()}) for kind in KINDS}),
    launch=times,
    queued=st.booleans(),
    link=st.none() | st.floats(1e6, 1e12),
    source=st.text(max_size=20),
)
ONE = {kind: {"float32": Curve.straight(1e9, 1e-6), "bfloat16": Curve.straight(2e9, 1e-6)} for kind in KINDS}


def of_every_kind(curves):
    return dict.fromkeys(KINDS, curves)


SOME = Rates(ONE, launch=1e-6, queued=False, link=None, source="somewhere")


@given(full_rates)
def test_rates_come_back_from_json_as_they_were(rates):
    assert Rates.from_dict(json.loads(json.dumps(rates.as_dict()))) == rates


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        {},
        SOME.as_dict() | {"launch": "fast"},
        SOME.as_dict() | {"launch": math.nan},
        SOME.as_dict() | {"link": -1.0},
        SOME.as_dict() | {"curves": []},
        SOME.as_dict() | {"curves": {"matmul": {}}},
        SOME.as_dict() | {"curves": of_every_kind({})},
        SOME.as_dict() | {"curves": of_every_kind({"float32": {"points": []}})},
        SOME.as_dict() | {"curves": of_every_kind({"float32": {"points": [[2.0, 1.0], [1.0, 2.0]]}})},
        SOME.as_dict() | {"curves": of_every_kind({"float32": {"points": [[1.0, 2.0], [2.0, 1.0]]}})},
        SOME.as_dict() | {"curves": of_every_kind({"float32": {"points": [[1.0]]}})},
    ],
    ids=lambda table: str(table)[:30],
)
def test_a_table_of_anything_else_is_refused(table):
    with pytest.raises(ValueError, match="no"):
        Rates.from_dict(table)


# -- measuring, by a clock that only work moves ------------------------------------------------------------------------


class Machine:
    """Computes `rate` FLOP a second, after `least` seconds for any call; its clock stands still in between."""

    def __init__(self, rate, least=0.0):
        self.rate, self.least, self.now = rate, least, 0.0

    def sizes(self, *works):
        return [lambda work=work: Operation(work, [lambda: self.work(work)]) for work in works]

    def work(self, work):
        self.now += self.least + work / self.rate

    def timer(self, **fields):
        return speed.Timer(lambda: self.now, **fields)


WORKS = (1e6, 1e8, 1e9, 1e10)


def test_a_curve_tells_what_the_machine_takes():
    machine = Machine(1e12, least=1e-5)
    curve = speed.curve_of(machine.sizes(*WORKS), machine.timer(), until=1.0)
    assert [work for work, _ in curve.points] == list(WORKS)
    for work in WORKS:
        assert curve.seconds(work) == pytest.approx(1e-5 + work / 1e12)


@given(st.floats(1e8, 1e15), st.floats(0.0, 1e-4), st.integers(1, 20))
def test_the_time_is_kept_save_for_the_two_smallest_of_each(rate, least, count):
    machine = Machine(rate, least)
    plan = {("matmul", str(i)): machine.sizes(*WORKS) for i in range(count)}
    found = speed.all_curves(plan, machine.timer(), budget=2.0)
    assert len(found["matmul"]) == count
    smallest = sum(least + work / rate for work in WORKS[:2])
    assert machine.now <= 2.0 + count * 4 * smallest + 0.004 * count


def test_what_one_curve_does_not_need_goes_to_the_later_ones():
    machine = Machine(1e10)
    plan = {("copy", "float32"): machine.sizes(1.0), ("matmul", "float32"): machine.sizes(1e6, 8e9)}
    found = speed.all_curves(plan, machine.timer(), budget=2.0)
    assert len(found["matmul"]["float32"].points) == 2  # it takes 0.8 s, twice: more than half of the time


def test_a_disturbance_makes_no_larger_work_look_quicker():
    machine = Machine(1e12)
    plain, disturbed = machine.sizes(1e9, 2e9), Operation(1e9, [lambda: machine.work(1e10)])
    curve = speed.curve_of([lambda: disturbed, plain[1]], machine.timer(), until=1.0)
    assert curve.points[1][1] == curve.points[0][1]


def test_one_slow_repeat_does_not_count():
    machine = Machine(1e12)
    slow = iter([1e9, 1e9, 1e9, 1e11, 1e9, 1e9])
    operation = Operation(1e9, [lambda: machine.work(next(slow, 1e9))])
    assert speed.curve_of([lambda: operation], machine.timer(), until=1.0).points == ((1e9, pytest.approx(1e-3)),)


def test_of_a_device_with_a_queue_the_kernel_counts_and_not_the_host():
    """The host takes 10 us a call, the device 3 us."""
    host, device = Machine(1.0), Machine(1.0)

    def enqueue(seconds):
        device.now = max(device.now, host.now) + seconds
        host.now += 1e-5

    def wait():
        host.now = max(host.now, device.now)

    operation = Operation(1e6, [lambda: enqueue(3e-6)])
    busy = speed.Timer(lambda: host.now, wait, lambda: enqueue(4e-3), 4e-3, speed.SAMPLE_QUEUED)
    plain = speed.Timer(lambda: host.now, wait)
    assert busy.seconds(operation.calls, 200) == pytest.approx(3e-6)
    assert plain.seconds(operation.calls, 200) == pytest.approx(1e-5, rel=0.1)


def test_a_setting_is_on_for_its_dtype_alone():
    from contextlib import contextmanager

    machine, on, seen = Machine(1e12), [], {}

    @contextmanager
    def during(dtype):
        on.append(dtype)
        yield
        on.pop()

    def sizes(dtype):
        return [lambda: Operation(1e6, [lambda: (seen.update({dtype: list(on)}), machine.work(1e6))])]

    plan = {("matmul", dtype): sizes(dtype) for dtype in ("float32", "tf32")}
    speed.all_curves(plan, machine.timer(), 1.0, during)
    assert seen == {"float32": ["float32"], "tf32": ["tf32"]}
    assert on == []


# -- operators ---------------------------------------------------------------------------------------------------------


def test_every_kind_is_timed_in_every_dtype_worth_running_and_tf32_where_it_is():
    assert set(operations(torch, CPU)) == {(kind, dtype) for kind in KINDS for dtype in CPU.fast_dtypes}
    on_cpu = replace(CARD, kind="cpu")  # the same wishes, without the card
    wanted = {(kind, dtype) for kind in KINDS for dtype in CARD.fast_dtypes}
    assert set(operations(torch, on_cpu)) == wanted | {("matmul", "tf32")}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_rise_and_their_work_is_what_torch_counts(kind):
    from torch.utils.flop_counter import FlopCounterMode

    sizes = operations(torch, CPU)[kind, "float32"][:3]
    made = [make() for make in sizes]
    assert all(small.work < large.work for small, large in pairwise(made))
    for call in made[0].calls:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            result = call()
        # the CPU's attention has no formula there
        counted = 0 if kind not in COMPUTING else made[0].work if kind == "attention" else counter.get_total_flops()
        tensors = 3 if kind == "pointwise" else 2
        assert made[0].work == (counted or tensors * result.nbytes)


def test_layers_have_weights_of_their_own():
    operation = operations(torch, CPU)["matmul", "float32"][0]()
    assert len({call.args[1].data_ptr() for call in operation.calls}) == len(operation.calls) > 1


def test_a_card_that_is_nearly_full_is_asked_for_little():
    full = replace(CPU, free_bytes=2**20)
    assert all(len(operations(torch, full)[kind, "float32"]) == 2 for kind in ("copy", "pointwise", "norm"))


# -- this machine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The rates of this CPU, and the folder in which they were kept."""
    folder = tmp_path_factory.mktemp("cache") / "safelight"
    before = torch.get_rng_state()
    rates = speed.measured(CPU, cache=folder)
    assert torch.equal(before, torch.get_rng_state()), "others would draw other numbers"
    return rates, folder


def test_this_cpu_takes_some_seconds_for_every_kind_and_dtype(kept):
    rates, _ = kept
    assert set(rates.curves) == set(KINDS)
    for kind in KINDS:
        assert set(rates.curves[kind]) == set(CPU.fast_dtypes)
        for dtype in CPU.fast_dtypes:
            assert 0 < rates.seconds(kind, dtype, 1e9) < math.inf
            assert all(
                low[0] < high[0] and low[1] <= high[1] for low, high in pairwise(rates.curves[kind][dtype].points)
            )
    assert 0 < rates.launch < math.inf
    assert (rates.queued, rates.link) == (False, None)
    assert rates.source == f"measured on this machine, {date.today().isoformat()}"


def never():
    raise AssertionError("measured anew")


def test_what_was_measured_is_kept_and_found_again(kept):
    rates, folder = kept
    assert speed.measured(CPU, cache=folder, now=never) == rates
    (file,) = folder.iterdir()
    assert file.name.startswith("rates-some-cpu-r-3000-torch-2.")
    assert file.name.endswith(f"-{torch.get_num_threads()}-threads.json")


@pytest.fixture
def slowly():
    """A clock that jumps at each look, by less than a busy machine's."""
    looks = []

    def now():
        looks.append(1)
        return len(looks) * 1e-4

    return now


SMALL = replace(CPU, fast_dtypes=("float32",))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"rates": 3}',
        lambda text: text.replace(f'"format": {speed.FORMAT}', '"format": 0'),
        lambda text: text.replace("Some CPU", "Another CPU"),
        lambda text: text.replace('"float32"', '"float31"'),
    ],
    ids=["empty", "half", "a-list", "a-number", "older", "another-device", "another-dtype"],
)
def test_a_damaged_or_foreign_file_is_measured_anew(kept, tmp_path, slowly, spoil):
    (file,) = kept[1].iterdir()
    (tmp_path / file.name).write_text(spoil(file.read_text()))
    rates = speed.measured(SMALL, cache=tmp_path, now=slowly)
    assert rates != kept[0]
    assert speed.measured(SMALL, cache=tmp_path, now=never) == rates
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_rates_without_a_dtype_that_is_wanted_now_are_measured_anew(tmp_path, slowly):
    speed.measured(SMALL, cache=tmp_path, now=slowly)
    assert set(speed.measured(CPU, cache=tmp_path, now=slowly).curves["matmul"]) == {"float32", "bfloat16"}


def test_a_folder_that_cannot_be_written_is_said_and_no_error(tmp_path, slowly):
    (tmp_path / "file").write_text("")
    source = speed.measured(SMALL, cache=tmp_path / "file" / "safelight", now=slowly).source
    assert "not kept" in source


def test_without_a_folder_nothing_is_kept(tmp_path, slowly, monkeypatch):
    monkeypatch.chdir(tmp_path)
    speed.measured(SMALL, cache=None, now=slowly)
    assert list(tmp_path.iterdir()) == []


def test_rates_of_a_busy_machine_are_measured_again_and_not_kept(tmp_path):
    looks = []

    def busily():
        looks.append(1)
        return len(looks) * 0.01

    rates = speed.measured(SMALL, cache=tmp_path, now=busily)
    assert rates.source.endswith("while it was busy: not kept")
    assert list(tmp_path.iterdir()) == []
