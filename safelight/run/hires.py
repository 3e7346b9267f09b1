"""The second pass over a drawn picture: how large it gets, what is cut off, and how many steps it takes.

Comes in: sizes in pixels and what was asked. Goes out: sizes, latent cells to cut off, numbers of steps. Not known
here: models, pictures, upscalers.

Source: A1111's web UI 1.10, calculate_target_resolution and sample_hr_pass in modules/processing.py,
setup_img2img_steps in modules/sd_samplers_common.py.
"""

from dataclasses import dataclass

from safelight.errors import UsageError
from safelight.request import HIRES, MOST, hires_size

MOST_STEPS = 100_000  # of a whole walk: its noise levels are a list, and of so many no two differ by anything seen
MOST_DENOISED = 0.999  # A1111's: with 1, a walk would have no step before its first


@dataclass(frozen=True, slots=True)
class HiresPlan:
    """target_width, target_height: pixels of the result, multiples of what the model draws.

    upscale_width, upscale_height: pixels that the first picture is enlarged to; they cover the target. Latents get
    upscale_width // cell columns, and as many rows. crop_*: latent cells cut off at each side after that.
    """

    target_width: int
    target_height: int
    upscale_width: int
    upscale_height: int
    crop_left: int = 0
    crop_top: int = 0
    crop_right: int = 0
    crop_bottom: int = 0


def hires_plan(width: int, height: int, asked: str, factor: int, cell: int | None = None) -> HiresPlan:
    """For a first picture of width x height. asked: as in `Request.hires`, checked there.

    factor: the multiple of pixels that the model draws. cell: pixels of a latent, if that is less. A size that follows
    from "1.5" or "1024x0" is rounded down to the multiple, so it may be a little less than asked. One that is named
    must be such a multiple. With both named, the picture is enlarged until it covers them, and cut evenly; of an odd
    number of cells, one more goes at the right or below.

    Raises UsageError for a named side that is no multiple, and for results that are no size to draw.
    """
    match = HIRES.fullmatch(asked)
    assert match, f"{asked!r} was checked before"
    named = [int(side) for side in match.groups()[1:] if side and int(side)]
    _check_multiples(named, asked, factor)
    target = hires_size(asked, width, height)
    if len(named) < 2:
        wide, high = (side // factor * factor for side in target)
        _check_sides((wide, high), asked)
        return HiresPlan(wide, high, wide, high)
    return _covered(width, height, target, asked, cell or factor)


def _covered(width: int, height: int, target: tuple[int, int], asked: str, cell: int) -> HiresPlan:
    """Enlarged in its shape, by // as A1111, until neither side is less than the target's."""
    wide, high = target
    is_wider = wide * height > width * high
    large = (wide, wide * height // width) if is_wider else (high * width // height, high)
    _check_sides(large, asked)
    columns, rows = ((side - kept) // cell for side, kept in zip(large, target, strict=True))
    return HiresPlan(wide, high, *large, columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2)


def walk_of(steps: int, denoise: float, *, fixed: bool) -> tuple[int, int]:
    """(total, run): noise levels are laid out for `total` steps, and the last `run` of them are taken.

    steps: asked for, 1 or more. denoise: 0 to 1, how much is drawn anew. fixed: exactly `steps` are run, as in a second
    pass and with A1111's img2img_fix_steps; else about the share `denoise` of them, and never none.

    Raises UsageError where so little is drawn anew that `steps` fixed steps would be a share of nothing.
    """
    share = min(denoise, MOST_DENOISED)
    if not fixed:
        return steps, int(share * steps) + 1
    if steps > share * MOST_STEPS:
        raise UsageError(
            f"{steps} steps with denoise {denoise:g} would change nothing: give {steps / MOST_STEPS:g} or more, "
            "or leave it out"
        )
    return int(steps / share), steps


def _check_multiples(named: list[int], asked: str, factor: int) -> None:
    for side in named:
        if side % factor:
            below = side // factor * factor
            near = " or ".join(str(one) for one in (below, below + factor) if one)
            raise UsageError(f"hires is {asked!r}: {side} is no multiple of {factor}; {near} is near")


def _check_sides(sides: tuple[int, int], asked: str) -> None:
    if not all(0 < side <= MOST["width"] for side in sides):
        most = MOST["width"]
        raise UsageError(f"hires is {asked!r}: {sides[0]}x{sides[1]} for this picture; 1 to {most} pixels can be drawn")
