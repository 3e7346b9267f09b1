"""Blocks that are alike run once in a trace, and the trace is the same as if each had run."""

from functools import partial

import pytest
import torch
from torch import nn

from safelight.probe import blueprint
from safelight.simulate import inputs
from safelight.simulate.fake import fake
from safelight.simulate.trace import record, tensors
from tests import tiny


def traces(run, given, part):
    """Without and with counting again what is alike."""
    return record(run, given), record(run, given, part)


def runs(part, run):
    """How often each class of module ran."""
    seen = []
    before = {cls: cls.forward for cls in map(type, part.modules())}
    try:
        for cls, forward in before.items():
            cls.forward = lambda self, *args, _forward=forward, **kwargs: (
                seen.append(type(self)) or _forward(self, *args, **kwargs)
            )
        run()
    finally:
        for cls, forward in before.items():
            cls.forward = forward
    return {cls.__name__: seen.count(cls) for cls in before}


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux1-dev", "sd35-medium", "wan21-1.3b"])
def test_the_trace_of_a_model_is_the_same(name):
    made = fake(blueprint.of_known(name), "bfloat16", "cuda")
    scene = inputs.Scene(512, 512, 1 if made.blueprint.frames == 1 else 9, 1, made.blueprint.guided)
    part = made.pipe.components[made.blueprint.denoiser_name]
    with made.active():
        given = inputs.denoiser_inputs(made.blueprint, scene, torch.bfloat16)
        plain, counted = traces(lambda: part(**given, return_dict=False), tensors(given), part)
    assert counted == plain


def test_of_a_video_vae_that_hands_a_list_of_what_it_remembers_to_its_blocks():
    made = fake(blueprint.of_known("wan21-1.3b"), "bfloat16", "cuda")
    scene = inputs.Scene(128, 128, 9, 1, True)
    part = made.pipe.components["vae"]
    with made.active():
        latents = inputs.latents(made.blueprint, scene, torch.bfloat16)
        plain, counted = traces(lambda: part.decode(latents, return_dict=False), [latents], part)
    assert counted == plain


class Block(nn.Module):
    """Two layers; `act` is what tells blocks apart."""

    def __init__(self, act=torch.nn.functional.silu, width=8):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(width, width), nn.Linear(width, width), act

    def forward(self, x, memory=None):
        if memory is not None:
            memory.append(x * 2)
        return self.second(self.act(self.first(x)))


class Stack(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, memory=None):
        for block in self.blocks:
            x = block(x, memory)
        return x


def in_a_trace(made, *args):
    """(the traces without and with, how often each class ran in the second)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        model = made()
        x = torch.empty(4, 8)
        plain = record(lambda: model(x, *(arg() for arg in args)), [x])
        counted = []
        ran = runs(model, lambda: counted.append(record(lambda: model(x, *(arg() for arg in args)), [x], model)))
    return plain, counted[0], ran


def test_blocks_that_are_alike_run_once():
    plain, counted, ran = in_a_trace(lambda: Stack(*(Block() for _ in range(5))))
    assert counted == plain and ran["Block"] == 1 and plain.flops == 5 * 2 * 2 * 4 * 8 * 8


def test_blocks_of_another_setting_are_not_alike():
    blocks = [torch.nn.functional.silu, torch.nn.functional.gelu, partial(torch.nn.functional.gelu), None]
    plain, counted, ran = in_a_trace(lambda: Stack(*(Block(act or nn.SiLU()) for act in blocks)))
    assert counted == plain and ran["Block"] == len(blocks)


def test_a_block_with_a_hook_runs():
    def hooked():
        stack = Stack(*(Block() for _ in range(3)))
        stack.blocks[1].register_forward_hook(lambda _module, _inputs, output: output * 2)
        return stack

    plain, counted, ran = in_a_trace(hooked)
    assert counted == plain and ran["Block"] == 2


def test_a_block_whose_forward_is_somebody_elses_runs():
    def patched():
        stack = Stack(*(Block() for _ in range(3)))
        stack.blocks[2].forward = lambda x, memory: x + 1
        return stack

    plain, counted, ran = in_a_trace(patched)
    assert counted == plain and ran["Block"] == 1


def test_blocks_that_fill_a_list_all_run():
    plain, counted, ran = in_a_trace(lambda: Stack(*(Block() for _ in range(3))), list)
    assert counted == plain and ran["Block"] == 3


def test_blocks_that_hand_on_what_they_were_given_all_run():
    class Through(Block):
        def forward(self, x, memory=None):
            super().forward(x, memory)
            return x

    plain, counted, ran = in_a_trace(lambda: Stack(*(Through() for _ in range(3))))
    assert counted == plain and ran["Through"] == 3


def test_results_that_are_parts_of_one_tensor_take_its_memory_once():
    class Halves(Block):
        def forward(self, x, memory=None):
            left, right = super().forward(torch.cat(x, 1) if isinstance(x, tuple) else x).chunk(2, 1)
            return left, right

    plain, counted, ran = in_a_trace(lambda: Stack(*(Halves() for _ in range(4))))
    assert counted == plain and ran["Halves"] == 2  # the first is given one tensor, the others two


def test_a_module_is_left_as_it_was():
    pipe = tiny.sd()
    before = {module: set(vars(module)) for module in pipe.unet.modules()}
    given = torch.randn(1, 4, 8, 8), torch.tensor(1), torch.randn(1, 5, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        record(lambda: pipe.unet(*given, return_dict=False), [], pipe.unet)
    assert {module: set(vars(module)) for module in pipe.unet.modules()} == before
