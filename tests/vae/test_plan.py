"""What is told of plans: rows are made once, nothing is overwritten that is still read, less memory is more work."""

from itertools import pairwise

import numpy as np
import pytest
import tiny_vaes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.vae import passes, plan, search
from safelight.vae.fold import folded
from safelight.vae.graph import record
from safelight.vae.passes import hulls, nbytes, row_bytes
from safelight.vae.plan import Schedule

WORD = 4  # bytes of a float32; the place of every row is a multiple of it


def rows_of(part: str, widths: tuple[int, ...], height: int, width: int, shortcuts: bool = True, attention=True):
    module = getattr(tiny_vaes.kl(widths, attention=attention), part)
    return passes.rows_of(
        folded(record(module, torch.empty(1, 4 if part == "decoder" else 3, height, width)), shortcuts=shortcuts)
    )


@st.composite
def schedules(draw) -> Schedule:
    """Of any size, strips of any height, anything stored that may be stored."""
    part, attention = draw(st.sampled_from(["decoder", "encoder"])), draw(st.booleans())
    widths = draw(st.sampled_from([(8,), (8, 16), (16, 8, 8)]))
    least = 2 ** len(widths) if part == "encoder" else 1
    height, width = draw(st.integers(least, 40)), draw(st.integers(least, 9))
    rows = rows_of(part, widths, height, width, draw(st.booleans()), attention)
    stored = frozenset(node for node in rows.storable if draw(st.booleans()))
    return plan.schedule(rows, stored, draw(st.sampled_from([1, 1000, 4000, 20_000, 10**6])))


# -- strips ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(schedules())
def test_strips_of_every_pass_cover_every_row_once(made):
    for task in made.tasks:
        if task.order:
            row = made.rows.row[task.node]
            assert (task.strips[0][0], task.strips[-1][1]) == (0, task.node.shape[row.axis])
            assert all(before[1] == after[0] and after[0] < after[1] for before, after in pairwise(task.strips))


@settings(max_examples=20, deadline=None)
@given(schedules())
def test_no_convolution_makes_a_row_twice_in_a_pass_or_leaves_one_out_that_is_needed(made):
    for task in made.tasks:
        spans = hulls(made.rows, task, task.strips) if task.order else []
        for before, after in pairwise(spans):
            for node in task.order:
                if made.rows.row[node].heavy:
                    assert after[node].fresh >= before[node].high
                    assert after[node].low >= before[node].low
                    assert after[node].fresh == after[node].low or after[node].fresh == before[node].high
        for span in spans:
            for node in task.order:
                for given_, reach in made.rows.row[node].reach.items():
                    if span[node].fresh < span[node].high:
                        first, last = reach.rows(span[node].fresh, span[node].high)
                        assert span[given_].low <= first
                        assert last <= span[given_].high


@settings(max_examples=20, deadline=None)
@given(schedules())
def test_the_rows_of_the_last_strip_end_where_the_tensor_ends(made):
    for task in made.tasks:
        for span in hulls(made.rows, task, task.strips) if task.order else []:
            for node, hull in span.items():
                row = made.rows.row[node]
                height = node.shape[-2 if row is None else row.axis]
                assert 0 <= hull.low <= hull.fresh <= hull.high
                assert hull.high <= height or row is None


# -- the arena ---------------------------------------------------------------------------------------------------------


