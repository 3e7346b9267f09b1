"""Documentation cannot rot: pages made from the code are the code's, and what README names is there."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "optimizers.md", "translate.md"])
def test_a_page_made_from_the_code_is_up_to_date(made, name):
    assert (ROOT / "docs" / name).read_text() == made.PAGES[name](), "run python scripts/docs.py"


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
