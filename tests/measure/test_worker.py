"""A worker tells of each thing as it happens, measures what it says, and keeps other people's prints out of its lines.

The session is a real one over a tiny pipeline, handed in through the seam; one test starts a real process.
"""

import json
import subprocess
import sys
import time

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight import planner
from safelight.errors import DidNotEngage, OutOfMemory
from safelight.measure import environment, worker
from safelight.measure.worker import MOST_POINTS, Gauge, Opened, Task, answered, steady, work
from safelight.request import MAX_SEED
from safelight.run import metadata
from safelight.session import Session

REQUEST = {"prompt": "", "steps": 2, "width": 32, "height": 32, "seed": 7, "count": 2, "batch_size": 1}


def task(folder, **fields):
    made = {"load": {}, "request": REQUEST, "prompts": ("a cat", "a dog"), "first": 0, "runs": 2, "warmups": 1}
    return Task(**{**made, "folder": str(folder), **fields})


def gauge(**fields):
    return Gauge("cpu", None, time.perf_counter(), **fields)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The events of one round with an optimizer, and the folder of its pictures."""
    folder, events = tmp_path_factory.mktemp("pictures"), []
    session = Session(tiny.sd(), tiny.cpu(), planner.wish("attention-slicing"))
    with gauge() as looking:
        work(task(folder), events.append, looking, lambda load, request: Opened(session, 1.0, 2.0))
    return events, folder


def of_kind(events, kind):
    return [event for event in events if event["event"] == kind]


def test_events_come_in_the_order_in_which_things_happen(told):
    events, _ = told
    kinds = [event["event"] for event in events]
    assert kinds == ["opened", "first", "warmup", "run", "run", "measured"]
    assert json.loads(json.dumps(events)) == events, "every event goes through JSON unharmed"


def test_opening_tells_the_plan_its_proof_and_the_machine(told):
    (opened,) = of_kind(told[0], "opened")
    assert (opened["load_seconds"], opened["open_seconds"]) == (1.0, 2.0)
    assert opened["written"] == "attention-slicing"
    assert [status["engaged"] for status in opened["statuses"]] == [True]
    assert opened["request"]["guidance"] is not None, "settled"
    assert opened["threads"] == torch.get_num_threads()
    assert opened["environment"]["torch"] == torch.__version__


def test_a_runs_stages_are_within_its_time_on_the_wall(told):
    for run in of_kind(told[0], "run"):
        total = run["seconds"]["total"]
        stages = {stage: seconds for stage, seconds in run["seconds"].items() if stage != "total"}
        assert set(stages) == {"text", "denoise", "decode"}
        assert 0 < sum(stages.values()) <= total
        assert run["images"] == 2
        assert run["evaluations"] >= 2 * 2, "two batches of two steps"


def test_each_run_has_seeds_of_its_own_and_takes_turns_with_the_prompts(told):
    events, folder = told
    pictures = [picture for run in of_kind(events, "run") for picture in run["pictures"]]
    assert [(one["seed"], one["prompt"]) for one in pictures] == [
        (7, "a cat"), (8, "a cat"), (9, "a dog"), (10, "a dog"),
    ]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:06d}.png" for i in range(4)]
    record, _ = metadata.read(folder / "000002.png")
    assert (record.seed, record.prompt) == (9, "a dog")


def test_memory_is_told_of_the_process_and_not_of_a_card_that_is_not_there(told):
    run = of_kind(told[0], "run")[-1]
    assert run["peaks"].keys() == {"process_bytes"}
    assert run["peaks"]["process_bytes"] > 2**20
    assert run["energy_joules"] is None
    (measured,) = of_kind(told[0], "measured")
    assert measured["utilisation"] is None
    assert all(size > 2**20 for _, size in measured["timeline"])


@given(st.integers(0, MAX_SEED), st.integers(1, 9), st.integers(0, 99))
def test_no_two_runs_draw_the_same_picture(seed, count, index):
    one = task("x", request={**REQUEST, "seed": seed, "count": count})
    these, next_ones = one.asked(index).seeds(), one.asked(index + 1).seeds()
    assert not set(these) & set(next_ones)
    assert one.asked(index) == one.asked(index), "and the same in every plan"


@pytest.mark.parametrize(
    ("times", "expected"),
    [([1.0], False), ([2.0, 1.0], False), ([1.0, 1.04], True), ([1.04, 1.0], True), ([1.0, 1.0, 1.2], False)],
)
def test_two_runs_within_5_percent_are_steady(times, expected):
    assert steady(times) is expected


def test_warming_up_ends_at_its_cap(tmp_path):
    events, session = [], Session(tiny.sd(), tiny.cpu())
    work(task(tmp_path, warmups=0, runs=1), events.append, gauge(), lambda load, request: Opened(session, 0.0, 0.0))
    assert [event["event"] for event in events] == ["opened", "first", "run", "measured"]


@given(st.lists(st.integers(0, 2**40), max_size=3000))
def test_a_timeline_is_short_and_keeps_the_highest_point(sizes):
    looking = gauge(points=[(0.02 * i, size) for i, size in enumerate(sizes)])
    line = looking.timeline()
    assert len(line) <= MOST_POINTS
    assert [at for at, _ in line] == sorted(at for at, _ in line)
    assert max((size for _, size in line), default=0) == max(sizes, default=0)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def failing(error):
    def do(task, tell):
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (DidNotEngage("it shows\n no effect"), "DidNotEngage", 1),
        (OutOfMemory("too large"), "OutOfMemory", 6),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "OutOfMemory", 6),
    ],
)
def test_a_failure_with_a_name_is_told_in_one_line(error, kind, code):
    events = []
    answered(task("x"), events.append, failing(error))
    (event,) = events
    assert (event["event"], event["kind"], event["exit_code"]) == ("failed", kind, code)
    assert "\n" not in event["message"]


def test_a_failure_without_a_name_ends_the_process():
    with pytest.raises(RuntimeError, match="ours"):
        answered(task("x"), lambda event: None, failing(RuntimeError("a mistake of ours")))


def test_a_session_is_closed_whatever_happens(tmp_path):
    session = Session(tiny.sd(), tiny.cpu(), planner.wish("attention-slicing"))

    def tell(event):
        if event["event"] == "run":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        work(task(tmp_path), tell, gauge(), lambda load, request: Opened(session, 0.0, 0.0))
    assert session._undo is None


def test_prints_of_libraries_are_kept_out_of_the_lines():
    script = (
        "import os, subprocess\nfrom safelight.measure import worker\n"
        "with worker.private_output() as out:\n"
        "    print('a library'); os.write(1, b'a C library'); subprocess.run(['echo', 'a child'])\n"
        "    print('{}', file=out)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "{}\n"
    for said in ("a library", "a C library", "a child"):
        assert said in ran.stderr


def test_opening_tells_reading_the_model_from_all_else(folder):
    from safelight.request import Request

    load = {"model": str(folder), "vae": None, "loras": [], "config_folder": None, "allow_pickle": False}
    load |= {"optimize": "attention-slicing", "without": [], "device": "cpu", "keep": [], "pictures": None}
    load |= dict.fromkeys(("goal", "vram", "max_seconds", "fidelity"))
    ready = worker.opened(load, Request("", width=32, height=32))
    with ready.session as session:
        assert session.plan.written == "attention-slicing"
        assert ready.load_seconds > 0
        assert ready.open_seconds > 0, "its smoke run"


# -- a card as NVML tells it -------------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


class Nvml:
    """Of a card that counts no energy."""

    NVMLError = NVMLError

    def __init__(self, used=()):
        self.used = list(used)

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid != "GPU-12":
            raise NVMLError
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return type("Memory", (), {"used": self.used.pop(0)})

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return type("Rates", (), {"gpu": 60})

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        raise NVMLError("not supported")

    def nvmlDeviceGetPowerManagementLimit(self, handle):  # noqa: N802
        return 170_000

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle):  # noqa: N802
        return 200_000

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return b"580.1"


class Torch:
    """With one card, whose UUID is 12."""

    class version:  # noqa: N801
        hip = None

    class cuda:  # noqa: N801
        is_available = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 1)
        get_device_properties = staticmethod(lambda index: type("Properties", (), {"uuid": "12"}))


def test_a_card_is_found_by_its_uuid_and_says_what_it_knows():
    card = environment.card(Torch, "cuda:0", Nvml([100]))
    assert card.used_bytes() == 100
    assert card.energy_joules() is None, "this one counts none, which is not 0"
    assert card.facts() == {"driver": "580.1", "power_limit_watts": 170, "power_limit_default_watts": 200}


@pytest.mark.parametrize("asked", ["cpu", "cuda:1"])
def test_what_is_no_card_here_has_no_nvml(asked):
    assert environment.card(Torch, asked, Nvml()) is None


def test_a_cards_memory_counts_from_what_others_had_taken_before():
    card = environment.card(Torch, None, Nvml([500, 900, 700]))
    looking = Gauge("cpu", card, 0.0, before=card.used_bytes(), drawing=True)
    with looking.measuring():
        looking._ask_card(card)
    looking._ask_card(card)
    assert looking.peaks == {"device_bytes": 400}
    assert looking.busy == [0.6], "asked while a measured run was under way"


def test_the_environment_names_no_person_no_machine_and_no_folder():
    import getpass
    import platform
    from pathlib import Path

    found = environment.facts(tiny.cpu(), torch, None)
    said = " ".join(map(str, found.values()))
    assert {"torch", "diffusers", "threads", "cores", "processor", "device_name", "memory_bytes"} <= found.keys()
    assert platform.node() not in said.split()
    assert str(Path.home()) == "/" or str(Path.home()) not in said
    assert getpass.getuser() not in said.split()
