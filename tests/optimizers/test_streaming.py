"""The denoiser in blocks: which stay, which are copied in when, and what waits for what."""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import test_optimizers as contract
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from optimizers import off_placement
from safelight.errors import DoesNotApply, OutOfMemory, UsageError
from safelight.optimizers import OPTIMIZERS, streaming
from safelight.optimizers.registry import swapped
from safelight.optimizers.streaming import PlainMover, Stream, StreamMover, blocks_of, budget_bytes, split
from safelight.optimizers.target import denoiser, target_of
from safelight.optimizers.weights import Weights
from safelight.probe.device import Device

SIZES = st.lists(st.integers(1, 1000), min_size=2, max_size=60)
AHEAD = st.integers(1, 5)
CARD = Device("cuda", 1, "a card", 24 * 2**30, 20 * 2**30)


def at_once(sizes, resident, ahead):
    """Bytes on the device at each block call of two steps, by walking through them."""
    streamed = [i for i in range(len(sizes)) if i not in resident]
    stay = sum(sizes[i] for i in resident)
    return [
        stay + sum(sizes[streamed[(i + k) % len(streamed)]] for k in range(min(ahead + 1, len(streamed))))
        for i in range(len(streamed))
    ] or [stay]


# -- which blocks ------------------------------------------------------------------------------------------------------


@given(SIZES, st.integers(0, 500), st.integers(0, 40000), AHEAD)
def test_a_split_is_never_above_its_budget_or_says_the_least_that_would_do(sizes, other, budget, ahead):
    try:
        resident = split(sizes, other, budget, ahead)
    except OutOfMemory as error:
        assert "needs" in str(error)
        return
    assert other + max(at_once(sizes, resident, ahead)) <= budget
    assert sorted(set(resident)) == list(resident)


@given(st.integers(1, 100), st.integers(2, 60), st.integers(0, 500), st.integers(0, 8000), AHEAD)
def test_as_many_blocks_of_one_size_stay_as_fit(nbytes, count, other, budget, ahead):
    room = (budget - other) // nbytes
    if room >= count:
        expected = count
    elif room >= ahead + 1:
        expected = room - (ahead + 1)
    else:
        with pytest.raises(OutOfMemory):
            split([nbytes] * count, other, budget, ahead)
        return
    assert len(split([nbytes] * count, other, budget, ahead)) == expected


@given(SIZES, st.integers(0, 30000), st.integers(0, 10000), AHEAD)
def test_more_budget_never_keeps_fewer_blocks(sizes, budget, more, ahead):
    try:
        few = split(sizes, 0, budget, ahead)
    except OutOfMemory:
        return
    assert len(split(sizes, 0, budget + more, ahead)) >= len(few)


@given(st.integers(2, 60), st.integers(2, 60), AHEAD)
def test_streamed_blocks_are_spread_evenly_round_the_steps(count, room, ahead):
    try:
        resident = split([1] * count, 0, room, ahead)
    except OutOfMemory:
        return
    streamed = [i for i in range(count) if i not in resident]
    gaps = [after - before for before, after in pairwise([*streamed, *(i + count for i in streamed[:1])])]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_least_budget_is_said_and_is_enough():
    with pytest.raises(OutOfMemory, match=r"has 1\.0 GiB for the denoiser, and needs 5\.0 GiB at least"):
        split([2 * 2**30] * 4, 2**30, 2**30, 1)
    assert split([2 * 2**30] * 4, 2**30, 5 * 2**30, 1) == ()


def test_all_stay_where_all_fit():
    assert split([5, 1, 1], 2, 9, 1) == (0, 1, 2)


