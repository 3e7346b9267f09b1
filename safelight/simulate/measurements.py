"""What runs took on this machine, kept to correct what is predicted for later ones.

Comes in: a Measurement of a run, beside what was predicted for it. Goes out: a Correction, a factor for each number
that a prediction is made of. The file is small SQLite in the user's cache folder. Knows nothing of pipelines.
"""

import math
import sqlite3
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safelight import config
from safelight.errors import EnvironmentProblem

FILE = "measurements.sqlite"
VERSION = 1  # of the table, kept in PRAGMA user_version
KEEP = 2000  # rows, about 0.4 MiB
PATIENCE = 5.0  # seconds to wait for another process: a row takes it milliseconds
NEWEST_EXACT, NEWEST_SIMILAR = 5, 9
LEAST, MOST = 0.25, 4.0  # factors learned from other runs of the model


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run. Seconds are of one batch; denoising takes steps x step_seconds.

    when: as now() writes it, so that the order of the texts is the order of the times. model: with its revision or hash
    if known. width, height: pixels. frames: 1 for a picture. guided: with classifier-free guidance, two passes a step.
    steps: evaluations of the model; step_seconds: of one. plan: the optimizers' words, "" is plain.
    versions: "safelight 0.1.0, torch 2.13.0, diffusers 0.42.1".
    peak_bytes: None where it was not measured. predicted_*: by the model of cost alone, before any correction; a
    corrected one would hide what is still to be corrected.
    """

    when: str
    device: str
    model: str
    width: int
    height: int
    frames: int
    batch_size: int
    guided: bool
    plan: str
    versions: str
    steps: int
    encode_seconds: float
    step_seconds: float
    decode_seconds: float
    peak_bytes: int | None
    predicted_encode_seconds: float
    predicted_step_seconds: float
    predicted_decode_seconds: float
    predicted_peak_bytes: int


def now() -> str:
    """The time in UTC, ISO 8601, always with as many digits."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# A field's column by its type. A value that is none (not-a-number, infinite, negative) is refused here, on writing,
# and found by quick_check on reading, when the file was damaged. In brackets: SQLite takes a "name" that it does not
# know for a text.
COLUMNS = {
    str: "[{0}] TEXT NOT NULL CHECK (typeof([{0}]) = 'text')",
    bool: "[{0}] INTEGER NOT NULL CHECK ([{0}] IN (0, 1))",
    int: "[{0}] INTEGER NOT NULL CHECK (typeof([{0}]) = 'integer' AND [{0}] >= 0)",
    int | None: "[{0}] INTEGER CHECK (typeof([{0}]) IN ('integer', 'null') AND coalesce([{0}], 0) >= 0)",
    float: "[{0}] REAL NOT NULL CHECK (typeof([{0}]) = 'real' AND [{0}] >= 0 AND [{0}] < 9e999)",
}
NAMES = tuple(column.name for column in fields(Measurement))
LISTED = ", ".join(f"[{name}]" for name in NAMES)
CREATE = "CREATE TABLE measurement (id INTEGER PRIMARY KEY, {})".format(
    ", ".join(COLUMNS[column.type].format(column.name) for column in fields(Measurement))  # type: ignore[index]
)
INSERT = f"INSERT INTO measurement ({LISTED}) VALUES ({', '.join('?' * len(NAMES))})"
SELECT = f"SELECT id, {LISTED} FROM measurement ORDER BY [when] DESC, id DESC"
PRUNE = "DELETE FROM measurement WHERE id NOT IN (SELECT id FROM measurement ORDER BY [when] DESC, id DESC LIMIT ?)"

# SQLite's primary result codes that say nothing against the file's content
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
REFUSED = (
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOLFS),
)
# nor do these: the row is none (InterfaceError up to Python 3.11, ProgrammingError since, for a type without column)
UNFIT = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


class _Damaged(EnvironmentProblem):
    """Nothing in the file can be trusted."""


