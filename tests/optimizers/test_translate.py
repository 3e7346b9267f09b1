"""A line of another program's flags becomes our command, and every flag is answered."""

import re
import shlex

import pytest

from safelight.errors import SafelightError, UnknownName, UsageError
from safelight.optimizers import words
from safelight.optimizers.flags import ATTENTION, DIFFGENTOR, FLAGS, VARIABLES, WITH_VALUE
from safelight.optimizers.translate import translate
from safelight.planner import wish

# values that a flag takes; "1" for any other
VALUES = {
    "--precision": "full",
    "--use-cpu": "all",
    "--torch_dtype": "float16",
    "--attention_backend": "flash",
    "--cache_type": "first_block_cache",
    "--group_offload_type": "leaf_level",
    "--storage_dtype": "float8_e4m3fn",
    "--compile_mode": "default",
    "--optimize": "vae_slicing,flash_attention",
    "--backend": "xdit",
    "--model_name": "firstlight",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync",
    "CUDA_MODULE_LOADING": "LAZY",
    "DG_HUNYUAN_IMAGE_3_ATTN_IMPL": "sdpa",
}
GUIDES = (
    "--xformers --opt-split-attention-v1 --opt-channelslast --no-half-vae --upcast-sampling --vae-tiling "
    "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:512,expandable_segments:True SAFETENSORS_FAST_GPU=1 "
    "CUDA_MODULE_LOADING=LAZY"
)


def verdicts(text):
    return {line.flag: line.verdict for line in translate([text]).lines}


def written(name):
    table = FLAGS | DIFFGENTOR
    if name in VARIABLES:
        return f"{name}={VALUES.get(name, '1')}"
    beside = " ".join(table[name].beside[:1])
    return f"{beside} {name} {VALUES.get(name, '1')}" if table[name].takes else f"{beside} {name}"


@pytest.mark.parametrize("name", [*FLAGS, *DIFFGENTOR, *VARIABLES])
def test_every_flag_is_answered_with_words_that_we_understand(name):
    found = translate([written(name)])
    line = found.lines[-1]
    assert line.flag.split(" ")[0].split("=")[0] == name
    assert line.verdict
    assert line.says
    assert line.source.startswith("https://")
    assert (
        wish(found.optimize).options.keys()
        >= words.read(*[] if line.becomes[:2] == "--" else [found.optimize]).options.keys()
    )


def test_what_the_guides_recommend_is_settled_as_the_programs_settle_it():
    found = translate([GUIDES])
    assert found.optimize == (
        "dtype=float16,channels-last,upcast-vae,upcast-sampling,vae-tiling,expandable-segments,lazy-modules"
    )
    said = {line.flag.split("=")[0]: line for line in found.lines}
    assert said["--xformers"].verdict == "pointless"
    assert said["--opt-split-attention-v1"].verdict == "in conflict"
    assert "--xformers (priority 100) before this (10)" in said["--opt-split-attention-v1"].says
    assert said["--vae-tiling"].verdict == "not A1111's"
    assert said["SAFETENSORS_FAST_GPU"].verdict == "obsolete"
    assert "does not act on expandable segments" in said["PYTORCH_CUDA_ALLOC_CONF"].says


