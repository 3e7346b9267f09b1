"""Writes the pages that are made from the code: docs/cli.md and docs/optimizers.md. tests/test_docs.py compares them.

python scripts/docs.py
"""

from pathlib import Path

import click

from safelight.cli import app
from safelight.optimizers import OPTIMIZERS
from safelight.planner import AUTO

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
        "",
        "| name | stage | slot | fidelity | options | what it does | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for known in sorted(OPTIMIZERS.values(), key=lambda known: known.stage):
        options = ", ".join(f"`{o.name}={o.default}`" for o in known.options) or "-"
        lines.append(
            f"| `{known.name}` | {known.stage.name.lower()} | {known.slot or '-'} | {known.fidelity.word} | {options} "
            f"| {known.summary} | [source]({known.source}) |"
        )
    return "\n".join(lines) + "\n"


PAGES = {"cli.md": cli_page, "optimizers.md": optimizers_page}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
