"""What is told of rows: made of the rows that they reach, and of no others, they are the rows of the whole."""

import pytest
import tiny_vaes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from safelight.vae.graph import record
from safelight.vae.passes import rows_of
from safelight.vae.rows import row_of

HEIGHT, WIDTH = 12, 6


class Doing(nn.Module):
    def __init__(self, run) -> None:
        super().__init__()
        parts = [cell.cell_contents for cell in run.__closure__ or ()] if hasattr(run, "__closure__") else []
        self.run, self.parts = run, nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def forward(self, x):
        return self.run(x)


def with_values(module: nn.Module, x: torch.Tensor):
    """The recorded module's rows, and the value of every node."""
    rows = rows_of(record(module, x))
    return rows, tiny_vaes.values_of(rows.graph, module, x)


def check(rows, values, node, a: int, b: int) -> None:
    row = rows.row[node]

    def read(wanted):
        if wanted not in row.reach:
            return values[wanted]
        reach = row.reach[wanted]
        first, last = reach.rows(a, b)
        assert 0 <= first < last <= wanted.shape[reach.axis], f"{node} reaches rows {first} to {last} of {wanted}"
        return values[wanted].narrow(reach.axis, first, last - first).clone()

    with torch.no_grad():
        made = row.run(read, a, b)
    torch.testing.assert_close(made, values[node].narrow(row.axis, a, b - a), rtol=1e-5, atol=1e-5)


def spans(height: int):
    return st.tuples(st.integers(0, height - 1), st.integers(1, height)).map(lambda s: (s[0], max(s[0] + 1, s[1])))


@st.composite
def convolutions(draw):
    """(layer, height) of any kernel, stride, padding and dilation that leave a row, none of them of padding alone."""
    size, step = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    torch.manual_seed(0)
    if draw(st.booleans()):
        pad, size = draw(st.integers(0, size - 1)), max(size, step)
        return nn.ConvTranspose2d(2, 3, (size, 1), (step, 1), (pad, 0)), draw(st.integers(size, 20))
    apart = draw(st.integers(1, 3))
    reach = (size - 1) * apart
    layer = nn.Conv2d(2, 3, (size, 1), (step, 1), (draw(st.integers(0, reach)), 0), (apart, 1))
    return layer, draw(st.integers(reach + 1, 20))


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.data())
def test_a_convolution_s_rows(case, data):
    layer, height = case
    found = with_values(layer, torch.randn(1, 2, height, 3))
    node = found[0].graph.output
    check(*found, node, *data.draw(spans(node.shape[2])))


def doing(run):
    return lambda: (Doing(run), (1, 8, HEIGHT, WIDTH))


def layer(module, *shape: int):
    return lambda: (module(), shape or (1, 8, HEIGHT, WIDTH))


