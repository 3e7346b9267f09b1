"""What is taken, what is left, and why."""

import pytest
import tiny

from safelight.errors import Conflict, DoesNotApply, UnknownName, UsageError
from safelight.optimizers import OPTIMIZERS, Fidelity, Registry, Stage, target_of
from safelight.planner import Wish, fitting, loading_dtype, plan, wish
from safelight.probe.device import Device

BF16_CPU = Device("cpu", 0, "a CPU with bfloat16", 2**34, 2**34, fast_dtypes=("float32", "bfloat16"))
OLD_CPU = Device("cpu", 0, "an old CPU", 2**34, 2**34)
A_CARD = Device("cuda", 0, "a card", 2**34, 2**34, (8, 9), ("float32", "bfloat16", "float16"))


@pytest.fixture(scope="module")
def small():
    return tiny.sd()


# the plan's text is for reading; a new optimizer changes it without being part of what is tested
SIX = Registry(
    {
        name: OPTIMIZERS[name]
        for name in ("attention-backend", "prompt-cache", "vae-slicing", "vae-tiling", "dtype", "channels-last")
    }
)


def made(pipe, written, device=BF16_CPU, without=(), registry=OPTIMIZERS, **size):
    forecast = tiny.forecast(pipe, device, **{"width": 32, "height": 32, **size})
    return plan(forecast.target, wish(written, without, registry), registry, forecast)


def taken(plan):
    return [choice.optimizer.name for choice in plan.choices]


def test_plain_is_the_default_and_every_optimizer_left_has_a_reason(small):
    plain = made(small, "")
    assert taken(plain) == []
    assert set(plain.left) == set(OPTIMIZERS)
    assert set(plain.left.values()) == {"not asked for"}


def test_auto_takes_what_pays_and_keeps_the_picture(small):
    assert taken(made(small, "auto", width=512, height=512, registry=SIX))[0] == "dtype"
    assert "dtype" not in taken(made(small, "auto", OLD_CPU, width=512, height=512, registry=SIX))


def test_auto_never_takes_what_may_change_the_picture(small):
    plan = made(small, "auto", width=128, height=128)
    assert all(choice.optimizer.fidelity < Fidelity.APPROXIMATE for choice in plan.choices)


def test_a_plan_that_is_left_to_us_tells_what_it_costs_beside_plain(small):
    plan = made(small, "auto", width=512, height=512)
    assert plan.cost.seconds <= plan.plain.seconds
    assert plan.cost.peak_bytes <= plan.budget_bytes


def test_the_plan_reads_as_reasons(small):
    plan = made(small, "auto,vae-tiling=16", width=128, height=128, registry=SIX)
    assert "+ vae-tiling=16,overlap=0.25 asked for" in "\n".join(plan.lines())
    assert plan.left["vae-slicing"] == "one picture at a time: there is nothing to slice"
    assert set(plan.left) | set(taken(plan)) == set(SIX)


def test_choices_stand_in_the_order_of_application(small):
    stages = [c.optimizer.stage for c in made(small, "vae-tiling=16,prompt-cache,dtype,channels-last").choices]
    assert stages == sorted(stages)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_without_keeps_an_optimizer_out(small, name):
    plan = made(small, "auto", without=[name], width=512, height=512, registry=SIX)
    assert "dtype" not in taken(plan)
    assert plan.left["dtype"] == "ruled out"


@pytest.mark.parametrize(
    ("written", "error", "says"),
    [
        ("vae-tilling", UnknownName, "unknown optimizer 'vae-tilling': did you mean vae-tiling"),
        ("vae-tiling.overlapp=1", UnknownName, "did you mean overlap"),
        ("vae-tiling=big", UsageError, "'tile_px' is 'big': give a whole number"),
        ("channels-last=1", UsageError, "channels-last takes no value"),
        ("dtype=float12", UnknownName, "did you mean float32"),
        ("attention-backend=flush", UnknownName, "did you mean flash"),
        ("vae-tiling=17", UsageError, "give a multiple of 2"),
        ("vae-tiling.overlap=1.5", UsageError, "give a share from 0"),
        ("prompt-cache=0", UsageError, "1 or more"),
        ("vae-slicing", DoesNotApply, "one picture at a time"),
        ("dtype=fp16", DoesNotApply, "150 times slower"),
        ("attention-backend=cudnn", DoesNotApply, "runs on cuda, not on cpu"),
        ("vae-tiling", DoesNotApply, "not larger than one tile of 64 px"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_what_to_do(small, written, error, says):
    with pytest.raises(error) as raised:
        made(small, written)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


def test_asked_for_and_ruled_out_at_once_is_a_conflict(small):
    with pytest.raises(Conflict, match="dtype is asked for and ruled out"):
        made(small, "dtype", without=["dtype"])


def test_a_pair_that_does_not_combine_is_a_conflict_that_names_what_does(small):
    with pytest.raises(
        Conflict, match=r"layerwise-casting and compile exclude each other: .*; keep: layerwise-casting,dtype"
    ):
        made(small, "layerwise-casting,dtype,compile")


def test_two_in_one_slot_are_a_conflict(small):
    registry = Registry()
    for name in ("one", "two"):

        def apply(pipe, target):
            """Does something."""
            yield

        apply.__name__ = name
        registry.add(stage=Stage.CACHE, fidelity=Fidelity.EXACT, source="", slot="same", fits=lambda t: None)(apply)
    target = target_of(small, BF16_CPU, width=32, height=32)
    with pytest.raises(Conflict, match="one and two exclude each other"):
        plan(target, Wish({"one": {}, "two": {}}), registry)


@pytest.mark.parametrize(
    ("written", "device", "dtype"),
    [
        ("", A_CARD, "float32"),
        ("auto", A_CARD, "float32"),
        ("dtype=auto", A_CARD, "bfloat16"),
        ("dtype", BF16_CPU, "bfloat16"),
        ("dtype", OLD_CPU, "float32"),
        ("dtype=fp16", A_CARD, "float16"),
        ("dtype=fp16", BF16_CPU, "float32"),
    ],
)
def test_weights_are_loaded_in_the_dtype_that_the_plan_wants(written, device, dtype):
    assert loading_dtype(wish(written), device) == dtype


def test_a_wish_may_be_text_a_list_or_a_mapping():
    same = [wish("auto,dtype=bf16"), wish(["auto", "dtype=bf16"]), wish({"auto": True, "torch_dtype": "bfloat16"})]
    assert same == [Wish({"dtype": {"value": "bfloat16"}}, auto=True)] * 3


def test_fitting_says_of_every_optimizer_whether_it_fits_and_if_not_why(small):
    found = fitting(target_of(small, BF16_CPU, width=32, height=32))
    assert list(found) == list(OPTIMIZERS)
    assert found["dtype"] is None
    assert found["vae-slicing"] == "one picture at a time: there is nothing to slice"
    assert all(why is None or "\n" not in why for why in found.values())
