"""The VAE of a model alone, or another one in its place: its denoiser is neither downloaded nor read.

Comes in: what --model and --vae take, or a name of the catalogue. Goes out: a diffusers VAE, in the CPU's memory, ready
to be run; or, before any weight is read, why it does not fit a model.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.errors import (
    DamagedModel,
    DoesNotApply,
    EnvironmentProblem,
    ModelNotFound,
    SafelightError,
    UnknownName,
    UsageError,
)
from safelight.firstlight import BUNDLED
from safelight.optimizers import taesd
from safelight.probe import blueprint, known, vae_catalog
from safelight.probe.blueprint import Part
from safelight.probe.model import Source, find, model_index, safetensors_header
from safelight.probe.vae_catalog import FACTOR, Latents, Row
from safelight.run.load import Loaded, hub_commit, one_line_errors

FOLDER = "vae"  # within a diffusers folder or repository
CLASS = "AutoencoderKL"  # of a config that names none, and of what single files hold
DENOISER = ("model.diffusion_model.", "double_blocks.", "joint_blocks.")
# the layer that latents enter by, (out, channels, 3, 3), and the levels after it, in CompVis' and in diffusers' names
ENTERED = re.compile(r"(?:first_stage_model\.|vae\.)?decoder\.conv_in\.weight")
LEVEL = re.compile(r"(?:first_stage_model\.|vae\.)?decoder\.up(?:_blocks)?\.(\d+)\.")


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
    source, row = located(vae, allow_pickle=allow_pickle) if vae else (find(asked, allow_pickle=allow_pickle), None)
    with one_line_errors(asked):
        loaded = LOADERS[source.kind](source, getattr(torch, dtype), config or _written_config(source, row, None))
    return _ready(loaded, asked), Loaded(asked, source.name, None, source.revision, vae)


def other_vae(
    asked: str, own: Part | None, *, dtype: Any, model: str = "this model", allow_pickle: bool = False
) -> Any:
    """What --vae asks for, to stand in a loaded pipeline. own: the VAE that the model came with, by class and config.

    dtype: torch's. A file alone gets the config of its kind, and of `own` where nobody knows its kind.
    Raises what `check_fits` raises, DamagedModel for what cannot be read.
    """
    source, row = located(asked, allow_pickle=allow_pickle)
    check_fits(asked, own, model=model, allow_pickle=allow_pickle)
    with one_line_errors(asked):
        loaded = LOADERS[source.kind](source, dtype, _written_config(source, row, own))
    if own is not None and row is None and (problem := _config_problem(asked, loaded.config, own, model)):
        raise DoesNotApply(problem)
    return _ready(loaded, asked)


def check_fits(asked: str, own: Part | None, *, model: str = "this model", allow_pickle: bool = False) -> None:
    """Whether --vae's latents are those of the model, by configs, names and headers alone; of a hub id its config only.

    Warns of a file that says nothing of its scaling. own: None where the model has no VAE, and then all fit.
    Raises DoesNotApply with the reason, and what finding it raises.
    """
    source, row = located(asked, allow_pickle=allow_pickle)
    if own is None:
        return
    if row is not None:
        problem = vae_catalog.mismatch(asked, row.latents, _latents(own.config), model)
    elif source.kind in ("file", "pickle"):
        problem = _file_problem(source, own, model)
    else:
        found = _config_of(source)
        problem = None if found is None else _config_problem(asked, found, own, model)
    if problem:
        raise DoesNotApply(problem)


def located(asked: str, *, allow_pickle: bool = False) -> tuple[Source, Row | None]:
    """Where a VAE is, and its row of the catalogue, None for any other. Raises ModelNotFound, UsageError."""
    path = Path(asked).expanduser()
    if (path / "config.json").is_file():
        return Source("vae folder", str(path), path.resolve().name, asked), _row_of_folder(path)
    row = None if path.exists() or asked in BUNDLED else vae_catalog.named(asked)
    if row is None:
        source = _found(asked, path, allow_pickle)
        return source, vae_catalog.recognised(path) if source.kind in ("file", "pickle") else None
    if path.suffix in (".safetensors", ".ckpt"):
        raise ModelNotFound(f"there is no file {asked}: --vae {row.name} fetches it from {row.hub}")
    if "/" in asked:
        return find(asked, allow_pickle=allow_pickle), row
    if row.pickle is None:
        return Source("hub", row.hub, row.name, asked), row
    if not allow_pickle:
        raise UsageError(f"{row.name} is only published as a pickle, which can run code: --allow-pickle takes it")
    return Source("pickle", _fetched(row.hub, row.pickle), row.name, asked), row


def _found(asked: str, path: Path, allow_pickle: bool) -> Source:
    try:
        return find(asked, allow_pickle=allow_pickle)
    except UnknownName as error:
        names = (*(row.name for row in vae_catalog.CATALOGUE), *BUNDLED, *known.KNOWN)
        raise UnknownName("VAE", asked, names, known.names()) from error


def _row_of_folder(folder: Path) -> Row | None:
    """Of a tiny VAE, whose config tells its family only by where diffusers says that its weights came from."""
    said = _json(folder / "config.json").get("_name_or_path")
    row = vae_catalog.named(said) if isinstance(said, str) and said else None
    return row if row is not None and row.tiny else None


def _fetched(repository: str, file: str) -> str:
    """The path of a hub's file in the cache. Raises EnvironmentProblem."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(hf_hub_download(repository, file))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise EnvironmentProblem(f"{repository}/{file} is not in the cache, and the hub does not give it") from error


