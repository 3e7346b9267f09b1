"""A Device says what is here, from text files and a torch that the tests make up."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from safelight.errors import EnvironmentProblem, UnknownName
from safelight.probe import device
from safelight.probe.device import GIB, choose, here

CARDS = {
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 80 * GIB),
    "4090": ("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB),
    "1660": ("NVIDIA GeForce GTX 1660 Ti", (7, 5), 6 * GIB),
    "1080": ("NVIDIA GeForce GTX 1080", (6, 1), 8 * GIB),
}
ARCHITECTURES = ["sm_61", "sm_75", "sm_80", "sm_86", "sm_90"]


def fake_torch(*cards, architectures=ARCHITECTURES, cuda="12.8", hip=None, xpus=0, has_mps=False):
    """As much of torch as a probe asks for, with these cards in it; half of each card's memory is free."""
    about = [CARDS[card] for card in cards]
    free = SimpleNamespace(mem_get_info=lambda i: (4 * GIB, 8 * GIB), get_device_name=lambda i: f"Arc {i}")
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: bool(about),
            device_count=lambda: len(about),
            get_device_name=lambda i: about[i][0],
            get_device_capability=lambda i: about[i][1],
            mem_get_info=lambda i: (about[i][2] // 2, about[i][2]),
            get_arch_list=lambda: architectures,
        ),
        xpu=SimpleNamespace(is_available=lambda: xpus > 0, device_count=lambda: xpus, **vars(free)),
        mps=SimpleNamespace(recommended_max_memory=lambda: 16 * GIB, driver_allocated_memory=lambda: GIB),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: has_mps)),
        version=SimpleNamespace(cuda=cuda, hip=hip),
    )


@pytest.fixture
def root(tmp_path):
    """Writes files of /proc and /sys: root({"proc/cpuinfo": text}) -> the folder that stands for /."""

    def root(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return root


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        (fake_torch("a100", xpus=1, has_mps=True), "cuda:0"),
        (fake_torch(xpus=1, has_mps=True), "xpu:0"),
        (fake_torch(has_mps=True), "mps"),
        (fake_torch(), "cpu"),
    ],
)
@pytest.mark.parametrize("asked", [None, "auto", " AUTO "])
def test_without_a_wish_the_best_there_is_is_taken(torch, asked, expected):
    assert choose(asked, torch).torch_name == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("CUDA:1", "cuda:1"),
        ("cpu", "cpu"),
        ("cpu:0", "cpu"),
        ("xpu", "xpu:0"),
    ],
)
def test_a_device_that_is_there_is_taken_as_asked(asked, expected):
    assert choose(asked, fake_torch("a100", "4090", xpus=1)).torch_name == expected


@pytest.mark.parametrize("asked", ["cuda:2", "mps", "xpu", "cpu:1"])
def test_a_device_that_is_absent_is_refused_naming_what_is_there(asked):
    with pytest.raises(EnvironmentProblem, match=f"no {asked} here: there is cuda:0 and cuda:1 and cpu"):
        choose(asked, fake_torch("a100", "4090"))


def test_a_torch_without_cuda_is_named_as_the_reason():
    with pytest.raises(EnvironmentProblem, match="this torch is built without CUDA"):
        choose("cuda", fake_torch(cuda=None))


@pytest.mark.parametrize(
    "asked", ["", "gpu", "cuda:", "cuda:-1", "cuda:one", "cuda:0:1", "cpu0", "cuda:99999", "cuda:\u0661"]
)
def test_what_is_no_device_is_an_unknown_name(asked):
    with pytest.raises(UnknownName, match="unknown device"):
        choose(asked, fake_torch("a100"))


def test_a_card_is_described():
    found = choose("cuda", fake_torch("4090"))
    assert (found.kind, found.index, found.name) == ("cuda", 0, "NVIDIA GeForce RTX 4090")
    assert (found.memory_bytes, found.free_bytes) == (24 * GIB, 12 * GIB)
    assert found.capability == (8, 9)
    assert found.features == ("tf32", "fp8")
    assert found.findings == ()


@pytest.mark.parametrize(
    ("card", "dtypes", "features"),
    [
        ("1080", ("float32", "float16"), ()),
        ("1660", ("float32", "float16"), ()),
        ("a100", ("float32", "bfloat16", "float16"), ("tf32",)),
    ],
)
def test_formats_follow_from_the_capability(card, dtypes, features):
    found = choose("cuda", fake_torch(card))
    assert (found.fast_dtypes, found.features) == (dtypes, features)


