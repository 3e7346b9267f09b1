"""Traces are kept for the next process, and for nothing but what they were made of."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from safelight.optimizers import OPTIMIZERS
from safelight.optimizers.registry import Fidelity, Registry, Stage
from safelight.planner import Forecast
from safelight.simulate import shelf
from safelight.simulate.cost import Weights
from safelight.simulate.shelf import Shelf
from safelight.simulate.trace import Trace, Work
from tests import tiny

TRACED = Trace({Work("matmul", "float32", 8, 16): 3}, 5, 100, {"cpu": 7, "cuda": 0}), Weights(40, 8, (16, 16))
DTYPE = OPTIMIZERS["dtype"], OPTIMIZERS["dtype"].defaults()


def asked(folder, **changes):
    """A forecast in a process that has just begun."""
    made = tiny.forecast(tiny.sd(), tiny.cpu(), width=64, height=64)
    return Forecast(made.blueprint, replace(made.target, **changes), made.rates, traces=folder)


def looks(forecast):
    """How often it runs a part."""
    seen = Counter()
    look = forecast._look
    forecast._look = lambda name, shown: seen.update([name]) or look(name, shown)
    return seen


def test_the_next_process_predicts_the_same_and_runs_nothing(tmp_path):
    first = asked(tmp_path)
    before = first.cost([DTYPE])
    first.keep()
    second = asked(tmp_path)
    seen = looks(second)
    assert second.cost([DTYPE]) == before and not seen and not second._fakes


@pytest.mark.parametrize("change", [{"width": 128}, {"batch_size": 2}, {"guided": False}, {"dtype": "bfloat16"}])
def test_another_shape_is_looked_at_anew(tmp_path, change):
    first = asked(tmp_path)
    first.cost()
    first.keep()
    second = asked(tmp_path, **change)
    seen = looks(second)
    assert second.cost() == asked(None, **change).cost() and seen["unet"] == 1


def test_a_model_with_another_config_is_looked_at_anew(tmp_path):
    first = asked(tmp_path)
    first.cost()
    first.keep()
    second = asked(tmp_path)
    unet = second.blueprint.parts["unet"]
    changed = replace(unet, config={**unet.config, "layers_per_block": 2})
    second.blueprint = replace(second.blueprint, parts={**second.blueprint.parts, "unet": changed})
    seen = looks(second)
    second.cost()
    assert seen["unet"] == 1


def test_a_change_of_the_program_forgets_them(tmp_path, monkeypatch):
    before = Shelf(tmp_path, {}).path
    monkeypatch.setattr(shelf, "_stamp", lambda: [["forecast.py", 1, 2]])
    assert Shelf(tmp_path, {}).path != before


def test_what_anothers_optimizer_does_is_not_kept(tmp_path):
    registry = Registry()

    @registry.add(
        stage=Stage.LAYOUT,
        slot="own",
        fidelity=Fidelity.EXACT,
        source="here",
        fits=lambda target: None,
        traced=("denoiser",),
    )
    def own(pipe, target):
        """Does nothing."""
        yield None

    first = asked(tmp_path)
    first.cost([(registry["own"], {})])
    first.keep()
    second = asked(tmp_path)
    seen = looks(second)
    second.cost([(registry["own"], {})])
    assert seen == {"unet": 1}


def test_a_damaged_file_is_no_file_and_is_written_anew(tmp_path):
    kept = Shelf(tmp_path, {})
    for damage in (b"\xff", b"[]", b'{"a": [1]}', b'{"a": [[[1]], 1, 1, {}, [1, 1, []]]}', b"{"):
        kept.path.write_bytes(damage)
        fresh = Shelf(tmp_path, {})
        assert fresh.find("a") is None
    fresh.put("a", TRACED)
    fresh.keep()
    assert Shelf(tmp_path, {}).find("a") == TRACED


def test_the_oldest_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "KEEP", 2)
    for number in range(4):
        one = Shelf(tmp_path, {"number": number})
        one.put("a", TRACED)
        one.keep()
    assert len(list(tmp_path.iterdir())) == 2 and Shelf(tmp_path, {"number": 3}).find("a") == TRACED


def test_a_folder_that_cannot_be_written_loses_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    one = Shelf(tmp_path / "file" / "below", {})
    one.put("a", TRACED)
    one.keep()
    assert one.find("a") == TRACED


def test_without_a_folder_nothing_is_kept():
    one = Shelf(None, {})
    one.put("a", TRACED)
    one.keep()
    assert one.path is None and one.find("a") == TRACED and Shelf(None, {}).find("a") is None


def test_the_file_is_small(tmp_path):
    first = asked(tmp_path)
    first.cost([DTYPE])
    first.keep()
    assert first.shelf.path.stat().st_size < 200_000 and json.loads(first.shelf.path.read_text())
