"""safelight advise: whether sampler, steps, guidance, size and the rest go together, what would, and who says so."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from safelight import config
from safelight.cli.draw import hush, hyphens
from safelight.cli.flags import put
from safelight.errors import UsageError
from safelight.report.terminal import harmless

if TYPE_CHECKING:
    from safelight.sampling.advice import Advice

FLAGS = (
    click.option("--model", help="As for generate; only its configs are read."),
    click.option("--config", "config_folder", metavar="FOLDER", help="Configs for a single file."),
    click.option("--sampler", help='As A1111 writes it: "DPM++ 2M Karras".'),
    click.option("--schedule", help='As A1111 writes it: "SGM Uniform".'),
    click.option("--steps", metavar="N", help="Denoising steps."),
    click.option("--guidance", metavar="X", help="Scale of classifier-free guidance."),
    click.option("--width", metavar="PIXELS", help="Before any second pass."),
    click.option("--height", metavar="PIXELS", help="Like --width."),
    click.option("--vae", help="A name of the catalogue (ft-mse), a file or a hub id."),
    click.option("--batch-size", metavar="N", help="How many at a time."),
    click.option("--count", metavar="N", help="How many pictures."),
    click.option("--eta", metavar="X", help="Of DDIM and of samplers that add noise."),
    click.option("--s-churn", metavar="X", help="Of Euler, Heun and DPM2, as the next three."),
    click.option("--s-tmin", metavar="SIGMA", help="A noise level."),
    click.option("--s-tmax", metavar="SIGMA", help="A noise level; 0 is no limit."),
    click.option("--s-noise", metavar="X", help="1 is usual."),
    click.option("--hires", metavar="X|WxH", help="A second pass, so many times larger."),
    click.option("--hires-steps", metavar="N", help="Of the second pass."),
    click.option("--hires-denoise", metavar="X", help="How much of it is drawn anew, 0 to 1."),
    click.option("--hires-upscaler", metavar="NAME", help="Latent, Lanczos or a model."),
    click.option("--denoise", metavar="X", help="How much of a picture to begin from is drawn anew, 0 to 1."),
    click.option("--for", "purpose", metavar="exploring|final", help="What the pictures are for."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
)
OUR_OWN = ("model", "config_folder", "vae", "purpose")  # not of a Request
# a Request refuses what would do nothing without the other; of these two one may ask alone: (asked, needed, any value)
ALONE = (("schedule", "sampler", "Euler"), ("denoise", "init", "a picture"))


@click.command(context_settings={"token_normalize_func": hyphens})
@put(FLAGS)
def advise(*, as_json: bool, **flags: Any) -> None:
    """Say what is usual, what is wasted and what will look wrong, and who found that; nothing is run.

    Steps count model evaluations: a sampler that takes two a step wants half as many. Without any flag: all samplers
    and kinds of models.
    """
    from safelight.sampling import advice

    given = {name: value for name, value in flags.items() if value is not None}
    if not given and not as_json:
        click.echo(
            "\n".join([*advice.overview(), "", "safelight advise --help: what can be asked; --model tells its kind."])
        )
        return
    fields, family = _fields(given), _family(given)
    found = advice.advise(family=family, **fields)
    if as_json:
        click.echo(json.dumps({"schema": 1, "family": family, "advice": [asdict(one) for one in found]}, indent=2))
        return
    for line in _lines(found, family if "model" in given else None):
        click.echo(harmless(line))


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """What is asked, numbers parsed and checked as a request checks them. Raises UsageError."""
    texts = {name: value for name, value in given.items() if name not in OUR_OWN}
    if "hires_denoise" in texts and "hires" not in texts:
        raise UsageError("hires-denoise is given without hires: it would do nothing")
    _check_sampler(texts)
    standins = {needed: value for asked, needed, value in ALONE if asked in texts and needed not in texts}
    request = config.request({"prompt": "", **standins, **texts})
    fields = {name: getattr(request, name) for name in texts}
    return fields | {name: given[name] for name in ("vae", "purpose") if name in given}


def _check_sampler(texts: dict[str, Any]) -> None:
    """Raises UnknownName, and DoesNotApply for what no run would take either."""
    from safelight.sampling import schedulers

    recipe = schedulers.find(texts.get("sampler"), texts.get("schedule"))
    if isinstance(recipe.sampler, str):
        raise UsageError(f"nothing is known of {recipe.sampler}, which is diffusers' own: name one of A1111's samplers")


def _family(given: dict[str, Any]) -> str | None:
    """The kind of the model, from its configs alone."""
    from safelight.sampling import advice

    if (model := given.get("model")) is None:
        return None
    hush()
    from safelight.probe.blueprint import read

    made = read(model, config_folder=given.get("config_folder"))
    parts = [made.parts[name].config for name in ("transformer", "unet") if name in made.parts]
    return advice.family_of(made.pipeline.__name__, parts[0] if parts else {}, made.name, made.width)


def _lines(found: "Sequence[Advice]", family: str | None) -> Iterator[str]:
    """A block for each topic; a mark where something is wrong, and who says so below."""
    if family:
        yield f"kind of model: {family}"
        yield ""
    for topic, group in groupby(found, key=attrgetter("topic")):
        yield topic
        for one in group:
            yield f"  {MARKS[one.level]} {one.text}"
            yield f"      {one.source}"
    if not found:
        yield "nothing is known of that: name a --sampler or a --model"


MARKS = {"fine": " ", "note": "?", "warning": "!"}
