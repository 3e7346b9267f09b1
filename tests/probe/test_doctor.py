"""The doctor names what is wrong and how to mend it, and goes on whatever is broken."""

import itertools
import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from safelight.probe import doctor, kernels, variables
from safelight.probe.device import GIB, Device, Memory, here
from safelight.probe.findings import Finding, lines, worst

GOOD = {
    "torch": "2.13.0+cpu",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "safetensors": "0.8.0",
    "huggingface_hub": "2.4.0",
    "psutil": "7.2.2",
}
CPU = Device("cpu", 0, "a CPU", 16 * GIB, 8 * GIB, fast_dtypes=("float32", "bfloat16"))


def levels(findings, subject):
    return [finding.level for finding in findings if finding.subject == subject]


def only(findings, subject):
    [finding] = [finding for finding in findings if finding.subject == subject]
    return finding


def examine(tmp_path, environment=None, *, versions=GOOD, requires=None, load=None):
    """An examination whose packages are the given ones; without `load`, torch is the real one."""
    seams = {"load": load} if load else {}
    return doctor.examine(
        environment or {},
        version=versions.get,
        requires=lambda name: (requires or {}).get(name, []),
        home=tmp_path,
        **seams,
    )


# -- packages ----------------------------------------------------------------------------------------------------------


def test_good_packages_are_ok():
    assert {finding.level for finding in doctor.package_findings(GOOD.get)} == {"ok"}


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_package_is_an_error_with_the_way_to_get_it(name):
    found = only(doctor.package_findings({**GOOD, name: None}.get), name)
    assert (found.level, found.mend) == ("error", f"pip install {name}")


@pytest.mark.parametrize(
    ("name", "old", "floor", "cve"),
    [
        ("torch", "2.5.1", "2.6", "CVE-2025-32434"),
        ("diffusers", "0.37.9", "0.38", "CVE-2026-44513"),
        ("diffusers", "0.37.9", "0.38", "CVE-2026-45804"),
        ("transformers", "5.2.0", "5.3", "CVE-2026-4372"),
    ],
)
def test_a_package_with_a_known_hole_is_an_error_that_names_it(name, old, floor, cve):
    found = only(doctor.package_findings({**GOOD, name: old}.get), name)
    assert found.level == "error"
    assert cve in found.says
    assert found.mend == f'pip install --upgrade "{name}>={floor}"'


def test_optional_packages_are_listed_but_not_asked_for():
    found = doctor.package_findings({**GOOD, "peft": "0.21.2"}.get)
    assert "LoRA" in only(found, "peft").says
    assert "sageattention" in only(found, "optional").says


@pytest.mark.parametrize(
    ("torch", "name", "installed", "needs", "says"),
    [
        ("2.13.0+cpu", "torchvision", "0.27.0+cpu", "torch==2.12.0", "is built for torch==2.12.0"),
        ("2.13.0+cpu", "torchvision", "0.28.0", "torch==2.13.0", "is a CUDA build"),
        ("2.13.0", "torchvision", "0.28.0+cpu", "torch==2.13.0", "is a CPU build"),
        ("2.13.0", "torchaudio", "2.12.0", "torch==2.12.0", "is built for torch==2.12.0"),
        ("2.13.0", "xformers", "0.0.30", "torch==2.7.0", "is built for torch==2.7.0"),
    ],
)
def test_a_package_for_another_torch_is_found_without_importing_it(torch, name, installed, needs, says):
    versions = {"torch": torch, name: installed}
    found = doctor.pair_findings(versions.get, lambda _: ["numpy", needs], unlabelled_is_cuda=True)
    assert says in only(found, name).says
    assert only(found, name).mend.startswith(f"pip uninstall {name}")


@pytest.mark.parametrize(("name", "level"), doctor.COMPILED.items())
def test_what_breaks_every_import_is_an_error_and_the_rest_a_warning(name, level):
    versions = {"torch": "2.13.0", name: "1.0"}
    found = doctor.pair_findings(versions.get, lambda _: ["torch==2.12.0"], unlabelled_is_cuda=True)
    assert levels(found, name) == [level]


