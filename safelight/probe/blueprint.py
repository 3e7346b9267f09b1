"""What a pipeline is made of, without a weight: the classes and configs of its parts, and what it draws by default.

Comes in: what --model takes (a bundled or known name, a diffusers folder, a hub id, a single file), or a loaded
pipeline. Goes out: a Blueprint. Of weights only the headers are read; of a hub model only small JSON files are fetched.
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from safelight.errors import DamagedModel, UsageError
from safelight.firstlight import BUNDLED, DEFAULTS
from safelight.probe import known, packages
from safelight.probe.model import (
    SAFE_MODULES,
    Source,
    check_folder,
    find,
    is_pipeline_module,
    model_index,
    safetensors_header,
)

DENOISERS = ("transformer", "unet")
CONFIG_FILES = ["model_index.json", "*/config.json", "*/scheduler_config.json"]
SIDE_BY_DEFAULT = 128  # latent pixels where no config tells: what diffusers' own pipelines take (FLUX, Qwen-Image)
STEPS_BY_DEFAULT = 50  # of most of diffusers' pipelines
FACTOR_BY_DEFAULT = 8  # picture pixels per latent pixel where a VAE's config does not tell

# diffusers' name of a single file's kind -> the known model whose configs it has
SINGLE_FILES = {
    "v1": "sd15",
    "v2": "sd21",
    "xl_base": "sdxl",
    "sd3": "sd3-medium",
    "sd35_medium": "sd35-medium",
    "sd35_large": "sd35-large",
    "flux-dev": "flux1-dev",
    "flux-schnell": "flux1-schnell",
    "wan-t2v-1.3B": "wan21-1.3b",
    "wan-t2v-14B": "wan21-14b",
    "ltx-video": "ltx-video",
    "hunyuan-video": "hunyuan-video",
    "sana": "sana",
}
# how the names of a denoiser's tensors begin in the files people share: beside other parts, and where it is alone
WITH_OTHERS = "model.diffusion_model."
ALONE = ("double_blocks.", "joint_blocks.", "blocks.", "transformer_blocks.")
FIRST_OF_V1 = "model.diffusion_model.input_blocks.0.0.weight"
# a file may hold other buffers than the model has parameters (SD3.5-medium's position table: 10 %), but a distilled or
# pruned model, or one packed in 4 bits, is half the size or less
FILE_SIZES = (0.75, 1.33)
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


@dataclass(frozen=True, slots=True)
class Part:
    """One model of a pipeline, or its scheduler: its class and its config."""

    cls: type
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """name: what a person calls it. pipeline: its diffusers class. parts: its torch modules by component name.

    width, height: pixels it draws by itself. frames: of the video it makes by default, 1 for pictures.
    guidance: its usual scale of classifier-free guidance; 0 and 1 are without. steps: the usual number.
    hub: the hub id, or None. stored_dtype: what the denoiser's weights are stored in, None where nobody tells.
    """

    name: str
    pipeline: type
    parts: Mapping[str, Part]
    scheduler: Part | None
    width: int
    height: int
    frames: int = 1
    guidance: float = 1.0
    steps: int = STEPS_BY_DEFAULT
    hub: str | None = None
    stored_dtype: str | None = None

    @property
    def guided(self) -> bool:
        """Whether each step runs the denoiser with and without the prompt."""
        return self.guidance > 1

    @property
    def denoiser_name(self) -> str:
        """ "transformer" or "unet". Raises UsageError for a pipeline that has neither."""
        if found := next((name for name in DENOISERS if name in self.parts), None):
            return found
        raise UsageError(f"{self.name} ({self.pipeline.__name__}) has no transformer and no unet: it cannot be planned")

    @property
    def denoiser(self) -> Part:
        return self.parts[self.denoiser_name]


def read(model: str, *, config_folder: str | None = None) -> Blueprint:
    """The blueprint of what --model takes. config_folder: a diffusers folder with the configs of a single file.

    Raises ModelNotFound, DamagedModel, UsageError; EnvironmentProblem when the hub cannot be reached.
    """
    source = find(model)
    if source.kind == "file":
        return _of_file(source, config_folder)
    if config_folder:
        raise UsageError(f"--config is for a single file, and {source.asked} has configs of its own: leave it out")
    if source.kind == "folder":
        return _of_folder(Path(source.place), source.name)
    if source.revision is None and (name := known.name_of_hub(source.place)):
        return replace(of_known(name), name=source.name)
    return replace(_of_folder(_configs_of(source), source.name), hub=source.place)


def of_known(name: str) -> Blueprint:
    """The blueprint of a name in known.KNOWN, from its table alone."""
    table = known.table(name)
    return Blueprint(
        name,
        _class("diffusers", table["pipeline"]),
        {part: _part(entry, f"{name}'s {part}") for part, entry in table["parts"].items()},
        _part(table["scheduler"], f"{name}'s scheduler"),
        table["width"],
        table["height"],
        table["frames"],
        table["guidance"],
        table["steps"],
        table["hub"],
        table.get("dtype"),
    )


def of(pipe: Any) -> Blueprint:
    """The blueprint of a loaded pipeline."""
    parts = {name: Part(type(part), part.config) for name, part in models(pipe).items()}
    scheduler = getattr(pipe, "scheduler", None)
    name = Path(pipe.config.get("_name_or_path") or type(pipe).__name__).name
    made = _by_class(name, type(pipe), parts, scheduler and Part(type(scheduler), scheduler.config))
    stored = next((dtype_of(getattr(pipe, part)) for part in DENOISERS if part in parts), None)
    return replace(made, stored_dtype=stored)


def models(pipe: Any) -> dict[str, Any]:
    """The pipeline's torch modules by name; parts that are None are left out."""
    from torch import nn

    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def dtype_of(part: Any) -> str:
    """ "bfloat16": that of the first floating point parameter, as diffusers and transformers read it."""
    first = next((p for p in part.parameters() if p.is_floating_point()), None)
    return "float32" if first is None else str(first.dtype).removeprefix("torch.")


