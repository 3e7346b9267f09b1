"""Cards from their datasheets: found by every usual name, plausible as rows, and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import UnknownName, UsageError
from safelight.probe.cards import CARDS, SHARES, by_hand, device_of, find, rates_of
from safelight.probe.device import GIB
from safelight.probe.rates import COMPUTING, KINDS

LARGE = 1e15  # FLOP or bytes: far above what a kernel's least time shows in
rows = pytest.mark.parametrize("key", CARDS)
gpus = pytest.mark.parametrize("key", [key for key, card in CARDS.items() if card.kind == "cuda"])
plainly = {"3080": "rtx-3080-10gb", "a100": "a100-40gb", "v100": "v100-16gb", "3080laptop": "rtx-3080-laptop-8gb"}


def rate(rates, kind, dtype):
    return LARGE / rates.seconds(kind, dtype, LARGE)


# -- names -------------------------------------------------------------------------------------------------------------


@rows
def test_every_card_is_found_by_its_own_key(key):
    assert find(key) == (device_of(CARDS[key]), rates_of(CARDS[key]))


@rows
def test_every_card_is_found_by_its_marketing_name_the_smallest_of_those_that_share_it(key):
    device, _ = find(CARDS[key].name)
    same = [card for card in CARDS.values() if card.name == CARDS[key].name]
    assert device == device_of(min(same, key=lambda card: card.memory))


@rows
def test_a_marketing_name_with_its_memory_is_that_card(key):
    card = CARDS[key]
    name = card.name if f"{card.memory}GB" in card.name else f"{card.name} {card.memory} GB"
    assert card.kind == "cpu" or find(name)[0] == device_of(card)


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ("RTX 3080", "rtx-3080-10gb"),
        ("rtx3080", "rtx-3080-10gb"),
        ("NVIDIA GeForce RTX 3080", "rtx-3080-10gb"),
        ("3080-10gb", "rtx-3080-10gb"),
        ("3080 12 GiB", "rtx-3080-12gb"),
        ("RTX 3080 Laptop", "rtx-3080-laptop-8gb"),
        ("RTX 3080 16GB Mobile", "rtx-3080-laptop-16gb"),
        ("4070 ti super", "rtx-4070-ti-super-16gb"),
        ("a100", "a100-40gb"),
        ("A100 SXM4 80GB", "a100-80gb"),
        ("A100-SXM-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("A100 80GB", "a100-80gb"),
        ("h100", "h100-80gb"),
        ("H100 SXM5", "h100-80gb"),
        ("H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("tesla v100 32gb", "v100-32gb"),
        ("l4", "l4-24gb"),
        ("l40s", "l40s-48gb"),
        ("mi300x", "mi300x-192gb"),
    ],
)
def test_names_are_read_as_people_write_them(asked, key):
    assert find(asked) == (device_of(CARDS[key]), rates_of(CARDS[key]))


@given(st.data())
def test_case_spaces_and_hyphens_do_not_count(data):
    key = data.draw(st.sampled_from(sorted([*CARDS, *plainly])))
    separators = st.sampled_from(["", " ", "-", "_", "  "])
    cases = st.sampled_from([str.lower, str.upper])
    asked = "".join(data.draw(separators) if c == "-" else data.draw(cases)(c) for c in key)
    assert find(asked)[0] == device_of(CARDS[plainly.get(key, key)])


@given(st.text(max_size=30))
def test_any_text_is_a_card_or_an_unknown_name(text):
    try:
        device, _ = find(text)
    except UnknownName as error:
        assert "\n" not in str(error)
    else:
        assert device.elsewhere


def test_an_unknown_card_names_the_nearest_and_says_how_to_give_numbers():
    with pytest.raises(UnknownName) as caught:
        find("rtx 3085")
    message = str(caught.value)
    assert message.startswith("unknown card 'rtx 3085': did you mean rtx-3")
    assert message.endswith('; or give its numbers: --device "cuda,memory=12GiB,tflops=40,bandwidth=400"')


def test_a_laptops_card_that_is_not_listed_is_not_taken_for_the_desktops():
    with pytest.raises(UnknownName, match="Laptop GPU"):
        find("NVIDIA GeForce RTX 3080 Ti Laptop GPU")


# -- rows --------------------------------------------------------------------------------------------------------------


@rows
def test_a_key_ends_with_the_memory_that_is_sold(key):
    card = CARDS[key]
    assert card.kind == "cpu" or key.endswith(f"-{card.memory}gb")
    assert 0.9 <= card.reported <= 1


@rows
def test_every_row_names_a_source_and_a_known_share(key):
    assert CARDS[key].source.startswith("https://")
    assert CARDS[key].share in SHARES


@gpus
def test_formats_begin_with_the_design_that_brought_them(key):
    card = CARDS[key]
    assert (card.bfloat16 is not None) == (card.capability >= (8, 0))
    assert (card.float8 is not None) == (card.capability >= (8, 9))
    assert card.tf32 is None or card.capability >= (8, 0)


@gpus
def test_fewer_bits_are_never_slower(key):
    card = CARDS[key]
    assert card.float16 >= (card.tf32 or 0)
    assert card.float16 >= card.float32
    assert card.bfloat16 in (None, card.float16)
    assert card.float8 is None or card.float8 >= 1.9 * card.float16


@gpus
def test_geforce_cards_compute_tf32_at_their_float32_rate(key):
    card = CARDS[key]
    if "GeForce" in card.name and card.tf32 is not None:
        assert card.tf32 == pytest.approx(card.float32, abs=0.06)


@pytest.mark.parametrize(
    ("key", "float16"),
    [
        ("rtx-2080-ti-11gb", 53.8),
        ("rtx-3080-10gb", 59.5),
        ("rtx-4090-24gb", 165.2),
        ("rtx-5090-32gb", 209.5),
        ("t4-16gb", 65),
        ("v100-32gb", 125),
        ("l4-24gb", 121),
        ("a100-40gb", 312),
        ("h200-141gb", 989),
    ],
)
def test_peaks_are_the_dense_ones_of_the_whitepapers(key, float16):
    assert CARDS[key].float16 == pytest.approx(float16, abs=0.06)


# -- as a Device -------------------------------------------------------------------------------------------------------


@rows
def test_a_card_is_elsewhere_and_all_its_memory_is_free(key):
    device = device_of(CARDS[key])
    assert device.elsewhere
    assert device.free_bytes == device.memory_bytes <= CARDS[key].memory * GIB


@pytest.mark.parametrize(
    ("key", "reported"),
    [("rtx-3080-10gb", 9.77), ("t4-16gb", 14.74), ("a100-80gb", 79.2), ("h200-141gb", 139.8), ("l40s-48gb", 44.4)],
)
def test_memory_is_what_torch_reports(key, reported):
    assert device_of(CARDS[key]).memory_bytes / GIB == pytest.approx(reported, rel=0.01)


def test_a_5070_ti_is_blackwell_with_16_gb_and_fp8():
    device, _ = find("RTX 5070 Ti")
    assert (device.capability, device.features) == ((12, 0), ("tf32", "fp8"))
    assert device.fast_dtypes == ("float32", "bfloat16", "float16")


def test_a_1660_is_known_for_black_pictures():
    device, _ = find("GTX 1660")
    assert device.fast_dtypes == ("float32", "float16")
    assert "black pictures" in device.findings[0]


def test_an_mi300x_is_used_through_rocm():
    device, _ = find("MI300X")
    assert (device.kind, device.features, device.findings) == ("cuda", ("rocm",), ())


def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it():
    assert find("cpu-8-cores-avx2")[0].fast_dtypes == ("float32",)
    assert find("cpu-8-cores-amx")[0].fast_dtypes == ("float32", "bfloat16")


# -- as Rates ----------------------------------------------------------------------------------------------------------


@rows
def test_every_kind_has_a_rate_below_the_datasheets_in_every_dtype(key):
    card, rates = CARDS[key], rates_of(CARDS[key])
    assert set(rates.curves) == set(KINDS)
    for kind in KINDS:
        peak = max(filter(None, (card.float32, card.tf32, card.float16, card.bfloat16, card.float8))) * 1e12
        top = peak if kind in COMPUTING else card.bandwidth * 1e9
        for dtype in ("float32", "tf32", "bfloat16", "float16", "float8"):
            assert 0 < rate(rates, kind, dtype) < top


@gpus
def test_sixteen_bits_are_not_slower_than_thirty_two(key):
    card = CARDS[key]
    for kind in ("matmul", "convolution"):
        for dtype in device_of(card).fast_dtypes:
            assert rate(rates_of(card), kind, dtype) >= 0.9 * rate(rates_of(card), kind, "float32")


def test_a_convolution_in_float32_uses_tf32_and_a_matmul_does_not():
    _, rates = find("a100")
    assert rate(rates, "convolution", "float32") > 19.5e12 > rate(rates, "matmul", "float32")
    assert rate(rates, "matmul", "tf32") > 3 * rate(rates, "matmul", "float32")


def test_only_cpus_wait_for_each_operator_and_share_their_memory():
    for card in CARDS.values():
        rates = rates_of(card)
        assert rates.queued == (card.kind == "cuda")
        assert (rates.link is None) == (card.kind == "cpu")


@given(st.sampled_from(sorted(CARDS)), st.sampled_from(KINDS), st.floats(1, 1e15), st.floats(1, 100))
def test_more_work_never_takes_less_time_nor_disproportionately_more(key, kind, work, factor):
    rates = rates_of(CARDS[key])
    one, more = rates.seconds(kind, "float32", work), rates.seconds(kind, "float32", work * factor)
    assert one * 0.999 <= more <= one * factor * 1.001


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_card_by_hand_has_the_numbers_that_are_given():
    device, rates = by_hand("cuda,memory=12GiB,tflops=40,bandwidth=400,capability=8.9,link=12")
    assert (device.memory_bytes, device.free_bytes, device.capability) == (12 * GIB, 12 * GIB, (8, 9))
    assert device.elsewhere
    assert 20e12 < rate(rates, "matmul", "float16") < 40e12
    assert 200e9 < rate(rates, "copy", "float16") < 400e9
    assert rates.link == 12e9


def test_by_hand_an_rtx_3080_is_about_the_rtx_3080_of_the_table():
    device, rates = by_hand("cuda,memory=10GiB,tflops=59.5,bandwidth=760")
    known, table = find("rtx 3080")
    assert (device.capability, device.fast_dtypes, device.features) == (
        known.capability,
        known.fast_dtypes,
        known.features,
    )
    for kind in KINDS:
        for dtype in ("float32", "float16", "bfloat16"):
            assert rate(rates, kind, dtype) == pytest.approx(rate(table, kind, dtype), rel=0.02)


def test_a_name_is_not_numbers_by_hand():
    assert by_hand("rtx-3080-10gb") is None


@given(st.integers(1, 200_000), st.sampled_from([("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20)]))
def test_memory_by_hand_is_read_in_each_unit(number, unit):
    name, factor = unit
    device, _ = by_hand(f"cuda, memory={number}{name.lower()}, tflops=1, bandwidth=1")
    assert device.memory_bytes == number * factor


@given(st.integers(0, 20), st.integers(0, 9))
def test_any_capability_above_zero_is_understood(major, minor):
    if (major, minor) > (0, 0):
        device, _ = by_hand(f"cuda,memory=8GiB,tflops=1,bandwidth=1,capability={major}.{minor}")
        assert device.capability == (major, minor)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cuda,memory=12GiB,tflops=40", "lacks bandwidth"),
        ("cuda,memory=12GiB,tflop=40,bandwidth=400", "unknown number of a card 'tflop': did you mean tflops"),
        ("cuda,memory=12,tflops=40,bandwidth=400", "memory=12 cannot be read.*memory=12GiB"),
        ("cuda,memory=12GiB,tflops=fast,bandwidth=400", "tflops=fast cannot be read"),
        ("cuda,memory=12GiB,tflops=0,bandwidth=400", "number above 0"),
        ("cuda,memory=12GiB,tflops=40,bandwidth=400MiB", "bandwidth=400MiB cannot be read"),
        ("cuda,memory=12GiB,memory=8GiB,tflops=40,bandwidth=400", "memory is given twice"),
        ("tpu,memory=12GiB,tflops=40,bandwidth=400", "not 'tpu'"),
        ("memory=12GiB,tflops=40,bandwidth=400", "describe a CUDA card"),
    ],
)
def test_numbers_that_cannot_be_read_are_named(text, says):
    with pytest.raises(UsageError, match=says) as caught:
        by_hand(text)
    assert "\n" not in str(caught.value)
