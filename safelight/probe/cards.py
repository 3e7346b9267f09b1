"""Cards that are not here, from their datasheets: for plans that ask "what if" (`plan --device rtx-3080-10gb`).

Comes in: a name as people write it, or numbers by hand. Goes out: a Device and its Rates. Nothing is measured and no
torch is asked; how much of a datasheet's peak eager PyTorch reaches stands in one table, SHARES.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from safelight.errors import UnknownName, UsageError
from safelight.probe.datasheets import CARDS, PCIE4, Card
from safelight.probe.device import BF16_FLAGS, GIB, Device, cuda_features, cuda_findings, gib
from safelight.probe.rates import Curve, Rates

# -- what eager PyTorch reaches ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """Of the dense 16-bit peak, what large operators sustain."""

    matmul: float
    convolution: float  # channels first
    attention: float  # scaled_dot_product_attention


# Set so that one step, eager, adds up to published seconds; operators counted on meta tensors (diffusers 0.42), each
# LEAST + work / rate, all one after another. TFLOP a step: SD1.5 at 512 px 1.61, SDXL at 1024 px 13.5 (both with
# guidance), FLUX.1-dev at 1024 px 74.4. Overall share = what the step reaches of the peak, all operators included.
#   where                    published          overall  predicted / published
#   SDXL   RTX 3090          3.97 step/s          75 %    1.00    OneDiff's eager column, July 2024
#   SDXL   RTX 4090          8.44 step/s          69 %    1.08    the same
#   SDXL   RTX 4080          4.6 step/s           64 %    0.94    stable-fast's eager column
#   SDXL   A100              30 steps 3.31 s      39 %    0.88    diffusion-fast, bf16 + SDPA
#   FLUX   A800              14.94 s              45 %    0.99    OneDiff; 28 steps supposed
#   FLUX   H100              28 steps 6.57 s      32 %    0.96    diffusers-torchao
#   FLUX   H200              28 steps 5.58 s      38 %    1.02    SGLang PR 19673; one large matmul reaches 80 %
#   SD1.5  V100              19.0 step/s          24 %    0.98    diffusers' torch 2.0 page
#   SD1.5  T4                6.9 step/s           17 %    0.99    the same; 70 W hold its clock down
# A fit, not a test: the shares were chosen on these rows. Left out, because the host is what they wait for (LAUNCH):
# SDXL on H100 (14.9 step/s, predicted seconds 0.84 of it), SD1.5 on H100 (54.5, 1.17), RTX 4090 (38.3, 0.82),
# RTX 4080 (29.5, 0.83) and A100 (21.7, 0.46: an older host and torch 2.0).
SHARES: Mapping[str, Share] = {
    # tensor cores slowed down on purpose keep busy easily, and clocks run above the boost clock that the peak assumes
    "geforce": Share(matmul=0.95, convolution=0.80, attention=0.80),
    "ampere": Share(matmul=0.65, convolution=0.45, attention=0.50),
    # FlashAttention 2, which SDPA brings, is not made for Hopper
    "hopper": Share(matmul=0.70, convolution=0.45, attention=0.30),
    "volta": Share(matmul=0.35, convolution=0.30, attention=0.20),
    "capped": Share(matmul=0.25, convolution=0.20, attention=0.13),
    # not calibrated: no tensor cores, so that the peak is an ordinary one
    "plain": Share(matmul=0.75, convolution=0.60, attention=0.40),
    # not calibrated: a guess
    "rocm": Share(matmul=0.45, convolution=0.20, attention=0.25),
    # SD1.5, 20 steps, 32 cores with AMX, bfloat16: 11.8 s with IPEX (HF and Intel), 2 % of the peak overall
    "cpu": Share(matmul=0.10, convolution=0.05, attention=0.05),
}
# Of the float32 peak. torch does not use TF32 for a matmul unless it is asked to; cuDNN does for a convolution.
FLOAT32 = Share(matmul=0.80, convolution=0.60, attention=0.50)
# SD1.5 20 steps in 32.3 s on 32 cores: 16 % of the peak overall; SD-Turbo 1 step in 7.8 s on an i7-12700: 30 %
FLOAT32_CPU = Share(matmul=0.50, convolution=0.30, attention=0.25)
# Of the memory bandwidth. What stays in the card's cache is faster than that, and not looked at.
MOVED: Mapping[str, float] = {"copy": 0.8, "pointwise": 0.8, "activation": 0.8, "norm": 0.6}
LEAST = 3e-6  # seconds that any kernel takes
# Seconds of the host per operator that computes or moves, with the views, modules and Python around it. A step with
# guidance has 763 in SD1.5 (H100: 18.3 ms) and 2011 in SDXL (H100: 67 ms); with views, 1650 and 5480 of 11 us each.
LAUNCH = 2.8e-5


# -- by name -----------------------------------------------------------------------------------------------------------

NUMBERS = '"cuda,memory=12GiB,tflops=40,bandwidth=400"'
MAKERS = re.compile(r"nvidia|geforce|rtx|gtx|tesla|amd|instinct|oam|gpu|(?:sxm[2-6]?|hbm(?:[23]e?)?)(?=\d{2,3}gb|$)")
FORMS = {"laptop": re.compile(r"laptop|mobile|notebook"), "pcie": re.compile(r"pcie")}


def find(asked: str) -> tuple[Device, Rates]:
    """ "RTX 3080", "rtx3080", "3080-10gb", "NVIDIA GeForce RTX 3080 Laptop GPU"; case, spaces and hyphens do not count.

    A name that was sold with several sizes of memory means the smallest: "a100" is 40 GB, "rtx 3080" 10 GB. A card of a
    laptop is only found with that word. Raises UnknownName.
    """
    known = _spellings()
    if (key := known.get(_squeezed(asked))) is None:
        error = UnknownName("card", asked, CARDS, also=names())
        error.args = (f"{error}; or give its numbers: --device {NUMBERS}",)
        raise error
    return device_of(CARDS[key]), rates_of(CARDS[key])


def names() -> list[str]:
    """As the makers write them."""
    return [card.name for card in CARDS.values()]


def _spellings() -> dict[str, str]:
    """Squeezed name -> key; the smaller memory comes first and keeps the plain name."""
    found: dict[str, str] = {}
    for key, card in sorted(CARDS.items(), key=lambda item: item[1].memory):
        for name in (key, key.removesuffix(f"-{card.memory:g}gb"), card.name):
            found.setdefault(_squeezed(name), key)
    return found


def _squeezed(name: str) -> str:
    """ "NVIDIA GeForce RTX 3080 Laptop GPU 16 GiB" -> "308016gblaptop": makers left out, the form at the end."""
    text = MAKERS.sub("", re.sub(r"[^a-z0-9]", "", name.lower()).replace("gib", "gb"))
    forms = [form for form, pattern in FORMS.items() if pattern.search(text)]
    for form in forms:
        text = FORMS[form].sub("", text)
    return text + "".join(forms)


# -- as a Device and its Rates -----------------------------------------------------------------------------------------


def device_of(card: Card) -> Device:
    """As torch would describe it, with all its memory free."""
    memory = int(card.memory * card.reported * GIB)
    if card.kind == "cpu":
        fast = ("float32", "bfloat16") if BF16_FLAGS & set(card.features or ()) else ("float32",)
        return Device(
            "cpu", 0, card.name, memory, memory, fast_dtypes=fast, features=card.features or (), elsewhere=True
        )
    is_nvidia = card.features is None
    return Device(
        "cuda",
        0,
        card.name,
        memory,
        memory,
        capability=card.capability,
        fast_dtypes=("float32", "bfloat16", "float16") if card.capability >= (8, 0) else ("float32", "float16"),
        features=cuda_features(card.capability) if card.features is None else card.features,
        findings=cuda_findings(card.name, card.capability, []) if is_nvidia else (),
        elsewhere=True,
    )


def rates_of(card: Card) -> Rates:
    """The datasheet's peaks times what eager PyTorch reaches of them (SHARES, FLOAT32, MOVED)."""
    slow = FLOAT32_CPU if card.kind == "cpu" else FLOAT32
    fast = SHARES[card.share]
    half = {"float16": card.float16, "bfloat16": card.bfloat16}
    matmul = {"float32": card.float32 * slow.matmul}
    matmul |= _times(half | {"tf32": card.tf32, "float8": card.float8}, fast.matmul)
    # cuDNN's default for float32 is TF32, where the card has it
    convolution = {"float32": card.float32 * slow.convolution} | _times({"float32": card.tf32}, fast.convolution)
    convolution |= _times(half, fast.convolution)
    attention = {"float32": card.float32 * slow.attention} | _times(half, fast.attention)
    computing = {"matmul": matmul, "convolution": convolution, "attention": attention}
    curves = {kind: {name: _rising(rate * 1e12) for name, rate in rates.items()} for kind, rates in computing.items()}
    curves |= {kind: {"float32": _rising(card.bandwidth * 1e9 * share)} for kind, share in MOVED.items()}
    link = None if card.link is None else card.link * 1e9
    return Rates(curves, launch=LAUNCH, queued=card.kind != "cpu", link=link, source=card.source)


