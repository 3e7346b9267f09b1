"""What the flags of A1111, Forge and diffgentor, and the variables that guides recommend, are here.

Comes in: the flags as text. Goes out: a Translation: our command, and for every flag what becomes of it, why, and who
says so. Flags that exclude each other are settled as A1111 settles them. Knows no device: what fits is the plan's.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from safelight.errors import UnknownName, UsageError
from safelight.optimizers import conflicts, words
from safelight.optimizers.flags import A1111, ATTENTION, DIFFGENTOR, FLAGS, HALF, TUNING, VARIABLES, Flag
from safelight.optimizers.registry import OPTIMIZERS, Registry
from safelight.probe.variables import NEW, OLD, settings_in

PROMPT = "PROMPT"
ALLOCATORS = (OLD, NEW)


@dataclass(frozen=True, slots=True)
class Line:
    """What becomes of one flag. becomes: the words or flags that stand for it here, "" for none."""

    flag: str
    verdict: str
    becomes: str
    says: str
    source: str


@dataclass(frozen=True, slots=True)
class Translation:
    """optimize: the text for -o. flags: of `safelight generate`, in pairs. lines: one for each flag, as they came."""

    optimize: str
    flags: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]

    @property
    def command(self) -> str:
        flags = dict(self.flags)
        parts = ["safelight", "generate", flags.pop(PROMPT, PROMPT)]
        parts += [text for pair in flags.items() for text in pair]
        return shlex.join([*parts, *(["-o", self.optimize] if self.optimize else [])])


@dataclass(frozen=True, slots=True)
class Given:
    """A flag as it was written: its name in the table, its values, and what the table says of it."""

    name: str
    values: tuple[str, ...]
    known: Flag

    @property
    def value(self) -> str:
        return " ".join(self.values)

    @property
    def written(self) -> str:
        return f"{self.name}{'=' if self.name in VARIABLES else ' '}{self.value}" if self.values else self.name

    @property
    def becomes(self) -> str:
        if self.name in ALLOCATORS:
            return self.known.becomes if _has_segments(self.value) else ""  # type: ignore[return-value]
        return _by_value(self, self.known.becomes).format(self.value)


def translate(texts: Iterable[str], registry: Registry = OPTIMIZERS) -> Translation:
    """Raises UnknownName for a flag that none of the programs has, UsageError for one without its value."""
    given = list(_given(_tokens(texts)))
    overruled = dict(_overruled(given))
    lines = [*_half(given), *(_line(one, overruled.get(one.name)) for one in given)]
    lines = list(_compatible(lines, registry))
    asked = words.read(*(line.becomes for line in lines if not _is_flag(line.becomes)), registry=registry).options
    flags = tuple(line.becomes.split(" ", 1) for line in lines if _is_flag(line.becomes))
    return Translation(words.written(asked, registry), tuple((name, value) for name, value in flags), tuple(lines))


def _is_flag(becomes: str) -> bool:
    return becomes.startswith(("--", PROMPT))


def _tokens(texts: Iterable[str]) -> list[str]:
    """Words of a shell; what a launcher's file has before them ("set COMMANDLINE_ARGS=", "export") is taken off."""
    tokens = []
    for text in texts:
        text = re.sub(r"(?im)^\s*(export|set)\s+", "", text)
        text = re.sub(r"\bCOMMANDLINE_ARGS=(\"[^\"]*\"|'[^']*')", lambda found: found[1][1:-1], text)
        try:
            tokens += shlex.split(text.replace("COMMANDLINE_ARGS=", ""), comments=True)
        except ValueError as error:
            raise UsageError(f"{text!r:.80} is not a line of flags: {error}") from error
    return tokens


def _given(tokens: list[str]) -> Iterator[Given]:
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        written, equals, value = token.partition("=")
        name, known = _known(written, is_variable=bool(equals) and not written.startswith("-"))
        if equals and not known.takes:
            raise UsageError(f"{written} takes no value")
        count = known.takes if isinstance(known.takes, int) else _until_next(rest)
        values = [value] if equals else [rest.pop(0) for _ in range(min(count, len(rest)))]
        if known.takes and not any(values):
            raise UsageError(f"{written} wants a value")
        yield Given(name, tuple(values), known)


def _until_next(rest: list[str]) -> int:
    """How many of the words come before the next flag or variable: "--use-cpu interrogate codeformer --api"."""
    return next((i for i, word in enumerate(rest) if word.startswith("--") or re.match(r"\w+=", word)), len(rest))


def _known(written: str, *, is_variable: bool) -> tuple[str, Flag]:
    """The name as its table spells it, and what the table says."""
    if is_variable:
        if written not in VARIABLES:
            raise UnknownName("variable", written, VARIABLES)
        return written, VARIABLES[written]
    bare = written.removeprefix("--")
    for table, name in ((FLAGS, f"--{bare.replace('_', '-')}"), (DIFFGENTOR, f"--{bare.replace('-', '_')}")):
        if name in table and written.startswith("--"):
            return name, table[name]
    raise UnknownName("flag", written, TUNING, also=(*FLAGS, *DIFFGENTOR))


