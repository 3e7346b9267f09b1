"""Lines per folder of safelight/, for a look at how it grows; the budgets themselves are tests (test_layers.py)."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "safelight"


def main() -> None:
    lines: Counter[str] = Counter()
    for path in ROOT.rglob("*.py"):
        lines[path.relative_to(ROOT).parts[0]] += len(path.read_text().splitlines())
    for name, count in sorted(lines.items(), key=lambda item: -item[1]):
        print(f"{count:6d}  {name}")
    print(f"{sum(lines.values()):6d}  in all")


if __name__ == "__main__":
    main()
