"""Advice is what is known, corrected where guides are wrong: in model evaluations, by kind of model, with a source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UnknownName
from safelight.probe import blueprint, known, vae_catalog
from safelight.request import Request
from safelight.sampling import advice, schedules
from safelight.sampling.advice import advise, family_of, warnings
from safelight.sampling.advice_rules import nearest_size
from safelight.sampling.advice_tables import ALIASES, FAMILIES, SAMPLERS, SCHEDULES, SDXL_SIZES
from safelight.sampling.samplers import SAMPLERS as ROWS


def told(topic, level=None, **asked):
    found = [one for one in advise(**asked) if one.topic == topic and level in (None, one.level)]
    return " / ".join(one.text for one in found)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_every_sampler_has_a_row_but_the_one_that_finds_its_steps_itself():
    assert {row.label for row in ROWS} - SAMPLERS.keys() == {"DPM adaptive"}
    assert SAMPLERS.keys() <= {row.label for row in ROWS}


def test_every_schedule_has_a_row():
    assert {row.label for row in schedules.SCHEDULES} - {"Automatic"} == SCHEDULES.keys()


@pytest.mark.parametrize("label", SAMPLERS)
def test_the_numbers_of_a_sampler_are_in_order(label):
    row = SAMPLERS[label]
    assert 0 < row.least <= row.best[0] <= row.best[1] <= row.most
    assert row.source.startswith("https://")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_numbers_of_a_kind_of_model_are_in_order(name):
    family = FAMILIES[name]
    for numbers in (family.guidance, family.steps or (1, 2, 3, 4)):
        assert list(numbers) == sorted(numbers)
    assert family.area[0] <= 1 <= family.area[1]
    assert family.latents is None or family.latents in vae_catalog.FAMILIES


def test_sdxls_sizes_are_a_megapixel_in_multiples_of_64():
    assert len(SDXL_SIZES) == 41
    assert all(width % 64 == 0 and height % 64 == 0 for width, height in SDXL_SIZES)
    assert all(0.85 <= width * height / 2**20 <= 1.03 for width, height in SDXL_SIZES)


# -- kinds of models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("firstlight", "firstlight"),
        ("sd15", "sd15"),
        ("sd21", "sd21"),
        ("sdxl", "sdxl"),
        ("sdxl-turbo", "sdxl-turbo"),
        ("sd3-medium", "sd3"),
        ("sd35-large", "sd35"),
        ("sd35-medium", "sd35"),
        ("flux1-dev", "flux1-dev"),
        ("flux1-schnell", "flux1-schnell"),
        ("qwen-image", None),
    ],
)
def test_the_kind_of_a_model_is_read_from_its_configs(name, family):
    made = blueprint.read(name)
    found = family_of(made.pipeline.__name__, made.denoiser.config, made.name, made.width)
    assert found == family
    if family:
        assert FAMILIES[family].side == made.width


def test_a_distilled_sdxl_tells_itself_by_its_name():
    assert family_of("StableDiffusionXLPipeline", {}, "SDXL-Lightning", 1024) == "sdxl-lightning"


def test_an_lcm_tells_itself_by_its_guidance_input():
    assert family_of("StableDiffusionPipeline", {"time_cond_proj_dim": 256}, "dreams", 512) == "sd-lcm"


def test_names_of_known_models_are_kinds_too():
    assert ALIASES.keys() <= known.KNOWN.keys()
    assert advise(family="sd35-large") == advise(family="sd35")


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean sdxl"):
        advise(family="sdxi")


# -- steps -------------------------------------------------------------------------------------------------------------


def test_a_sampler_of_two_evaluations_is_counted_in_them():
    said = told("steps", sampler="DPM++ SDE Karras", steps=25)
    assert "25 steps of DPM++ SDE are 49 model evaluations, 2 a step: good" in said
    assert "best in 12 to 25 steps, 24 to 50 model evaluations as it takes 2 a step" in told(
        "steps", sampler="DPM++ SDE"
    )


@pytest.mark.parametrize(
    ("sampler", "steps", "level", "says"),
    [
        ("DPM++ 2M Karras", 22, "fine", "good"),
        ("DPM++ 2M Karras", 8, "warning", "too few"),
        ("DPM++ 2M Karras", 35, "note", "over 30 nothing changes any more"),
        ("DPM++ 2M Karras", 100, "warning", "over 30 nothing changes any more"),
        ("Euler a", 45, "note", "another picture, not a better one"),
        ("Heun", 10, "note", "19 model evaluations"),
        ("Heun", 5, "warning", "too few"),
        ("DPM adaptive", 20, "note", "does nothing"),
    ],
)
def test_too_few_and_useless_steps_are_told(sampler, steps, level, says):
    assert says in told("steps", level, sampler=sampler, steps=steps)


def test_a_model_distilled_to_few_steps_decides_over_the_sampler():
    assert "1 to 4 steps are best" in told("steps", "warning", family="sdxl-turbo", sampler="Euler a", steps=20)
    assert "good" in told("steps", "fine", family="flux1-schnell", steps=4)
    assert "good" in told("steps", "fine", family="sdxl-lightning", sampler="Euler", steps=4)


def test_lcm_is_for_models_distilled_by_it():
    assert "with its LoRA" in told("steps", "warning", family="sd15", sampler="LCM", steps=4)
    assert not told("steps", "warning", family="sd-lcm", sampler="LCM", steps=4)


def test_what_is_not_for_flow_models_is_told():
    assert "use Euler" in told("steps", "warning", family="flux1-dev", sampler="DDIM")


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 300))
def test_every_number_of_steps_gets_one_answer(label, steps):
    assert len([one for one in advise(sampler=label, steps=steps) if one.topic == "steps"]) == 1


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_a_schedule_is_found_in_the_samplers_name_or_is_its_own():
    assert told("schedule", sampler="DPM++ 2M Karras").startswith("Karras")
    assert told("schedule", sampler="DPM++ 3M SDE").startswith("Exponential")


def test_few_step_models_want_the_schedule_they_were_distilled_on():
    assert "SGM Uniform is" in told("schedule", "warning", family="sdxl-lightning", sampler="Euler", schedule="Karras")
    assert told("schedule", "fine", family="sdxl-lightning", sampler="Euler", schedule="SGM Uniform")


def test_a_schedule_that_a_model_refuses_is_told():
    assert "flow-matching" in told("schedule", "warning", family="sd3", sampler="Euler", schedule="KL Optimal")


# -- guidance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "guidance", "level", "says"),
    [
        ("sd15", 7.5, "fine", "5 to 9 is usual for SD1.5"),
        ("sd15", 13, "warning", "over-exposes"),
        ("sd15", 1, "note", "no negative prompt"),
        ("sdxl", 5, "fine", "SDXL"),
        ("sdxl-turbo", 7, "warning", "burns the colours"),
        ("sdxl-lightning", 1.5, "fine", "0 to 2"),
        ("sd35-large", 4.5, "fine", "3.5 to 5"),
        ("flux1-dev", 3.5, "fine", "an input of the model"),
        ("flux1-schnell", 3.5, "warning", "does nothing"),
        ("flux1-schnell", 0, "fine", "FLUX.1-schnell"),
    ],
)
def test_guidance_goes_by_the_kind_of_model(family, guidance, level, says):
    assert says in told("guidance", level, family=family, guidance=guidance)


@given(st.sampled_from(sorted(FAMILIES)), st.floats(0, 1000))
def test_every_guidance_gets_one_answer(family, guidance):
    assert len([one for one in advise(family=family, guidance=guidance) if one.topic == "guidance"]) == 1


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "width", "height", "level", "says"),
    [
        ("sd15", 512, 768, "fine", "512x768"),
        ("sd15", 640, 640, "fine", "640x640"),
        ("sd15", 768, 768, "warning", "draw 512x512 with --hires 1.5"),
        ("sd15", 1024, 1024, "warning", "draw 512x512 with --hires 2"),
        ("sd15", 2048, 2048, "warning", "enlarge that with --upscale"),
        ("sd15", 256, 256, "warning", "smaller than"),
        ("sd15", 520, 512, "note", "multiples of 64"),
        ("sd21", 768, 768, "fine", "768x768"),
        ("sdxl", 1216, 832, "fine", "1216x832"),
        ("sdxl", 1280, 720, "note", "1344x768 is the nearest"),
        ("sdxl", 512, 512, "warning", "smaller than"),
        ("flux1-dev", 1920, 1080, "note", "multiples of 16"),
        ("flux1-dev", 1440, 1440, "fine", "1440x1440"),
        ("firstlight", 64, 64, "fine", "64x64"),
    ],
)
def test_sizes_go_by_what_the_model_was_trained_on(family, width, height, level, says):
    assert says in told("size", level, family=family, width=width, height=height)


def test_one_side_alone_goes_with_the_models_own():
    assert told("size", "warning", family="sd15", width=1024)


@given(st.sampled_from(SDXL_SIZES))
def test_a_size_of_the_list_is_the_nearest_to_itself_in_shape(size):
    near = nearest_size(FAMILIES["sdxl"], *size)
    assert near[0] / near[1] == pytest.approx(size[0] / size[1])


sides = st.integers(64, 4096)


@given(st.sampled_from(sorted(FAMILIES)), sides, sides)
def test_every_size_gets_one_answer(family, width, height):
    assert len([one for one in advise(family=family, width=width, height=height) if one.topic == "size"]) == 1


# -- second pass -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "level", "says"),
    [
        ({"hires": "1.5"}, "fine", "2.2 times as long"),
        ({"hires": "4"}, "warning", "too far"),
        ({"hires": "1024x1024", "family": "sd15"}, "fine", "2 times"),
        ({"hires": "2", "hires_denoise": 0.4}, "warning", "over 0.5"),
        ({"hires": "2", "hires_denoise": 0.5, "hires_upscaler": "Latent (nearest)"}, "warning", "over 0.5"),
        ({"hires": "2", "hires_denoise": 0.5, "hires_upscaler": "Lanczos"}, "fine", "0.3 to 0.6"),
        ({"hires": "2", "hires_denoise": 0.7}, "fine", "over 0.5 to 0.7"),
        ({"hires": "2", "hires_denoise": 0.9}, "warning", "another picture"),
        ({"hires": "2", "hires_denoise": 0.1, "hires_upscaler": "Lanczos"}, "note", "hardly any detail"),
        ({"hires": "2", "steps": 20, "hires_steps": 40}, "note", "half to three quarters"),
    ],
)
def test_a_second_pass_is_advised_on(asked, level, says):
    assert says in told("hires", level, **asked)


def test_without_a_second_pass_nothing_is_said_of_it():
    assert not told("hires", hires_denoise=0.1)


# -- noise within the steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "level", "says"),
    [
        # the guide's ranges: s_tmax from 0 to 1, where levels go to 14.6 and 0 is no limit
        ({"sampler": "Euler", "s_churn": 1.0, "s_tmax": 1.0}, "warning", "0 stands for no limit"),
        ({"sampler": "Euler", "s_churn": 1.0, "s_tmax": 0.0}, "fine", "some noise"),
        ({"sampler": "Euler", "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0}, "fine", "no noise"),
        ({"sampler": "Euler", "s_tmin": 0.5}, "warning", "do nothing without s-churn"),
        ({"sampler": "Euler", "s_churn": 5.0, "s_tmin": 20.0}, "warning", "s-churn does nothing"),
        ({"sampler": "Euler", "s_churn": 40.0, "steps": 20}, "note", "over 8"),
        ({"sampler": "DPM++ 2M", "s_churn": 1.0}, "warning", "does not take s-churn: it takes none of them"),
        ({"sampler": "Euler", "eta": 0.5}, "warning", "does not take eta: it takes s-churn"),
        ({"sampler": "Euler a", "eta": 0.67}, "fine", "0.67 is not special; Euler a's own is 1"),
        ({"sampler": "Euler a", "eta": 2.0}, "warning", "more noise than the steps take away"),
        ({"sampler": "DDIM", "eta": 0.0}, "fine", "DDIM's own is 0"),
        ({"sampler": "Euler a", "s_noise": 0.5}, "note", "detail goes"),
    ],
)
def test_noise_within_the_steps_is_told_right(asked, level, says):
    assert says in told("noise", level, **asked)


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_batches_are_for_speed_and_large_transformers_gain_nothing():
    assert "the same alone" in told("batches", "fine", family="sd15", batch_size=4, count=4)
    assert "1.04 times" in told("batches", "note", family="flux1-dev", batch_size=4, count=4)
    assert "only 2 are drawn" in told("batches", "note", batch_size=4, count=2)


def test_exploring_and_final_runs_want_other_numbers():
    assert told("batches", "fine", purpose="exploring", batch_size=4, count=8)
    assert told("batches", "note", purpose="final", batch_size=4, count=8)
    with pytest.raises(UnknownName, match="did you mean final"):
        advise(purpose="finale")


def test_a_vae_of_another_family_is_told():
    assert "for SDXL's latents, not SD1.5's" in told("vae", "warning", family="sd15", vae="sdxl_vae.safetensors")
    assert "smooth" in told("vae", "fine", family="sd15", vae="ft-mse")
    assert "float32 and bfloat16" in told("vae", "fine", family="sdxl", vae="sdxl-vae")


@pytest.mark.parametrize(("denoise", "level"), [(0.1, "note"), (0.5, "fine"), (0.75, "fine"), (1.0, "note")])
def test_a_picture_to_begin_from_is_kept_or_not(denoise, level):
    assert told("init", level, denoise=denoise)


def test_a_plain_request_is_not_warned_of():
    assert warnings("sd15", **Request("a cat").as_dict()) == []
    assert warnings(None, **Request("a cat", steps=20, sampler="Euler").as_dict()) == []


def test_at_most_three_short_warnings_and_the_worst_first():
    fields = Request(
        "a cat", width=2048, height=2048, steps=4, guidance=30.0, sampler="Euler", eta=1.0, hires="4"
    ).as_dict()
    found = warnings("sd15", **fields)
    assert len(found) == 3
    assert found[0].startswith("2048x2048")
    assert all(len(line) < 160 for line in found)


def test_a_kind_of_model_that_nobody_knows_is_advised_by_its_sampler():
    assert "too few" in warnings("qwen-image", sampler="Euler", steps=2)[0]


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_every_advice_has_a_source(family):
    everything = {"sampler": "Euler a", "steps": 20, "guidance": 5.0, "width": 512, "height": 512, "vae": "ft-mse"}
    everything |= {"hires": "2", "hires_denoise": 0.5, "eta": 1.0, "batch_size": 2, "count": 2, "denoise": 0.5}
    for one in advise(family=family, purpose="final", **everything):
        assert one.source
        assert one.level in ("fine", "note", "warning")


def test_the_overview_has_a_line_for_every_sampler_and_kind_of_model():
    lines = advice.overview()
    for name in (*(row.label for row in ROWS), *FAMILIES):
        assert any(line.startswith(f"{name} ") for line in lines), name
