"""The one place where weights are loaded: a Source becomes a diffusers pipeline.

Only safetensors, unless a pickle was allowed on the command line, and then with weights_only=True. No remote code: a
hub model is downloaded first, its folder is checked, and that very folder is loaded.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safelight.errors import DamagedModel, EnvironmentProblem, ModelNotFound, OutOfMemory, UsageError
from safelight.optimizers.target import models
from safelight.probe import packages
from safelight.probe.model import Source, check_folder, find, model_index, safetensors_header, weights_hash
from safelight.run import shortage

# diffusers' name of a single file's kind, by its beginning -> the pipeline that runs it
SINGLE_FILES = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
    "playground": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux-2": "Flux2Pipeline",
    "flux": "FluxPipeline",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Where a pipeline came from, for the picture's metadata."""

    asked: str
    name: str
    sha256: str | None = None
    revision: str | None = None
    vae: str | None = None
    loras: tuple[str, ...] = ()


def pipeline(
    model: str,
    *,
    dtype: str = "float32",
    vae: str | None = None,
    loras: tuple[str, ...] = (),
    config: str | None = None,
    allow_pickle: bool = False,
) -> tuple[Any, Loaded]:
    """A pipeline, its weights still in the CPU's memory; a session places them.

    config: a folder of configs and tokenizers for a single file, where there is no hub.
    Raises ModelNotFound, DamagedModel, UsageError; EnvironmentProblem for a missing package or an unreachable hub.
    """
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    source = find(model, allow_pickle=allow_pickle)
    if config and source.kind in ("folder", "hub"):
        raise UsageError(f"--config is for a single file, and {source.asked} has configs of its own: leave it out")
    _check_loras(loras)
    import torch

    wanted = getattr(torch, dtype)
    with one_line_errors(source.asked):
        if source.kind == "hub":
            source = downloaded(source)
        pipe = _folder(source, wanted) if source.kind == "folder" else _single_file(source, wanted, config)
    if vae:
        _exchange_vae(pipe, vae, wanted, source.name, allow_pickle=allow_pickle)
    if loras:
        _add_loras(pipe, loras)
    _check_whole(pipe, source.asked)
    pipe.set_progress_bar_config(disable=True)
    return pipe, Loaded(source.asked, source.name, weights_hash(source), source.revision, vae, loras)


def _check_whole(pipe: Any, asked: str) -> None:
    """diffusers leaves a tensor that no file holds, or of another shape, empty ("meta"), and only warns."""
    for name, part in models(pipe).items():
        if missing := [key for key, tensor in part.named_parameters() if tensor.is_meta]:
            raise DamagedModel(
                f"{asked} holds no fitting weights for {missing[0]} of its {name} (and {len(missing) - 1} more): "
                "download it again"
            )


@contextmanager
def one_line_errors(asked: str) -> Iterator[None]:
    """Whatever the libraries raise for a model that cannot be read, or that memory does not hold, becomes one line."""
    from safetensors import SafetensorError

    known = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, MemoryError, SafetensorError)
    try:
        yield
    except known as error:
        if (wanted := shortage.wanted(error)) is not None:
            raise OutOfMemory(
                f"loading {asked} ran out of memory: {wanted}; try -o dtype or a smaller model"
            ) from error
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DamagedModel(f"{asked} cannot be loaded: {first[:300]}") from error


def downloaded(source: Source) -> Source:
    """The folder source of a hub source: the revision resolved to a commit once, configs checked, safetensors only.

    Without a connection the local cache serves, if it has the revision. Raises ModelNotFound, EnvironmentProblem.
    """
    from diffusers import DiffusionPipeline

    commit = hub_commit(source)
    try:
        folder = DiffusionPipeline.download(
            source.place, revision=commit or source.revision, use_safetensors=True, local_files_only=commit is None
        )
    except OSError as error:
        if commit is None:
            raise EnvironmentProblem(f"{source.place} is not in the cache, and the hub cannot be reached") from error
        raise ModelNotFound(f"{source.place}: {str(error).splitlines()[0][:300]}") from error
    path = Path(folder)
    return replace(source, kind="folder", place=str(check_folder(path)), revision=path.name)


