"""Safelight makes diffusion inference faster and smaller, and proves that the picture is not spoiled.

    import safelight

    with safelight.load("firstlight", optimize="auto") as session:
        session.generate("a red apple, 3d, on a blue background", seed=1).pictures[0].image.save("apple.png")

Importing this imports no torch; the functions do when they are called.
"""

from typing import TYPE_CHECKING, Any

from safelight import config
from safelight.config import Request

if TYPE_CHECKING:
    from safelight.optimizers.words import Words
    from safelight.session import Session

__version__ = config.VERSION
__all__ = ["Request", "__version__", "load", "optimize"]


def load(
    model: str = "firstlight",
    *,
    optimize: "Words" = "",
    without: tuple[str, ...] = (),
    device: str | None = None,
    vae: str | None = None,
    loras: tuple[str, ...] = (),
    config_folder: str | None = None,
    allow_pickle: bool = False,
    width: int | None = None,
    height: int | None = None,
    batch_size: int = 1,
) -> "Session":
    """Loads a model and applies a plan; the session that comes back is closed by its `with` block.

    model: the bundled "firstlight", a diffusers folder, a .safetensors file, or a hub id with an optional @revision.
    optimize: optimizer names with options, "auto,vae-tiling=256", a list of them, or {"vae-tiling": 256, "auto": True};
    "auto" takes what pays and keeps the picture.
    device: "cpu", "cuda", "cuda:1", "mps", ...; None is the best there is.
    config_folder: configs and tokenizers for a single file, where there is no hub.
    loras: paths of .safetensors files, each with an optional "=weight".
    width, height, batch_size: what the plan is made for; None is the model's own size.
    Raises SafelightError's children: ModelNotFound, DamagedModel, DoesNotApply, Conflict, DidNotEngage, ...
    """
    from safelight import firstlight, planner
    from safelight.probe.device import here
    from safelight.run.load import pipeline
    from safelight.session import Session

    wish = planner.wish(optimize, without)
    found = here(device)
    dtype = planner.loading_dtype(wish, found)
    pipe, loaded = pipeline(model, dtype=dtype, vae=vae, loras=loras, config=config_folder, allow_pickle=allow_pickle)
    defaults = firstlight.DEFAULTS if loaded.asked in firstlight.BUNDLED else {}
    return Session(pipe, found, wish, loaded, defaults, width, height, batch_size)


def optimize(
    pipe: Any,
    optimize: "Words" = "auto",
    *,
    without: tuple[str, ...] = (),
    width: int | None = None,
    height: int | None = None,
    batch_size: int = 1,
) -> "Session":
    """Applies a plan to a diffusers pipeline you already have, where it is; closing gives it back unchanged.

    The pipeline itself may be called inside, or `session.generate`. Raises DoesNotApply, Conflict, DidNotEngage.
    """
    from safelight import planner
    from safelight.probe.device import here
    from safelight.session import Session

    wish = planner.wish(optimize, without)
    return Session(pipe, here(str(pipe.device)), wish, width=width, height=height, batch_size=batch_size)