def _of_folder(folder: Path, name: str) -> Blueprint:
    index = model_index(folder)
    parts = dict(_parts(folder, index))
    made = _by_class(name, _class("diffusers", index["_class_name"]), parts, _scheduler(folder, index))
    if folder in BUNDLED.values():
        defaults: Mapping[str, Any] = DEFAULTS
        made = replace(made, guidance=defaults["guidance"], steps=defaults["steps"])
    weights = [path for part in DENOISERS for path in sorted(folder.glob(f"{part}/*.safetensors"))]
    return replace(made, stored_dtype=_stored_dtype(safetensors_header(weights[0])) if weights else None)


def _parts(folder: Path, index: Mapping[str, Any]) -> Iterator[tuple[str, Part]]:
    """(name, Part) of every torch module, from <folder>/<name>/config.json."""
    from torch import nn

    for name, entry in index.items():
        if name.startswith("_") or name == "safety_checker" or not _names_a_class(entry):
            continue
        cls = _class(_module(folder, name, entry[0]), entry[1])
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            path = folder / name / "config.json"
            yield name, Part(cls, _config(cls, _json(path), str(path)))


def _scheduler(folder: Path, index: Mapping[str, Any]) -> Part | None:
    entry: Any = index.get("scheduler")
    if not _names_a_class(entry):
        return None
    cls = _class(_module(folder, "scheduler", entry[0]), entry[1])
    path = folder / "scheduler" / "scheduler_config.json"
    return Part(cls, _config(cls, _json(path), str(path)))


def _names_a_class(entry: Any) -> bool:
    """["diffusers", "AutoencoderKL"]; [None, None] stands for a part that is left out."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _module(folder: Path, part: str, module: str) -> str:
    if module in SAFE_MODULES:
        return module
    if is_pipeline_module(module):
        return f"diffusers.pipelines.{module}"
    raise UsageError(f"{folder.name} wants code from {module!r} for its {part}: only diffusers' own is run")


def _class(module: str, name: Any) -> Any:
    import importlib

    package = module.partition(".")[0]
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, TypeError, ImportError) as error:
        raise DamagedModel(
            f"the model wants {module}.{name}, which {package} {packages.version(package)} does not have or cannot "
            f"import: pip install --upgrade {package}"
        ) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedModel(f"{path} cannot be read: download it again") from error


def _part(entry: Mapping[str, Any], where: str) -> Part:
    """entry: {"class": "diffusers.AutoencoderKL", "config": {...}}."""
    module, _, name = entry["class"].partition(".")
    cls = _class(module, name)
    return Part(cls, _config(cls, entry["config"], where))


def _config(cls: type, said: Any, where: str) -> Any:
    """The config as the loaded part would have it: what is not said, the class has as its default."""
    if not isinstance(said, dict):
        raise DamagedModel(f"{where} holds no table of settings: download it again")
    config_class = getattr(cls, "config_class", None)  # of transformers
    if config_class is None:
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty} | said
    from huggingface_hub.errors import StrictDataclassError

    try:
        return config_class.from_dict(said)
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise DamagedModel(f"{where} is no config of {cls.__name__} ({problem:.200}): download it again") from error


def _configs_of(source: Source) -> Path:
    """The folder of a hub model's configs; no weight is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from safelight.errors import EnvironmentProblem, ModelNotFound

    try:
        return Path(snapshot_download(source.place, revision=source.revision, allow_patterns=CONFIG_FILES))
    except LocalEntryNotFoundError as error:
        raise EnvironmentProblem(f"{source.place} is not in the cache, and the hub cannot be reached") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(f"{source.place}: {str(error).splitlines()[0][:300]}") from error


