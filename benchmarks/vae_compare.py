"""How far a result is from the whole's, from the float32 truth, and how far where strips or tiles meet.

Results of `whole` and of the truth lie in a folder, one file for each input and dtype.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_cases import Case, Way

NEAR = 16  # lines: what the error at an edge is compared with
PICTURE_RANGE = 2.0  # a picture's values, -1 to 1


def truth_file(case: Case, folder: Path) -> Path:
    """Of float32; `whole`'s own, where whole is the truth."""
    return folder / (f"{case.inputs}-truth.pt" if case.truth == "exact" else f"{case.inputs}-float32.pt")


def whole_file(case: Case, folder: Path) -> Path:
    return folder / f"{case.inputs}-{case.dtype}.pt"


def keep(file: Path, made: Any) -> None:
    import torch

    torch.save(made, file)


def kept_or_compared(
    case: Case, way: Way, folder: Path, made: Any, edges: Mapping[int, list[int]]
) -> dict[str, dict[str, Any]]:
    """{"to_whole": ..., "to_truth": ..., "at_edges": ...}, as far as there is something to compare with."""
    import torch

    if way.kind == "whole":
        keep(whole_file(case, folder), made)
    found: dict[str, dict[str, Any]] = {}
    if way.kind != "whole" and (file := whole_file(case, folder)).exists():
        reference = torch.load(file)
        found["to_whole"] = apart(made, reference, case.what)
        found["at_edges"] = at_edges(made, reference, edges)
    if case.dtype != "float32" and (file := truth_file(case, folder)).exists():
        found["to_truth"] = apart(made, torch.load(file), case.what)
    return found


def apart(made: Any, reference: Any, what: str) -> dict[str, Any]:
    """largest, rmse; psnr in dB of the range of pictures, or of what the latents cover; None where not a number."""
    difference = made.float() - reference.float()
    rmse = difference.double().square().mean().sqrt().item()
    wide = PICTURE_RANGE if what == "decode" else (reference.max() - reference.min()).item()
    values = {"largest": difference.abs().max().item(), "rmse": rmse}
    values["psnr"] = 20 * math.log10(wide / rmse) if rmse > 0 else None
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def at_edges(made: Any, reference: Any, edges: Mapping[int, list[int]]) -> dict[str, float]:
    """Error of the two lines at each edge and of others near it; the step of the error across an edge, and near it.

    RMS each. Near: as the error is not everywhere as large, whatever the edges. A seam is a step that is larger at
    edges. Empty where there are no edges, or nothing but edges.
    """
    import torch

    difference = made.float() - reference.float()
    lines: dict[bool, list[Any]] = {True: [], False: []}
    steps: dict[bool, list[Any]] = {True: [], False: []}
    for dim, positions in edges.items():
        others = [other - difference.dim() for other in range(difference.dim()) if other - difference.dim() != dim]
        error = difference.double().square().mean(others)
        step = difference.diff(dim=dim).double().square().mean(others)
        here = {line for edge in positions for line in (edge - 1, edge)}
        across = {edge - 1 for edge in positions}
        near = {line for edge in positions for line in range(max(0, edge - NEAR), min(len(step), edge + NEAR))}
        lines[True].append(error[sorted(here)])
        lines[False].append(error[sorted(near - here)])
        steps[True].append(step[sorted(across)])
        steps[False].append(step[sorted(near - here)])
    found = {
        "error": lines[True],
        "error_elsewhere": lines[False],
        "step": steps[True],
        "step_elsewhere": steps[False],
    }
    if any(not sum(map(len, parts)) for parts in found.values()):
        return {}
    return {name: torch.cat(parts).mean().sqrt().item() for name, parts in found.items()}
