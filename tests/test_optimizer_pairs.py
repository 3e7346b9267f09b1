"""Every pair that may be combined is applied together, draws, and is undone; so are the largest allowed stacks."""

from itertools import combinations

import pytest
import tiny
import torch
from test_optimizers import BATCH, WRITTEN, draw

from safelight.optimizers import OPTIMIZERS, conflicts
from safelight.planner import wish
from safelight.session import Session

pytestmark = pytest.mark.slow
PAIRS = [
    (kind, *pair)
    for kind in tiny.PIPELINES
    for pair in combinations(sorted(OPTIMIZERS), 2)
    if conflicts.clash(*pair, {name: OPTIMIZERS[name].defaults() for name in pair}) is None
]


@pytest.fixture(scope="module")
def pipes():
    return {kind: make() for kind, make in tiny.PIPELINES.items()}


def written(names):
    return ",".join(WRITTEN.get(name, name) for name in names)


def fits(pipe, names, batch):
    """What of the names fits alone, asked for as the contract asks for it."""
    from safelight.errors import DoesNotApply, UsageError
    from safelight.optimizers import target_of
    from safelight.planner import plan

    target = target_of(pipe, tiny.cpu(), width=32, height=32, batch_size=batch)
    found = []
    for name in names:
        try:
            plan(target, wish(written([name])))
        except (DoesNotApply, UsageError):
            continue
        found.append(name)
    return found


def check(pipe, names, batch=None):
    batch = batch or max(BATCH.get(name, 1) for name in names)
    if fits(pipe, names, batch) != list(names):
        pytest.skip("one of them does not fit")
    plain = draw(pipe, batch)
    with Session(pipe, tiny.cpu(), wish(written(names)), width=32, height=32, batch_size=batch) as session:
        assert {status.name for status in session.status() if status.engaged} == set(names)
        assert torch.isfinite(draw(pipe, batch)).all()
        # what is compiled once must not be compiled anew for every call
        assert not [status for status in session.status() if "came later" in status.evidence]
    assert torch.equal(draw(pipe, batch), plain)


@pytest.mark.parametrize(("kind", "first", "second"), PAIRS)
def test_a_pair_that_may_be_combined_draws_and_is_undone(pipes, kind, first, second):
    check(pipes[kind], (first, second))


@pytest.mark.parametrize("first", sorted(OPTIMIZERS))
@pytest.mark.parametrize("kind", list(tiny.PIPELINES))
def test_all_that_an_optimizer_may_be_combined_with_draws_together_and_is_undone(pipes, kind, first):
    stack = []
    for name in fits(pipes[kind], [first, *(name for name in sorted(OPTIMIZERS) if name != first)], batch=2):
        options = {other: OPTIMIZERS[other].defaults() for other in (*stack, name)}
        if next(conflicts.clashes(options), None) is None:
            stack.append(name)
    if first not in stack:
        pytest.skip(f"{first} does not fit")
    check(pipes[kind], tuple(stack), batch=2)