def _times(peaks: Mapping[str, float | None], share: float) -> dict[str, float]:
    return {name: peak * share for name, peak in peaks.items() if peak is not None}


def _rising(rate: float) -> Curve:
    """LEAST + work / rate seconds, to 2 %: a kernel that fills the card for an instant only never reaches its rate."""
    return Curve(tuple((LEAST * rate * 2.0**n, LEAST * (1 + 2.0**n)) for n in range(-4, 9)))


# -- by hand -----------------------------------------------------------------------------------------------------------

NEEDED = ("memory", "tflops", "bandwidth")
UNITS: Mapping[str, Mapping[str, float]] = {
    "memory": {"GiB": 2**30, "GB": 10**9, "MiB": 2**20},
    "tflops": {"": 1},
    "bandwidth": {"": 1, "GB/s": 1},
    "capability": {"": 1},
    "link": {"": 1, "GB/s": 1},
}
# capability -> (key of SHARES, float32 per 16-bit TFLOPS); the highest that is not above the card's
DESIGNS: Mapping[tuple[int, int], tuple[str, float]] = {
    (0, 0): ("plain", 1),
    (7, 0): ("volta", 1 / 8),
    (7, 5): ("volta", 1 / 4),
    (8, 0): ("ampere", 1 / 16),
    (8, 6): ("geforce", 1 / 2),
    (9, 0): ("hopper", 1 / 15),
    (12, 0): ("geforce", 1 / 2),
}


