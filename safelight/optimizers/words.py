"""The words that optimizations are asked for in: text, a list, or a mapping, in our names or in ones that others use.

Comes in: what a person wrote on the command line, in a file, in a variable or in Python. Goes out: an Asked, in the
registry's names and options. Knows no model and no device: whether something fits is asked later.

    "auto,dtype=bfloat16,vae-tiling=256"      ["auto", "xformers"]
    {"dtype": "bfloat16", "vae-tiling": {"tile_px": 256}, "compile": True, "deep-cache": 3}
    {"enable_vae_slicing": True, "cache_type": "first_block_cache", "cache_config": {"threshold": 0.1}}  # diffgentor's
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safelight.config import dtype_name
from safelight.errors import UnknownName, UsageError
from safelight.optimizers.registry import OPTIMIZERS, Optimizer, Option, Registry

Words = str | Iterable[Any] | Mapping[str, Any]
AUTO, NONE = "auto", "none"
ON_OFF = {"true": True, "on": True, "false": False, "off": False}

# another name -> ours, as "name", "name=value" (the other takes none) or "name.option" (the other's value is that
# option's). Underscores count as hyphens, and "enable-" before a name counts for nothing.
ALIASES = {
    # diffgentor 0.1.2: config.py (OptimizationConfig), and the names of its --optimize
    "torch-dtype": "dtype",
    "torch-compile": "compile",
    "compile-mode": "compile.mode",
    "compile-fullgraph": "compile.fullgraph",
    "compile-components": "compile.parts",
    "cpu-offload": "model-offload",
    "sequential-cpu-offload": "sequential-offload",
    "xformers": "attention-backend=xformers",
    "flash-attention": "attention-backend=flash",
    "flash": "attention-backend=flash",
    "sage-attention": "attention-backend=sage",
    "sage": "attention-backend=sage",
    "fuse-qkv": "fused-qkv",
    "group-offloading": "group-offload",
    "group-offload-type": "group-offload.level",
    "layerwise-cast": "layerwise-casting",
    "storage-dtype": "layerwise-casting.storage",
    "compute-dtype": "dtype",
    "pab-cache": "pyramid-attention-broadcast",
    "pab": "pyramid-attention-broadcast",
    "taylor-seer": "taylorseer-cache",
    # diffusers: its methods and cache configs
    "model-cpu-offload": "model-offload",
    "qkv-fusion": "fused-qkv",
    "fuse-qkv-projections": "fused-qkv",
    "xformers-memory-efficient-attention": "attention-backend=xformers",
    "compile-repeated-blocks": "compile-blocks",
    "regional-compile": "compile-blocks",
    "pyramid-attention-broadcast-cache": "pyramid-attention-broadcast",
    "taylorseer": "taylorseer-cache",
    # other tools and papers
    "bf16": "dtype=bfloat16",
    "bfloat16": "dtype=bfloat16",
    "fp16": "dtype=float16",
    "half": "dtype=float16",
    "float16": "dtype=float16",
    "fp32": "dtype=float32",
    "no-half": "dtype=float32",
    "no-half-vae": "upcast-vae",
    "fp32-vae": "upcast-vae",
    "fp16-vae": "half-vae",
    "channelslast": "channels-last",
    "opt-channelslast": "channels-last",
    "sub-quad-attention": "split-attention",
    "attn-slicing": "attention-slicing",
    "tome": "token-merging",
    "tomesd": "token-merging",
    "fbc": "first-block-cache",
    "fbcache": "first-block-cache",
    "magcache": "mag-cache",
    "fastercache": "faster-cache",
    "deepcache": "deep-cache",
    "dbcache": "cache-dit",
    "cfg-cutoff": "guidance-cutoff",
    "medvram": "model-offload",
    "taesd": "tiny-vae",
    "tiled-vae": "vae-tiling",
    "sliced-vae": "vae-slicing",
}
# an option's other names, by optimizer: ours; two of ours for a pair of values; the values that have an equal
OPTIONS: Mapping[str, Mapping[str, str | tuple[str, ...] | Mapping[Any, tuple[str, Any]]]] = {
    "deep-cache": {"cache_interval": "interval", "cache_branch_id": {0: ("depth", 1)}},
    "taylorseer-cache": {"cache_interval": "interval", "disable_cache_before_step": "warmup"},
    "pyramid-attention-broadcast": {
        "spatial_skip_range": "spatial_skip",
        "spatial_attention_block_skip_range": "spatial_skip",
        "cross_attention_block_skip_range": "cross_skip",
        "timestep_skip_range": ("low", "high"),
        "spatial_attention_timestep_skip_range": ("low", "high"),
    },
    "faster-cache": {
        "spatial_skip_range": "spatial_skip",
        "attention_weight": "weight",
        "unconditional_batch_skip_range": "unconditional_skip",
        "timestep_skip_range": {(-1, 681): ("weight", None)},  # what diffusers and we have
    },
    "vae-tiling": {"tile_size": "tile_px", "tile_sample_min_size": "tile_px", "tile_overlap_factor": "overlap"},
}
# a value's other names, by optimizer and option
VALUES = {
    ("group-offload", "level"): {"leaf_level": "leaf", "block_level": "block"},
    ("compile", "parts"): {"transformer": "denoiser", "unet": "denoiser", "text_encoder": "text_encoders"},
}
# a field of diffgentor's that means nothing while this switch of its is off; a dump of all fields names both
SWITCH = {
    "compile-mode": "enable-compile",
    "compile-fullgraph": "enable-compile",
    "compile-components": "enable-compile",
    "group-offload-type": "enable-group-offloading",
    "storage-dtype": "enable-layerwise-casting",
    "compute-dtype": "enable-layerwise-casting",
    "quantization-components": "quantization",
}
QUANTIZATION, DEVICES, DISTILLATION = "quantization", "several devices for one picture", "a distilled model"
LATER = {
    **dict.fromkeys(
        ("quantization", "quantization-components", "quantize", "fp8", "int8", "int4", "nf4"), QUANTIZATION
    ),
    **dict.fromkeys(("torchao", "bitsandbytes", "bnb", "gguf", "quanto", "svdquant", "nunchaku"), QUANTIZATION),
    **dict.fromkeys(("xdit", "multi-gpu", "num-gpus", "ulysses", "ring", "pipefusion", "context-parallel"), DEVICES),
    **dict.fromkeys(("cfg-parallel", "tensor-parallel", "data-parallel"), DEVICES),
    **dict.fromkeys(("lcm", "lcm-lora", "lightning", "hyper-sd", "turbo", "distillation"), DISTILLATION),
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one name stands for. option: None for the first one. fixed: the value that the name itself brings along."""

    name: str
    option: str | None = None
    fixed: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """options: what was given, by optimizer; {} asks for it as it is. auto: None where nothing was said of it.

    off: switched off by name ("enable_xformers": False); ours and the value it is about, None for any.
    alone: "none" was among the words, so that nothing said earlier counts.
    """

    options: Mapping[str, Mapping[str, Any]]
    auto: bool | None = None
    off: tuple[Meaning, ...] = ()
    alone: bool = False

    @property
    def mapping(self) -> dict[str, Any]:
        """The same as `read` takes it."""
        return {**{name: dict(given) for name, given in self.options.items()}, **({AUTO: True} if self.auto else {})}


