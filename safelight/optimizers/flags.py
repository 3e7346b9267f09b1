"""The table behind `safelight translate`: flags of A1111, Forge, diffgentor and others, and environment variables."""

from collections.abc import Mapping
from dataclasses import dataclass

CMD_ARGS = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/cmd_args.py"
WIKI = "https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Optimizations"
FORGE = "https://github.com/lllyasviel/stable-diffusion-webui-forge/blob/main/backend/args.py"
DIFFGENTOR_DOCS = "https://pypi.org/project/diffgentor/"
SDPA = "https://huggingface.co/docs/diffusers/optimization/fp16#scaled-dot-product-attention"
OFFLOADING = "https://huggingface.co/docs/diffusers/optimization/memory"
ALLOCATOR = "https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf"
SAFETENSORS = "https://huggingface.co/docs/safetensors"
MANY = "many"


@dataclass(frozen=True, slots=True)
class Flag:
    """becomes: words for -o, or a flag of `generate` (--device cpu), "{}" standing for the value.

    takes: how many values, or MANY. verdict: where `becomes` does not tell it. Either may differ from value to value;
    "*" is any other. beside: the flags without which it means nothing.
    """

    says: str
    becomes: str | Mapping[str, str] = ""
    source: str = CMD_ARGS
    takes: int | str = 0
    verdict: str | Mapping[str, str] = ""
    beside: tuple[str, ...] = ()