@pytest.mark.parametrize(
    ("text", "optimize"),
    [
        ("--medvram", "dtype=float16,model-offload"),
        ("--lowvram --medvram", "dtype=float16,group-offload"),
        ("--no-half --no-half-vae --upcast-sampling", "dtype=float32"),
        ("--precision full --no-half", "dtype=float32"),
        ("--precision autocast", "dtype=float16"),
        ("--opt-sub-quad-attention --sub-quad-q-chunk-size 512", "dtype=float16,split-attention=512"),
        ("--xformers --opt-sub-quad-attention --sub-quad-q-chunk-size 512", "dtype=float16"),
        ("--always-low-vram --cuda-stream --pin-shared-memory", "dtype=float16,group-offload.stream=True"),
        ("--cuda-stream", "dtype=float16"),
        ("--unet-in-bf16", "dtype=float16,dtype.denoiser=bfloat16"),
        ("--all-in-fp32", "dtype=float32"),
        ("--medvram --always-low-vram", "dtype=float16,model-offload"),
        ("--enable_vae_slicing --torch_dtype bf16", "vae-slicing,dtype=bfloat16"),
        ("--enable_compile --compile_mode max-autotune --enable_cpu_offload", "compile=default,model-offload"),
        ('--optimize "vae_slicing,compile,flash_attention"', "vae-slicing,compile,attention-backend=flash"),
        ("PYTORCH_ALLOC_CONF=max_split_size_mb:128", "expandable-segments"),
        ("PYTORCH_ALLOC_CONF=backend:cudaMallocAsync", ""),
        ("--api --listen --port 7861", "dtype=float16"),
    ],
)
def test_a_line_becomes_words(text, optimize):
    assert translate([text]).optimize == optimize


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("--use-cpu all --ckpt a.ckpt", "safelight generate PROMPT --device cpu --model a.ckpt -o dtype=float16"),
        ("--device-id=1 --no-half", "safelight generate PROMPT --device cuda:1 -o dtype=float32"),
        ("--model_name a/b --prompt 'a cat'", "safelight generate 'a cat' --model a/b"),
        ("set COMMANDLINE_ARGS=--medvram --api", "safelight generate PROMPT -o dtype=float16,model-offload"),
        ('export COMMANDLINE_ARGS="--medvram --api"', "safelight generate PROMPT -o dtype=float16,model-offload"),
    ],
)  # fmt: skip
def test_the_command_can_be_run(text, command):
    found = translate([text])
    assert found.command == command
    assert shlex.split(command)[:2] == ["safelight", "generate"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("--xfromers", UnknownName, "unknown flag '--xfromers': did you mean --xformers"),
        ("--no_haf_vae", UnknownName, "did you mean --no-half-vae"),
        ("PYTORCH_CUDA_ALLOC=1", UnknownName, "unknown variable 'PYTORCH_CUDA_ALLOC': did you mean PYTORCH_"),
        ("a cat", UnknownName, "unknown flag 'a'"),
        ("--precision", UsageError, "--precision wants a value"),
        ("--precision 8", UsageError, "--precision is '8': give full or autocast or half"),
        ("--xformers=1", UsageError, "--xformers takes no value"),
        ("--no-half --all-in-fp16", UsageError, "dtype is given twice"),
        ("--optimize fp8", UsageError, "not there yet"),
        ("--theme 'dark", UsageError, "is not a line of flags"),
        ("PYTORCH_ALLOC_CONF=expandable", UsageError, "is not of the form key:value"),
    ],
)
def test_what_is_not_understood_is_named(text, error, says):
    with pytest.raises(error) as raised:
        translate([text])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loser", list(ATTENTION)[1:])
def test_of_several_kinds_of_attention_a1111_takes_the_first_of_its_list(loser):
    assert verdicts(f"{loser} --xformers")[loser] == "in conflict"
    assert verdicts(f"{loser} --disable-opt-split-attention")[loser] == "in conflict"
    assert verdicts(loser)[loser] != "in conflict"


def test_what_does_not_combine_here_is_left_out_and_said():
    found = translate(["--enable_fuse_qkv", "--enable_cpu_offload --enable_group_offloading"])
    assert found.optimize == "fused-qkv,model-offload"
    assert [line.verdict for line in found.lines] == ["becomes", "becomes", "in conflict"]


def test_flags_may_be_spelt_with_either_hyphens_or_underscores():
    assert translate(["--enable-vae-slicing"]).optimize == translate(["--enable_vae_slicing"]).optimize == "vae-slicing"
    assert translate(["--no_half"]).optimize == "dtype=float32"


def test_no_line_of_flags_is_a_traceback():
    names = [*FLAGS, *DIFFGENTOR]
    for first in names:
        try:
            found = translate([f"{written(first)} {written(names[hash(first) % len(names)])}"])
        except SafelightError as error:
            assert re.search(r"given twice|wants a value", str(error)), first
        else:
            wish(found.optimize)
    assert set(WITH_VALUE) <= {name.removeprefix("--") for name in FLAGS}
