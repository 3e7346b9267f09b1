"""Documentation cannot rot: pages made from the code are the code's, and what README names is there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from safelight.errors import UsageError
from safelight.prompts.syntax import parse, parse_negative

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BY_HAND = ("sampling.md", "prompts.md", "vae.md")


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "optimizers.md", "translate.md", "sampling.md", "vae.md"])
def test_a_page_made_from_the_code_is_up_to_date(made, name):
    assert (ROOT / "docs" / name).read_text() == made.PAGES[name](), "run python scripts/docs.py"


def test_every_table_made_from_the_code_stands_in_a_page(made):
    stands = [name for path in ROOT.glob("docs/*.md") for _, name, _ in made.BETWEEN.findall(path.read_text())]
    assert sorted(stands) == sorted(made.TABLES)


def test_every_sampler_and_schedule_has_its_line(made):
    page = (ROOT / "docs" / "sampling.md").read_text()
    rows = (*made.samplers.SAMPLERS, *made.schedules.SCHEDULES, *made.catalog_upscalers.ROWS)
    missing = [row for row in rows if f"\n| {getattr(row, 'label', '') or row.name} |" not in page]
    assert not missing


@pytest.mark.parametrize("name", BY_HAND)
def test_every_path_that_a_page_names_is_there(name):
    page = (ROOT / "docs" / name).read_text()
    linked = [path for path in re.findall(r"\]\(([\w./-]+)", page) if not path.startswith("http")]
    quoted = re.findall(r"`((?:safelight|tests|benchmarks)/[\w./-]+)`", page)
    missing = [path for path in linked if not (ROOT / "docs" / path).exists()]
    missing += [path for path in quoted if not (ROOT / path).exists()]
    assert not missing


def test_every_path_that_readme_names_is_there():
    named = re.findall(r"\]\(([\w./-]+)\)", README)
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_every_folder_and_file_of_the_annotated_tree_is_there():
    tree = README.partition("```text\n")[2].partition("```")[0]
    names = re.findall(r"([\w.-]+/|[\w-]+\.py)", "\n".join(line.partition("  ")[0] for line in tree.splitlines()))
    present = {path.name for path in (ROOT / "safelight").rglob("*.py")}
    present |= {f"{path.name}/" for path in ROOT.rglob("*") if path.is_dir() and ".venv" not in path.parts}
    assert names
    assert not [name for name in names if name not in present]


def test_every_flag_that_readme_uses_exists(made):
    page = made.cli_page() + made.translate_page() + " ".join(f"--enable-{name}" for name in made.OPTIMIZERS)
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert not [flag for flag in flags if flag not in page and flag not in ("--help",)]


@pytest.mark.parametrize("name", BY_HAND)
def test_every_command_that_a_page_shows_is_read_by_the_program(made, name):
    """Its flags are those of that very command."""
    blocks = re.findall(r"(?s)```sh\n(.*?)```", (ROOT / "docs" / name).read_text())
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("safelight ")]
    assert lines
    for line in lines:
        _, asked, *rest = shlex.split(line, comments=True)
        command = made.app.commands[asked]
        if hasattr(command, "commands"):
            asked, *rest = rest
            command = command.commands[asked]
        with command.make_context(asked, rest):
            pass


def test_every_mistake_that_the_page_on_prompts_shows_is_told_so():
    page = (ROOT / "docs" / "prompts.md").read_text()
    shown = re.findall(r"(?m)^column \d+: .*$", page)
    assert shown == [_mistake(parse, text) for text in MISTAKES] + [_mistake(parse_negative, "<lora:x:1>")]


MISTAKES = (
    "a (red:1.x) apple",
    "a [red:green:half] apple",
    "a red apple AND ",
    "a red apple <lora:none",
    "a red apple <lora:x:abc>",
    "a red apple <hypernet:x:1>",
)


def _mistake(read, text):
    with pytest.raises(UsageError) as error:
        read(text)
    return str(error.value)


def test_every_claim_of_speed_or_bytes_names_its_benchmark():
    for line in README.splitlines():
        if re.search(r"\d(\.\d+)? ?(x faster|MiB|dB)\b", line) and not line.startswith("|"):
            assert "benchmarks/" in README[max(0, README.index(line) - 600) : README.index(line) + 600], line


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.md")), ids=lambda path: path.name)
def test_a_benchmark_is_dated_and_names_its_command(path):
    assert re.search(r"_\d{4}-\d{2}-\d{2}\.md$", path.name)
    text = path.read_text()
    assert "## Command" in text
    assert "torch" in text
