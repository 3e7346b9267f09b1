"""The allocator's settings: what is asked of it, what shows, and what speaks against it. No card is needed."""

import pytest
import tiny

from safelight.errors import DoesNotApply
from safelight.optimizers import allocator, target_of
from safelight.planner import plan, wish


class FakeAllocator:
    """Segments made while expandable segments are on can grow; the others stay as they are."""

    def __init__(self):
        self.texts, self.segments = [], []

    def set_text(self, text):
        self.texts.append(text)

    def allocate(self, size):
        can_grow = "expandable_segments:True" in self.texts[-1] if self.texts else False
        self.segments.append({"total_size": size, "is_expandable": can_grow})

    def snapshot(self):
        return self.segments


def test_segments_that_can_grow_are_the_evidence_and_the_setting_is_put_back():
    fake = FakeAllocator()
    fake.allocate(2**20)
    fixture = allocator.with_expandable(fake.set_text, fake.snapshot, {})
    proof = next(fixture)
    assert proof.evidence() == ""  # what was there before does not count
    fake.allocate(4 * 2**20)
    assert proof.evidence() == "1 expandable segments hold 4 MiB"
    next(fixture, None)
    assert fake.texts == ["expandable_segments:True", "expandable_segments:False"]


def test_an_allocator_that_does_not_listen_is_no_evidence():
    fake = FakeAllocator()
    fixture = allocator.with_expandable(lambda text: None, fake.snapshot, {})
    proof = next(fixture)
    fake.allocate(2**20)
    assert proof.evidence() == ""
    next(fixture, None)


def test_what_the_environment_says_is_said_again():
    fake = FakeAllocator()
    fixture = allocator.with_expandable(
        fake.set_text, fake.snapshot, {"PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.8"}
    )
    next(fixture)
    next(fixture, None)
    assert fake.texts == [
        "garbage_collection_threshold:0.8,expandable_segments:True",
        "garbage_collection_threshold:0.8,expandable_segments:False",
    ]


@pytest.mark.parametrize(
    ("variables", "platform", "says"),
    [
        ({}, "linux", None),
        ({"PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.8"}, "linux", None),
        ({}, "win32", "on Linux alone"),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"},
            "linux",
            "PYTORCH_CUDA_ALLOC_CONF sets max_split_size_mb",
        ),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:128"}, "linux", "PYTORCH_ALLOC_CONF sets max_split_size_mb"),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, "linux", "has no segments"),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, "linux", "switches it on already"),
        ({"PYTORCH_ALLOC_CONF": "what is this"}, "linux", "mend or unset it"),
    ],
)
def test_what_speaks_against_expandable_segments(variables, platform, says):
    reason = allocator.why_not_expandable(variables, platform)
    assert (reason is None) if says is None else (says in reason)


@pytest.mark.parametrize(
    ("variables", "platform", "says"),
    [
        ({}, "linux", "default since 11.8"),
        ({}, "win32", "default since 12.2"),
        ({"CUDA_MODULE_LOADING": "LAZY"}, "linux", "nothing to set"),
        ({"CUDA_MODULE_LOADING": "EAGER"}, "linux", "unset it before you start"),
    ],
)
def test_lazy_modules_always_has_a_reason(variables, platform, says):
    assert says in allocator.why_not_lazy(variables, platform)


@pytest.mark.parametrize("name", ["expandable-segments", "lazy-modules"])
def test_both_need_cuda(unet_pipe, name):
    with pytest.raises(DoesNotApply, match="needs CUDA, this is cpu"):
        plan(target_of(unet_pipe, tiny.cpu(), width=32, height=32), wish(name))


def test_torch_takes_the_setting_by_some_name():
    import torch

    allocator.allocator_setter(torch)("expandable_segments:False")


@pytest.mark.gpu
def test_a_card_of_this_machine_gives_segments_that_can_grow():
    import torch

    fixture = allocator.with_expandable(allocator.allocator_setter(torch), torch.cuda.memory_snapshot, {})
    proof = next(fixture)
    block = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    assert "expandable segments" in proof.evidence()
    del block
    next(fixture, None)
