"""The architecture, held: imports point down, files and functions stay short, nothing heavy loads for --help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "safelight"

# lowest first; a module imports its own layer and those above it in this list
LAYERS = (
    ("errors", "request", "config"),
    ("probe", "measure.clock", "measure.memory", "sampling", "prompts", "firstlight"),
    ("simulate",),
    ("vae",),
    ("optimizers",),
    ("planner",),
    ("run",),
    ("session",),
    ("opening",),
    ("measure",),
    ("report",),
    ("__init__", "cli", "__main__"),
)
FILE_LINES, FUNCTION_LINES = 400, 40
FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])


def layer(module: str) -> int:
    """The index of the longest entry that the module's name begins with."""
    found = [(len(name), i) for i, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    assert found, f"{module} stands in no layer: add it to LAYERS on purpose"
    return max(found)[1]


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Modules of safelight that the file imports, without those for type checking alone.

    at_run_time: only those of the module itself, not those inside functions.
    """
    tree = ast.parse(path.read_text())
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    skipped = {id(n) for block in for_types for n in ast.walk(block)}
    if at_run_time:
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        skipped |= {id(n) for function in functions for n in ast.walk(function)}
    known = {module_name(file) for file in FILES}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if name.removeprefix("safelight.") in known}
            names |= modules or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("safelight.") for name in names} & known


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
    here = layer(module_name(path))
    above = [name for name in imported(path) if layer(name) > here]
    assert not above, f"{module_name(path)} imports {above}, which lie above it"


def test_no_module_imports_itself_through_others():
    graph = {module_name(path): imported(path, at_run_time=True) for path in FILES}
    # a package's __init__ names its modules; a module in it that imports the package would be the cycle
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in finished:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize(
    "code",
    [
        "import safelight",
        "import safelight.cli",
        "import safelight.optimizers",
        "import safelight.planner",
        "from safelight.optimizers.translate import translate; translate(['--medvram --no-half-vae'])",
    ],
)
def test_importing_loads_no_torch(code):
    heavy = "[name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if name in sys.modules]"
    script = f"import sys; {code}; found = {heavy}; assert not found, found"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["--version"],
        ["optimizers", "--names"],
        ["optimizers", "--help"],
        ["translate", "--medvram"],
        ["plan", "--help"],
        ["presets"],
    ],
)
def test_help_takes_under_half_a_second_of_processor_time(arguments):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "safelight", *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5, f"{spent:.2f} s"