def hub_commit(source: Source) -> str | None:
    """What the revision stands for now; None when the hub cannot be asked."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().model_info(source.place, revision=source.revision).sha
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{source.place} has no revision {source.revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"no model {source.place!r} on the hub, or it wants a token (HF_TOKEN)") from error
    except (HfHubHTTPError, HTTPError, OSError):
        return None


def _folder(source: Source, dtype: Any) -> Any:
    from diffusers import DiffusionPipeline

    index = model_index(Path(source.place))
    # never run: pictures are decoded by us, and a safety checker is 1.1 GiB of weights
    unused = {"safety_checker": None} if "safety_checker" in index else {}
    return DiffusionPipeline.from_pretrained(
        source.place, dtype=dtype, use_safetensors=True, local_files_only=True, **unused
    )


def _single_file(source: Source, dtype: Any, config: str | None) -> Any:
    import diffusers

    if source.kind == "pickle":
        print(f"safelight: {source.place} is a pickle; loading it with weights_only=True", file=sys.stderr)  # noqa: T201
    cls = getattr(diffusers, _pipeline_of(source))
    where = {"config": config, "local_files_only": True} if config else {}
    try:
        return cls.from_single_file(source.place, dtype=dtype, **where)
    except (OSError, ValueError) as error:
        if config:
            raise
        raise EnvironmentProblem(
            f"{source.place} holds weights alone, and its configs could not be fetched from the hub: "
            "give a folder that has them with --config"
        ) from error


def _pipeline_of(source: Source) -> str:
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint

    if source.kind == "pickle":
        tensors = load_single_file_checkpoint(source.place, local_files_only=True)
    else:
        header = safetensors_header(Path(source.place))
        tensors = {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
    if not any(name.startswith(("model.diffusion_model.", "double_blocks.")) for name in tensors):
        raise DamagedModel(f"{source.place} holds no denoiser: is it a LoRA or a VAE? (--lora, --vae)")
    kind = infer_diffusers_model_type(tensors)
    for beginning, name in SINGLE_FILES.items():
        if kind.startswith(beginning):
            return name
    raise UsageError(f"{source.place} is of the kind {kind!r}: give it as a diffusers folder")


def _exchange_vae(pipe: Any, asked: str, dtype: Any, model: str, *, allow_pickle: bool) -> None:
    """Raises DoesNotApply for one whose latents are not this model's."""
    from safelight.probe.blueprint import Part
    from safelight.run.load_vae import other_vae  # which imports this module

    own = getattr(pipe, "vae", None)
    part = None if own is None else Part(type(own), dict(own.config))
    pipe.vae = other_vae(asked, part, dtype=dtype, model=model, allow_pickle=allow_pickle)


def split_scale(lora: str) -> tuple[str, float, float]:
    """ "style.safetensors=0.7" -> ("style.safetensors", 0.7, 0.7): of the text encoders, and of the denoiser.

    "=0.5:0.8" gives each its own. Raises UsageError.
    """
    path, equals, text = lora.rpartition("=")
    if not equals:
        return lora, 1.0, 1.0
    words, _, denoiser = text.partition(":")
    try:
        return path, float(words), float(denoiser or words)
    except ValueError as error:
        raise UsageError(f"--lora {lora}: the weight {text!r} is not a number") from error


def _check_loras(loras: tuple[str, ...]) -> None:
    for lora in loras:
        path = Path(split_scale(lora)[0]).expanduser()
        if not path.is_file():
            raise ModelNotFound(f"no LoRA file at {path}")
        safetensors_header(path)
    if loras and (reason := packages.missing("peft", "0.17", "pip install peft")):
        raise EnvironmentProblem(f"--lora {reason}")


def _add_loras(pipe: Any, loras: tuple[str, ...]) -> None:
    scales = {}
    for i, (asked, words, denoiser) in enumerate(map(split_scale, loras)):
        path = Path(asked).expanduser()
        name = f"lora{i}"
        with one_line_errors(asked):
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True)
        parts = [part for part, names in pipe.get_list_adapters().items() if name in names]
        if not parts:
            raise DamagedModel(f"{asked} holds no LoRA that fits this model")
        scales[name] = {part: words if part.startswith("text_encoder") else denoiser for part in parts}
    pipe.set_adapters(list(scales), list(scales.values()))
