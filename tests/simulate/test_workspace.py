"""What kernels take for themselves is what was read off their allocations, and is never less than nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight.probe import blueprint
from safelight.simulate.fake import fake
from safelight.simulate.workspace import NONE, Workspace, compiled, kept, workspace

MIB = 2**20
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def tensor(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def convolution(device, pictures, inner, outer, side, kernel, **kind):
    image, weight = tensor(pictures, inner, side, side, **kind), tensor(outer, inner, kernel, kernel, **kind)
    return workspace(device, "convolution", [image, weight], [tensor(pictures, outer, side, side, **kind)])


# (pictures, channels in, channels out, side, kernel, dtype, layout), MiB before, through and after the result: as
# malloc was asked for them on a CPU with avx512_bf16, 2 threads
READ_OFF = [
    ((1, 512, 512, 64, 3), {}, (17.00, 8.00, 0)),
    ((1, 256, 128, 256, 3), {}, (65.13, 32.00, 0)),
    ((1, 128, 3, 256, 3), {}, (32.07, 4.00, 0)),
    ((2, 4, 320, 64, 3), {}, (0, 10.00, 0)),
    ((1, 512, 512, 64, 3), {"layout": LAST}, (0, 0, 9.00)),
    ((1, 512, 512, 64, 3), {"dtype": torch.bfloat16}, (8.50, 4.00, 0)),
    ((2, 640, 640, 32, 1), {"dtype": torch.bfloat16}, (8.28, 2.50, 0)),
    ((2, 320, 320, 64, 3), {"dtype": torch.bfloat16, "layout": LAST}, (0, 0, 1.76)),
]


@pytest.mark.parametrize(("sizes", "kind", "mib"), READ_OFF, ids=str)
def test_a_convolution_takes_what_was_read_off(sizes, kind, mib):
    found = convolution("cpu", *sizes, **kind)
    assert [found.before / MIB, found.through / MIB, found.after / MIB] == pytest.approx(mib, abs=0.1)


def test_each_thread_sums_up_the_picture_it_is_at():
    sums = [convolution("cpu", n, 64, 64, 32, 1, dtype=torch.bfloat16) for n in (1, 2, 4)]
    copies = [n * 64 * 32 * 32 * 2 + 64 * 64 * 2 for n in (1, 2, 4)]
    pictures = [(one.before - copied) / (4 * 64 * 32 * 32) for one, copied in zip(sums, copies, strict=True)]
    assert pictures == [1, 2, 2]


def test_what_is_contiguous_is_normalized_without_a_copy():
    image, rows = tensor(2, 64, 32, 32), tensor(2, 64, 320).transpose(1, 2)
    assert workspace("cpu", "native_layer_norm", [rows], [rows]) == Workspace(through=2 * 64 * 320 * 4)
    assert workspace("cpu", "native_layer_norm", [rows.contiguous()], [rows]) == NONE
    assert workspace("cuda", "native_group_norm", [image], [image]) == NONE
    last = tensor(2, 64, 32, 32, layout=LAST)
    assert workspace("cuda", "native_group_norm", [last], [image]) == Workspace(through=2 * 64 * 32 * 32 * 4)
    assert workspace("cpu", "native_group_norm", [last], [last]) == NONE


@pytest.mark.parametrize(("device", "stays"), [("cpu", True), ("cuda", False)])
def test_a_normalized_picture_stays_channels_last_on_a_cpu_alone(device, stays):
    made = fake(replace(blueprint.of_known("sd15"), parts={}), device=device)
    with made.active():
        image = torch.empty(2, 8, 4, 4).contiguous(memory_format=LAST)
        normed = torch.nn.functional.group_norm(image, 2)
    assert normed.is_contiguous(memory_format=LAST) == stays


BYTES = st.integers(0, 2**40)


@given(BYTES, BYTES, BYTES, BYTES)
def test_the_worst_moment_is_never_below_any(before, through, after, made):
    most = Workspace(before, through, after).most(made)
    assert most >= max(before + through, through + after + made, made)
    assert NONE.most(made) == made


@given(BYTES, BYTES)
def test_malloc_keeps_more_of_more_and_a_card_nothing(few, more):
    assert kept("cpu", min(few, more)) <= kept("cpu", max(few, more)) <= 64 * MIB
    assert kept("cuda", few) == 0


def test_kernels_are_compiled_for_convolutions_and_for_products_in_16_bits():
    half, single = ([tensor(64, 64, dtype=dtype)] * 2 for dtype in (torch.bfloat16, torch.float32))
    assert compiled("mm", single) is None
    assert compiled("add", half) is None
    assert compiled("mm", half) == compiled("mm", list(half))
    assert compiled("mm", half) != compiled("mm", [tensor(64, 32, dtype=torch.bfloat16), half[0]])
    assert compiled("convolution", [tensor(1, 3, 8, 8), tensor(4, 3, 3, 3)]) is not None
