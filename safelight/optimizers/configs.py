"""A Target from a model's configs alone, for asking what would fit before a weight is loaded or downloaded."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.errors import DamagedModel, UsageError
from safelight.optimizers.target import Part, Target
from safelight.probe.device import Device
from safelight.probe.model import find, model_index

FACTOR_BY_DEFAULT = 8  # picture pixels per latent pixel where a VAE's config does not tell


def target_from(model: str, device: Device, *, batch_size: int = 1) -> Target:
    """The target that a model would be, at its own size. model: as --model takes it, but for a single file.

    Raises ModelNotFound, DamagedModel, UsageError; EnvironmentProblem when the hub cannot be reached.
    """
    source = find(model)
    if source.kind == "hub":
        folder = _configs_of(source.place, source.revision)
    elif source.kind == "folder":
        folder = Path(source.place)
    else:
        raise UsageError(f"{model} is a single file, without configs: give a diffusers folder or a hub id")
    index = model_index(folder)
    parts = dict(_parts(folder, index))
    side = _side_px(parts)
    return Target(
        device,
        parts,
        side,
        side,
        batch_size,
        text_is_encoded=any(name.startswith("text_encoder") for name in parts),
        pipeline=_class("diffusers", index["_class_name"]),
        disposable=True,
    )


def _configs_of(repository: str, revision: str | None) -> Path:
    """The folder of a hub model's JSON files; no weight is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from safelight.errors import EnvironmentProblem, ModelNotFound

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json"]))
    except LocalEntryNotFoundError as error:
        raise EnvironmentProblem(f"{repository} is not in the cache, and the hub cannot be reached") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(f"{repository}: {str(error).splitlines()[0][:300]}") from error


def _parts(folder: Path, index: Mapping[str, Any]) -> Any:
    """(name, Part) of every torch module, from <folder>/<name>/config.json."""
    from torch import nn

    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] not in ("diffusers", "transformers"):
            continue
        cls = _class(entry[0], entry[1])
        if name != "safety_checker" and isinstance(cls, type) and issubclass(cls, nn.Module):
            yield name, Part(cls, _config(cls, folder / name / "config.json"))


def _class(module: str, name: str) -> Any:
    import importlib

    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise DamagedModel(f"the model wants {module}.{name}, which this version of {module} does not have") from error


def _config(cls: type, path: Path) -> Any:
    """The config as the loaded part would have it: what the file leaves out, the class has as its default."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedModel(f"{path} cannot be read: download it again") from error
    if config_class := getattr(cls, "config_class", None):  # of transformers
        return config_class.from_dict(said)
    parameters = inspect.signature(cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**defaults, **said}


def _side_px(parts: Mapping[str, Part]) -> int:
    """The side of the picture that the model draws by itself."""
    denoiser = parts["transformer" if "transformer" in parts else "unet"].config
    blocks = parts["vae"].config.get("block_out_channels") if "vae" in parts else None
    factor = 2 ** (len(blocks) - 1) if blocks else FACTOR_BY_DEFAULT
    size = denoiser.get("sample_size") or 128
    return (size[0] if isinstance(size, list | tuple) else size) * factor
