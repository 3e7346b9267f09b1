"""The VAE of a model alone: its denoiser is neither downloaded nor read.

Comes in: what --model and --vae take. Goes out: a diffusers VAE, in the CPU's memory, ready to be run.
"""

import json
import os
from pathlib import Path
from typing import Any

from safelight.errors import DamagedModel, EnvironmentProblem, ModelNotFound, UsageError
from safelight.probe.model import Source, find, model_index, safetensors_header
from safelight.run.load import Loaded, hub_commit, one_line_errors

FOLDER = "vae"  # within a diffusers folder or repository
CLASS = "AutoencoderKL"  # of a config that names none, and of what single files hold


def load_vae(
    model: str,
    *,
    vae: str | None = None,
    dtype: str = "float32",
    config: str | None = None,
    allow_pickle: bool = False,
) -> tuple[Any, Loaded]:
    """In evaluation mode, without gradients. vae: another one than the model's, which then is not looked for.

    config: a folder of configs for a single file, where there is no hub.
    Raises ModelNotFound, DamagedModel, UsageError; EnvironmentProblem for an unreachable hub.
    """
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    import torch

    asked = vae or model
    alone = Path(asked).expanduser()
    if vae and (alone / "config.json").is_file():
        source = Source("vae folder", str(alone), alone.resolve().name, asked)
    else:
        source = find(asked, allow_pickle=allow_pickle)
    with one_line_errors(asked):
        loaded = LOADERS[source.kind](source, getattr(torch, dtype), config)
    check_for_pictures(loaded, asked)
    return loaded.eval().requires_grad_(requires_grad=False), Loaded(asked, source.name, None, source.revision, vae)


def check_for_pictures(vae: Any, asked: str) -> None:
    """Raises DamagedModel for weights that no file holds, UsageError for a VAE of videos or sounds."""
    from torch import nn

    if missing := [name for name, tensor in vae.named_parameters() if tensor.is_meta]:
        raise DamagedModel(f"{asked} holds no fitting weights for {missing[0]} of its vae: download it again")
    others = [kind for kind in (nn.Conv3d, nn.Conv1d) if any(isinstance(layer, kind) for layer in vae.modules())]
    if others:
        raise UsageError(f"{asked}'s {type(vae).__name__} is not for pictures (it has {others[0].__name__} layers)")


def _class_of(config: Path, asked: str) -> Any:
    """The diffusers class that a VAE's config.json names."""
    import diffusers

    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedModel(f"{config} cannot be read: download it again") from error
    name = said.get("_class_name", CLASS) if isinstance(said, dict) else None
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin) and "encode" in dir(cls)):
        raise UsageError(f"{asked} holds no VAE: its config names {name!r:.80}")
    return cls


def _of_vae_folder(source: Source, dtype: Any, config: str | None, folder: str = "") -> Any:
    place = Path(source.place) / folder
    cls = _class_of(place / "config.json", source.asked)
    return cls.from_pretrained(place, dtype=dtype, use_safetensors=True, local_files_only=True)


def _of_folder(source: Source, dtype: Any, config: str | None) -> Any:
    if FOLDER not in model_index(Path(source.place)):
        raise UsageError(f"{source.asked} has no part named {FOLDER!r}: give one with --vae")
    return _of_vae_folder(source, dtype, config, FOLDER)


def _of_hub(source: Source, dtype: Any, config: str | None) -> Any:
    """A model's repository, or that of a VAE alone; without a connection the cache serves, if it has the revision."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # by the revision's name and not its commit: else the cache would not know, later and offline, what the name meant
    where: Any = {"revision": source.revision, "local_files_only": hub_commit(source) is None}
    for folder in (FOLDER, None):
        try:
            found = hf_hub_download(source.place, "config.json", subfolder=folder, **where)
        except LocalEntryNotFoundError as error:
            if folder is None:
                raise EnvironmentProblem(
                    f"{source.place} is not in the cache, and the hub cannot be reached"
                ) from error
        except EntryNotFoundError:
            continue
        else:
            cls = _class_of(Path(found), source.asked)
            return cls.from_pretrained(source.place, subfolder=folder, dtype=dtype, use_safetensors=True, **where)
    raise ModelNotFound(f"{source.place} has no VAE: there is neither a {FOLDER}/config.json nor a config.json")


def _of_file(source: Source, dtype: Any, config: str | None) -> Any:
    """A VAE alone, or a checkpoint that holds one beside its denoiser."""
    from diffusers import AutoencoderKL

    if source.kind == "file" and not any("decoder." in name for name in safetensors_header(Path(source.place))):
        raise DamagedModel(f"{source.place} holds no VAE: none of its tensors is a decoder's")
    where: Any = {"config": config, "subfolder": FOLDER, "local_files_only": True} if config else {}
    return AutoencoderKL.from_single_file(source.place, dtype=dtype, **where)


LOADERS = {
    "vae folder": _of_vae_folder,
    "folder": _of_folder,
    "hub": _of_hub,
    "file": _of_file,
    "pickle": _of_file,
}