def by_hand(text: str) -> tuple[Device, Rates] | None:
    """ "cuda,memory=12GiB,tflops=40,bandwidth=400[,capability=8.6][,link=24]"; None for a text without "=".

    memory: GiB, GB or MiB that torch reports. tflops: dense 16-bit peak of the datasheet, with float32 accumulation.
    bandwidth, link: GB/s. capability: CUDA's, 8.6 (an RTX 30) if it is not said; other peaks and the shares that are
    reached follow from it. Raises UsageError.
    """
    if "=" not in text:
        return None
    kind, *parts = (part.strip() for part in text.split(","))
    if kind.lower() != "cuda":
        raise UsageError(f"numbers by hand describe a CUDA card, not {kind!r}: write {NUMBERS}")
    given = _numbers(parts)
    if missing := [name for name in NEEDED if name not in given]:
        raise UsageError(f"a card by hand lacks {' and '.join(missing)}: write {NUMBERS}")
    card = _card_of(**given)
    return device_of(card), rates_of(card)


def _card_of(memory: float, tflops: float, bandwidth: float, capability: float = 8.6, link: float = PCIE4) -> Card:
    """memory: bytes. capability: as a number, 8.6 for (8, 6)."""
    major, minor = divmod(round(capability * 10), 10)
    share, ordinary = DESIGNS[max(least for least in DESIGNS if least <= (major, minor))]
    is_ampere = (major, minor) >= (8, 0)
    return Card(
        name=f"a card of {gib(memory)}, {tflops:g} TFLOPS and {bandwidth:g} GB/s",
        memory=memory / GIB,
        reported=1,
        capability=(major, minor),
        float32=tflops * ordinary,
        tf32=tflops / 2 if is_ampere else None,
        float16=tflops,
        bfloat16=tflops if is_ampere else None,
        float8=tflops * 2 if (major, minor) >= (8, 9) else None,
        bandwidth=bandwidth,
        link=link,
        share=share,
        source="given by hand",
    )


def _numbers(parts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in UNITS:
            raise UnknownName("number of a card", key, UNITS)
        if key in found:
            raise UsageError(f"{key} is given twice: leave one of them out")
        found[key] = _number(key, value)
    return found


def _number(key: str, text: str) -> float:
    """Times its unit, above 0."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z/]*)", text, re.ASCII | re.IGNORECASE)
    units = {unit.lower(): factor for unit, factor in UNITS[key].items()}
    if match is None or match[2].lower() not in units or float(match[1]) == 0:
        ways = " or ".join(f"{key}=12{unit}" for unit in UNITS[key])
        raise UsageError(f"{key}={text} cannot be read: write a number above 0, as in {ways}")
    return float(match[1]) * units[match[2].lower()]
