"""The command line: reads flags, calls the API, prints. One function per command; torch is loaded only to run.

Results go to stdout (paths, or one JSON document with --json), everything else to stderr.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

import safelight
from safelight import config
from safelight.cli.advise import advise
from safelight.cli.bench import bench
from safelight.cli.catalog import optimizers, translate
from safelight.cli.draw import generate
from safelight.cli.grid import grid
from safelight.cli.memory import measurements
from safelight.cli.planning import plan, presets
from safelight.cli.tune import tune
from safelight.cli.upscale import get, upscale
from safelight.cli.vae import vae
from safelight.errors import EnvironmentProblem, Interrupted, SafelightError, UnknownName, UsageError
from safelight.report.terminal import harmless, say

TERMINATED = 143


class Commands(click.Group):
    """t2i is generate; an unknown command names the nearest."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, {"t2i": "generate"}.get(name, name))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            raise UnknownName("command", args[0], (*self.commands, "t2i"))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click would print an empty line
            raise Interrupted("interrupted") from error


HELP = ["-h", "--help"]


@click.group(cls=Commands, context_settings={"help_option_names": HELP})
@click.version_option(safelight.__version__, prog_name="safelight")
def app() -> None:
    """Run diffusion models fast and in little memory, without spoiling the picture."""


COMMANDS = (
    *(generate, plan, presets, advise, bench, tune, grid),
    *(optimizers, translate, measurements, vae, upscale, get),
)
for command in COMMANDS:
    # said of each, as click keeps the first help option that it makes, with or without what the group says
    command.context_settings["help_option_names"] = HELP
    app.add_command(command)


def main() -> NoReturn:
    """Runs the command line and turns every ending into its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app.main(prog_name="safelight", standalone_mode=False) or 0
    except SafelightError as error:
        code = _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        code = 2
    except click.UsageError as error:
        code = _fail(_usage(error), 2)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", Interrupted.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # a name too long, a file that may not be read
        code = _fail(f"cannot use {error.filename}: {error.strerror or error}", EnvironmentProblem.exit_code)
    sys.exit(code)


def _usage(error: click.UsageError) -> str:
    """What click says, and what to do about it."""
    command = error.ctx.command if error.ctx else app
    path = error.ctx.command_path if error.ctx else "safelight"
    if isinstance(error, click.NoSuchOption):
        flags = [option for option in command.params if isinstance(option, click.Option)]
        shown = [name for flag in flags if not flag.hidden for name in flag.opts]
        hidden = [name for flag in flags if flag.hidden for name in flag.opts]
        return str(UnknownName("flag", error.option_name, (*shown, "--help"), also=hidden))
    return f"{error.format_message()} (a prompt of several words wants quotes; {path} --help tells all)"


def _fail(message: str, code: int) -> int:
    say(f"safelight: {harmless(' '.join(message.split()))}")
    return code


def _terminate(_signal: int, _frame: Any) -> NoReturn:
    say("safelight: terminated")
    sys.exit(TERMINATED)


@app.command()
@click.argument("picture", type=Path)
@click.option("--json", "as_json", is_flag=True, help="The record as JSON.")
def info(picture: Path, as_json: bool) -> None:
    """Print what PICTURE says about how it was made."""
    from safelight.run import metadata

    record, text = metadata.read(picture)
    if record is None and text is None:
        raise UsageError(f"{picture} carries no generation parameters")
    if as_json:
        click.echo(json.dumps(asdict(record) if record else {"parameters": text}, indent=2))
    else:
        click.echo(harmless(text) if text else "no A1111 parameters")
        if record:
            click.echo(json.dumps(asdict(record), indent=2))


@app.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what is here, what is wrong with it, and how to mend it."""
    from safelight.probe import doctor as examination

    findings = examination.examine(config.environment())
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for line in examination.lines(findings):
            click.echo(line)
    sys.exit(examination.worst(findings))
