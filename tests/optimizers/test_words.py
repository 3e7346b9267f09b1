"""One set of words everywhere, in our names and in those that others use; what is not understood is said."""

import pytest

from safelight.errors import UnknownName, UsageError
from safelight.optimizers import OPTIMIZERS, words
from safelight.optimizers.registry import Fidelity, Registry, Stage
from safelight.planner import wish

# `--optimize` of diffgentor 0.1.2, every name: diffgentor/cli.py
DIFFGENTOR = {
    "torch_compile": {"compile": {}},
    "compile": {"compile": {}},
    "vae_slicing": {"vae-slicing": {}},
    "vae_tiling": {"vae-tiling": {}},
    "cpu_offload": {"model-offload": {}},
    "sequential_cpu_offload": {"sequential-offload": {}},
    "xformers": {"attention-backend": {"value": "xformers"}},
    "flash_attention": {"attention-backend": {"value": "flash"}},
    "flash": {"attention-backend": {"value": "flash"}},
    "sage_attention": {"attention-backend": {"value": "sage"}},
    "sage": {"attention-backend": {"value": "sage"}},
    "fuse_qkv": {"fused-qkv": {}},
    "group_offload": {"group-offload": {}},
    "layerwise_cast": {"layerwise-casting": {}},
    "deep_cache": {"deep-cache": {}},
    "first_block_cache": {"first-block-cache": {}},
    "pab_cache": {"pyramid-attention-broadcast": {}},
    "pab": {"pyramid-attention-broadcast": {}},
    "faster_cache": {"faster-cache": {}},
    "cache_dit": {"cache-dit": {}},
    "taylor_seer": {"taylorseer-cache": {}},
    "tf32": {"tf32": {}},
}
# dataclasses.asdict(OptimizationConfig()) of diffgentor 0.1.2
DUMP = {
    "torch_dtype": "bfloat16",
    "enable_vae_slicing": False,
    "enable_vae_tiling": False,
    "enable_cpu_offload": False,
    "enable_sequential_cpu_offload": False,
    "enable_xformers": False,
    "attention_backend": None,
    "enable_compile": False,
    "compile_mode": "max-autotune-no-cudagraphs",
    "compile_fullgraph": False,
    "compile_components": ["transformer"],
    "cache_type": None,
    "cache_config": {},
    "enable_group_offloading": False,
    "group_offload_type": "leaf_level",
    "enable_layerwise_casting": False,
    "storage_dtype": "float8_e4m3fn",
    "compute_dtype": "bfloat16",
    "quantization": None,
    "quantization_components": ["transformer"],
    "enable_fuse_qkv": False,
    "enable_tf32": True,
}


@pytest.fixture
def registry():
    """Optimizers of a test's own: their options are what counts here."""
    made = Registry()

    def register(apply, **more):
        made.add(stage=Stage.CACHE, fidelity=Fidelity.EXACT, source="", fits=lambda target, **options: None, **more)(
            apply
        )

    def dtype(pipe, target, value: str = "auto", vae: str = ""):
        yield

    def vae_tiling(pipe, target, tile_px: int = 0, overlap: float = 0.25):
        yield

    def compile(pipe, target, mode: str = "default", fullgraph: bool = False, parts: str = "denoiser"):
        yield

    def deep_cache(pipe, target, interval: int = 3, depth: int = 1):
        yield

    def first_block_cache(pipe, target, threshold: float = 0.05):
        yield

    def pyramid_attention_broadcast(pipe, target, spatial_skip: int = 2, low: int = 100, high: int = 800):
        yield

    def attention_backend(pipe, target, value: str = "flash"):
        yield

    def group_offload(pipe, target, level: str = "leaf", stream: bool = True):
        yield

    def channels_last(pipe, target):
        yield

    def tf32(pipe, target):
        yield

    for apply in (dtype, vae_tiling, compile, attention_backend, group_offload, channels_last, tf32):
        register(apply)
    for apply in (deep_cache, first_block_cache, pyramid_attention_broadcast):
        register(apply, slot="step-cache")
    return made


def options(asked, registry):
    return wish(asked, registry=registry).options


