"""A model whose denoiser is known in closed form, schedules, and what is run on them: for the recorder and the tests.

Every element is drawn from a mixture of three normal distributions; `denoised` is the mean of what can be behind x.
"""

import math
from itertools import count
from pathlib import Path

import numpy
import torch

RECORDED = Path(__file__).with_name("latents.safetensors")
SHAPE = (2, 3, 2, 2)
MEANS, WEIGHTS, SPREAD = (-1.5, 0.2, 1.0), (0.3, 0.5, 0.2), 0.3
PROMPTED = (0.1, 0.3, 0.6)  # the weights that a prompt gives: what guidance leads to
LOW, HIGH = 0.0291675, 14.6146  # Stable Diffusion's levels
STEPS = (10, 20)
GUIDANCE = 7.0

# what is recorded beside every sampler's defaults: (label, keywords)
VARIANTS = (
    ("Euler", {"s_churn": 3.0, "s_noise": 1.003}),
    ("Euler", {"s_churn": 8.0, "s_tmin": 0.2, "s_tmax": 5.0}),
    ("Heun", {"s_churn": 3.0, "s_noise": 1.003}),
    ("DPM2", {"s_churn": 3.0, "s_noise": 1.003}),
    ("Euler a", {"eta": 0.6, "s_noise": 1.01}),
    ("DPM2 a", {"eta": 0.6}),
    ("DPM++ 2S a", {"eta": 0.6}),
    ("DPM++ SDE", {"eta": 0.6}),
    ("DPM++ 2M SDE", {"eta": 0.6}),
    ("DPM++ 2M SDE Heun", {"eta": 0.6}),
    ("DPM++ 3M SDE", {"eta": 0.6, "s_noise": 1.01}),
    ("DPM fast", {"eta": 0.0}),
    ("DPM adaptive", {"eta": 0.0}),
    ("DDIM", {"eta": 1.0}),
    ("DDIM CFG++", {"eta": 0.6}),
    ("UniPC", {"variant": "bh2"}),
)


def denoised(x, sigma, weights=WEIGHTS):
    """E[clean | x] for x = clean + sigma * noise."""
    variance = SPREAD**2 + sigma**2
    means = torch.tensor(MEANS, dtype=x.dtype)
    distance = x[..., None] - means
    share = (torch.tensor(weights, dtype=x.dtype).log() - distance**2 / (2 * variance)).softmax(-1)
    return (share * (means + distance * (SPREAD**2 / variance))).sum(-1)


def guided(x, sigma, scale):
    """(denoised, denoised without guidance)."""
    plain = denoised(x, sigma)
    return plain + (denoised(x, sigma, PROMPTED) - plain) * scale, plain


def followed(x, sigma, target):
    """Where the probability flow leads x from level to level: to the same quantile. Exact, found by halving."""
    quantile, low, high = _below(x, sigma), x.new_full(x.shape, -50.0), x.new_full(x.shape, 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        less = _below(middle, target) < quantile
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return (low + high) / 2


def _below(x, sigma):
    """The share of all x that lies below."""
    means, width = torch.tensor(MEANS, dtype=x.dtype), (SPREAD**2 + sigma**2) ** 0.5
    return (torch.special.ndtr((x[..., None] - means) / width) * torch.tensor(WEIGHTS, dtype=x.dtype)).sum(-1)


def start(sigma, dtype=torch.float64):
    """x of pure noise."""
    return torch.from_numpy(_draws(0)).to(dtype) * sigma


def noises(dtype=torch.float64):
    """Noise by call, the same for ours and for the recorded: numpy promises that RandomState's numbers never change."""
    calls = count(1)
    return lambda *levels: torch.from_numpy(_draws(next(calls))).to(dtype)


def _draws(seed):
    return numpy.random.RandomState(seed).standard_normal(SHAPE)


def drive(steps, model=denoised):
    """(the end of a run, the levels at which it evaluated the model)."""
    asked, levels = next(steps), []
    try:
        while True:
            levels.append(asked[1])
            asked = steps.send(model(*asked))
    except StopIteration as end:
        return end.value, levels


def karras(n, low=LOW, high=HIGH):
    return [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)] + [0.0]


def exponential(n, low=LOW, high=HIGH):
    return [high * (low / high) ** (i / (n - 1)) for i in range(n)] + [0.0]


def arctangents(n, low=LOW, high=HIGH):
    """As KL Optimal: ends above 0."""
    return [math.tan(math.atan(high) + i / n * (math.atan(low) - math.atan(high))) for i in range(n + 1)]


def trained():
    """Stable Diffusion's 1000 levels, ascending."""
    alphas = numpy.cumprod(1 - numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return ((1 - alphas) / alphas) ** 0.5


def uniform(n):
    """Even timesteps, and 0."""
    even = numpy.interp(numpy.linspace(999, 0, n), numpy.arange(1000), numpy.log(trained()))
    return [*map(float, numpy.exp(even)), 0.0]


def ddim(n):
    """CompVis' own: timesteps 1, 1 + k, ..., and what comes before timestep 1 is 0, which has some noise yet."""
    return [*map(float, trained()[1 :: 1000 // n][::-1]), float(trained()[0])]


GRIDS = {"karras": karras, "exponential": exponential, "uniform": uniform, "kl_optimal": arctangents, "ddim": ddim}


def cases(labels):
    """(key, label, keywords, sigmas) of all that is recorded."""
    runs = [*((label, {}) for label in labels), *VARIANTS]
    for label, keywords in runs:
        for name, grid in GRIDS.items():
            for n in (*STEPS, 40) if label == "Restart" else STEPS:
                said = ",".join(f"{key}={value}" for key, value in keywords.items())
                yield f"{label}|{said}|{name}|{n}", label, keywords, grid(n)
