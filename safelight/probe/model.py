"""What a --model points to, from names, configs and headers alone: no weight is read.

Comes in: a bundled or known name, a folder, a file or a hub id. Goes out: a Source that is known to be whole and safe
to load.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.errors import DamagedModel, ModelNotFound, UnknownName, UsageError
from safelight.firstlight import BUNDLED
from safelight.probe import known

HUB_ID = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?")
SAFE_MODULES = ("diffusers", "transformers")
LARGEST_HEADER = 100 * 2**20  # safetensors' own limit
HASHED_BYTES = 256 * 2**20  # larger files take seconds to hash at every start


@dataclass(frozen=True, slots=True)
class Source:
    """kind: "folder", "file", "pickle" or "hub". place: the path, or the hub id. name: what a person calls it."""

    kind: str
    place: str
    name: str
    asked: str
    revision: str | None = None


def find(asked: str, *, allow_pickle: bool = False) -> Source:
    """A name of a known model stands for its repository on the hub, unless a model of that name lies here.

    Raises ModelNotFound, DamagedModel, or UsageError for a pickle that was not allowed.
    """
    if asked in BUNDLED:
        return Source("folder", str(check_folder(BUNDLED[asked])), asked, asked)
    path = Path(asked).expanduser()
    if (name := known.name_of(asked)) and not path.is_file() and not (path / "model_index.json").is_file():
        return Source("hub", known.hub_of(name), name, asked)
    if path.is_dir():
        return Source("folder", str(check_folder(path)), path.resolve().name, asked)
    if path.is_file():
        return Source(_check_file(path, allow_pickle), str(path), path.stem, asked)
    if (match := HUB_ID.fullmatch(asked)) and not asked.endswith((".safetensors", ".ckpt")):
        return Source("hub", match["id"], match["id"].partition("/")[2], asked, match["revision"])
    if "/" in asked or path.suffix[1:].isalpha():  # not the ".6" of "sd1.6"
        raise ModelNotFound(
            f"no model at {asked}: give a diffusers folder, a .safetensors file or a hub id (owner/name)"
        )
    raise UnknownName("model", asked, (*BUNDLED, *known.KNOWN), known.names())


def check_folder(folder: Path) -> Path:
    """A diffusers folder whose parts are all there, whole, and ask for no code but diffusers' and transformers'."""
    index = model_index(folder)
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[:1] == [None]:
            continue
        if len(entry) != 2 or not all(isinstance(name, str) for name in entry):
            raise DamagedModel(f"{folder}/model_index.json says {entry!r:.80} of {part!r}: download it again")
        if entry[0] not in SAFE_MODULES and not is_pipeline_module(entry[0]):
            raise UsageError(f"{folder.name} wants code from {entry[0]!r} for its {part}: only diffusers' own is run")
        if not (folder / part).is_dir() and part not in ("safety_checker", "feature_extractor"):
            raise DamagedModel(f"{folder} has no folder {part!r}, which its model_index.json lists: download it again")
    for weights in sorted(folder.glob("*/*.safetensors")):
        safetensors_header(weights)
    return folder


def is_pipeline_module(module: str) -> bool:
    """ "stable_diffusion" stands for diffusers.pipelines.stable_diffusion, as in SD1.5's safety checker."""
    import importlib.util

    return module.isidentifier() and importlib.util.find_spec(f"diffusers.pipelines.{module}") is not None


def model_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelNotFound(f"{folder} has no model_index.json: it is not a diffusers model folder")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedModel(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise DamagedModel(f"{path} names no pipeline class: download it again")
    return index


def _check_file(path: Path, allow_pickle: bool) -> str:
    """ "file" or "pickle", by content: a pickle may wear any suffix."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80":
        if not allow_pickle:
            raise UsageError(f"{path} is a pickle, which can run code: convert it to safetensors, or --allow-pickle")
        return "pickle"
    safetensors_header(path)
    return "file"


def safetensors_header(path: Path) -> dict[str, Any]:
    """{tensor name: {"dtype", "shape", "data_offsets"}}, after a check that the file is as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, max(0, size - 8)):
            raise DamagedModel(f"{path} is no whole safetensors file ({size} bytes): download it again")
        try:
            header = dict(json.loads(file.read(length)))
            header.pop("__metadata__", None)
            end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise DamagedModel(f"{path} has a damaged safetensors header: download it again") from error
    if size != end:
        raise DamagedModel(f"{path} is truncated: {size} of {end} bytes; download it again")
    return header


def weights_hash(source: Source) -> str | None:
    """SHA-256 of a single file, or of a folder's denoiser; None for what is large, or sharded, or on the hub."""
    path = Path(source.place)
    if source.kind == "folder":
        found = [*path.glob("unet/*.safetensors"), *path.glob("transformer/*.safetensors")]
        if len(found) != 1:
            return None
        path = found[0]
    if source.kind == "hub" or path.stat().st_size > HASHED_BYTES:
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()
