"""The bundled model: a small text-to-image latent diffusion model with a card of its own (model/README.md)."""

from pathlib import Path

BUNDLED = {"firstlight": Path(__file__).parent / "model"}
DEFAULTS = {"guidance": 3.0, "steps": 20, "sampler": "DPM++ 2M"}