VIDEO = (1, 4, 3, HEIGHT, WIDTH)
OPERATORS = {
    "silu": layer(nn.SiLU),
    "sum with itself scaled": doing(lambda x: x + 2 * x),
    "sum over channels": doing(lambda x: x / x.pow(2).mean(1, keepdim=True).sqrt()),
    "norm over channels": doing(lambda x: F.normalize(x, dim=1)),
    "softmax over channels": doing(lambda x: x.softmax(1)),
    "layer norm": doing(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)),
    "nearest twice": doing(lambda x: F.interpolate(x, scale_factor=2.0)),
    "nearest three times": doing(lambda x: F.interpolate(x, scale_factor=3.0)),
    "nearest of frames": lambda: (Doing(lambda x: F.interpolate(x, scale_factor=(2.0, 2.0, 2.0))), VIDEO),
    "padding below": doing(lambda x: F.pad(x, (0, 1, 0, 1))),
    "padding above": doing(lambda x: F.pad(x, (2, 0, 5, 0))),
    "padding of columns alone": doing(lambda x: F.pad(x, (1, 1))),
    "replicated": doing(lambda x: F.pad(x, (1, 1, 2, 3), mode="replicate")),
    "pixel shuffle": doing(lambda x: F.pixel_shuffle(x, 2)),
    "pixel unshuffle": doing(lambda x: F.pixel_unshuffle(x, 2)),
    "unshuffled, means": doing(lambda x: F.pixel_unshuffle(x, 2).unflatten(1, (8, 4)).mean(2)),
    "shuffled by hand": doing(
        lambda x: x.view(1, 2, 2, 2, HEIGHT, WIDTH).permute(0, 1, 4, 2, 5, 3).reshape(1, 2, 2 * HEIGHT, 2 * WIDTH)
    ),
    "unshuffled by hand": doing(
        lambda x: x.view(1, 8, HEIGHT // 2, 2, WIDTH // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 32, 6, 3)
    ),
    "repeated": doing(lambda x: x.repeat_interleave(2, 1)),
    "cut and put together": doing(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "frames cut and put together": lambda: (Doing(lambda x: torch.cat([x[:, :, :1], x[:, :, -2:]], 2)), VIDEO),
    "stacked": doing(lambda x: torch.stack([x, -x], 2).flatten(1, 2)),
    "a frame of one": doing(lambda x: x.unsqueeze(2).squeeze(2)),
    "frames to the batch": lambda: (Doing(lambda x: x.permute(0, 2, 1, 3, 4).reshape(3, 4, HEIGHT, WIDTH)), VIDEO),
    "rows last": doing(lambda x: (x.transpose(2, 3) * 2).transpose(2, 3)),
    "conv over frames": lambda: (nn.Conv3d(4, 4, 3, padding=1), VIDEO),
    "conv in groups": lambda: (nn.Conv2d(8, 8, 3, padding=1, groups=4), (1, 8, HEIGHT, WIDTH)),
    "means of squares": doing(lambda x: F.avg_pool2d(x, 2)),
}


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
def test_an_operator_s_rows(make, data):
    torch.manual_seed(0)
    module, shape = make()
    found = with_values(module, torch.randn(shape))
    rows = found[0]
    for node in rows.graph.nodes[1:]:
        assert rows.row[node] is not None, f"{node} has no rows"
        check(*found, node, *data.draw(spans(node.shape[rows.row[node].axis])))


@settings(max_examples=4, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize("name", ["kl", "tiny", "dc"])
def test_every_operator_of_a_vae(name, part, data):
    vae = tiny_vaes.kl() if name == "kl" else tiny_vaes.FAMILIES[name][0]()
    channels = 3 if part == "encoder" else 32 if name == "dc" else 4
    found = with_values(getattr(vae, part), torch.randn(1, channels, 12, 8))
    rows = found[0]
    for node, row in rows.row.items():
        if row is not None and row.norm is None:
            check(*found, node, *data.draw(spans(node.shape[row.axis])))


GLOBAL = {
    "a sum over rows": lambda x: x.sum(2, keepdim=True),
    "a softmax over rows": lambda x: x.softmax(2),
    "a running sum": lambda x: x.cumsum(2),
    "rows and columns as one": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "a row picked": lambda x: x[:, :, 3],
    "rows turned around": lambda x: x.flip(2),
    "rows moved by one": lambda x: x[:, :, 1:] - 1,
    "put under each other": lambda x: torch.cat([x, x], 2),
}


@pytest.mark.parametrize("run", GLOBAL.values(), ids=GLOBAL)
def test_what_needs_all_rows_has_no_rows(run):
    rows, *_ = with_values(Doing(run), torch.randn(1, 8, HEIGHT, WIDTH))
    assert None in [rows.row[node] for node in rows.graph.nodes[1:]]


def test_an_operator_that_nobody_has_a_rule_for_has_no_rows():
    rows, *_ = with_values(Doing(lambda x: x.cumsum(1)), torch.randn(1, 8, HEIGHT, WIDTH))
    assert row_of(rows.graph.output, {rows.graph.inputs[0]: 2}) is None


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 1, 1), (3, 1, 1)])
def test_a_video_of_few_rows_is_convolved_as_torch_does(kernel):
    from safelight.vae.running import Exact

    torch.manual_seed(0)
    module = nn.Conv3d(4, 6, kernel, padding=[side // 2 for side in kernel], bias=kernel != (1, 1, 1)).eval()
    x = torch.randn(1, 4, 3, 12, 10)
    torch.testing.assert_close(Exact(module, strip_bytes=900)(x), module(x).detach(), rtol=0, atol=1e-5)