class Memory:
    """An arena in which each word knows whose row it holds."""

    def __init__(self, arena: plan.Arena, rows: passes.Rows) -> None:
        self.arena, self.rows = arena, rows
        self.words = np.full(-(-arena.nbytes // WORD), -1)
        self.numbers = {node: number for number, node in enumerate(arena.offsets)}

    def _each(self, node, low: int, high: int):
        size, start = row_bytes(node, self.rows.row[node]), self.arena.offsets[node]
        for row in range(low, high):
            begin = start + row * size
            assert start % 64 == 0 and begin + size <= self.arena.nbytes
            yield row * 1000 + self.numbers[node], slice(begin // WORD, (begin + size) // WORD)

    def write(self, node, low: int, high: int) -> None:
        for tag, words in self._each(node, low, high):
            self.words[words] = tag

    def read(self, node, low: int, high: int) -> None:
        for tag, words in self._each(node, low, high):
            assert (self.words[words] == tag).all(), f"row {tag // 1000} of {node} is overwritten before it is read"


def played(made: Schedule) -> int:
    """Every read and write of stored rows, in order. Returns how many rows were read."""
    memories = [Memory(arena, made.rows) for arena in made.arenas]
    of = {node: memory for memory in memories for node in memory.arena.offsets}
    count = 0
    for number, task in enumerate(made.tasks):
        for node in (task.node, *task.sources):
            if node in of and (node is not task.node or task.stored):
                assert of[node].arena.born <= number <= of[node].arena.last
        if not task.order:
            for source in task.sources:
                if source in of:
                    of[source].read(source, 0, source.shape[made.rows.row[source].axis])
            continue
        for (a, b), span in zip(task.strips, hulls(made.rows, task, task.strips), strict=True):
            for source in task.sources:
                if source in of:
                    of[source].read(source, span[source].low, span[source].high)
                    count += span[source].high - span[source].low
            if task.stored and task.node in of:
                of[task.node].write(task.node, a, b)
    return count


@settings(max_examples=50, deadline=None)
@given(schedules())
def test_no_row_is_overwritten_that_is_still_to_be_read(made):
    played(made)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_what_is_stored_is_written_over_what_was_read(part):
    """Which is what the arena is for: it is smaller than all that lies in it."""
    side = 32 if part == "decoder" else 64
    rows = rows_of(part, (8, 16), side, 8)
    made = plan.schedule(rows, frozenset(rows.storable), 4000)
    assert played(made) > 0
    largest = max(made.arenas, key=lambda arena: arena.nbytes)
    assert largest.nbytes < 0.9 * sum(map(nbytes, largest.offsets))


def test_a_clobbered_row_would_be_found():
    """The player itself: with every tensor at the arena's beginning it must object."""
    rows = rows_of("decoder", (8, 16), 32, 8)
    made = plan.schedule(rows, frozenset(rows.storable), 4000)
    arenas = tuple(
        plan.Arena(dict.fromkeys(arena.offsets, 0), arena.nbytes, arena.born, arena.last) for arena in made.arenas
    )
    with pytest.raises(AssertionError, match="overwritten before it is read"):
        played(Schedule(made.rows, made.tasks, made.last, arenas, made.loads, made.peak_bytes, made.work))


# -- from the fastest to the smallest ----------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(["decoder", "encoder"]), st.integers(8, 40), st.integers(8, 20))
def test_a_plan_of_fewer_bytes_has_more_work(part, height, width):
    found = search.plans(rows_of(part, (8, 16), height, width), 4000)
    assert all(less.peak_bytes < more.peak_bytes and less.work > more.work for less, more in pairwise(found))


def test_a_large_picture_can_be_decoded_in_a_third_of_what_storing_everything_takes():
    found = search.plans(rows_of("decoder", (8, 16, 16), 64, 64), 2**16)
    assert found[0].peak_bytes < found[-1].peak_bytes / 3


def test_lower_strips_take_fewer_bytes_and_store_the_same():
    made = search.plans(rows_of("decoder", (8, 16), 64, 64), 2**18)[0]
    lower = search.with_strips(made, 2**14)
    assert lower.stored == made.stored
    assert lower.peak_bytes < made.peak_bytes


def test_without_norms_one_pass_does_it_all():
    rows = passes.rows_of(folded(record(tiny_vaes.taesd().decoder, torch.empty(1, 4, 16, 16))))
    (made,) = search.plans(rows, 4000)
    (task,) = made.tasks
    assert (task.node, made.arenas, len(task.strips) > 1) == (rows.graph.output, (), True)


def test_attention_is_counted_and_grows_with_the_square_of_the_latents():
    decoder = tiny_vaes.kl((8, 16)).decoder

    def attention(side: int) -> float:
        graph = record(decoder, torch.zeros(1, 4, side, side))
        return sum(plan._work(passes.rows_of(graph), n) for n in graph.nodes if n.op == "scaled_dot_product_attention")

    assert attention(16) == 2 * 16 * 256**2
    assert attention(32) == 16 * attention(16)
