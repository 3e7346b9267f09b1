"""Weights of upscalers, fetched once: from upstream's release over the network, or from a file that is here already.

Comes in: a row of the catalogue. Goes out: a .safetensors file in the cache, whole, known to be that network; or an
error, and no such file. What is fetched is checked against the published SHA-256 before anything reads it.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.errors import DamagedModel, EnvironmentProblem, ModelNotFound, SafelightError, UsageError
from safelight.run.metadata import reason, shown
from safelight.sampling import catalog_upscalers as catalog
from safelight.sampling import recognition
from safelight.sampling.catalog_upscalers import Upscaler

if TYPE_CHECKING:
    from httpx2 import Response
    from torch import Tensor

TIMEOUT_S = 30.0  # without a byte
MIB = 2**20
PARTIAL = 206  # the HTTP status of a range

Report = Callable[[str, int, int], None]  # (stage, done, of how many), as in run/generate.py


def fetch(row: Upscaler, *, report: Report = lambda stage, done, total: None) -> Path:
    """Where the row's weights are now. What lies there already and is whole is not fetched again.

    A download that breaks off is gone on with next time. Raises UsageError for a row that nothing can be fetched for,
    EnvironmentProblem without network or disk space, DamagedModel for a file of another checksum, which is not kept.
    """
    path = catalog.place(row)
    if _is_whole(row, path):
        return path
    _check_fetchable(row)
    part = path.with_name(Path(row.url).name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _download(row, part, report)
        _check_sum(row, part)
        _store(row, recognition.read(part, allow_pickle=True), path)
        part.unlink(missing_ok=True)
    except DamagedModel:
        part.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise EnvironmentProblem(f"cannot keep {row.name} in {shown(path.parent)}: {reason(error)}") from error
    return path


def take(row: Upscaler, source: Path, *, allow_pickle: bool = False) -> Path:
    """Stores a file that somebody has brought, safetensors or a pickle, and says where.

    The published file itself needs no allow_pickle: its SHA-256 is known. Raises UsageError for another network than
    the row's, ModelNotFound, DamagedModel.
    """
    _check_fetchable(row)
    if not source.is_file():
        raise ModelNotFound(f"no file of weights at {shown(source)}")
    published = source.stat().st_size == row.size_bytes and _sha256(source) == row.sha256
    weights = recognition.read(source, allow_pickle=allow_pickle or published)
    _check_network(row, weights, shown(source))
    path = catalog.place(row)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _store(row, weights, path)
    except OSError as error:
        raise EnvironmentProblem(f"cannot keep {row.name} in {shown(path.parent)}: {reason(error)}") from error
    return path


def _check_fetchable(row: Upscaler) -> None:
    if not row.url:
        there = "comes with safelight" if row.bundled else "has no weights that could be fetched"
        raise UsageError(f"{row.name} {there}: safelight get lists those that are fetched")


def _is_whole(row: Upscaler, path: Path) -> bool:
    """Whether the row's network can be read there."""
    if not path.is_file():
        return False
    try:
        _check_network(row, recognition.read(path), str(path))
    except SafelightError:
        return False
    return True


def _check_network(row: Upscaler, weights: "dict[str, Tensor]", named: str) -> None:
    found = recognition.recognised(weights, named).kind
    if row.network and found != row.network:
        raise UsageError(f"{named} is not {row.name}, which is a {row.network}: it is a {found}")


def _store(row: Upscaler, weights: "dict[str, Tensor]", path: Path) -> None:
    """In one step, under its name only when it is whole. Raises OSError, or UsageError for another network."""
    from safetensors.torch import save_file

    _check_network(row, weights, row.name)
    part = path.with_name(f".{path.name}.part")
    origin = {"source": row.url, "licence": row.licence}
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, part, origin)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# -- over the network --------------------------------------------------------------------------------------------------


def _download(row: Upscaler, part: Path, report: Report) -> None:
    """Appends to `part` what is missing of it. Raises EnvironmentProblem, OSError."""
    import httpx2

    have = part.stat().st_size if part.is_file() else 0
    if have == row.size_bytes:
        return
    headers = {"Accept-Encoding": "identity"}
    if 0 < have < row.size_bytes:
        headers["Range"] = f"bytes={have}-"
    try:
        with httpx2.stream("GET", row.url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as response:
            response.raise_for_status()
            _append(row, part, response, report)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise EnvironmentProblem(
            f"cannot fetch {row.url}: {' '.join(said.split()):.200}; without a network, bring that file and use "
            f"safelight get {row.name!r} --from FILE"
        ) from error


def _append(row: Upscaler, part: Path, response: "Response", report: Report) -> None:
    """A server that does not go on where we were sends all of it: then it is begun anew."""
    goes_on = response.status_code == PARTIAL
    done = part.stat().st_size if goes_on else 0
    with part.open("ab" if goes_on else "wb") as file:
        for chunk in response.iter_raw():  # as it comes: what is there when it breaks off is kept
            file.write(chunk)
            done += len(chunk)
            report("download", -(-min(done, row.size_bytes) // MIB), -(-row.size_bytes // MIB))
            if done > row.size_bytes:
                return  # more than there can be: the checksum will say so, and the disk is not filled


def _check_sum(row: Upscaler, part: Path) -> None:
    """Raises DamagedModel."""
    found = _sha256(part)
    if found != row.sha256:
        raise DamagedModel(
            f"what {row.url} sent is not {row.name}: its SHA-256 is {found[:16]}..., expected {row.sha256[:16]}... "
            f"({part.stat().st_size} of {row.size_bytes} bytes); nothing was kept"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
