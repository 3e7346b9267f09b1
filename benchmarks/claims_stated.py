"""What docs/claims.md is made of: a claim of a guide, what was found of it, and a verdict; and a card's own figures."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter

import gpu_truth_page

FOLDER = Path(__file__).parent
HOLDS, IN_PART, DOES_NOT, NOT_HERE = "holds", "holds in part", "does not hold here", "not measurable here"
VERDICTS = (HOLDS, IN_PART, DOES_NOT, NOT_HERE)
GUIDES = {
    1: "VAE and Sampling Optimization Guide",
    2: "Tiered Recommendations",
    3: "VAE Performance Optimization Guide (SeedVR2.5)",
    4: "Common optimization techniques for running Stable Diffusion with diffusers",
    5: "Optimization Guide (Diffgentor)",
}


@dataclass(frozen=True, slots=True)
class Claim:
    """section, says: the guide's. found: what is known here; a name in braces is one of claims_figures.FIGURES.

    known: keys of safelight.planner.claims.CLAIMS, which have what others found. sources: addresses, for what `found`
    does not take from a figure. gpu: (case, plan) of scripts/gpu-truth that would show it on a card.
    """

    section: str
    says: str
    verdict: str
    found: str = ""
    known: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    gpu: tuple[tuple[str, str], ...] = field(default=())

    @property
    def figures(self) -> list[str]:
        return [name for _, name, _, _ in Formatter().parse(self.found) if name]


def on_cards(claim: Claim, folder: Path = FOLDER) -> Iterator[tuple[str, str]]:
    """(what a report of scripts/gpu-truth measured of it, the report's file). Nothing where there is no report."""
    for file in sorted(folder.glob("gpu*.json")):
        document = json.loads(file.read_text())
        measured = [row for row in document["rows"] if row["status"] == "measured"]
        for case, plan in claim.gpu:
            of_case = [row for row in measured if row["case"] == case]
            plain = gpu_truth_page.plain_of(of_case)
            for row in [row for row in of_case if row["plan"] == plan]:
                share = gpu_truth_page.seconds_share(row, plain)
                speed = f"{1 / share:.2f} times as fast as plain" if share and plan else f"{row['seconds']:.3g} s"
                peak = f", peak {gpu_truth_page.gib(row['peak_bytes'])} GiB"
                yield f"On {document['card']}, {case}, {plan or 'plain'}: {speed}{peak}", file.name
