"""Peak bytes are the kernel's own figure, or None: unmeasured is never 0."""

import pytest
import torch

from safelight.measure import memory

HAS_IT = memory.CLEAR.exists() and memory.PeakMemory("cpu").before is not None


@pytest.mark.skipif(not HAS_IT, reason="this system does not let a process reset its peak")
def test_the_peak_of_what_was_freed_again_is_seen_and_an_earlier_one_is_forgotten():
    earlier = torch.ones(64 * 2**20)  # 256 MiB
    del earlier
    watch = memory.PeakMemory("cpu")
    block = torch.ones(16 * 2**20)  # 64 MiB
    del block
    grown = watch.read() - watch.before
    assert 60 * 2**20 < grown < 100 * 2**20


def test_without_the_kernels_help_it_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "absent" / "clear_refs")
    assert memory.PeakMemory("cpu").read() is None


class Packed(torch.Tensor):
    """float32 to the outside, 8 bit numbers and a scale inside, as torchao's tensors are."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, shape, stride):
        return Packed(inner["numbers"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls(args[0].numbers, args[0].scale)  # detach, which a Parameter asks for


def test_a_packed_tensor_counts_what_it_holds_and_not_what_it_claims():
    from diffusers import ModelMixin

    module = ModelMixin()
    packed = Packed(torch.zeros(32, 32, dtype=torch.int8), torch.ones(32))
    module.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert module.get_memory_footprint() == 4 * 32 * 32
    assert memory.module_bytes(module) == 32 * 32 + 4 * 32


def test_a_storage_that_several_share_counts_once():
    layer, twin = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)
    twin.weight = layer.weight
    layer.register_buffer("view", layer.weight.data[:2])
    assert memory.module_bytes(torch.nn.Sequential(layer, twin)) == 4 * (64 + 8)
    assert memory.module_bytes(torch.nn.Linear(8, 8, dtype=torch.bfloat16)) == 2 * (64 + 8)
