"""How often the model is asked is known before a run, and only what a prediction is of is kept beside it."""

import pytest
import tiny
import torch
from PIL import Image

import safelight
from safelight.optimizers.target import target_of
from safelight.request import Request
from safelight.run import generate as run
from safelight.run.expected import Expected
from safelight.run.settling import settle
from safelight.sampling.checkpoint import Checkpoint
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedulers import CLASSES
from safelight.simulate.cost import PHASES, Phase
from safelight.simulate.measurements import Store

SIDES = {"width": 32, "height": 32}
FORESEEN = [sampler.label for sampler in SAMPLERS if sampler.evaluations(1) is not None]
NOISE_PREDICTING = [name for name, row in CLASSES.items() if not row.flow]


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """A picture to begin from."""
    path = tmp_path_factory.mktemp("begin") / "begin.png"
    Image.effect_noise((32, 32), 80).convert("RGB").save(path)
    return str(path)


def expected(pipe):
    """Without measuring the machine."""
    target = target_of(pipe, tiny.cpu(), **SIDES)
    return Expected(pipe, target, "tiny", tiny.forecast(pipe, tiny.cpu(), **SIDES))


def told_and_counted(pipe, **fields):
    """(evaluations that are predicted, evaluations that were made)"""
    request = settle(pipe, Request("a cat", seed=1, **SIDES, **fields), {}, Checkpoint.of(pipe))
    counted = []
    hook = (pipe.unet if hasattr(pipe, "unet") else pipe.transformer).register_forward_hook(
        lambda *_: counted.append(1)
    )
    try:
        list(run.pictures(pipe, request, tiny.cpu(), Checkpoint.of(pipe)))
    finally:
        hook.remove()
    return expected(pipe).cost(request, ()).steps, len(counted)


@pytest.fixture(scope="module")
def small():
    return tiny.sd()


@pytest.mark.filterwarnings("ignore:the DDIM schedule takes 8 steps")
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("sampler", FORESEEN)
def test_evaluations_are_predicted(small, sampler, steps):
    told, counted = told_and_counted(small, sampler=sampler, steps=steps)
    assert told == counted


@pytest.mark.parametrize("sampler", FORESEEN)
def test_evaluations_of_both_passes_are_predicted(small, sampler):
    told, counted = told_and_counted(small, sampler=sampler, steps=4, hires="1.5", hires_steps=3, hires_denoise=0.6)
    assert told == counted


@pytest.mark.parametrize("sampler", FORESEEN)
def test_evaluations_from_a_picture_are_predicted(small, sampler, begin):
    told, counted = told_and_counted(small, sampler=sampler, steps=6, init=begin, denoise=0.75)
    assert told == counted


@pytest.mark.parametrize("sampler", NOISE_PREDICTING)
def test_evaluations_of_diffusers_own_classes_are_predicted(small, sampler):
    told, counted = told_and_counted(small, sampler=sampler, steps=7)
    assert told == counted


@pytest.mark.parametrize("fields", [{}, {"sampler": "Heun"}, {"sampler": "DPM++ SDE", "hires": "2"}], ids=str)
def test_evaluations_of_a_flow_matching_model_are_predicted(fields):
    told, counted = told_and_counted(tiny.flux(), steps=3, **fields)
    assert told == counted


def test_a_second_pass_that_draws_nothing_anew_is_a_decode_alone(small):
    told, counted = told_and_counted(small, sampler="Euler", steps=3, hires="1.5", hires_denoise=0.0)
    assert told == counted == 3


def cost(pipe, **fields):
    request = settle(pipe, Request("a cat", seed=1, **SIDES, **fields), {}, Checkpoint.of(pipe))
    return expected(pipe).cost(request, ())


def test_two_passes_take_both_times_and_the_memory_of_the_larger(small):
    given = {"sampler": "Euler", "steps": 4}
    first, both = cost(small, **given), cost(small, **given, hires="2", hires_steps=2)
    larger = expected(small)
    request = settle(small, Request("", width=64, height=64, steps=2, sampler="Euler"), {}, Checkpoint.of(small))
    second = larger.cost(request, ())
    assert both.denoise.seconds == pytest.approx(first.denoise.seconds + second.denoise.seconds)
    assert both.decode.seconds == pytest.approx(second.decode.seconds)
    assert both.peak_bytes == second.peak_bytes > first.peak_bytes


def test_a_picture_to_begin_from_is_encoded_once_for_a_whole_batch(small, begin):
    given = {"sampler": "Euler", "steps": 4, "count": 2, "batch_size": 2}
    noise, picture = cost(small, **given), cost(small, **given, init=begin)
    alone = cost(small, sampler="Euler", steps=4, init=begin).decode.seconds - cost(small, steps=4).decode.seconds
    assert picture.decode.seconds - noise.decode.seconds == pytest.approx(alone)
    assert picture.denoise.seconds < noise.denoise.seconds * 1.01


def test_phases_one_after_the_other_add_up_and_the_higher_peak_counts():
    device_bound = Phase({"copy": 3.0}, 1.0, 10, 5, queued=True)
    host_bound = Phase({"copy": 1.0}, 2.0, 4, 20, queued=True, waiting=0.5)
    both = device_bound.then(host_bound)
    assert both.seconds == device_bound.seconds + host_bound.seconds == 5.5
    assert (both.peak_bytes, both.resident) == (24, 4)
    assert (both.idle.seconds, both.idle.live, both.idle.resident) == (0, 0, 4)


# -- what is kept ------------------------------------------------------------------------------------------------------


def kept(folder, cache, prompt="a cat", **fields):
    Store(cache / "measurements.sqlite").clear()
    request = Request(prompt, **SIDES, **{"steps": 3, "seed": 1, **fields})
    with safelight.load(str(folder), optimize="none", device="cpu") as session:
        settled = session.settle(request)
        session.predicted(settled)
        seconds = session.generate(settled).seconds
    return Store(cache / "measurements.sqlite").rows(), seconds


def test_a_row_is_of_evaluations(folder, cache):
    (row,), seconds = kept(folder, cache, sampler="Heun")
    assert row.steps == 5
    assert row.step_seconds == pytest.approx(seconds["denoise"] / 5)


@pytest.mark.parametrize(
    "fields",
    [{"hires": "1.5", "sampler": "Euler"}, {"sampler": "DPM adaptive"}, {"prompt": "a cat AND a dog"}],
    ids=str,
)
def test_what_the_prediction_is_not_of_is_not_kept(folder, cache, fields):
    rows, _ = kept(folder, cache, **fields)
    assert rows == []


def test_a_run_from_a_picture_is_not_kept(folder, cache, begin):
    assert kept(folder, cache, init=begin)[0] == []


def test_predicting_leaves_the_numbers_of_torch_alone(small):
    state = torch.get_rng_state()
    cost(small, sampler="DPM++ SDE", steps=4, hires="1.5")
    assert torch.equal(state, torch.get_rng_state())


def test_every_phase_of_two_passes_has_numbers(small):
    both = cost(small, sampler="Euler", steps=2, hires="1.5", hires_upscaler="Lanczos")
    assert all(both.phase(name).seconds > 0 and both.phase(name).peak_bytes > 0 for name in PHASES)
