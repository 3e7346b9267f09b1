"""Writes docs/claims.md: what five guides claim, and what was measured of it; tests/test_claims.py compares.

python benchmarks/claims.py

Figures are read out of the committed JSON of other benchmarks (claims_figures.py); what no other benchmark has is
measured by claims_measure.py. Where there is a report of scripts/gpu-truth, the page has its rows by itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import claims_diffgentor
import claims_diffusers
import claims_sampling
import claims_seedvr
import claims_stated
import claims_tiers
from claims_figures import FOLDER, book, read
from claims_stated import GUIDES, NOT_HERE, VERDICTS, Claim
from prediction_page import table, wrapped

from safelight.planner.claims import CLAIMS as KNOWN

PAGE = FOLDER.parent / "docs" / "claims.md"
CLAIMS: Mapping[int, Sequence[Claim]] = {
    1: claims_sampling.CLAIMS,
    2: claims_tiers.CLAIMS,
    3: claims_seedvr.CLAIMS,
    4: claims_diffusers.CLAIMS,
    5: claims_diffgentor.CLAIMS,
}
ON_CARD = "not measurable on a CPU: see the card's figures"
ABOUT = (
    "Every effect that five guides to faster diffusion put a number or a mark to, in their words, beside what was "
    "measured for it. Made by `python benchmarks/claims.py`: figures are read out of the JSON files that the last "
    "column links, each of which has its command. What is marked in no file comes from the source that is named.",
    "{cards} Not measurable here: what needs a card, weights or code that are not here. Where a guide only sets a "
    "value and claims nothing of it, there is nothing to check: `safelight presets` has those sets. "
    "Figures are of shared machines with other work beside; ratios are of runs that lay next to each other. "
    "Counted: bytes of tensors, or operations, that follow from shapes and are the same on any machine; of a process, "
    "torch and its libraries come on top. SD1.5 and larger models have random weights here: seconds and bytes are "
    "theirs, pictures are not.",
    "Verdicts: **holds**; **holds in part**, under a condition or for a part of what is said; **does not hold here**, "
    "as what was measured or counted says otherwise, or as the source does; **not measurable here**.",
)
NO_CARD = "No report of scripts/gpu-truth is there yet: all was measured on CPUs."
CARDS = "Rows of scripts/gpu-truth are beside what was measured on CPUs."


def markdown() -> str:
    cards = CARDS if list(FOLDER.glob("gpu*.json")) else NO_CARD
    lines = ["# Claims", ""]
    for paragraph in ABOUT:
        lines += [*wrapped(paragraph.format(cards=cards)), ""]
    lines += ["## In short", "", *table(["guide", *VERDICTS], summary()), ""]
    for guide, claims in CLAIMS.items():
        lines += [f"## Guide {guide}: {GUIDES[guide]}", "", *table(HEAD, [cells(guide, claim) for claim in claims]), ""]
    lines += ["## Files", "", *table(["file", "command"], [[linked(file), command(file)] for file in files()])]
    return "\n".join(lines) + "\n"


HEAD = ("guide, section", "claim", "found", "verdict", "from")


def summary() -> list[list[str]]:
    counts = {guide: Counter(claim.verdict for claim in claims) for guide, claims in CLAIMS.items()}
    rows = [[f"{guide}: {GUIDES[guide]}", *(str(counts[guide][name]) for name in VERDICTS)] for guide in CLAIMS]
    total = sum(counts.values(), Counter())
    return [*rows, ["all", *(str(total[name]) for name in VERDICTS)]]


def cells(guide: int, claim: Claim) -> list[str]:
    values, sources = read(claim.figures)
    on_cards = list(claims_stated.on_cards(claim))
    known = [KNOWN[name] for name in claim.known]
    found = [claim.found.format_map(values)] if claim.found else []
    found += [one.found[0].upper() + one.found[1:] for one in known] + [told for told, _ in on_cards]
    origins = [linked(file) for file in dict.fromkeys([*sources, *(file for _, file in on_cards)])]
    origins += [shown(one.source) for one in known] + [shown(source) for source in claim.sources]
    verdict = ON_CARD if on_cards and claim.verdict == NOT_HERE else claim.verdict
    where = f"{guide}, {claim.section}"
    return [where, claim.says, ". ".join(found) + ".", f"**{verdict}**", "; ".join(dict.fromkeys(origins)) or "-"]


def linked(file: str) -> str:
    return f"[{file.removesuffix('.json')}](../benchmarks/{file})"


def shown(source: str) -> str:
    """Addresses in angle brackets, so that they are links; words stay words."""
    return " ".join(f"<{word}>" if word.startswith("https://") else word for word in source.split())


def files() -> list[str]:
    """All that the page's figures are read from."""
    found = [file for claims in CLAIMS.values() for claim in claims for file in read(claim.figures)[1]]
    cards = [file for claims in CLAIMS.values() for claim in claims for _, file in claims_stated.on_cards(claim)]
    return sorted({*found, *cards})


def command(file: str) -> str:
    return f"`{book(file)['command']}`"


def main(page: Path = PAGE) -> None:
    page.write_text(markdown())


if __name__ == "__main__":
    main()
