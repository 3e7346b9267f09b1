"""Writes what is made from the code: docs/cli.md, optimizers.md, translate.md, and the tables between markers in
sampling.md and vae.md. tests/test_docs.py compares.

python scripts/docs.py
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from safelight.cli import app
from safelight.optimizers import OPTIMIZERS, words
from safelight.optimizers.conflicts import PAIRS
from safelight.optimizers.flags import DIFFGENTOR, FLAGS, TUNING, VARIABLES, Flag
from safelight.optimizers.registry import swapped
from safelight.optimizers.target import Part, Target
from safelight.planner import AUTO, fitting
from safelight.probe import packages, vae_catalog
from safelight.probe.device import Device
from safelight.request import SAMPLER_OPTIONS
from safelight.sampling import catalog_upscalers, samplers, schedulers, schedules
from safelight.sampling.samplers import Sampler

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 100


def cli_page() -> str:
    pages = ["# Command line", "", "Made from the program by `python scripts/docs.py`.", ""]
    width = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    root = click.Context(app, info_name="safelight", **width, **app.context_settings)
    pages += ["## safelight", "", "```", app.get_help(root), "```", ""]
    for name, command in sorted(app.commands.items()):
        context = click.Context(command, parent=root, info_name=name, **width)
        pages += [f"## safelight {name}", "", "```", command.get_help(context), "```", ""]
        for inner, sub in sorted(getattr(command, "commands", {}).items()):
            inside = click.Context(sub, info_name=inner, parent=context)
            pages += [f"### safelight {name} {inner}", "", "```", sub.get_help(inside), "```", ""]
    return "\n".join(pages).rstrip() + "\n"


def optimizers_page() -> str:
    lines = [
        "# Optimizers",
        "",
        "Made from the registry by `python scripts/docs.py`. What each one is worth is measured in `benchmarks/`.",
        "",
        f"`--optimize {AUTO}` takes those that keep the picture (exact, rounding) and are predicted to pay here;",
        "a name takes one for certain, or says why not: `-o dtype=bfloat16,vae-tiling=256,vae-tiling.overlap=0.5`.",
        "",
        "- **exact**: bit-equal pictures. **rounding**: the same mathematics, rounded elsewhere. **approximate**:",
        "  another picture is possible.",
        "- Applied in the order of the stages; two in one slot exclude each other.",
        "- **once**: what it costs besides; `auto` does not take what has a price, nor what is approximate.",
        "- **fits**: on a CPU, the kinds of model, with the defaults, two pictures of 1024 px at a time, no package",
        "  but what Safelight wants; `safelight optimizers` tells it for your device and model.",
        "",
        "| name | stage | slot | fidelity | options | once | fits | what it does | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    fits = fits_where()
    for known in sorted(OPTIMIZERS.values(), key=lambda known: known.stage):
        options = ", ".join(f"`{o.name}={o.default}`" for o in known.options) or "-"
        lines.append(
            f"| `{known.name}` | {known.stage.name.lower()} | {known.slot or '-'} | {known.fidelity.word} | {options} "
            f"| {known.price or '-'} | {fits[known.name]} | {known.summary} | [source]({known.source}) |"
        )
    return "\n".join([*lines, *_measured(), *_conflicts(), *_aliases()]) + "\n"


def _measured() -> list[str]:
    """The tables of the benchmarks of optimizers, as they stand in their pages."""
    lines = ["", "## What each is worth", "", "Alone and in stacks; how it was measured stands in each page."]
    for page in sorted(DOCS.parent.glob("benchmarks/optimizers*_*.md")):
        table = [line for line in page.read_text().splitlines() if line.startswith("|")]
        lines += ["", f"[benchmarks/{page.name}](../benchmarks/{page.name})", "", *table]
    return lines


def fits_where() -> dict[str, str]:
    """Which kinds of model each optimizer fits on a CPU with bfloat16 and no further package, or why not."""
    import diffusers

    cpu = Device("cpu", 0, "a CPU", 2**34, 2**34, fast_dtypes=("float32", "bfloat16"))
    found: dict[str, list[str]] = {name: [] for name in OPTIMIZERS}
    reasons: dict[str, str] = {}
    with swapped(packages, version=lambda name: None):  # the page is the same wherever it is made
        for kind, (pipeline, parts) in KINDS.items():
            made = {name: _part(getattr(diffusers, cls), config) for name, (cls, config) in parts.items()}
            target = Target(cpu, made, 1024, 1024, 2, pipeline=getattr(diffusers, pipeline), disposable=True)
            for name, why in fitting(target).items():
                if why is None:
                    found[name].append(kind)
                reasons.setdefault(name, why or "")
    return {name: ", ".join(kinds) or f"no: {reasons[name]}" for name, kinds in found.items()}


def _part(cls: type, config: dict[str, object]) -> Part:
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    return Part(cls, {**defaults, **config})


VAE = ("AutoencoderKL", {"block_out_channels": (128, 256, 512, 512), "sample_size": 512})
KINDS = {
    "UNet": ("StableDiffusionPipeline", {"unet": ("UNet2DConditionModel", {}), "vae": VAE}),
    "SD3": ("StableDiffusion3Pipeline", {"transformer": ("SD3Transformer2DModel", {}), "vae": VAE}),
    "FLUX": ("FluxPipeline", {"transformer": ("FluxTransformer2DModel", {}), "vae": VAE}),
}


def _conflicts() -> list[str]:
    lines = [
        "",
        "## What cannot be combined",
        "",
        "Besides two in one slot: the pairs of `safelight/optimizers/conflicts.py`. Asking for such a pair is an",
        "error, which names the largest part of what was asked for that works.",
        "",
        "| one | other | why | only while | source |",
        "|---|---|---|---|---|",
    ]
    for pair in PAIRS.values():
        one, other = sorted(pair.names)
        lines.append(f"| `{one}` | `{other}` | {pair.reason} | {pair.only or '-'} | [source]({pair.source}) |")
    return lines


def _aliases() -> list[str]:
    lines = [
        "",
        "## Other names",
        "",
        "Understood wherever an optimizer is named: `--optimize`, `--enable-NAME`, `[optimize]` in a settings file,",
        "`SAFELIGHT_OPTIMIZE`, Python. Underscores count as hyphens. Of diffgentor's fields, `cache_type` and",
        "`cache_config` are understood too.",
        "",
        "| name | is |",
        "|---|---|",
    ]
    lines += [f"| `{alias}` | `{ours}` |" for alias, ours in sorted(words.ALIASES.items())]
    lines += ["", "Not there yet, and answered so:", ""]
    return lines + [
        f"- {what}: {', '.join(f'`{name}`' for name in names)}" for what, names in _gathered(words.LATER).items()
    ]


def _gathered(table: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, what in table.items():
        found.setdefault(what, []).append(name)
    return found


def translate_page() -> str:
    lines = [
        "# Flags of other programs",
        "",
        "Made from `safelight/optimizers/flags.py` by `python scripts/docs.py`. `safelight translate` reads a whole",
        "line of them, settles what excludes what as A1111 does, and prints the command:",
        "",
        "```",
        'safelight translate "--medvram --opt-channelslast --no-half-vae"',
        "```",
    ]
    tables = {
        "A1111, Forge and others": {name: flag for name, flag in FLAGS.items() if name in TUNING},
        "diffgentor": DIFFGENTOR,
        "Environment variables": VARIABLES,
    }
    for title, table in tables.items():
        lines += ["", f"## {title}", "", "| flag | becomes | why | source |", "|---|---|---|---|"]
        for name, flag in table.items():
            lines.append(f"| `{name}` | {_becomes(flag)} | {flag.says} | [source]({flag.source}) |")
    return "\n".join(lines) + "\n"


def _becomes(flag: Flag) -> str:
    if isinstance(flag.becomes, str):
        verdict = flag.verdict if isinstance(flag.verdict, str) else ""
        return f"`{flag.becomes}`" if flag.becomes else verdict or "nothing"
    return ", ".join(f"{value}: {f'`{becomes}`' if becomes else 'nothing'}" for value, becomes in flag.becomes.items())


# -- tables within pages -----------------------------------------------------------------------------------------------

EACH: dict[samplers.Evaluations, str] = {
    samplers.once: "1",
    samplers.twice: "2, the last 1",
    samplers.once_and_one: "1, the first 2",
    samplers.unforeseen: "as many as it needs",
}


def samplers_table() -> str:
    lines = [
        "| sampler | also | evaluations a step | own schedule | options, as they are unsaid | flow models |",
        "|---|---|---|---|---|---|",
    ]
    for row in samplers.SAMPLERS:
        flow = "yes" if row.flow in ("native", "scaled") else f"no: {row.flow}"
        own = schedules.find(row.schedule).label
        lines.append(
            f"| {row.label} | {_codes(row.aliases)} | {EACH[row.evaluations]} | {own} | {_options(row)} | {flow} |"
        )
    return "\n".join(lines)


def _options(row: Sampler) -> str:
    """Those that a request has; 0 stands for no limit of s_tmax, as it is asked for."""
    defaults = {name: p.default for name, p in inspect.signature(row.run).parameters.items()}
    said = {name: defaults[name] for name in SAMPLER_OPTIONS if name in row.options}
    values = {name: 0 if math.isinf(value) else value for name, value in said.items()}
    return _codes(f"{name.replace('_', '-')} {value:g}" for name, value in values.items())


def schedules_table() -> str:
    lines = ["| schedule | name | what | flow models |", "|---|---|---|---|"]
    for row in schedules.SCHEDULES:
        what = "The sampler's own." if row.function is None else (row.function.__doc__ or "").splitlines()[0]
        only = f" For {' and '.join(row.families)} alone." if row.families else ""
        flow = "yes" if row.flow is True else f"no: {row.flow}"
        lines.append(f"| {row.label} | {_codes((row.name, *row.aliases))} | {what}{only} | {flow} |")
    return "\n".join(lines)


def classes_line() -> str:
    kinds = {"noise-predicting": False, "flow-matching": True}
    named = {
        kind: _codes(cls for cls, row in schedulers.CLASSES.items() if row.flow is flow) for kind, flow in kinds.items()
    }
    return "\n".join(f"- {kind} models: {names}" for kind, names in named.items())


def upscalers_table() -> str:
    lines = ["| upscaler | what | by itself | weights | licence |", "|---|---|---|---|---|"]
    for row in catalog_upscalers.ROWS:
        what = row.network or (row.way if row.kind == "image" else f"{row.way}, of latents between two passes")
        there = "bundled" if row.bundled else f"`safelight get {row.name!r}`, {catalog_upscalers.megabytes(row)}"
        licence = f"[{row.licence}]({row.source})" if row.licence else "-"
        lines.append(f"| {row.name} | {what} | {row.scale} x | {there if row.network else 'none'} | {licence} |")
    return "\n".join(lines)


def vaes_table() -> str:
    lines = ["| name | for | MiB | decodes in | known for |", "|---|---|---|---|---|"]
    for row in vae_catalog.CATALOGUE:
        dtypes = "all" if row.dtypes == vae_catalog.ALL else ", ".join(row.dtypes)
        whose = vae_catalog.FAMILIES[row.family][1]
        known = f"[{row.known_for}]({row.source})"
        lines.append(f"| `{row.name}` | {whose} | {row.nbytes / 2**20:.0f} | {dtypes} | {known} |")
    return "\n".join(lines)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


TABLES: dict[str, Callable[[], str]] = {
    "samplers": samplers_table,
    "schedules": schedules_table,
    "classes": classes_line,
    "upscalers": upscalers_table,
    "vaes": vaes_table,
}
BETWEEN = re.compile(r"(?s)(<!-- table: (\w+), made by python scripts/docs.py -->).*?(<!-- end of table -->)")


def filled(page: str) -> str:
    """A page written by hand, its tables made anew."""
    return BETWEEN.sub(lambda found: f"{found[1]}\n\n{TABLES[found[2]]()}\n\n{found[3]}", (DOCS / page).read_text())


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "optimizers.md": optimizers_page,
    "translate.md": translate_page,
    "sampling.md": lambda: filled("sampling.md"),
    "vae.md": lambda: filled("vae.md"),
}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
