"""A grid as one HTML file: every cell with its seconds, evaluations and metrics; a click enlarges its picture.

Comes in: a Grid whose pictures are files. Goes out: the page's text, which needs no network, no other file and no
script. Every text of the grid goes through `escape`.
"""

import json
import shlex
from collections.abc import Iterator
from html import escape
from importlib import resources
from string import Template

from safelight.config import VERSION
from safelight.measure.axes import NO_AXIS
from safelight.measure.grid import Found, Grid, document
from safelight.report import charts
from safelight.report.bench_figures import amount, duration, plural
from safelight.report.bench_pictures import embedded
from safelight.report.markup import details, facts

# pictures that a page holds -> the longer side in pixels that they are embedded at: about 20 MB in all at most
SIDES_PX = ((100, 768), (400, 384), (10_000, 192))
SMALL_PX = 256  # pictures of up to this side are shown pixel by pixel


def page(grid: Grid) -> str:
    template = resources.files("safelight.report").joinpath("grid_page.html").read_text("utf-8")
    name = _subject(grid)
    return Template(template).substitute(
        title=escape(name),
        style=_style(),
        header=_header(grid, name),
        main="".join([*_sheets(grid), _more(grid)]),
        maker=f"safelight {VERSION}",
    )


def _style() -> str:
    """That of a benchmark's page."""
    template = resources.files("safelight.report").joinpath("page.html").read_text("utf-8")
    css = template.partition("<style>")[2].partition("</style>")[0]
    return Template(css).substitute(light=charts.variables(0), dark=charts.variables(1), breakpoints="")


def _subject(grid: Grid) -> str:
    """ "sampler by steps"."""
    return " by ".join(axis.name for axis in grid.axes if axis != NO_AXIS) or "one picture"


def _header(grid: Grid, name: str) -> str:
    drawn, failed = len(grid.drawn), len(grid.failed)
    total = len(grid.found)
    said = [f"{drawn} of {plural(total, 'cell')} drawn" if drawn < total else plural(total, "cell")]
    said += [f"{failed} failed"] if failed else []
    said += ["interrupted"] if grid.interrupted else []
    prompts = {one.cell.request.prompt for one in grid.found}
    prompt = f'<p class="prompt">{escape(prompts.pop())}</p>' if len(prompts) == 1 else ""
    against = ""
    if grid.against is not None:
        heading = grid.axes[0].headings[grid.against]
        against = f'<p class="soft small">Metrics: against {escape(heading)} of the same row.</p>'
    return (
        '<p class="mark"><span class="lamp" aria-hidden="true"></span>safelight grid</p>'
        f"<h1>{escape(name)}</h1>{prompt}"
        f'<p class="lead">{escape("; ".join(said))}. {escape(grid.when.replace("T", " ")[:16])} UTC</p>{against}'
    )


def _sheets(grid: Grid) -> Iterator[str]:
    x, y, z = grid.axes
    side = _side_px(len(grid.drawn))
    for number, title in enumerate(z.headings):
        head = f'<h2 id="sheet-{number}-title">{escape(title or "Pictures")}</h2>'
        columns = "".join(f'<th scope="col">{escape(text)}</th>' for text in x.headings)
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(one, side) for one in row)}</tr>'
            for name, row in zip(y.headings, grid.sheet(number), strict=True)
        )
        yield (
            f'<section id="sheet-{number}" aria-labelledby="sheet-{number}-title">{head}'
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(title or "Pictures")}">'
            f'<table class="cells"><thead><tr><th scope="col">{escape(y.name)}</th>{columns}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div></section>\n"
        )


def _side_px(pictures: int) -> int:
    return next(side for most, side in SIDES_PX if pictures <= most)


def _cell(found: Found, side: int) -> str:
    if found.path is None:
        tone = " bad" if found.error else " soft"
        return f'<td><p class="why{tone}">{escape(found.error or "not drawn")}</p></td>'
    image = found.image()
    image.thumbnail((side, side))
    shown = embedded(image)
    name = found.cell.name or "the picture"
    small = ' class="small"' if max(shown.width, shown.height) <= SMALL_PX else ""
    picture = (
        f'<img{small} src="{shown.uri}" width="{shown.width}" height="{shown.height}" loading="lazy" '
        f'alt="{escape(name)}">'
    )
    place = f"aspect-ratio: {shown.width} / {shown.height}"  # is kept while the picture is enlarged
    zoom = f'<details class="zoom"><summary style="{place}">{picture}</summary><p>{escape(_told(found))}</p></details>'
    return f"<td>{zoom}{_figures(found)}</td>"


def _told(found: Found) -> str:
    """Under the enlarged picture."""
    request = found.request or found.cell.request
    made = f"{request.width}x{request.height}, {request.steps} steps, seed {request.seed}"
    return f"{found.cell.name or request.prompt}: {made}"


def _figures(found: Found) -> str:
    evaluations = "" if found.evaluations is None else str(found.evaluations)
    lines = {"seconds": duration(found.total), "evaluations": evaluations}
    lines |= {name.upper(): amount(name, value) for name, value in (found.metrics or {}).items()}
    lines |= {"metrics": f"none: {found.unequal}"} if found.unequal else {}
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in lines.items() if said)
    return f"<dl>{items}</dl>"


def _more(grid: Grid) -> str:
    """What was asked for, and every number."""
    data = json.dumps(document(grid), indent=1, ensure_ascii=False)
    first = next((one.request for one in grid.drawn if one.request), None)
    asked = {} if first is None else {name: str(value) for name, value in first.as_dict().items() if value is not None}
    command = f"<h3>Command</h3><pre><code>{escape(shlex.join(grid.command))}</code></pre>" if grid.command else ""
    settled = details("The first cell's request, as it was settled", facts(asked)) if asked else ""
    raw = details(f"The grid as JSON, {len(data.encode()) / 1024:.0f} KiB", f'<pre class="raw">{escape(data)}</pre>')
    return (
        f'<section id="more" aria-labelledby="more-title"><h2 id="more-title">How it was made</h2>'
        f"{command}{settled}{raw}</section>\n"
    )