@pytest.mark.parametrize(
    ("torch", "name", "installed", "needs"),
    [
        ("2.13.0+cpu", "torchvision", "0.28.0+cpu", ["torch==2.13.0"]),
        ("2.13.0+cu128", "torchvision", "0.28.0+cu128", ["torch==2.13.0"]),
        ("2.13.0", "xformers", "0.0.35", ["torch>=2.10"]),
        ("2.13.0", "torchvision", "0.28.0", ["torch==2.12.0; extra == 'old'", "not a requirement ==="]),
        (None, "torchvision", "0.28.0", ["torch==2.13.0"]),
    ],
)
def test_a_package_for_this_torch_is_left_in_peace(torch, name, installed, needs):
    versions = {"torch": torch, name: installed}
    assert doctor.pair_findings(versions.get, lambda _: needs, unlabelled_is_cuda=True) == []


def test_a_build_without_a_label_proves_nothing_where_it_may_be_for_the_cpu():
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    assert doctor.pair_findings(versions.get, lambda _: [], unlabelled_is_cuda=False) == []


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no\n_C"),
        OSError("libcudart.so.13: cannot open"),
        RuntimeError("operator torchvision::nms does not exist"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_broken_torch_is_an_error_and_the_rest_goes_on(tmp_path, error):
    def load(_name):
        raise error

    found = examine(tmp_path, load=load)
    broken = [finding for finding in found if finding.level == "error"]
    assert [finding.subject for finding in broken] == ["torch"]
    assert "does not load" in broken[0].says
    assert "\n" not in broken[0].says
    assert {"diffusers", "memory", "disk"} <= {finding.subject for finding in found}
    assert worst(found) == 4


@pytest.mark.parametrize("name", ["torch", "diffusers", "psutil"])
def test_the_doctor_works_without_it(tmp_path, name):
    found = examine(tmp_path, versions={**GOOD, name: None}, load=lambda _: torch_with_a_lost_card())
    assert levels(found, name)[0] == "error"
    assert "disk" in {finding.subject for finding in found}


def torch_with_a_lost_card():
    """It counts on a card, and every call of that card fails."""

    def fails():
        raise RuntimeError("CUDA error:\nthe driver on your system is too old")

    torch = fake_torch(cuda="12.8", is_available=lambda: True)
    torch.cuda.device_count = fails
    return torch


def fake_torch(cuda=None, hip=None, *, is_available=lambda: False, threads=1):
    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(is_available=is_available),
        get_num_threads=lambda: threads,
    )


def test_a_torch_that_cannot_use_its_card_is_an_error(tmp_path):
    found = doctor.device_findings(torch_with_a_lost_card(), time.perf_counter, tmp_path)
    assert levels(found, "device") == ["error"]
    assert "driver" in only(found, "device").says


@pytest.mark.parametrize(
    ("cuda", "hip", "is_available", "has_driver", "level"),
    [
        (None, None, False, False, "ok"),
        (None, None, False, True, "warning"),
        ("12.8", None, True, True, "ok"),
        ("12.8", None, False, True, "warning"),
        ("12.8", None, False, False, "note"),
        (None, "6.4", True, False, "ok"),
    ],
)
def test_a_card_that_idles_because_of_the_build_is_told(cuda, hip, is_available, has_driver, level):
    torch = fake_torch(cuda, hip, is_available=lambda: is_available)
    assert levels(doctor.build_findings(torch, has_driver), "torch build") == [level]


def test_a_driver_shows_in_proc_or_by_its_command(tmp_path):
    assert not doctor.has_nvidia_driver({"PATH": str(tmp_path)}, tmp_path)
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    assert doctor.has_nvidia_driver({"PATH": str(tmp_path)}, tmp_path)
    command.unlink()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: 580")
    assert doctor.has_nvidia_driver({}, tmp_path)


@pytest.mark.parametrize(("threads", "level"), [(16, "warning"), (8, "ok"), (4, "ok"), (1, "note")])
def test_threads_are_compared_with_the_processors(threads, level):
    assert doctor.thread_finding(fake_torch(threads=threads), 8).level == level


# -- what really runs --------------------------------------------------------------------------------------------------


def test_kernels_are_called_for_real():
    import torch

    ran = kernels.attention_kernels(torch, CPU)
    assert ran["math"] == ["float32", "bfloat16"]
    assert ran["efficient"] == ran["cudnn"] == []  # these are for cards


def test_a_kernel_that_was_accepted_and_does_not_run_is_told():
    found = only(doctor.kernel_findings({"math": ["float32"], "flash": []}), "attention")
    assert found == Finding("ok", "attention", "runs: math (float32). Does not: flash")


def test_no_kernel_at_all_is_an_error():
    assert levels(doctor.kernel_findings({"math": []}), "attention") == ["error"]