def _by_class(name: str, pipeline: type, parts: Mapping[str, Part], scheduler: Part | None) -> Blueprint:
    """A blueprint whose defaults are those of the pipeline's __call__, and of the configs where it has none."""
    call: Any = pipeline.__call__
    asked = {parameter.name: parameter.default for parameter in inspect.signature(call).parameters.values()}
    denoiser = next((parts[part].config for part in DENOISERS if part in parts), {})
    height, width = _own_size(denoiser, parts.get("vae"))
    frames = (asked["num_frames"] or denoiser.get("sample_frames") or 1) if "num_frames" in asked else 1
    return Blueprint(
        name,
        pipeline,
        parts,
        scheduler,
        asked.get("width") or width,
        asked.get("height") or height,
        frames,
        _own_guidance(asked, denoiser),
        asked.get("num_inference_steps") or STEPS_BY_DEFAULT,
    )


def _own_size(denoiser: Mapping[str, Any], vae: Part | None) -> tuple[int, int]:
    """(height, width) in pixels of what the denoiser was trained for."""
    factor = _factor(vae.config) if vae else FACTOR_BY_DEFAULT
    if denoiser.get("sample_height") and denoiser.get("sample_width"):
        return denoiser["sample_height"] * factor, denoiser["sample_width"] * factor
    side = denoiser.get("sample_size") or SIDE_BY_DEFAULT
    height, width = (side[-2], side[-1]) if isinstance(side, list | tuple) else (side, side)
    return height * factor, width * factor


def _factor(vae: Mapping[str, Any]) -> int:
    """Picture pixels per latent pixel along one side."""
    blocks = vae.get("encoder_block_out_channels") or vae.get("block_out_channels")
    return 2 ** (len(blocks) - 1) if blocks else FACTOR_BY_DEFAULT


def _own_guidance(asked: Mapping[str, Any], denoiser: Mapping[str, Any]) -> float:
    """The usual scale of classifier-free guidance; 1 for a denoiser that takes the scale as an input instead."""
    if "true_cfg_scale" in asked:
        return float(asked["true_cfg_scale"])
    distilled = denoiser.get("guidance_embeds") or denoiser.get("time_cond_proj_dim")
    return 1.0 if distilled else float(asked.get("guidance_scale") or 1.0)


def _of_file(source: Source, config_folder: str | None) -> Blueprint:
    header = safetensors_header(Path(source.place))
    denoiser = _denoiser_of(header)
    if not denoiser:
        raise DamagedModel(f"{source.place} holds no denoiser: is it a LoRA or a VAE? (--lora, --vae)")
    if config_folder:
        made = _of_folder(check_folder(Path(config_folder).expanduser()), source.name)
    else:
        made = of_known(_known_name(source.place, header, denoiser))
    return replace(made, name=source.name, hub=None, stored_dtype=_stored_dtype(denoiser))


def _denoiser_of(header: Mapping[str, Any]) -> Mapping[str, Any]:
    """The denoiser's entries of a single file; empty for a LoRA, a VAE or a text encoder."""
    inside = {name: entry for name, entry in header.items() if name.startswith(WITH_OTHERS)}
    return inside or (header if any(name.startswith(ALONE) for name in header) else {})


def _known_name(place: str, header: Mapping[str, Any], denoiser: Mapping[str, Any]) -> str:
    """The known model that a single file has the configs of, by its tensors' names and shapes."""
    instead = "give a folder that has its configs with --config"
    kind = _kind(header)
    if (name := SINGLE_FILES.get(kind)) is None:
        raise UsageError(f"{place} is of the kind {kind!r}, whose configs are not known here: {instead}")
    count, usual = sum(prod(entry["shape"]) for entry in denoiser.values()), known.table(name)["denoiser_parameters"]
    if not FILE_SIZES[0] < count / usual < FILE_SIZES[1]:
        raise UsageError(f"{place} looks like {name}, but its denoiser has {count:,} numbers, not {usual:,}: {instead}")
    return name


def _kind(header: Mapping[str, Any]) -> str:
    """What diffusers takes a single file for: a key of SINGLE_FILES, or another of its names; else "unknown"."""
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    try:
        tensors = {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
        kind = str(infer_diffusers_model_type(tensors))
    except (LookupError, NameError, RuntimeError, TypeError, ValueError):  # of tensors whose shapes it did not expect
        return "unknown"
    return kind if kind != "v1" or FIRST_OF_V1 in header else "unknown"  # "v1" is also its word for all the rest


def _stored_dtype(header: Mapping[str, Any]) -> str | None:
    """The dtype that most of the numbers are stored in; None for an empty or an unusual one."""
    counts: dict[str, int] = {}
    for entry in header.values():
        counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + prod(entry["shape"])
    return DTYPES.get(max(counts, key=counts.__getitem__)) if counts else None
