"""Every way that people write a sampler finds it, with its schedule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import UnknownName
from safelight.sampling.names import find, names_of, normal
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import SCHEDULES

NAMES = [(name, sampler) for sampler in SAMPLERS for name in names_of(sampler)]
SUFFIXES = [(name, row) for row in SCHEDULES for name in dict.fromkeys((row.name, row.label, *row.aliases))]


@pytest.mark.parametrize(("name", "sampler"), NAMES, ids=lambda value: getattr(value, "label", value))
def test_a_name_alone_leaves_the_schedule_to_the_sampler(name, sampler):
    assert find(name).sampler is sampler
    assert find(name).schedule is None


@pytest.mark.parametrize(("name", "sampler"), NAMES, ids=lambda value: getattr(value, "label", value))
def test_every_name_takes_every_schedule_behind_it(name, sampler):
    for suffix, schedule in SUFFIXES:
        found = find(f"{name} {suffix}")
        assert found.sampler is sampler
        assert found.schedule == (None if schedule.name == "automatic" else schedule.name)


def test_no_two_names_are_written_alike():
    written = {}
    for name, sampler in NAMES:
        for suffix, schedule in [("", None), *SUFFIXES]:
            assert written.setdefault(normal(name + suffix), (sampler, schedule)) == (sampler, schedule)


@settings(deadline=None)
@given(data=st.data())
def test_case_spaces_hyphens_and_underscores_do_not_count(data):
    name, sampler = data.draw(st.sampled_from(NAMES))
    suffix, schedule = data.draw(st.sampled_from(SUFFIXES))
    between = st.sampled_from(["", " ", "-", "_", "  "])
    plain = normal(name + suffix)
    written = "".join(data.draw(between) + data.draw(st.sampled_from([c, c.upper()])) for c in plain)
    assert find(written).sampler is sampler
    assert find(written).schedule == (None if schedule.name == "automatic" else schedule.name)


@pytest.mark.parametrize(
    ("asked", "label", "schedule"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", "karras"),
        ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "exponential"),
        ("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun", "karras"),
        ("Euler a SGM Uniform", "Euler a", "sgm_uniform"),
        ("Euler SGMUniform", "Euler", "sgm_uniform"),
        ("Euler Uniform", "Euler", "uniform"),
        ("k_euler_ancestral_karras", "Euler a", "karras"),
        ("dpm2 a polyexponential", "DPM2 a", "polyexponential"),
        ("DDIM DDIM", "DDIM", "ddim"),
        ("EulerDiscreteScheduler karras", "Euler", "karras"),
        ("DPM++ 2M Automatic", "DPM++ 2M", None),
    ],
)
def test_the_combined_names_of_old_pictures_are_read(asked, label, schedule):
    found = find(asked)
    assert (found.sampler.label, found.schedule) == (label, schedule)


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("Eular", "Euler"),
        ("DPM++ 2N Karras", "DPM\\+\\+ 2M Karras"),
        ("Euler a Karas", "Euler a Karras"),
        ("EulerDiscretScheduler", "EulerDiscreteScheduler"),
        ("k_dpmp_2m", "k_dpmpp_2m"),
    ],
)
def test_an_unknown_name_gives_the_nearest(asked, near):
    with pytest.raises(UnknownName, match=f"unknown sampler '.*': did you mean .*{near}"):
        find(asked)


@pytest.mark.parametrize("asked", ["", " ", "Karras", "zzzz", "DPM++"])
def test_what_is_no_name_is_an_error(asked):
    with pytest.raises(UnknownName, match="unknown sampler"):
        find(asked)
