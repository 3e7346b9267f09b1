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
