"""Where a TAESD comes from: a VAE of a few million weights, trained on the latents of a large one (AutoencoderTiny).

Comes in: what a person wrote, and a Target. Goes out: its latents' channels and factor, read from a config or a header
alone, or the loaded model. Only safetensors, and no file of a folder is looked for on the hub.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.errors import DamagedModel, DoesNotApply, EnvironmentProblem, ModelNotFound, UsageError
from safelight.optimizers.target import Target
from safelight.probe.model import HUB_ID, safetensors_header

if TYPE_CHECKING:
    from torch import Tensor

AUTO = "auto"
# the beginning of a pipeline's name -> the TAESD of its latents (https://github.com/madebyollin/taesd); the first fits
FAMILIES = {
    "StableDiffusionXL": ("madebyollin/taesdxl", 4),
    "StableDiffusion3": ("madebyollin/taesd3", 16),
    "StableDiffusion": ("madebyollin/taesd", 4),
    "LatentConsistencyModel": ("madebyollin/taesd", 4),
    "PixArtAlpha": ("madebyollin/taesd", 4),
    "PixArtSigma": ("madebyollin/taesdxl", 4),
    "Kolors": ("madebyollin/taesdxl", 4),
    "Flux": ("madebyollin/taef1", 16),
    "Chroma": ("madebyollin/taef1", 16),
}
FACTOR = 8  # picture pixels per latent pixel of all of them
FIRST = "decoder.layers.0.weight"  # the layer that latents enter by: (64, channels, 3, 3)


def chosen(model: str, target: Target) -> str | None:
    """The hub id that "auto" stands for, None where there is none; anything else is what was asked for."""
    if model != AUTO:
        return model
    name = target.pipeline.__name__ if target.pipeline else ""
    found = (repo for beginning, (repo, _) in FAMILIES.items() if name.startswith(beginning))
    return next(found, None)


def latents_of(model: str) -> tuple[int, int] | None:
    """(channels, factor) of a TAESD's latents without loading it; None for a hub id that we do not know.

    Raises ModelNotFound, UsageError, DamagedModel.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        config = _config(path)
        return config.get("latent_channels", 4), 2 ** (len(config.get("decoder_block_out_channels", (64,) * 4)) - 1)
    if path.is_file():
        return _channels(path), FACTOR
    if not HUB_ID.fullmatch(model) or model.endswith(".safetensors"):
        raise ModelNotFound(f"no tiny VAE at {model}: give a folder, a .safetensors file or a hub id (owner/name)")
    asked = model.partition("@")[0]
    return next(((channels, FACTOR) for repo, channels in FAMILIES.values() if repo == asked), None)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFound(f"{folder} has no config.json: give the folder of a tiny VAE itself")
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DamagedModel(f"{path} is not valid JSON ({error}): download it again") from error
    if (name := config.get("_class_name")) != "AutoencoderTiny":
        raise UsageError(f"{folder} holds {name!r:.60}, and tiny-vae needs an AutoencoderTiny")
    return config


def _channels(path: Path) -> int:
    if FIRST not in (header := safetensors_header(path)):
        raise DamagedModel(f"{path} holds no AutoencoderTiny: none of its tensors is {FIRST!r}")
    return int(header[FIRST]["shape"][1])


def load(model: str, dtype: Any) -> Any:
    """An AutoencoderTiny on the CPU. Raises ModelNotFound, DamagedModel, EnvironmentProblem, each in one line."""
    from diffusers import AutoencoderTiny

    path = Path(model).expanduser()
    with _one_line_errors(model):
        if path.is_dir():
            for weights in sorted(path.glob("*.safetensors")):
                safetensors_header(weights)
            made = AutoencoderTiny.from_pretrained(path, dtype=dtype, use_safetensors=True, local_files_only=True)
        elif path.is_file():
            made = _from_file(path).to(dtype)
        else:
            repo, _, revision = model.partition("@")
            made = AutoencoderTiny.from_pretrained(repo, revision=revision or None, dtype=dtype, use_safetensors=True)
    if missing := [name for name, tensor in made.named_parameters() if tensor.is_meta]:
        raise DamagedModel(f"{model} holds no fitting weights for {missing[0]}: download it again")
    return made.eval()


def _from_file(path: Path) -> Any:
    """A file says nothing of its architecture: it has to be TAESD's own, as diffusers names it."""
    from diffusers import AutoencoderTiny
    from safetensors.torch import load_file

    made = AutoencoderTiny(latent_channels=_channels(path))
    made.load_state_dict(load_file(path))
    return made


@contextmanager
def _one_line_errors(model: str) -> Iterator[None]:
    from huggingface_hub import errors as hub
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        if Path(model).expanduser().exists():
            raise DamagedModel(f"{model} cannot be loaded: {first}") from error
        said = error.__cause__ or error.__context__  # diffusers wraps the hub's answer into an OSError
        absent = (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.EntryNotFoundError)
        if isinstance(said, absent) and not isinstance(said, hub.LocalEntryNotFoundError):
            raise ModelNotFound(f"no tiny VAE {model!r} on the hub, or it wants a token (HF_TOKEN)") from error
        raise EnvironmentProblem(f"{model} is not in the cache, and the hub cannot be reached") from error


def picture(tiny: Any, latents: "Tensor") -> "Tensor":
    """(batch, channels, latent_height, latent_width) as the denoiser has them -> (batch, 3, height, width) in 0..1.

    The tiny VAE follows the latents to their device: where the weights are offloaded, no VAE's place tells it.
    """
    import torch

    tiny.to(latents.device)
    with torch.inference_mode():
        latents = latents.to(tiny.dtype) / tiny.config.scaling_factor + (tiny.config.shift_factor or 0)
        return (tiny.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


def check_latents(model: str, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises DoesNotApply when what was loaded is for other latents."""
    if reason := mismatch(model, found, wanted):
        raise DoesNotApply(f"tiny-vae was asked for, but {reason}")


def mismatch(model: str, found: tuple[int, int], wanted: tuple[int, int]) -> str | None:
    """None, or why the TAESD does not fit. found, wanted: (channels, factor)."""
    if found == wanted:
        return None
    return (
        f"{model} is for latents of {found[0]} channels and {found[1]} pixels each, "
        f"and this model's have {wanted[0]} channels and {wanted[1]} pixels each"
    )