# -- what excludes what ------------------------------------------------------------------------------------------------

IN_FLOAT32 = ("--upcast-sampling", "--no-half-vae", "--vae-in-fp32")
SETTLED = (
    ("--medvram", ("--lowvram",), "A1111 asks for lowvram first"),
    ("--medvram-sdxl", ("--lowvram", "--medvram"), "that one is for every model"),
    ("--half-vae", ("--no-half-vae", "--vae-in-fp32"), "they ask for the opposite"),
)


def _overruled(given: list[Given]) -> Iterator[tuple[str, str]]:
    """(a flag that has no effect beside the others, why): as A1111 picks, and then what is said already."""
    names = [one.name for one in given]
    ranked = [name for name in ATTENTION if name in names]
    if "--disable-opt-split-attention" in names:
        yield from ((name, "has no effect beside --disable-opt-split-attention") for name in ranked)
        ranked = []
    for name in ranked[1:]:
        # sorted by priority, and the first whose flag is set: modules/sd_hijack.py
        yield name, f"A1111 takes one, {ranked[0]} (priority {ATTENTION[ranked[0]]}) before this ({ATTENTION[name]})"
    whole = next((one.written for one in given if one.becomes == "dtype=float32"), None)
    for name in IN_FLOAT32 if whole else ():
        yield name, f"has no effect beside {whole}: all is in float32 already"
    for loser, winners, why in SETTLED:
        if winner := next((name for name in winners if name in names), None):
            yield loser, f"has no effect beside {winner}: {why}"
    for one in given:
        acting = [name for name in one.known.beside if name in names and name not in ranked[1:]]
        if one.known.beside and not acting:
            yield one.name, f"has no effect without {' or '.join(one.known.beside)}"


def _compatible(lines: list[Line], registry: Registry) -> Iterator[Line]:
    """Leaves out, or changes, what our plan would refuse beside the rest: two in a slot, or a pair of conflicts.py."""
    asked = words.read(*(line.becomes for line in lines if not _is_flag(line.becomes)), registry=registry).options
    options = {name: {**registry[name].defaults(), **given} for name, given in asked.items()}
    kept = conflicts.nearest_set(options, registry)
    reasons: dict[str, str] = {}
    for clash in conflicts.clashes(options, registry):
        reasons |= {clash.second: f"does not go with {clash.first}: {clash.reason}"}
        reasons |= dict.fromkeys((clash.first, *clash.instead), f"does not go with {clash.second}: {clash.reason}")
    for line in lines:
        mine = {} if _is_flag(line.becomes) else words.read(line.becomes, registry=registry).options
        left = {name: {key: kept[name][key] for key in given} for name, given in mine.items() if name in kept}
        if left == mine:
            yield line
            continue
        (troubled, *_) = [name for name in mine if left.get(name) != mine[name]]
        says = f"{troubled} {reasons[troubled]}"
        yield replace(line, verdict="in conflict", becomes=words.written(left, registry), says=says)


# -- one flag ----------------------------------------------------------------------------------------------------------


def _half(given: list[Given]) -> Iterator[Line]:
    """A1111 and Forge compute in float16 unless they are told otherwise; here it is float32."""
    if any(one.name in A1111 for one in given) and not any(one.becomes.startswith("dtype=") for one in given):
        yield Line(*HALF)


def _line(one: Given, overruled: str | None) -> Line:
    if overruled:
        return Line(one.written, "in conflict", "", overruled, one.known.source)
    says = _allocator_says(one.value) if one.name in ALLOCATORS else one.known.says
    verdict = _by_value(one, one.known.verdict) or ("becomes" if one.becomes else "pointless")
    return Line(one.written, verdict, one.becomes, says, one.known.source)


def _by_value(one: Given, texts: str | Mapping[str, str]) -> str:
    if isinstance(texts, str):
        return texts
    if one.value not in texts and "*" not in texts:
        raise UsageError(f"{one.name} is {one.value!r}: give {' or '.join(texts)}")
    return texts.get(one.value, texts.get("*", ""))


def _has_segments(text: str) -> bool:
    settings = settings_in(text)
    if settings is None:
        raise UsageError(f"{text!r} is not of the form key:value,key:value")
    return settings.get("expandable_segments") == "True" or "max_split_size_mb" in settings


def _allocator_says(text: str) -> str:
    settings = settings_in(text) or {}
    if "max_split_size_mb" not in settings:
        return "the same setting, put back at the end" if _has_segments(text) else "nothing here stands for it"
    beside = (
        "does not act on expandable segments, and with them memory can pile up" if _has_both(settings) else "is older"
    )
    return f"max_split_size_mb {beside} (pytorch issue 119452, pull request 193400): expandable segments alone"


def _has_both(settings: Mapping[str, str]) -> bool:
    return settings.get("expandable_segments") == "True" and "max_split_size_mb" in settings