def test_matrix_products_are_timed_by_the_given_clock():
    import torch

    ticks = itertools.count(step=0.5)
    assert kernels.matmul_seconds(torch, CPU, lambda: next(ticks)) == {
        "float32": 0.5,
        "bfloat16": 0.5,
        "float16": 0.5,
    }


def test_formats_are_compared_with_float32():
    found = doctor.speed_findings({"float32": 0.004, "bfloat16": 0.001, "float16": 0.2}, CPU)
    assert found == [
        Finding("ok", "speed", "bfloat16 is 4.0 times as fast as float32"),
        Finding("note", "speed", "float16 is 50.0 times slower than float32", "use bfloat16 or float32"),
    ]


def test_a_format_that_is_fast_in_products_alone_is_not_recommended():
    [_, half] = doctor.speed_findings({"float32": 0.004, "bfloat16": 0.002, "float16": 0.002}, CPU)
    assert half.says == "float16 is 2.0 times as fast as float32, in matrix products only"


# -- memory and disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "level"), [(8 * GIB, "ok"), (GIB, "warning")])
def test_little_free_memory_is_a_warning(free, level):
    assert levels(doctor.memory_findings(Memory(16 * GIB, free, 16 * GIB)), "memory") == [level]


def test_a_limit_below_the_machines_memory_is_a_note():
    [_, limit] = doctor.memory_findings(Memory(8 * GIB, 8 * GIB, 64 * GIB))
    assert limit.level == "note"
    assert "allows 8.0 GiB, the machine has 64.0 GiB" in limit.says


def test_swapping_is_a_note():
    [state, swapped] = doctor.memory_findings(Memory(16 * GIB, 8 * GIB, 16 * GIB, 4 * GIB, 2 * GIB))
    assert "swap 4.0 GiB" in state.says
    assert "2.0 GiB are swapped out" in swapped.says


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface/hub"),
        ({"HF_HOME": "hf", "XDG_CACHE_HOME": "xdg"}, "hf/hub"),
        ({"HF_HUB_CACHE": "cache", "HF_HOME": "hf"}, "cache"),
    ],
)
def test_the_hubs_cache_is_found_as_the_hub_finds_it(tmp_path, environment, expected):
    placed = {name: str(tmp_path / folder) for name, folder in environment.items()}
    assert doctor.hub_cache(placed, tmp_path / "home") == tmp_path / expected


def test_the_disk_of_a_cache_that_is_not_yet_there_is_that_of_its_nearest_folder(tmp_path):
    found = only(doctor.disk_findings({"HF_HOME": str(tmp_path / "a" / "b")}, tmp_path), "disk")
    assert str(tmp_path / "a" / "b" / "hub") in found.says


