"""Records of pictures, for tests: the shortest, one of all that a first pass has, and one of each other kind."""

from dataclasses import replace

from hypothesis import strategies as st

from safelight.run.record import Record

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
names = texts.filter(str.strip)

PLAIN = Record("a red apple", "", 512, 768, 20, 7.0, 1, "Euler", "firstlight", "firstlight", None, None, None)
FULL = Record(
    prompt="a red apple, 3d\non a \u201cblue\u201d table \U0001f34e",
    negative="blurry, bad",
    width=512,
    height=768,
    steps=20,
    guidance=7.5,
    seed=2**32 - 1,
    sampler="DPM++ 2M",
    model="someone/model@main",
    model_name="model, second: edition",
    model_hash="0123456789abcdef" * 4,
    revision="abc",
    vae="some/where/soft.safetensors",
    lora=("one.safetensors", "two.safetensors:0.5"),
    dtype="bfloat16",
    device="cuda",
    optimizers=(("vae-tiling", "256,overlap=0.5"), ("fused-qkv", "")),
    batch_size=4,
    upscale=4,
    upscaler="realesr-animevideov3-x4",
    versions={"safelight": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
    schedule="Karras",
    more={"clip_skip": 2, "rng": "nv", "variation_seed": 7, "variation_strength": 0.25},
)

TWO_PASSES = replace(
    PLAIN, more={"hires": "1.50", "hires_steps": 12, "hires_denoise": 0.45, "hires_upscaler": "R-ESRGAN 4x+"}
)
INPAINTED = replace(
    PLAIN,
    sampler="Euler a",
    more={
        "init": "photos/room.png",
        "denoise": 0.6,
        "mask": "photos/mask.png",
        "mask_blur": 8,
        "mask_area": "masked",
        "mask_padding": 48,
        "mask_content": "noise",
        "eta": 0.67,
        "s_noise": 1.05,
        "eta_noise_seed_delta": 31337,
    },
    init_hash="ab" * 32,
    mask_hash="cd" * 32,
)

shares = st.floats(0, 1)
ANYWHERE = {
    "eta": st.floats(0, 10),
    "s_churn": st.integers(0, 1000),
    "s_tmax": st.floats(0, 1e6),
    "eta_noise_seed_delta": st.integers(1, 2**32 - 1),
    "rng": st.just("nv"),
    "clip_skip": st.integers(2, 12),
}
VARIED = {"variation_seed": st.integers(0, 2**32 - 1), "variation_strength": st.floats(0.001, 1)}
SECOND_PASS = {
    "hires": st.sampled_from(["1.5", "2", "1024x1536", "1024x0", "0x8"]),
    "hires_denoise": shares,
    "hires_steps": st.integers(1, 1000),
    "hires_upscaler": names,
}
BEGUN = {"init": names, "denoise": shares, "mask": names, "mask_blur": st.integers(0, 256)}


def _some(of: dict[str, st.SearchStrategy]) -> st.SearchStrategy[dict]:
    """All of them, or none, which is as good."""
    return st.one_of(st.just({}), st.fixed_dictionaries(of))


# what `more` of a record may hold, together
mores = st.builds(
    lambda anywhere, varied, other: anywhere | varied | other,
    st.fixed_dictionaries({}, optional=ANYWHERE),
    _some(VARIED),
    st.one_of(_some(SECOND_PASS), _some(BEGUN)),
)


def record_with(more: dict) -> Record:
    hashes = {f"{name}_hash": "ef" * 32 for name in ("init", "mask") if name in more}
    return replace(PLAIN, more=more, **hashes)