def _ready(loaded: Any, asked: str) -> Any:
    check_for_pictures(loaded, asked)
    return loaded.eval().requires_grad_(requires_grad=False)


def check_for_pictures(vae: Any, asked: str) -> None:
    """Raises DamagedModel for weights that no file holds, UsageError for a VAE of videos or sounds."""
    from torch import nn

    if missing := [name for name, tensor in vae.named_parameters() if tensor.is_meta]:
        raise DamagedModel(f"{asked} holds no fitting weights for {missing[0]} of its vae: download it again")
    others = [kind for kind in (nn.Conv3d, nn.Conv1d) if any(isinstance(layer, kind) for layer in vae.modules())]
    if others:
        raise UsageError(f"{asked}'s {type(vae).__name__} is not for pictures (it has {others[0].__name__} layers)")


# -- whether it fits ---------------------------------------------------------------------------------------------------


def _latents(config: Mapping[str, Any]) -> Latents:
    return vae_catalog.latents_of(config)


def _is_tiny(config: Mapping[str, Any]) -> bool:
    """An AutoencoderTiny's config, whose scaling says nothing: it takes latents as the denoiser has them."""
    return "encoder_block_out_channels" in config and "latent_magnitude" in config


def _config_problem(asked: str, found: Mapping[str, Any], own: Part, model: str) -> str | None:
    wanted, has = _latents(own.config), _latents(found)
    if _is_tiny(found) or _is_tiny(own.config):
        has = Latents(has.channels, has.factor, wanted.scaling, wanted.shift, wanted.own_statistics)
    return vae_catalog.mismatch(asked, has, wanted, model)


def _file_problem(source: Source, own: Part, model: str) -> str | None:
    """Of a file that the catalogue does not know: by its shapes; whether its scaling fits, it cannot tell."""
    if (inside := _checkpoints_own(source)) is not None:
        return _config_problem(source.asked, inside.config, own, model)
    wanted = _latents(own.config)
    if source.kind == "file":
        channels, factor = _shapes(source)
        has = Latents(channels, factor, wanted.scaling, wanted.shift, wanted.own_statistics)
        if problem := vae_catalog.mismatch(source.asked, has, wanted, model):
            return problem
    warnings.warn(
        f"{source.asked} says nothing of its scaling: it is taken for one of {model}'s kind; with another kind's the "
        "colours are wrong",
        stacklevel=2,  # the same line each time: asked before and while a model is loaded, it is said once
    )
    return None


def _shapes(source: Source) -> tuple[int, int]:
    """(channels of its latents, pixels for each), from the header of a file."""
    header = safetensors_header(Path(source.place))
    if taesd.FIRST in header:
        return int(header[taesd.FIRST]["shape"][1]), FACTOR
    entered = next((entry for name, entry in header.items() if ENTERED.fullmatch(name)), None)
    if entered is None:
        raise DamagedModel(f"{source.asked} holds no VAE: none of its tensors is a decoder's")
    levels = {match[1] for name in header if (match := LEVEL.match(name))}
    return int(entered["shape"][1]), 2 ** (len(levels) - 1)


def _checkpoints_own(source: Source) -> Part | None:
    """The VAE's config of a whole checkpoint, whose kind its denoiser tells; None for a VAE alone."""
    if source.kind != "file" or not any(name.startswith(DENOISER) for name in safetensors_header(Path(source.place))):
        return None
    try:
        return blueprint.read(source.place).parts.get(FOLDER)
    except SafelightError:  # of a kind whose configs are not known here
        return None


