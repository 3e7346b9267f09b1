"""The bundled model: a small text-to-image latent diffusion model with a card of its own (model/README.md)."""

from pathlib import Path

BUNDLED = {"firstlight": Path(__file__).parent / "model"}
# of what 20 evaluations draw, Euler a's shows most often what was asked: benchmarks/sampling_cpu_2026-11-21.md
DEFAULTS = {"guidance": 3.0, "steps": 20, "sampler": "Euler a"}