# -- the real registry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", sorted(words.ALIASES))
def test_every_other_name_stands_for_an_optimizer_and_an_option_that_is_there(alias):
    meaning = words.resolve(alias)
    known = OPTIMIZERS[meaning.name]
    assert meaning.option is None or known.option(meaning.option)
    assert meaning.fixed is None or known.options


@pytest.mark.parametrize("name", sorted(words.OPTIONS))
def test_every_other_name_of_an_option_stands_for_one_that_is_there(name):
    for ours in words.OPTIONS[name].values():
        names = [ours] if isinstance(ours, str) else ours if isinstance(ours, tuple) else [o for o, _ in ours.values()]
        assert all(OPTIMIZERS[name].option(option) for option in names)


@pytest.mark.parametrize("written", DIFFGENTOR)
def test_every_name_of_diffgentors_is_understood(written):
    assert wish(written).options == DIFFGENTOR[written]
    assert wish(f"enable_{written}").options == DIFFGENTOR[written]


def test_a_dump_of_diffgentors_config_asks_for_what_is_on_alone():
    assert wish(DUMP).options == {"dtype": {"value": "bfloat16"}, "tf32": {}}


@pytest.mark.parametrize("name", sorted(words.LATER))
def test_what_is_not_there_yet_is_no_optimizers_name(name):
    assert name not in OPTIMIZERS
    assert name not in words.ALIASES
    with pytest.raises(UsageError, match="not there yet"):
        wish(name)


# -- one meaning, many ways to write it --------------------------------------------------------------------------------

TILED = {"dtype": {"value": "bfloat16"}, "vae-tiling": {"tile_px": 256, "overlap": 0.5}}


@pytest.mark.parametrize(
    "written",
    [
        "dtype=bfloat16,vae-tiling=256,vae-tiling.overlap=0.5",
        " dtype = bf16 , VAE_Tiling.tile-px=256, vae_tiling.overlap=0.5",
        ["dtype=bfloat16", "vae-tiling=256", "vae-tiling.overlap=0.5"],
        ["bf16", {"vae-tiling": {"tile_px": 256, "overlap": 0.5}}],
        {"dtype": "bfloat16", "vae-tiling": {"tile_px": 256, "overlap": 0.5}},
        {"dtype": {"value": "bfloat16"}, "vae-tiling": {"tile-px": 256, "overlap": 0.5}},
        {"dtype": "torch.bfloat16", "vae-tiling": 256, "vae-tiling.overlap": 0.5},
        {"torch_dtype": "bfloat16", "enable_vae_tiling": True, "vae_tiling": {"tile_size": 256, "overlap": "0.5"}},
    ],
    ids=str,
)
def test_text_lists_and_mappings_mean_the_same(written, registry):
    assert options(written, registry) == TILED


def test_a_dtype_of_torchs_is_understood(registry):
    import torch

    assert options({"dtype": torch.float16}, registry) == {"dtype": {"value": "float16"}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"compile": True, "deep-cache": 3}, {"compile": {}, "deep-cache": {"interval": 3}}),
        ({"compile": "true"}, {"compile": {}}),
        ("compile=on,deep-cache=off", {"compile": {}}),
        ({"enable_compile": True, "compile_mode": "reduce-overhead"}, {"compile": {"mode": "reduce-overhead"}}),
        ({"compile_components": ["transformer", "vae"]}, {"compile": {"parts": "denoiser+vae"}}),
        ({"group_offload_type": "block_level"}, {"group-offload": {"level": "block"}}),
        ({"attention_backend": "default"}, {}),
        ({"xformers": True, "channels_last": False}, {"attention-backend": {"value": "xformers"}}),
        ({"cache_type": "none"}, {}),
        (
            {"cache_type": "first_block_cache", "cache_config": {"threshold": 0.1}},
            {"first-block-cache": {"threshold": 0.1}},
        ),
        (
            {"cache_type": "deep_cache", "cache_config": {"deep_cache": {"cache_interval": 2, "cache_branch_id": 0}}},
            {"deep-cache": {"interval": 2, "depth": 1}},
        ),
        (
            {"cache_type": "pab", "cache_config": {"pab": {"timestep_skip_range": [50, 700]}, "deep_cache": {}}},
            {"pyramid-attention-broadcast": {"low": 50, "high": 700}},
        ),
    ],
    ids=str,
)
def test_fields_and_values_of_others_become_ours(written, expected, registry):
    assert options(written, registry) == expected


