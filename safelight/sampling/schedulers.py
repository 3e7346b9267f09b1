"""The samplers people name -> diffusers' schedulers. One table.

A scheduler is always built from the checkpoint's own scheduler config, never from the one in use: flags such as
use_karras_sigmas travel through `from_config` into classes that do not know them, and come out at the next class.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safelight.errors import DoesNotApply, UnknownName

DEFAULT = "checkpoint's own"  # in a record: a scheduler that no name of the table stands for


@dataclass(frozen=True, slots=True)
class Sampler:
    """label: as A1111 writes it, with its schedule. evaluations: model calls for one step."""

    label: str
    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    evaluations: int = 1
    flow: bool = False  # made for flow-matching models (SD3, FLUX), and for those alone


KARRAS = {"use_karras_sigmas": True}
SAMPLERS = (
    Sampler("Euler", "EulerDiscreteScheduler", aliases=("k_euler",)),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", aliases=("k_euler_a", "k_euler_ancestral")),
    Sampler("Euler Karras", "EulerDiscreteScheduler", KARRAS),
    Sampler("Heun", "HeunDiscreteScheduler", aliases=("k_heun",), evaluations=2),
    Sampler("DPM2", "KDPM2DiscreteScheduler", aliases=("k_dpm_2",), evaluations=2),
    Sampler("DPM++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, ("k_dpmpp_2m",)),
    Sampler("DPM++ 2M Karras", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **KARRAS}),
    Sampler("DPM++ 2M SDE", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, ("k_dpmpp_2m_sde",)),
    Sampler("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **KARRAS}),
    Sampler("DDIM", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    Sampler("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
    Sampler("UniPC", "UniPCMultistepScheduler"),
    Sampler("LCM", "LCMScheduler", aliases=("k_lcm",)),
    Sampler("Euler flow", "FlowMatchEulerDiscreteScheduler", flow=True),
)


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def _names(sampler: Sampler) -> tuple[str, ...]:
    return (sampler.label, sampler.cls, *sampler.aliases)


def find(name: str) -> Sampler:
    """By label, alias or diffusers class; case, spaces, hyphens and underscores do not count. Raises UnknownName."""
    for sampler in SAMPLERS:
        if _normal(name) in map(_normal, _names(sampler)):
            return sampler
    raise UnknownName("sampler", name, [sampler.label for sampler in SAMPLERS])


def build(sampler: Sampler, checkpoint: Mapping[str, Any], checkpoint_class: str) -> Any:
    """A fresh diffusers scheduler. Raises DoesNotApply when the model was trained for the other kind of noise."""
    import diffusers

    flow_model = checkpoint_class.startswith("FlowMatch")
    if flow_model and sampler.cls == "EulerDiscreteScheduler" and not sampler.settings:
        sampler = find("Euler flow")
    if sampler.flow != flow_model:
        kind = "flow-matching" if flow_model else "noise-predicting"
        fitting = [s.label for s in SAMPLERS if s.flow == flow_model]
        raise DoesNotApply(f"sampler {sampler.label!r} is not for a {kind} model: use {' or '.join(fitting[:4])}")
    cls = getattr(diffusers, sampler.cls)
    return cls.from_config({k: v for k, v in checkpoint.items() if k not in _FLAGS}, **sampler.settings)


def own(checkpoint: Mapping[str, Any], checkpoint_class: str) -> Any:
    """The scheduler that a checkpoint came with, fresh; but never one that ends in not-a-number."""
    import diffusers

    return getattr(diffusers, checkpoint_class).from_config(checkpoint, **_mended(checkpoint, checkpoint_class))


def _mended(checkpoint: Mapping[str, Any], checkpoint_class: str) -> dict[str, Any]:
    """UniPC's "bh1" divides by the last step's logarithm, and a last sigma of zero makes that infinite."""
    ends_at_zero = checkpoint.get("final_sigmas_type", "zero") == "zero"
    spoils = checkpoint_class == "UniPCMultistepScheduler" and checkpoint.get("solver_type") == "bh1" and ends_at_zero
    return {"final_sigmas_type": "sigma_min"} if spoils else {}


def label_of(scheduler: Any) -> str:
    """The table's name for a scheduler already in a pipeline; DEFAULT if what the name builds would be another."""
    name = type(scheduler).__name__
    for sampler in SAMPLERS:
        if sampler.cls == name and _plain(build(sampler, scheduler.config, name).config) == _plain(scheduler.config):
            return sampler.label
    return DEFAULT


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


# what a sampler decides, not the checkpoint
_FLAGS = frozenset(
    {"_class_name", "_use_default_values", "algorithm_type", "solver_type", "clip_sample", "set_alpha_to_one"}
    | {f"use_{kind}_sigmas" for kind in ("karras", "exponential", "beta")}
)