def _config_of(source: Source) -> Mapping[str, Any] | None:
    """Of a folder or of a repository; None where the hub has none, which loading says better."""
    if source.kind == "hub":
        try:
            return _json(_hub_config(source)[0])
        except SafelightError:
            return None
    folder = Path(source.place) / ("" if source.kind == "vae folder" else FOLDER)
    return _json(folder / "config.json") if (folder / "config.json").is_file() else None


# -- loading -----------------------------------------------------------------------------------------------------------


def _written_config(source: Source, row: Row | None, own: Part | None) -> dict[str, Any] | None:
    """The config that a file alone is loaded by; None where diffusers has to know."""
    if source.kind not in ("file", "pickle"):
        return None
    if row is not None and not row.tiny:
        return dict(blueprint.of_known(vae_catalog.CONFIGS[row.family]).parts[FOLDER].config)
    part = _checkpoints_own(source) or own
    if part is not None and part.cls.__name__ == CLASS:
        return dict(part.config)
    if own is not None and row is None:
        raise DoesNotApply(f"{source.asked} is a file alone, and the model has an {own.cls.__name__}: give a folder")
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedModel(f"{path} cannot be read: download it again") from error
    if not isinstance(said, dict):
        raise DamagedModel(f"{path} holds no table of settings: download it again")
    return said


def _class_of(config: Path, asked: str) -> Any:
    """The diffusers class that a VAE's config.json names."""
    import diffusers

    name = _json(config).get("_class_name", CLASS)
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin) and "encode" in dir(cls)):
        raise UsageError(f"{asked} holds no VAE: its config names {name!r:.80}")
    return cls


def _of_vae_folder(source: Source, dtype: Any, config: Any, folder: str = "") -> Any:
    place = Path(source.place) / folder
    cls = _class_of(place / "config.json", source.asked)
    return cls.from_pretrained(place, dtype=dtype, use_safetensors=True, local_files_only=True)


def _of_folder(source: Source, dtype: Any, config: Any) -> Any:
    if FOLDER not in model_index(Path(source.place)):
        raise UsageError(f"{source.asked} has no part named {FOLDER!r}: give one with --vae")
    return _of_vae_folder(source, dtype, config, FOLDER)


def _of_hub(source: Source, dtype: Any, config: Any) -> Any:
    found, folder, where = _hub_config(source)
    cls = _class_of(found, source.asked)
    return cls.from_pretrained(source.place, subfolder=folder, dtype=dtype, use_safetensors=True, **where)


def _hub_config(source: Source) -> tuple[Path, str | None, dict[str, Any]]:
    """(the config's path, its folder, where from) of a model's repository, or of a VAE's alone.

    Without a connection the cache serves, if it has the revision.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # by the revision's name and not its commit: else the cache would not know, later and offline, what the name meant
    where: Any = {"revision": source.revision, "local_files_only": hub_commit(source) is None}
    for folder in (FOLDER, None):
        try:
            return Path(hf_hub_download(source.place, "config.json", subfolder=folder, **where)), folder, where
        except LocalEntryNotFoundError as error:
            if folder is None:
                raise EnvironmentProblem(
                    f"{source.place} is not in the cache, and the hub cannot be reached"
                ) from error
        except EntryNotFoundError:
            continue
    raise ModelNotFound(f"{source.place} has no VAE: there is neither a {FOLDER}/config.json nor a config.json")


def _of_file(source: Source, dtype: Any, config: str | dict[str, Any] | None) -> Any:
    """A VAE alone, or a checkpoint that holds one beside its denoiser. config: a folder, or a config itself."""
    from diffusers import AutoencoderKL

    if source.kind == "file":
        header = safetensors_header(Path(source.place))
        if taesd.FIRST in header:
            return taesd.load(source.place, dtype)
        if not any("decoder." in name for name in header):
            raise DamagedModel(f"{source.place} holds no VAE: none of its tensors is a decoder's")
    if not isinstance(config, dict):
        where: Any = {"config": config, "subfolder": FOLDER, "local_files_only": True} if config else {}
        return AutoencoderKL.from_single_file(source.place, dtype=dtype, **where)
    with tempfile.TemporaryDirectory() as folder:
        # without diffusers' own notes: "_use_default_values" would put a default in the place of a value
        said = {key: value for key, value in config.items() if not key.startswith("_")} | {"_class_name": CLASS}
        (Path(folder) / "config.json").write_text(json.dumps(said), encoding="utf-8")
        return AutoencoderKL.from_single_file(source.place, dtype=dtype, config=folder, local_files_only=True)


LOADERS = {
    "vae folder": _of_vae_folder,
    "folder": _of_folder,
    "hub": _of_hub,
    "file": _of_file,
    "pickle": _of_file,
}