DEFAULT = "PyTorch's scaled dot product attention has the same kernels, and is what runs here without being asked for"
SPLIT = "cuts up attention that PyTorch 2 computes in one kernel, which needs less memory still"
PAGE = "is about the page or the start of the program, not about speed or memory"
QUAD = ("--opt-sub-quad-attention",)
LOW = ("--always-low-vram", "--always-no-vram", "--lowvram")
PLACED = "the weights lie on the card here as long as nothing is asked for"
HALF = (
    "(by default)",
    "becomes",
    "dtype=float16",
    "A1111 and Forge compute in float16; dtype=bfloat16 is as fast on cards since 2020 and gives no black pictures",
    CMD_ARGS,
)
# of the page and of the start alone: without a value, with one
SWITCHES = (
    "add-stop-route", "administrator", "allow-code", "api", "api-log", "autolaunch", "deepdanbooru",
    "disable-console-progressbars", "disable-tls-verify", "enable-console-prompts",
    "enable-insecure-extension-access", "freeze-settings", "gradio-debug", "gradio-queue", "hide-ui-dir-config",
    "listen", "no-download-sd-model", "no-gradio-queue", "no-hashing", "no-progressbar-hiding", "nowebui",
    "reinstall-torch", "reinstall-xformers", "share", "show-negative-prompt", "skip-install",
    "skip-python-version-check", "skip-torch-cuda-test", "skip-version-check", "ui-debug-mode", "unload-gfpgan",
    "update-all-extensions", "update-check", "use-textbox-seed",
)  # fmt: skip
WITH_VALUE = (
    "api-auth", "ckpt-dir", "clip-models-path", "codeformer-models-path", "config", "cors-allow-origins",
    "cors-allow-origins-regex", "data-dir", "embeddings-dir", "esrgan-models-path", "gfpgan-dir", "gfpgan-model",
    "gradio-auth", "gradio-auth-path", "hypernetwork-dir", "localizations-dir", "lora-dir", "max-batch-count",
    "models-dir", "ngrok", "ngrok-region", "port", "realesrgan-models-path", "server-name", "styles-file",
    "subpath", "theme", "tls-certfile", "tls-keyfile", "ui-config-file", "ui-settings-file", "vae-dir",
)  # fmt: skip
_A1111 = {
    "--xformers": Flag(DEFAULT, source=SDPA),
    "--force-enable-xformers": Flag(DEFAULT, source=SDPA),
    "--xformers-flash-attention": Flag(f"{DEFAULT}; attention-backend=flash holds it to flash", source=SDPA),
    "--opt-sdp-attention": Flag(DEFAULT, source=SDPA),
    "--opt-sdp-no-mem-attention": Flag(f"{DEFAULT}; attention-backend=flash holds it to flash", source=SDPA),
    "--opt-split-attention": Flag(SPLIT, source=WIKI),
    "--opt-split-attention-v1": Flag(SPLIT, source=WIKI),
    "--opt-split-attention-invokeai": Flag(SPLIT, source=WIKI),
    "--opt-sub-quad-attention": Flag("attention in chunks, for devices without a kernel", "split-attention", WIKI),
    "--sub-quad-q-chunk-size": Flag("queries at a time", "split-attention.chunk={}", takes=1, beside=QUAD),
    "--sub-quad-kv-chunk-size": Flag("keys at a time", "split-attention.keys={}", takes=1, beside=QUAD),
    "--sub-quad-chunk-threshold": Flag("chunks are cut always here, not above a share of the memory", takes=1),
    "--disable-opt-split-attention": Flag("nothing is split here unless it is asked for", source=WIKI),
    "--medvram": Flag("text encoders, denoiser and VAE are on the card in turn", "model-offload", OFFLOADING),
    "--medvram-sdxl": Flag("--medvram for SDXL alone; here it is asked for by the run", "model-offload", OFFLOADING),
    "--lowvram": Flag("groups of layers are moved, far faster than layer by layer", "group-offload", OFFLOADING),
    "--lowram": Flag("safetensors files are mapped, not read into RAM first", source=SAFETENSORS),
    "--no-half": Flag("everything in float32", "dtype=float32"),
    "--no-half-vae": Flag(
        "the VAE in float32; seldom needed: a black picture is decoded again in float32 by itself", "upcast-vae", WIKI
    ),
    "--upcast-sampling": Flag("for cards whose float16 gives not-a-number, not modern ones", "upcast-sampling", WIKI),
    "--precision": Flag(
        "full is float32, half is float16 throughout, autocast is the default",
        {"full": "dtype=float32", "autocast": "", "half": "dtype=float16"},
        takes=1,
    ),
    "--opt-channelslast": Flag("images with the channels innermost", "channels-last", WIKI),
    "--disable-nan-check": Flag("the check stays: a spoiled picture is never written here"),
    "--always-batch-cond-uncond": Flag(
        "both halves of guidance run as one batch here; guidance-split is the opposite", verdict="obsolete"
    ),
    "--use-cpu": Flag("which device computes", {"all": "--device cpu", "*": ""}, takes=MANY),
    "--device-id": Flag("which card computes", "--device cuda:{}", takes=1),
    "--ckpt": Flag("which model", "--model {}", takes=1),
    "--vae-path": Flag("which VAE", "--vae {}", takes=1),
    "--disable-safe-unpickle": Flag("pickles are refused; --allow-pickle reads them without running code"),
    **{
        f"--{name}": Flag(PAGE)
        for name in SWITCHES
    },
    **{
        f"--{name}": Flag(PAGE, takes=1)
        for name in WITH_VALUE
    },
}  # fmt: skip
_FP8 = "weights stored in 8 bits, computed in 16"
_FORGE = {
    "--always-gpu": Flag(PLACED, source=FORGE),
    "--always-high-vram": Flag(PLACED, source=FORGE),
    "--always-normal-vram": Flag("text encoders, denoiser and VAE are on the card in turn", "model-offload", FORGE),
    "--always-low-vram": Flag("groups of layers are moved", "group-offload", FORGE),
    "--always-no-vram": Flag("groups of layers are moved, far faster than layer by layer", "group-offload", FORGE),
    "--always-offload-from-vram": Flag("a part leaves the card when it is done", "model-offload", FORGE),
    "--always-cpu": Flag("which device computes", "--device cpu", FORGE),
    "--gpu-device-id": Flag("which card computes", "--device cuda:{}", FORGE, takes=1),
    "--all-in-fp32": Flag("everything in float32", "dtype=float32", FORGE),
    "--all-in-fp16": Flag("everything in float16", "dtype=float16", FORGE),
    "--unet-in-bf16": Flag("the denoiser's number format", "dtype.denoiser=bfloat16", FORGE),
    "--unet-in-fp16": Flag("the denoiser's number format", "dtype.denoiser=float16", FORGE),
    "--unet-in-fp8-e4m3fn": Flag(_FP8, "layerwise-casting=float8_e4m3fn", FORGE),
    "--unet-in-fp8-e5m2": Flag(_FP8, "layerwise-casting=float8_e5m2", FORGE),
    "--vae-in-fp16": Flag("the VAE in float16", "half-vae", FORGE),
    "--vae-in-bf16": Flag("the VAE's number format", "dtype.vae=bfloat16", FORGE),
    "--vae-in-fp32": Flag("the VAE in float32", "upcast-vae", FORGE),
    "--vae-in-cpu": Flag("a part on another device than the rest is not there", source=FORGE, verdict="not there yet"),
    "--clip-in-fp16": Flag("the text encoders' number format", "dtype.text_encoders=float16", FORGE),
    "--clip-in-fp32": Flag("the text encoders' number format", "dtype.text_encoders=float32", FORGE),
    "--clip-in-fp8-e4m3fn": Flag("quantized text encoders", source=FORGE, verdict="not there yet"),
    "--clip-in-fp8-e5m2": Flag("quantized text encoders", source=FORGE, verdict="not there yet"),
    "--attention-split": Flag(SPLIT, source=FORGE),
    "--attention-quad": Flag("attention in chunks, for devices without a kernel", "split-attention", FORGE),
    "--attention-pytorch": Flag(DEFAULT, source=FORGE),
    "--disable-xformers": Flag("xFormers is not used here unless it is asked for", source=FORGE),
    "--force-upcast-attention": Flag("the softmax of PyTorch's kernels is in float32 anyway", source=FORGE),
    "--disable-attention-upcast": Flag("nothing is upcast here unless the model's config asks for it", source=FORGE),
    "--cuda-malloc": Flag(
        "is PYTORCH_ALLOC_CONF=backend:cudaMallocAsync; expandable segments mend the same fragmentation",
        "expandable-segments",
        ALLOCATOR,
    ),
    "--cuda-stream": Flag(
        "moves weights while others compute; part of group-offload", "group-offload.stream=true", FORGE, beside=LOW
    ),
    "--pin-shared-memory": Flag(
        "pins host memory for that; part of group-offload's stream", "group-offload.stream=true", FORGE, beside=LOW
    ),
    "--pytorch-deterministic": Flag("the noise is the same on every device anyway; kernels are not held", source=FORGE),
}  # fmt: skip
_OTHERS = {
    "--vae-tiling": Flag(
        "is stable-diffusion.cpp's, not A1111's, where tiling is an extension",
        "vae-tiling",
        "https://github.com/leejet/stable-diffusion.cpp",
        verdict="not A1111's",
    ),
    "--half-vae": Flag(
        "is not A1111's, where 16 bits are the default; ComfyUI calls it --fp16-vae",
        "half-vae",
        CMD_ARGS,
        verdict="not A1111's",
    ),
    "--fp16-vae": Flag("is ComfyUI's", "half-vae", "https://github.com/comfyanonymous/ComfyUI", verdict="not A1111's"),
}
A1111 = {**_A1111, **_FORGE}  # the programs that compute in float16 by default
FLAGS = {**A1111, **_OTHERS}
# what matters for speed and memory, for messages
TUNING = tuple(name for name, flag in FLAGS.items() if flag.says != PAGE)
# the order in which A1111 looks for the first that was asked for: modules/sd_hijack_optimizations.py, 1.10
ATTENTION = {
    "--xformers": 100,
    "--force-enable-xformers": 100,
    "--opt-split-attention": 90,
    "--opt-sdp-no-mem-attention": 80,
    "--opt-sdp-attention": 70,
    "--opt-sub-quad-attention": 10,
    "--opt-split-attention-v1": 10,
    "--opt-split-attention-invokeai": 10,
}