@pytest.mark.parametrize(("card", "expected"), [("1660", "black pictures"), ("1080", "no tensor cores")])
def test_a_card_with_a_known_weakness_says_so(card, expected):
    assert expected in choose("cuda", fake_torch(card)).findings[0]


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((8, 0), ["compute_90"], False),
    ],
)
def test_machine_code_runs_on_its_own_generation_and_ptx_on_later_ones(capability, architectures, expected):
    assert device.has_kernels(capability, architectures) is expected


def test_a_card_newer_than_torch_is_found_out():
    assert "no kernels for" in choose("cuda", fake_torch("4090", architectures=["sm_75"])).findings[0]


def test_an_amd_card_is_not_judged_by_nvidias_numbers():
    found = choose("cuda", fake_torch("1080", hip="6.4", cuda=None))
    assert (found.features, found.findings) == (("rocm",), ())


def test_apples_memory_is_what_metal_recommends_less_what_is_held():
    found = choose("mps", fake_torch(has_mps=True))
    assert (found.memory_bytes, found.free_bytes) == (16 * GIB, 15 * GIB)
    assert found.fast_dtypes == ("float32", "float16")


INTEL = "processor\t: 0\nmodel name\t: Intel Xeon Platinum\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16 amx_int8\n"
OLD = "model name\t: Intel Core i7\nflags\t\t: fpu avx2 not_avx512f\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("cpuinfo", "features", "dtypes"),
    [
        (INTEL, ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8"), ("float32", "bfloat16")),
        (OLD, ("avx2",), ("float32",)),
        (ARM, ("bf16",), ("float32", "bfloat16")),
        ("", (), ("float32",)),
    ],
    ids=["intel", "old", "arm", "unknown"],
)
def test_a_cpu_runs_bfloat16_only_with_instructions_for_it_and_never_float16(root, cpuinfo, features, dtypes):
    found = choose("cpu", fake_torch(), root({"proc/cpuinfo": cpuinfo}))
    assert (found.features, found.fast_dtypes) == (features, dtypes)
    assert ("bfloat16" in dtypes) is not any("no bfloat16" in text for text in found.findings)


def test_a_cpu_has_a_name(root):
    assert choose("cpu", fake_torch(), root({"proc/cpuinfo": INTEL})).name == "Intel Xeon Platinum"
    assert choose("cpu", fake_torch(), root({"proc/cpuinfo": ""})).name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/\n", ["sys/fs/cgroup"]),
        ("0::/a/b\n", ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup"]),
        ("5:memory:/a\n3:cpu,cpuacct:/\n", ["sys/fs/cgroup/memory/a", "sys/fs/cgroup/memory"]),
        ("9:name=systemd:/x\n", []),
        ("", []),
    ],
)
def test_cgroups_are_looked_for_from_the_inside_out(text, expected):
    assert device.cgroup_folders(text, "memory") == [Path(folder) for folder in expected]


VERSION_2 = {
    "proc/self/cgroup": "0::/pod/job\n",
    "sys/fs/cgroup/pod/memory.max": f"{GIB}\n",
    "sys/fs/cgroup/pod/memory.current": f"{GIB // 2}\n",
    "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {GIB // 4}\nfile 7\n",
    "sys/fs/cgroup/pod/job/memory.max": "max\n",
}
VERSION_1 = {
    "proc/self/cgroup": "4:memory:/pod\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": f"{GIB}\n",
    "sys/fs/cgroup/memory/pod/memory.usage_in_bytes": f"{GIB // 2}\n",
    "sys/fs/cgroup/memory/pod/memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {GIB // 4}\n",
}


def test_a_containers_limit_is_the_memory_there_is(root):
    memory = device.ram(root(VERSION_2))
    assert (memory.total_bytes, memory.free_bytes) == (GIB, GIB * 3 // 4)
    assert memory.machine_bytes >= GIB


def test_a_limit_of_the_first_version_counts_and_its_huge_number_means_none(root):
    assert device.cgroup_limits(root(VERSION_1)) == [(GIB, GIB // 4)]


def test_a_limit_below_the_machines_memory_is_told(root):
    found = choose("cpu", fake_torch(), root(VERSION_2))
    assert found.memory_bytes == GIB
    assert any("a limit allows 1.0 GiB" in text for text in found.findings)


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["version 2", "version 1"],
)
def test_a_quota_of_processor_time_limits_the_cores(root, files):
    assert 1 <= device.cores(root(files)) <= 2


def test_without_a_quota_all_allowed_cores_count(root):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
    assert device.cores(root(files)) == device.cores(root({}))


def test_this_machine_has_a_cpu():
    found = here("cpu")
    assert found.torch_name == "cpu"
    assert 0 < found.free_bytes <= found.memory_bytes
    assert found.fast_dtypes[0] == "float32"
    assert "float16" not in found.fast_dtypes
