"""Records what the published samplers give on the mixture: `python record.py K_DIFFUSION WEBUI`, run in this folder.

K_DIFFUSION: the k_diffusion folder of crowsonkb/k-diffusion (4601bf0 was recorded). WEBUI: the modules folder of
lllyasviel/stable-diffusion-webui-forge (dfdcbab was recorded), which carries A1111's samplers beyond k-diffusion's.
Their sampler files are run as they are; only what they import is replaced. Needs torch, scipy and safetensors.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from mixture import GUIDANCE, RECORDED, cases, denoised, guided, noises, start
from safetensors.torch import save_file

LABELS = {
    "DPM++ 2M": "sample_dpmpp_2m",
    "DPM++ SDE": "sample_dpmpp_sde",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "sample_dpmpp_2m_sde",
    "DPM++ 2S a": "sample_dpmpp_2s_ancestral",
    "DPM++ 3M SDE": "sample_dpmpp_3m_sde",
    "Euler a": "sample_euler_ancestral",
    "Euler": "sample_euler",
    "LMS": "sample_lms",
    "Heun": "sample_heun",
    "DPM2": "sample_dpm_2",
    "DPM2 a": "sample_dpm_2_ancestral",
    "DPM fast": "sample_dpm_fast",
    "DPM adaptive": "sample_dpm_adaptive",
    "Restart": "restart_sampler",
    "DDIM": "ddim",
    "DDIM CFG++": "ddim_cfgpp",
    "PLMS": "plms",
    "UniPC": "unipc",
    "LCM": "sample_lcm",
}
OWN_ENDS = {"DPM fast", "DPM adaptive"}
ON_TIMESTEPS = {"DDIM", "DDIM CFG++", "PLMS", "UniPC"}
DRAWING = {label for label in LABELS if label.endswith((" a", "SDE", "SDE Heun"))} | OWN_ENDS | {"LCM"}
ALMOST_ZERO = 1e-7  # UniPC's bh1 is not a number at 0


class Nothing(ModuleType):
    """A module in which every name is an empty class, to import from and to inherit from."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *a, **k: None})


def stub(name, **found):
    module = Nothing(name)
    vars(module).update(found)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    return module


def published(k_diffusion, webui):
    """The functions of LABELS, by label."""
    stub("torchdiffeq")
    stub("torchsde")
    bar = SimpleNamespace(update=lambda *a: None)
    quiet = type(
        "tqdm", (), {"__init__": lambda *a, **k: None, "__enter__": lambda s: bar, "__exit__": lambda *a: None}
    )
    stub("tqdm", trange=lambda n, **k: range(n), tqdm=quiet)
    stub("tqdm.auto", trange=lambda n, **k: range(n), tqdm=quiet)
    stub("k_diffusion")
    sys.modules["k_diffusion"].__path__ = []
    stub("k_diffusion.utils", append_dims=lambda x, n: x[(...,) + (None,) * (n - x.ndim)])
    stub("k_diffusion.external")
    stub("modules")
    for name in ("sd_samplers_cfg_denoiser", "sd_samplers_kdiffusion", "sd_samplers_common", "models", "torch_utils"):
        stub(f"modules.{name}")
    sys.modules["modules.torch_utils"].float64 = lambda x: torch.float64
    # A1111's defaults
    options = SimpleNamespace(uni_pc_order=3, uni_pc_lower_order_final=True, uni_pc_skip_type="time_uniform")
    stub("modules.shared", opts=options)
    stub("modules.models.diffusion")
    package = stub("modules.models.diffusion.uni_pc")
    package.uni_pc = load("modules.models.diffusion.uni_pc.uni_pc", webui / "models/diffusion/uni_pc/uni_pc.py")
    files = [load("k_diffusion.sampling", k_diffusion / "sampling.py")]
    # k-diffusion has it as a context alone, these as an iterator, too
    sys.modules["tqdm"].tqdm = lambda steps=None, **k: steps if steps is not None else quiet()
    files += [load(f"modules.{n}", webui / f"{n}.py") for n in ("sd_samplers_timesteps_impl", "sd_samplers_lcm")]
    files += [load("modules.sd_samplers_extra", webui / "sd_samplers_extra.py")]
    return {label: next(vars(f)[name] for f in files if name in vars(f)) for label, name in LABELS.items()}, options


def run(label, function, keywords, sigmas, options):
    draw = noises()
    torch.randn_like = lambda x, **_: draw()
    if label in ON_TIMESTEPS:
        return on_timesteps(label, function, keywords, sigmas, options)
    keywords = dict(keywords)
    if label in DRAWING:
        keywords["noise_sampler"] = draw
    if label == "DPM++ 2M SDE Heun":
        keywords["solver_type"] = "heun"
    model = lambda x, sigma: denoised(x, float(sigma[0]))  # noqa: E731
    x = start(sigmas[0])
    if label in OWN_ENDS:
        low, high = torch.tensor(min(s for s in sigmas if s > 0)), torch.tensor(sigmas[0])
        counted = {"n": len(sigmas) - 1} if label == "DPM fast" else {}
        return function(model, x, low, high, **counted, **{"eta": 1.0, **keywords})
    return function(model, x, torch.tensor(sigmas), **keywords)


class OfTimesteps:
    """The mixture for samplers that know a model by its alphas, one for each level, and scale x to variance 1."""

    def __init__(self, sigmas):
        self.sigmas = torch.tensor(sigmas[::-1])
        self.alphas_cumprod = 1 / (1 + self.sigmas**2)
        self.inner_model = SimpleNamespace(inner_model=self)
        self.cond_scale_miltiplier, self.need_last_noise_uncond = 1.0, False

    def __call__(self, x, timestep):
        # UniPC counts 1000 timesteps whatever there is
        at = timestep[0] if self.even is None else (timestep[0] / 1000 * self.even)
        sigma = float(self.sigmas[round(float(at))])
        x = x * (1 + sigma**2) ** 0.5
        if not self.need_last_noise_uncond:
            return (x - denoised(x, sigma)) / sigma
        with_guidance, self.plain = guided(x, sigma, GUIDANCE * self.cond_scale_miltiplier)
        self.last_noise_uncond = (x - self.plain) / sigma
        return (x - with_guidance) / sigma


def on_timesteps(label, function, keywords, sigmas, options):
    if label == "UniPC":
        options.uni_pc_variant = keywords.get("variant", "bh1")
        keywords = {}
        sigmas = [*sigmas[:-1], sigmas[-1] or ALMOST_ZERO]
    model = OfTimesteps(sigmas)
    model.even = len(sigmas) if label == "UniPC" else None
    timesteps = torch.arange(len(sigmas) - 1 if label == "UniPC" else len(sigmas))
    x = start(sigmas[0]) / (1 + sigmas[0] ** 2) ** 0.5
    x = function(model, x, timesteps, {}, lambda *a: None, **keywords)
    return x * (1 + sigmas[-1] ** 2) ** 0.5


def main(k_diffusion, webui):
    torch.set_default_dtype(torch.float64)
    functions, options = published(Path(k_diffusion), Path(webui))
    found = {
        key: run(label, functions[label], keywords, sigmas, options).contiguous()
        for key, label, keywords, sigmas in cases(LABELS)
    }
    assert all(torch.isfinite(x).all() for x in found.values())
    save_file(found, RECORDED)


if __name__ == "__main__":
    main(*sys.argv[1:])