def _theirs(
    says: str,
    becomes: str | Mapping[str, str] = "",
    takes: int = 0,
    verdict: str | Mapping[str, str] = "",
    beside: tuple[str, ...] = (),
) -> Flag:
    return Flag(says, becomes, DIFFGENTOR_DOCS, takes, verdict, beside)


_SAME = "has the same meaning here"
_DEVICES = "several devices for one picture are not there yet"
DIFFGENTOR = {
    **{
        f"--enable_{name}": _theirs(_SAME, f"{becomes}")
        for name, becomes in {
            "compile": "compile",
            "cpu_offload": "model-offload",
            "sequential_cpu_offload": "sequential-offload",
            "vae_slicing": "vae-slicing",
            "vae_tiling": "vae-tiling",
            "fuse_qkv": "fused-qkv",
            "tf32": "tf32",
            "group_offloading": "group-offload",
            "layerwise_casting": "layerwise-casting",
        }.items()
    },
    "--enable_xformers": Flag(DEFAULT, source=SDPA),
    "--torch_dtype": _theirs(_SAME, "dtype={}", 1),
    "--attention_backend": _theirs(_SAME, {"xformers": "", "*": "attention-backend={}"}, 1),
    "--cache_type": _theirs(_SAME, {"none": "", "*": "{}"}, 1),
    "--group_offload_type": _theirs(_SAME, "group_offload_type={}", 1, beside=("--enable_group_offloading",)),
    "--storage_dtype": _theirs(_SAME, "storage_dtype={}", 1, beside=("--enable_layerwise_casting",)),
    "--compile_mode": _theirs(_SAME, "compile_mode={}", 1, beside=("--enable_compile",)),
    "--compile_fullgraph": _theirs(_SAME, "compile.fullgraph=true", beside=("--enable_compile",)),
    "--optimize": _theirs("the same names are understood here", "{}", 1),
    "--model_name": _theirs("which model", "--model {}", 1),
    "--batch_size": _theirs("does nothing in diffgentor's t2i; here it does", "--batch-size {}", 1),
    "--prompt": _theirs("what to draw", "PROMPT {}", 1),
    "--num_images_per_prompt": _theirs("how many pictures", "--count {}", 1),
    "--num_inference_steps": _theirs("denoising steps", "--steps {}", 1),
    "--guidance_scale": _theirs("the scale of guidance", "--guidance {}", 1),
    "--negative_prompt": _theirs("what not to draw", "--negative {}", 1),
    "--output_dir": _theirs("where to", "--out {}", 1),
    "--backend": _theirs(
        "the only backend here is diffusers: xdit wants several devices, the others are services or own code",
        "",
        1,
        {"diffusers": "pointless", "*": "not there yet"},
    ),
    "--num_gpus": _theirs(_DEVICES, "", 1, "not there yet"),
}
VARIABLES = {
    "PYTORCH_CUDA_ALLOC_CONF": Flag("settings of torch's allocator", "expandable-segments", ALLOCATOR, 1),
    "PYTORCH_ALLOC_CONF": Flag("settings of torch's allocator", "expandable-segments", ALLOCATOR, 1),
    "SAFETENSORS_FAST_GPU": Flag(
        "is read by nobody since June 2023",
        source="https://github.com/huggingface/accelerate/pull/1603",
        takes=1,
        verdict="obsolete",
    ),
    "CUDA_MODULE_LOADING": Flag(
        "CUDA loads kernels on their first use by itself since 12.2",
        {"LAZY": "lazy-modules", "*": ""},
        "https://docs.nvidia.com/cuda/cuda-programming-guide/04-special-topics/lazy-loading.html",
        1,
    ),
    **{
        f"DG_XDIT_{name}": _theirs(_DEVICES, "", 1, "not there yet")
        for name in (
            "DATA_PARALLEL_DEGREE",
            "ULYSSES_DEGREE",
            "RING_DEGREE",
            "PIPEFUSION_DEGREE",
            "USE_CFG_PARALLEL",
        )
    },
    "DG_STEP1X_QUANTIZED": _theirs("quantization is not there yet", "", 1, "not there yet"),
    "DG_STEP1X_OFFLOAD": _theirs(_SAME, {"1": "model-offload", "true": "model-offload", "*": ""}, 1),
    "DG_FLUX_KONTEXT_OFFLOAD": _theirs(_SAME, {"1": "model-offload", "true": "model-offload", "*": ""}, 1),
    "DG_HUNYUAN_IMAGE_3_USE_TAYLOR_CACHE": _theirs(
        _SAME, {"1": "taylorseer-cache", "true": "taylorseer-cache", "*": ""}, 1
    ),
    "DG_HUNYUAN_IMAGE_3_ATTN_IMPL": _theirs(
        "sdpa runs here anyway", {"flash_attention_2": "attention-backend=flash", "*": ""}, 1
    ),
}