def read(*parts: Words, registry: Registry = OPTIMIZERS) -> Asked:
    """Everything that one person asked for in one place. Raises UnknownName, and UsageError for what cannot be."""
    options: dict[str, dict[str, Any]] = {}
    off: list[Meaning] = []
    auto, alone = None, False
    for key, value in (pair for part in parts for pair in _pairs(part)):
        if key == AUTO:
            auto = _switch(key, value)
        elif key == NONE:
            alone = True
        elif (meaning := resolve(key, registry)) and (chosen := _chosen(key, meaning, value, registry)) is None:
            off.append(meaning)
        else:
            _add(options.setdefault(meaning.name, {}), meaning.name, chosen or {})
    return Asked(options, auto, tuple(off), alone)


def merged(sources: Iterable[Iterable[Words]], registry: Registry = OPTIMIZERS) -> Asked:
    """Several places, the later ones winning: option by option, and within a slot, as only one of it can be."""
    total: dict[str, dict[str, Any]] = {}
    auto = False
    for parts in sources:
        asked = read(*parts, registry=registry)
        if asked.alone:
            total, auto = {}, False
        for meaning in asked.off:
            if meaning.fixed is None or meaning.fixed in total.get(meaning.name, {}).values():
                total.pop(meaning.name, None)
        for name, given in asked.options.items():
            slot = registry[name].slot
            for rival in [other for other in total if slot and other != name and registry[other].slot == slot]:
                del total[rival]
            total[name] = {**total.get(name, {}), **given}
        auto = auto if asked.auto is None else asked.auto
    return Asked(total, auto)