# -- variables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("expandable_segments:True", {"expandable_segments": "True"}),
        ("backend:native, max_split_size_mb:128", {"backend": "native", "max_split_size_mb": "128"}),
        (
            "roundup_power2_divisions:[256:1,512:2,>:8],backend:native",
            {"roundup_power2_divisions": "[256:1,512:2,>:8]", "backend": "native"},
        ),
        ("max_split_size_mb=128", None),
        ("max_split_size_mb:128,", None),
        ("128", None),
    ],
)
def test_allocator_settings_are_read_as_torch_reads_them(text, expected):
    assert variables.settings_in(text) == expected


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
@pytest.mark.parametrize(
    ("text", "level", "says"),
    [
        ("expandable_segments:True", "ok", "expandable_segments:True"),
        ("max_split_size_mb:128,expandable_segments:False", "ok", "max_split"),
        ("max_split_size_mb:128,expandable_segments:True", "warning", "does not act on expandable segments"),
        ("backend:cudaMallocAsync,garbage_collection_threshold:0.8", "warning", "ignored with backend:cudaMallocAsync"),
        ("expandable_segmets:True", "warning", "no option 'expandable_segmets'"),
        ("expandable_segments:true", "error", "nothing but True and False"),
        ("expandable_segments", "error", "not of the form"),
    ],
)
def test_allocator_settings_that_clash_are_told(name, text, level, says):
    found = only(variables.allocator_findings({name: text}), name)
    assert found.level == level
    assert says in found.says
    assert bool(found.mend) is (level != "ok")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("backend:native", "backend:cudaMallocAsync", ["warning", "ok"]),
        ("a:1,backend:native", "backend:native,a:1", ["warning"]),  # the order does not count; "a" is no option
        ("backend:native", "", ["ok"]),
    ],
)
def test_two_names_with_different_settings_are_told(old, new, expected):
    found = variables.allocator_findings({"PYTORCH_CUDA_ALLOC_CONF": old, "PYTORCH_ALLOC_CONF": new})
    assert levels(found, "PYTORCH_CUDA_ALLOC_CONF") == expected


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("NVIDIA_TF32_OVERRIDE", "0", "warning"),
        ("NVIDIA_TF32_OVERRIDE", "1", "note"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "note"),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1", "warning"),
        ("CUDA_LAUNCH_BLOCKING", "1", "warning"),
        ("CUDA_VISIBLE_DEVICES", "", "note"),
        ("HF_HUB_OFFLINE", "1", "note"),
        ("DIFFUSERS_DISABLE_REMOTE_CODE", "true", "ok"),
        ("DIFFUSERS_DISABLE_REMOTE_CODE", "0", "note"),
        ("SAFETENSORS_FAST_GPU", "1", "note"),
        ("OMP_NUM_THREADS", "64", "warning"),
        ("OMP_NUM_THREADS", "64,2", "warning"),
        ("OMP_NUM_THREADS", "many", "warning"),
        ("OMP_NUM_THREADS", "0", "warning"),
    ],
)
def test_a_variable_that_matters_is_told(name, value, level):
    assert levels(variables.variable_findings({name: value}, processors=8), name) == [level]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_LAUNCH_BLOCKING", "0"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("HF_HUB_OFFLINE", "0"),
        ("OMP_NUM_THREADS", "8"),
        ("OMP_NUM_THREADS", "4,1"),
        ("HOME", "1"),
    ],
)
def test_a_variable_that_does_not_matter_is_passed_over(name, value):
    assert variables.variable_findings({name: value}, processors=8) == []


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_findings_read_as_aligned_lines():
    findings = [
        Finding("ok", "torch", "2.13.0"),
        Finding("note", "speed", "slow", "use bfloat16"),
        Finding("warning", "memory", "little"),
        Finding("error", "torchvision", "wrong", "pip uninstall torchvision"),
    ]
    assert list(lines(findings)) == [
        "ok     torch        2.13.0",
        "note   speed        slow",
        "                    -> use bfloat16",
        "warn   memory       little",
        "ERROR  torchvision  wrong",
        "                    -> pip uninstall torchvision",
    ]


def test_no_findings_are_no_lines():
    assert list(lines([])) == []


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("note", 0), ("warning", 0), ("error", 4)])
def test_only_an_error_changes_the_exit_code(level, code):
    assert worst([Finding("ok", "a", "b"), Finding(level, "c", "d")]) == code


def test_this_machine_is_examined_and_the_answer_is_json(tmp_path):
    found = examine(tmp_path, {"CUDA_LAUNCH_BLOCKING": "1"})
    assert {"python", "torch", "device", "attention", "speed", "memory", "disk"} <= {one.subject for one in found}
    assert json.loads(json.dumps([asdict(one) for one in found]))[0]["subject"] == "python"
    assert levels(found, "CUDA_LAUNCH_BLOCKING") == ["warning"]
    device = next(one for one in found if one.subject == "device")
    assert here().torch_name in device.says


@pytest.mark.parametrize(
    ("name", "value", "level", "says"),
    [
        ("DG_XDIT_ULYSSES_DEGREE", "4", "note", "several devices for one picture are not there yet"),
        ("DG_XDIT_RING_DEGREE", "1", None, ""),
        ("DG_XDIT_USE_CFG_PARALLEL", "true", "note", "not there yet"),
        ("DG_STEP1X_QUANTIZED", "1", "note", "quantization is not there yet"),
        ("DG_FLUX_KONTEXT_OFFLOAD", "1", "ok", "asks for model-offload"),
        ("DG_HUNYUAN_IMAGE_3_ATTN_IMPL", "flash_attention_2", "ok", "asks for attention-backend=flash"),
        ("CUDA_MODULE_LOADING", "LAZY", "ok", "as CUDA does since 12.2"),
        ("CUDA_MODULE_LOADING", "EAGER", "note", "loads every kernel at the start"),
    ],
)
def test_what_diffgentor_and_the_guides_set_is_answered(name, value, level, says):
    found = [one for one in variables.variable_findings({name: value}, 2) if one.subject == name]
    assert [one.level for one in found] == ([level] if level else [])
    assert all(says in one.says for one in found)