def test_blocks_are_found_in_the_order_they_run(pipe):
    model, ran = denoiser(pipe), []
    blocks = blocks_of(model)
    hooks = [b.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    contract.draw(pipe, steps=1)
    for hook in hooks:
        hook.remove()
    assert ran[: len(blocks)] == list(range(len(blocks)))
    assert len(blocks) == {"UNet2DConditionModel": 5, "FluxTransformer2DModel": 4}[type(model).__name__]


def test_without_a_figure_the_budget_is_what_is_free_less_a_reserve(unet_pipe):
    target = target_of(unet_pipe, CARD, width=1024, height=1024)
    assert budget_bytes(target, 0, 0) == 20 * 2**30 - 1536 * 2**20
    assert budget_bytes(target, 0, 2**30) == budget_bytes(target, 0, 0) + 2**30
    assert budget_bytes(replace(target, width=8, height=8), 0, 0) == 20 * 2**30 - 2**29
    assert budget_bytes(target, 0.5, 0) == 2**29


# -- when --------------------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """A mover that writes down what it is told, and does it."""

    names: list
    said: list = field(default_factory=list)
    inner: PlainMover = field(default_factory=lambda: PlainMover("cpu"))

    def __getattr__(self, word):
        def act(block):
            self.said.append(f"{word} {self.names.index(block)}")
            getattr(self.inner, word)(block)

        return act


def layers(count):
    return [Weights.of([nn.Linear(2, 2)]) for _ in range(count)]


def test_a_block_is_awaited_and_the_next_is_started_round_to_the_next_step():
    blocks = layers(3)
    mover = Recorder(blocks)
    stream = Stream(blocks, mover, ahead=1)
    for index in (0, 1, 2):
        stream.enter(index)
        stream.leave(index)
    assert mover.said == [
        *("copy_in 0", "wait 0", "copy_in 1", "release 0"),
        *("wait 1", "copy_in 2", "release 1"),
        *("wait 2", "copy_in 0", "release 2"),
    ]
    stream.close()
    assert mover.said[-1] == "release 0"
    assert not any(block.lent for block in blocks)


@given(st.integers(1, 8), AHEAD, st.lists(st.integers(0, 7), max_size=30))
def test_in_any_order_the_block_is_there_and_never_more_than_the_blocks_ahead(count, ahead, order):
    blocks = layers(count)
    stream = Stream(blocks, PlainMover("cpu"), ahead)
    for index in (i % count for i in order):
        stream.enter(index)
        assert blocks[index].lent
        assert sum(block.lent for block in blocks) <= ahead + 1
        stream.leave(index)
    stream.close()
    assert not any(block.lent for block in blocks)


# -- how they are copied -----------------------------------------------------------------------------------------------


class Clocked:
    """A card with two streams, on the CPU: writes down what is queued where, and who waits for whom."""

    def __init__(self):
        self.said, self.computing, self.events = [], Queue(self, "compute"), 0

    def Stream(self, device):  # noqa: N802
        return Queue(self, "side")

    def Event(self):  # noqa: N802
        self.events += 1
        return Mark(self, self.events)

    def current_stream(self, device):
        return self.computing

    @contextmanager
    def stream(self, queue):
        self.said.append(f"{queue.name} copies")
        yield


@dataclass
class Queue:
    card: Clocked
    name: str

    def wait_event(self, mark):
        self.card.said.append(f"{self.name} waits for {mark.what}")


@dataclass
class Mark:
    card: Clocked
    number: int
    what: str = ""

    def record(self, queue):
        self.what = f"{queue.name}'s {self.number}"


def test_copies_wait_for_the_memorys_last_use_and_computing_waits_for_the_copy():
    card, (block,) = Clocked(), layers(1)
    mover = StreamMover("cpu", card)
    home = block.now()
    mover.copy_in(block)
    mover.wait(block)
    mover.release(block)
    assert card.said == [
        "side waits for compute's 1",
        *["side copies"] * 2,
        "compute waits for side's 2",
    ]
    assert all(a is b for a, b in zip(block.now(), home, strict=True))


def test_a_block_that_is_released_unused_is_awaited_first():
    card, (block,) = Clocked(), layers(1)
    mover = StreamMover("cpu", card)
    mover.copy_in(block)
    assert all(torch.equal(a, b) for a, b in zip(block.now(), block.home, strict=True))
    mover.release(block)
    assert card.said[-1] == "compute waits for side's 2"


# -- the whole ---------------------------------------------------------------------------------------------------------


@contextmanager
def applied(pipe, device=None, **options):
    target = target_of(pipe, device or tiny.cpu(), width=32, height=32)
    known = OPTIMIZERS["streamed-blocks"]
    with ExitStack() as stack:
        yield known.enter(stack, pipe, target, {**known.defaults(), **options})


def tight(pipe, share=0.8):
    return share * Weights.of([denoiser(pipe)]).bytes / 2**30


@pytest.mark.parametrize("ahead", [1, 2])
def test_blocks_stream_through_give_the_same_picture_and_are_undone(pipe, ahead):
    plain, state = contract.draw(pipe), contract.snapshot(pipe)
    with applied(pipe, budget_gib=tight(pipe, 0.95), ahead=ahead) as proof:
        assert proof.evidence() == ""
        assert torch.equal(contract.draw(pipe), plain)
        said = proof.evidence()
        proof.begin(pipe)
        assert proof.evidence() == ""
        assert torch.equal(contract.draw(pipe), plain)
        assert proof.evidence().split(";")[1] == said.split(";")[1]
    assert "blocks stayed" in said
    assert contract.snapshot(pipe) == state
    assert torch.equal(contract.draw(pipe), plain)


def test_copies_are_counted_from_what_was_copied():
    pipe = tiny.flux()
    with applied(pipe, budget_gib=tight(pipe, 0.85)) as proof:
        contract.draw(pipe, steps=3)
        said = proof.evidence()
    streamed = int(said.split(" were copied")[0].rsplit(" ", 1)[1])
    assert f"{4 - streamed} of 4 blocks stayed" in said
    # one more than the calls: the first block of a step that does not come
    assert f"copied in {3 * streamed + 1} times" in said


def test_blocks_that_nobody_copies_give_no_evidence(pipe):
    with off_placement.OFF["streamed-blocks"](), applied(pipe, budget_gib=tight(pipe, 0.95)) as proof:
        contract.draw(pipe)
        assert proof.evidence() == ""


def test_a_run_that_breaks_off_leaves_no_block_behind(unet_pipe):
    plain, state = contract.draw(unet_pipe), contract.snapshot(unet_pipe)
    hook = unet_pipe.unet.up_blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with applied(unet_pipe, budget_gib=tight(unet_pipe, 0.95)) as proof:
        with pytest.raises(ZeroDivisionError):
            contract.draw(unet_pipe)
        hook.remove()
        proof.begin(unet_pipe)
        assert torch.equal(contract.draw(unet_pipe), plain)
        assert proof.evidence()
    assert contract.snapshot(unet_pipe) == state


def test_a_denoiser_that_fits_whole_needs_no_streaming(unet_pipe):
    with pytest.raises(DoesNotApply, match="the whole denoiser"), applied(unet_pipe, budget_gib=1.0):
        pass
    assert torch.equal(contract.draw(unet_pipe), contract.draw(tiny.sd()))


def test_a_budget_that_holds_no_two_blocks_is_refused_and_changes_nothing(unet_pipe):
    state = contract.snapshot(unet_pipe)
    with pytest.raises(OutOfMemory, match="at least"), applied(unet_pipe, budget_gib=1e-6):
        pass
    assert contract.snapshot(unet_pipe) == state


@pytest.mark.parametrize(("options", "words"), [({"budget_gib": -1.0}, "give GiB"), ({"ahead": 0}, "1 or more")])
def test_bad_options_are_refused(unet_pipe, options, words):
    known = OPTIMIZERS["streamed-blocks"]
    target = target_of(unet_pipe, CARD, width=32, height=32)
    assert known.fits(target, **known.defaults()) is None
    with pytest.raises(UsageError, match=words):
        known.fits(target, **{**known.defaults(), **options})


def test_with_a_fake_card_the_blocks_flow_through_its_second_stream(unet_pipe):
    card = Clocked()
    plain = contract.draw(unet_pipe)
    with (
        swapped(streaming, mover=lambda target: StreamMover("cpu", card)),
        applied(unet_pipe, budget_gib=tight(unet_pipe, 0.95)) as proof,
    ):
        assert torch.equal(contract.draw(unet_pipe), plain)
        assert proof.evidence()
    waits = [word for word in card.said if word.startswith("compute waits")]
    copies = [word for word in card.said if word.startswith("side waits")]
    assert len(waits) == len(copies) > 3