def resolve(written: str, registry: Registry = OPTIMIZERS) -> Meaning:
    """ "enable_xformers" -> Meaning("attention-backend", None, "xformers"). Raises UnknownName, or says "not yet"."""
    word, _, option = written.partition(".")
    for name in (normal(word), normal(word).removeprefix("enable-")):
        if name in registry:
            return Meaning(name, option or None)
        if name in ALIASES:
            ours, _, fixed = ALIASES[name].partition("=")
            ours, _, inner = ours.partition(".")
            if ours in registry and not (inner and option):
                return Meaning(ours, inner or option or None, fixed or None)
        if name in LATER:
            raise UsageError(f"{written} ({LATER[name]}) is not there yet: leave it out")
    raise UnknownName("optimizer", written, registry, also=(*ALIASES, AUTO))


def names_of(name: str) -> tuple[str, ...]:
    """The other names of an optimizer, those that bring a value along with it: ("xformers (=xformers)", ...)."""
    found = []
    for alias, ours in ALIASES.items():
        target, equals, value = ours.partition("=")
        if target.partition(".")[0] == name:
            found.append(f"{alias} ({equals}{value})" if equals else f"{alias} ({ours})" if "." in target else alias)
    return tuple(found)


def written(options: Mapping[str, Mapping[str, Any]], registry: Registry = OPTIMIZERS) -> str:
    """{"vae-tiling": {"tile_px": 256, "overlap": 0.5}} -> "vae-tiling=256,vae-tiling.overlap=0.5"."""
    return ",".join(word for name, given in options.items() for word in said(registry[name], given))


def said(known: Optimizer, given: Mapping[str, Any]) -> Iterator[str]:
    """The words that ask for one optimizer with these options."""
    first = known.options[0].name if known.options else None
    words = [known.name if option == first else f"{known.name}.{option}" for option in given]
    if first not in given and not given:
        yield known.name
    yield from (f"{word}={value}" for word, value in zip(words, given.values(), strict=True))