@dataclass(slots=True)
class Store:
    """The measurements in a file, which need not be there yet; several processes and threads may use it at once.

    Each call opens the file for one short transaction. Not in WAL mode: that needs shared memory, which network file
    systems, where home folders of clusters lie, do not have.

    keep: rows; the oldest go. patience: seconds to wait for another process.
    """

    path: Path
    keep: int = KEEP
    patience: float = PATIENCE
    _warned: bool = field(default=False, init=False, repr=False)

    def add(self, measurement: Measurement) -> bool:
        """False if it could not be written, with one warning that says why: a run never fails for this."""
        try:
            with self._transaction("BEGIN IMMEDIATE", make=True) as db:
                _prepare(db)
                db.execute(INSERT, astuple(measurement))
                db.execute(PRUNE, (self.keep,))
        except (EnvironmentProblem, UnicodeEncodeError, OverflowError) as problem:  # the latter two: no such values
            if not self._warned:
                self._warned = True
                warnings.warn(f"what this run took is not kept: {problem}", stacklevel=2)
            return False
        return True

    def rows(self, device: str | None = None, model: str | None = None) -> list[Measurement]:
        """Those of this device and of this model, newest first. Raises EnvironmentProblem for a file of no use."""
        with self._named():
            if not self.path.exists():
                return []
        with self._transaction("BEGIN") as db:
            return [row for _, row in _found(db, device, model)]

    def clear(self, device: str | None = None, model: str | None = None) -> int:
        """Deletes what rows() would give, and says how many went; a damaged file goes as a whole, uncounted.

        Raises EnvironmentProblem for a file of a newer version, and for one that may not be written.
        """
        with self._named():
            if not self.path.exists():
                return 0
        try:
            with self._transaction("BEGIN IMMEDIATE") as db:
                _prepare(db)
                ids = [(number,) for number, _ in _found(db, device, model)]
                db.executemany("DELETE FROM measurement WHERE id = ?", ids)
                return len(ids)
        except _Damaged:
            self._remove()
            return 0

    def _remove(self) -> None:
        """With what SQLite may have left beside it: a journal would be played back into the next file."""
        with self._named():
            for suffix in ("", "-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def _transaction(self, begin: str, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing. make: the file and its folder, if need be.

        begin: IMMEDIATE to write, as two that read first and want to write then would wait for each other.
        """
        with self._named():
            if make:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            address = f"{self.path.absolute().as_uri()}?mode={'rwc' if make else 'rw'}"
            with closing(sqlite3.connect(address, uri=True, timeout=self.patience, isolation_level=None)) as db:
                db.execute(begin)
                if (version := _version(db)) > VERSION:
                    raise EnvironmentProblem(
                        f"{self.path} is of version {version}, this safelight knows {VERSION}, so it is left alone: "
                        "use the newer safelight that wrote it, or delete it"
                    )
                yield db
                db.execute("COMMIT")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What SQLite and the system refuse, as an EnvironmentProblem that says what to do."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # also what SQLite says of a damaged file may be no text
            raise self._problem(error) from error
        except OSError as error:
            raise EnvironmentProblem(f"cannot use {self.path}: {error.strerror or error}") from error

    def _problem(self, error: Exception) -> EnvironmentProblem:
        # only errors of SQLite itself have a code; what Python cannot make sense of is damage, too
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        why = " ".join(str(error).split())
        if isinstance(error, UNFIT):
            return EnvironmentProblem(f"not a row of {self.path}: {why}")
        if code in BUSY:
            return EnvironmentProblem(f"{self.path} is held by another process ({why}): try again when it has ended")
        if code in REFUSED:
            return EnvironmentProblem(f"cannot use {self.path}: {why}; look at its permissions and the disk's room")
        return _Damaged(f"{self.path} is damaged ({why:.200}): delete it, or run safelight measurements --clear")


def here() -> Store:
    """The one in the user's cache folder."""
    return Store(config.cache_folder() / FILE)


def _version(db: sqlite3.Connection) -> int:
    """0 of a new file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _prepare(db: sqlite3.Connection) -> None:
    """Makes the table; one of an older version is dropped with its rows, which the next runs replace."""
    if _version(db) < VERSION:
        db.execute("DROP TABLE IF EXISTS measurement")
        db.execute(CREATE)
        db.execute(f"PRAGMA user_version = {VERSION}")


def _found(db: sqlite3.Connection, device: str | None, model: str | None) -> list[tuple[int, Measurement]]:
    """(id, row), newest first. Compared here and not by SQLite, which has no text for a name that is not Unicode."""
    if _version(db) < VERSION:
        return []
    if (verdict := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise sqlite3.DatabaseError(verdict)
    found = [(number, _measurement(values)) for number, *values in db.execute(SELECT)]
    return [(n, row) for n, row in found if device in (None, row.device) and model in (None, row.model)]


def _measurement(values: Iterable[Any]) -> Measurement:
    row = Measurement(*values)
    return replace(row, guided=bool(row.guided))  # SQLite has 0 and 1


# -- what they say of the next run -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Correction:
    """What a prediction is to be multiplied by, part by part; 1 where nothing is known.

    encode, step, decode: of the seconds. peak: of the bytes. because: what they rest on, for people; "" for nothing.
    """

    encode: float = 1.0
    step: float = 1.0
    decode: float = 1.0
    peak: float = 1.0
    because: str = ""


FACTORS = {
    "encode": ("encode_seconds", "predicted_encode_seconds"),
    "step": ("step_seconds", "predicted_step_seconds"),
    "decode": ("decode_seconds", "predicted_decode_seconds"),
    "peak": ("peak_bytes", "predicted_peak_bytes"),
}


def correction(
    rows: Iterable[Measurement],
    *,
    device: str,
    model: str,
    width: int,
    height: int,
    frames: int,
    batch_size: int,
    guided: bool,
    plan: str,
    versions: str,
) -> Correction:
    """What `rows`, in any order, say of a run.

    If this very run was measured before, that alone counts: nothing is nearer to the truth. The factors are then taken
    as they are, however far from 1.

    Otherwise other runs of the model on the device count, whatever their shape and plan: what the prediction gets wrong
    of a device (its clock, its kernels) is much the same at another size. Less sure, it is held between a quarter and
    four times. The peak is learned from runs of the same plan alone, as it depends on what the plan keeps on the
    device, which no other plan's run tells.

    Runs with other versions never count: another torch has other kernels, another safelight predicts differently.
    """
    known = [row for row in rows if (row.device, row.model, row.versions) == (device, model, versions)]
    shape = (width, height, frames, batch_size, guided)
    same_plan = [row for row in known if row.plan == plan]
    exact = [row for row in same_plan if (row.width, row.height, row.frames, row.batch_size, row.guided) == shape]
    found = {name: _ratios(exact, name, NEWEST_EXACT) for name in FACTORS}
    if any(found.values()):
        return _median(found, "of this very run")
    found = {name: _ratios(same_plan if name == "peak" else known, name, NEWEST_SIMILAR) for name in FACTORS}
    return _median(found, "of this model here", LEAST, MOST)


def _ratios(rows: Iterable[Measurement], name: str, newest: int) -> list[float]:
    """Measured / predicted, of the newest rows that have both: a part that was skipped or not measured says nothing."""
    measured, predicted = FACTORS[name]
    both = [(row.when, getattr(row, measured), getattr(row, predicted)) for row in rows]
    ratios = [(when, taken / told) for when, taken, told in both if taken and told]
    # sorted by the ratio, too, so that of rows of one moment the same ones count in whatever order they come
    found = sorted(((when, ratio) for when, ratio in ratios if 0 < ratio < math.inf), reverse=True)
    return [ratio for _, ratio in found[:newest]]


def _median(found: Mapping[str, list[float]], what: str, least: float = 0.0, most: float = math.inf) -> Correction:
    """The median of each factor's ratios: one run on a busy machine, or one that compiles, moves it little."""
    if not (count := max(map(len, found.values()))):
        return Correction()
    factors = {name: min(max(statistics.median(ratios), least), most) for name, ratios in found.items() if ratios}
    return Correction(**factors, because=f"{count} measurement{'s' if count > 1 else ''} {what}")
