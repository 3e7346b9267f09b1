"""The bundled model: a small text-to-image latent diffusion model with a card of its own (model/README.md)."""

from pathlib import Path

BUNDLED = {"firstlight": Path(__file__).parent / "model"}
# What the model's card, measured.json and the benchmarks of optimizers were measured with. Euler a shows what was asked
# for more often (83 % against 79 %, benchmarks/sampling_cpu_2026-11-21.md), and optimizers change its pictures more.
DEFAULTS = {"guidance": 3.0, "steps": 20, "sampler": "DPM++ 2M", "schedule": "Uniform"}