def normal(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _pairs(part: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every word; True where there is no value."""
    if isinstance(part, str):
        for word in filter(None, (word.strip() for word in part.split(","))):
            key, equals, text = word.partition("=")
            yield (normal(key) if key.lower() in (AUTO, NONE) else key.strip()), text.strip() if equals else True
    elif isinstance(part, Mapping):
        yield from _table(part)
    elif isinstance(part, Iterable):
        for item in part:
            yield from _pairs(item)
    else:
        raise UsageError(f'optimize is {part!r:.80}: give text, a list ["a", "b"] or a table')


def _table(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    fields = {normal(str(key)): value for key, value in table.items()}
    for key, value in table.items():
        name = normal(str(key))
        if value is None or (SWITCH.get(name) in fields and not fields[SWITCH[name]]):
            continue
        if name == "cache-type":
            yield from _cache(value, fields.get("cache-config") or {})
        elif name == "cache-config":
            if value and not fields.get("cache-type"):
                raise UsageError(f"{key} is given without cache_type: name the cache that it is for")
        elif name == "attention-backend" and value in ("default", "native"):
            continue
        elif isinstance(value, Mapping):
            yield str(key), True
            yield from ((f"{key}.{option}", inner) for option, inner in value.items() if inner is not None)
        else:
            yield (name if name in (AUTO, NONE) else str(key)), value


def _cache(kind: Any, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """diffgentor's two fields; of a config with a table for each cache, the table of the one that is named."""
    if kind == NONE:
        return
    tables = {normal(str(key)).removesuffix("-cache"): value for key, value in config.items()}
    mine = tables.get(normal(str(kind)).removesuffix("-cache"))
    yield str(kind), True
    options = mine if isinstance(mine, Mapping) else {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    yield from ((f"{kind}.{option}", value) for option, value in options.items() if value is not None)


def _chosen(key: str, meaning: Meaning, value: Any, registry: Registry) -> dict[str, Any] | None:
    """The options that a word sets, or None when it switches the optimizer off."""
    known = registry[meaning.name]
    first = known.options[0] if known.options else None
    if meaning.option is None and isinstance(value, str) and not (first and first.kind is bool):
        value = ON_OFF.get(value.lower(), value)
    if meaning.option is None and value is False:
        return None
    if meaning.option is None and value is True:
        return {first.name: parsed(known, first, meaning.fixed)} if meaning.fixed and first else {}
    if meaning.fixed or first is None:
        raise UsageError(f"{key} takes no value")
    if meaning.option is None:
        return {first.name: parsed(known, first, value)}
    return {name: parsed(known, known.option(name), one) for name, one in _ours(known, meaning.option, value)}


def _ours(known: Optimizer, asked: str, value: Any) -> list[tuple[str, Any]]:
    """(our option, its value) of what may be another's option, or a pair of values in one."""
    name = asked.replace("-", "_")
    ours = OPTIONS.get(known.name, {}).get(name, name)
    if isinstance(ours, str):
        return [(ours, value)]
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(ours, tuple):
        if not isinstance(value, tuple) or len(value) != len(ours):
            raise UsageError(f"{asked} of {known.name} is {value!r:.80}: give a pair")
        return list(zip(ours, value, strict=True))
    if value not in ours:
        equal = " or ".join(map(str, ours))
        raise UsageError(f"{asked} of {known.name} is {value!r:.80}: only {equal} has an equal here")
    return [ours[value]] if ours[value][1] is not None else []


def parsed(known: Optimizer, option: Option, value: Any) -> Any:
    """The value as the optimizer takes it: its type checked, another's word for it replaced by ours."""
    if isinstance(value, list | tuple):
        value = "+".join(map(str, value))
    if type(value).__name__ == "dtype":  # torch.bfloat16
        value = str(value)
    if isinstance(value, str):
        theirs = VALUES.get((known.name, option.name), {})
        value = option.parse("+".join(theirs.get(one, one) for one in value.split("+")))
    if option.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, option.kind) or (option.kind is not bool and isinstance(value, bool)):
        raise UsageError(f"option {option.name!r} of {known.name} is {value!r:.80}: give {option.kind.__name__}")
    if (known.name, option.name) == ("dtype", "value") and value != AUTO:
        return dtype_name(str(value).removeprefix("torch."))
    return value


def _add(given: dict[str, Any], name: str, chosen: Mapping[str, Any]) -> None:
    for option, value in chosen.items():
        if given.get(option, value) != value:
            raise UsageError(f"{name} is given twice, with {option} {given[option]} and {value}: give it once")
        given[option] = value


def _switch(key: str, value: Any) -> bool:
    value = ON_OFF.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise UsageError(f"{key} takes no value")
    return value