@pytest.mark.parametrize(
    ("written", "auto"),
    [("auto", True), ({"auto": True}, True), ({"auto": False}, False), (["auto"], True), ("", False)],
)
def test_auto_is_a_word_like_any_other(written, auto, registry):
    assert wish(written, registry=registry).auto is auto


@pytest.mark.parametrize(
    ("written", "error", "says"),
    [
        ("vae-tilling", UnknownName, "did you mean vae-tiling"),
        ("xformer", UnknownName, "did you mean xformers"),
        ({"vae_tilling": True}, UnknownName, "did you mean vae-tiling"),
        ({"vae-tiling": {"tile": 3}}, UnknownName, "did you mean tile_px"),
        ({"enable_magic": False}, UnknownName, "unknown optimizer 'enable_magic'"),
        ({"fp8": True}, UsageError, "fp8 (quantization) is not there yet"),
        ({"quantization": "nf4"}, UsageError, "quantization"),
        ("dtype=fp16,dtype=bf16", UsageError, "dtype is given twice, with value float16 and bfloat16"),
        ({"dtype": "fp16", "torch_dtype": "bf16"}, UsageError, "given twice"),
        ("flash,sage", UsageError, "with value flash and sage"),
        ({"vae-tiling": "big"}, UsageError, "give a whole number"),
        ({"vae-tiling": 1.5}, UsageError, "is 1.5"),
        ({"compile.fullgraph": 3}, UsageError, "is 3"),
        ({"dtype": 16}, UsageError, "is 16"),
        ("xformers=2", UsageError, "xformers takes no value"),
        ("auto=maybe", UsageError, "auto takes no value"),
        ({"cache_config": {"threshold": 0.1}}, UsageError, "without cache_type"),
        ({"cache_type": "deep_cache", "cache_config": {"cache_branch_id": 7}}, UsageError, "only 0 has an equal"),
        ({"cache_type": "pab", "cache_config": {"timestep_skip_range": 7}}, UsageError, "give a pair"),
        (3, UsageError, "give text, a list"),
        ([3], UsageError, "give text, a list"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_one_line(written, error, says, registry):
    with pytest.raises(error) as raised:
        wish(written, registry=registry)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_same_value_twice_is_no_mistake(registry):
    assert options("bf16,dtype=bfloat16", registry) == {"dtype": {"value": "bfloat16"}}


# -- several places ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (
            (["dtype=bf16,vae-tiling=256"], ["dtype=fp32"]),
            {"dtype": {"value": "float32"}, "vae-tiling": {"tile_px": 256}},
        ),
        ((["vae-tiling=256"], ["vae-tiling.overlap=0.5"]), {"vae-tiling": {"tile_px": 256, "overlap": 0.5}}),
        ((["deep-cache=3"], ["first-block-cache"]), {"first-block-cache": {}}),
        ((["auto,dtype"], ["none"]), {}),
        ((["auto,dtype"], ["none,tf32"]), {"tf32": {}}),
        ((["tf32,dtype"], [{"enable_tf32": False}]), {"dtype": {}}),
        ((["flash"], [{"enable_xformers": False}]), {"attention-backend": {"value": "flash"}}),
        ((["auto"], [{"auto": False}]), {}),
        ((["auto"], ["tf32"]), {"auto": True, "tf32": {}}),
        (([], ["", {}]), {}),
    ],
    ids=str,
)
def test_the_later_place_wins_option_by_option(sources, expected, registry):
    assert words.merged(sources, registry).mapping == expected


def test_what_was_merged_can_be_read_and_written_again(registry):
    asked = words.merged([["auto,bf16,vae-tiling=256"], ["vae-tiling.overlap=0.5,tf32"]], registry)
    assert words.read(asked.mapping, registry=registry).mapping == asked.mapping
    text = words.written(asked.options, registry)
    assert text == "dtype=bfloat16,vae-tiling=256,vae-tiling.overlap=0.5,tf32"
    assert words.read(text, registry=registry).options == asked.options
