"""A second pass gets the size, the crop and the steps that A1111 gives it."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from safelight.errors import UsageError
from safelight.run.hires import HiresPlan, hires_plan, walk_of

FACTORS = (8, 16, 32)
cells = st.integers(8, 128)
factors = st.sampled_from(FACTORS)


@pytest.mark.parametrize(
    ("sides", "asked", "factor", "plan"),
    [
        ((512, 512), "1.5", 8, HiresPlan(768, 768, 768, 768)),
        ((512, 768), "2", 8, HiresPlan(1024, 1536, 1024, 1536)),
        ((512, 768), "1024x0", 8, HiresPlan(1024, 1536, 1024, 1536)),
        ((512, 768), "0x1536", 8, HiresPlan(1024, 1536, 1024, 1536)),
        ((512, 512), "768x768", 8, HiresPlan(768, 768, 768, 768)),
        ((512, 512), "1024x1536", 8, HiresPlan(1024, 1536, 1536, 1536, 32, 0, 32, 0)),
        ((512, 512), "1536x1024", 8, HiresPlan(1536, 1024, 1536, 1536, 0, 32, 0, 32)),
        ((512, 512), "1024x1024", 16, HiresPlan(1024, 1024, 1024, 1024)),
        ((512, 768), "1024x1528", 8, HiresPlan(1024, 1528, 1024, 1536, 0, 0, 0, 1)),
    ],
)
def test_sizes_and_crops_are_a1111s(sides, asked, factor, plan):
    assert hires_plan(*sides, asked, factor) == plan


@pytest.mark.parametrize(
    ("sides", "asked", "factor", "size"),
    [
        ((512, 512), "1.1", 8, (560, 560)),
        ((512, 512), "1.1", 16, (560, 560)),
        ((520, 520), "1.1", 16, (560, 560)),
        ((768, 512), "1024x0", 8, (1024, 680)),
        ((768, 512), "1024x0", 16, (1024, 672)),
    ],
)
def test_a_side_that_nobody_named_is_rounded_down_to_what_the_model_draws(sides, asked, factor, size):
    plan = hires_plan(*sides, asked, factor)
    assert (plan.target_width, plan.target_height) == size


@pytest.mark.parametrize(
    ("asked", "factor", "message"),
    [
        ("1000x1030", 8, r"1030 is no multiple of 8; 1024 or 1032 is near"),
        ("1000x0", 16, r"1000 is no multiple of 16; 992 or 1008 is near"),
        ("0x4", 8, r"4 is no multiple of 8; 8 is near"),
    ],
)
def test_a_named_side_that_cannot_be_drawn_names_the_near_ones(asked, factor, message):
    with pytest.raises(UsageError, match=message):
        hires_plan(512, 512, asked, factor)


@pytest.mark.parametrize(("sides", "asked"), [((16384, 8), "8x0"), ((8, 512), "1024x8"), ((8192, 512), "2.5")])
def test_a_result_without_pixels_or_with_too_many_is_refused(sides, asked):
    with pytest.raises(UsageError, match="1 to 16384 pixels can be drawn"):
        hires_plan(*sides, asked, 8)


@given(factors, cells, cells, cells, cells)
def test_the_crop_leaves_exactly_the_target_and_is_even(factor, wide, high, target_wide, target_high):
    asked = f"{target_wide * factor}x{target_high * factor}"
    assume(max(target_wide * high / wide, target_high * wide / high) * factor < 16000)
    plan = hires_plan(wide * factor, high * factor, asked, factor)
    assert plan.upscale_width // factor - plan.crop_left - plan.crop_right == target_wide
    assert plan.upscale_height // factor - plan.crop_top - plan.crop_bottom == target_high
    assert plan.upscale_width >= plan.target_width and plan.upscale_height >= plan.target_height
    assert 0 <= plan.crop_right - plan.crop_left <= 1 and 0 <= plan.crop_bottom - plan.crop_top <= 1
    assert min(plan.crop_left + plan.crop_right, plan.crop_top + plan.crop_bottom) == 0, "one side fits exactly"


@given(factors, cells, cells, st.integers(101, 400))
def test_a_factor_cuts_nothing_off_and_keeps_within_a_cell_of_what_was_asked(factor, wide, high, percent):
    plan = hires_plan(wide * factor, high * factor, f"{percent / 100:.2f}", factor)
    assert (plan.upscale_width, plan.upscale_height) == (plan.target_width, plan.target_height)
    assert (plan.crop_left, plan.crop_top, plan.crop_right, plan.crop_bottom) == (0, 0, 0, 0)
    for asked, got in ((wide * percent / 100, plan.target_width), (high * percent / 100, plan.target_height)):
        assert got % factor == 0
        assert -1e-9 <= asked - got / factor < 1 + 1 / factor


@pytest.mark.parametrize(
    ("steps", "denoise", "walk"),
    [(20, 0.5, (20, 11)), (20, 0.75, (20, 16)), (20, 1.0, (20, 20)), (20, 0.0, (20, 1)), (1, 0.3, (1, 1))],
)
def test_a_share_of_the_steps_is_run_from_a_picture(steps, denoise, walk):
    assert walk_of(steps, denoise, fixed=False) == walk


@pytest.mark.parametrize(
    ("steps", "denoise", "walk"),
    [(20, 0.5, (40, 20)), (20, 0.7, (28, 20)), (10, 0.75, (13, 10)), (20, 1.0, (20, 20)), (1, 0.3, (3, 1))],
)
def test_all_steps_are_run_in_a_second_pass(steps, denoise, walk):
    assert walk_of(steps, denoise, fixed=True) == walk


@given(st.integers(1, 1000), st.floats(0.01, 1), st.booleans())
def test_a_walk_is_never_empty_nor_longer_than_it_is_laid_out(steps, denoise, fixed):
    total, run = walk_of(steps, denoise, fixed=fixed)
    assert 1 <= run <= total
    assert run == steps if fixed else total == steps


@given(st.integers(1, 1000), st.floats(0.01, 1))
def test_fixed_or_not_the_same_share_is_drawn_anew(steps, denoise):
    for fixed in (False, True):
        total, run = walk_of(steps, denoise, fixed=fixed)
        assert abs(run - min(denoise, 0.999) * total) <= 1


@pytest.mark.parametrize("denoise", [0.0, 1e-300, 1e-4])
def test_fixed_steps_over_next_to_nothing_are_refused(denoise):
    with pytest.raises(UsageError, match=r"give 0\.0002 or more"):
        walk_of(20, denoise, fixed=True)


def test_what_is_cut_off_is_counted_in_latents_where_these_are_finer_than_the_sizes_that_are_drawn():
    """The bundled model draws multiples of 8 pixels, and a latent is 4 of them."""
    plan = hires_plan(64, 64, "96x128", 8, 4)
    assert (plan.upscale_width, plan.upscale_height) == (128, 128)
    assert 128 // 4 - plan.crop_left - plan.crop_right == 96 // 4
