"""Safelight makes diffusion inference faster and smaller, and proves that the picture is not spoiled.

    import safelight

    with safelight.load("firstlight", optimize="auto") as session:
        session.generate("a red apple, 3d, on a blue background", seed=1).pictures[0].image.save("apple.png")

Importing this imports no torch; the functions do when they are called.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from safelight import config
from safelight.request import Request

if TYPE_CHECKING:
    from safelight.optimizers.words import Words
    from safelight.planner.ahead import Outlook
    from safelight.session import Session

__version__ = config.VERSION
__all__ = ["Request", "__version__", "load", "optimize", "plan"]


def plan(
    model: str | None = None,
    *,
    device: str | None = None,
    optimize: "Words" = "auto",
    without: Iterable[str] = (),
    keep: "Words" = "",
    goal: str | None = None,
    vram: str | int | None = None,
    max_seconds: float | None = None,
    fidelity: str | None = None,
    pictures: int | None = None,
    preset: str | None = None,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    batch_size: int | str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    schedule: str | None = None,
    hires: str | None = None,
    hires_steps: int | None = None,
    hires_denoise: float | None = None,
    hires_upscaler: str | None = None,
    denoise: float | None = None,
    config_folder: str | None = None,
) -> "Outlook":
    """What a run would take, plain and planned, and which optimizers with which reason; nothing is loaded or run.

    model: "firstlight" (None), a name like "sdxl", a diffusers folder, a .safetensors file, or a hub id[@revision].
    device: one that is here ("cuda:0"; None is the best there is), a known card ("rtx-3080-10gb"), or one by its
    numbers ("cuda,memory=12GiB,tflops=40,bandwidth=400").
    optimize, without, keep, goal, vram, max_seconds, fidelity, pictures: as `load` takes them; names alone are
    predicted as they are.
    preset: a name from `planner.presets`, whose wishes count where nothing is given here.
    width, height, frames, batch_size, steps, guidance: None is the model's own, one picture at a time and 20 steps.
    batch_size: "auto" finds the one that makes the most pictures per second, as does the goal "throughput".
    sampler, schedule: as Request has them; seconds count how often the model is asked, which is twice a step for some.
    hires, hires_steps, hires_denoise, hires_upscaler: of a second pass, as Request has them: seconds are of both, and
    memory is planned for the larger. denoise: for a picture to begin from, how much of it is drawn anew.
    config_folder: configs for a single file.
    Raises SafelightError's children: UnknownName, ModelNotFound, DamagedModel, DoesNotApply, Conflict, CannotPredict,
    UsageError; OutOfMemory where no plan fits, EnvironmentProblem where a device or the hub is not there.
    """
    from safelight import opening
    from safelight.planner import presets

    wishes = {"optimize": optimize, "without": without, "keep": keep or None, "goal": goal, "vram": vram}
    limits = {"max_seconds": max_seconds, "fidelity": fidelity, "pictures": pictures}
    pixels = {"width": width, "height": height, "frames": frames}
    run = {"batch_size": batch_size, "steps": steps, "guidance": guidance, "config_folder": config_folder}
    larger = {"hires": hires, "hires_steps": hires_steps, "hires_upscaler": hires_upscaler}
    drawn = {"sampler": sampler, "schedule": schedule, "hires_denoise": hires_denoise, "denoise": denoise, **larger}
    given = {"model": model, "device": device, **wishes, **limits, **pixels, **run, **drawn}
    return opening.foreseen(**presets.planned(preset, given))


def load(
    model: str = "firstlight",
    *,
    optimize: "Words" = "auto",
    without: tuple[str, ...] = (),
    keep: "Words" = "",
    goal: str | None = None,
    vram: str | int | None = None,
    max_seconds: float | None = None,
    fidelity: str | None = None,
    pictures: int | None = None,
    device: str | None = None,
    vae: str | None = None,
    loras: tuple[str, ...] = (),
    config_folder: str | None = None,
    allow_pickle: bool = False,
    width: int | None = None,
    height: int | None = None,
    batch_size: int = 1,
    steps: int | None = None,
    request: Request | None = None,
) -> "Session":
    """Loads a model and applies a plan; the session that comes back is closed by its `with` block.

    model: the bundled "firstlight", a diffusers folder, a .safetensors file, or a hub id with an optional @revision.
    optimize: optimizer names with options, "auto,vae-tiling=256", a list of them, or {"vae-tiling": 256, "auto": True};
    names alone are taken as they are; "auto" plans what to take besides, and "none" is plain.
    keep: names to plan around. goal: balanced, fast, quality, low-memory or throughput. vram: "8GiB", what the device
    may spend. max_seconds: of a picture. fidelity: exact, rounding or approximate, what the picture may lose. pictures:
    how many will be made, which pay for compiling.
    device: "cpu", "cuda", "cuda:1", "mps", ...; None is the best there is.
    config_folder: configs and tokenizers for a single file, where there is no hub.
    loras: paths of .safetensors files, each with an optional "=weight".
    width, height, batch_size, steps: what the plan is made for; None is the model's own size, and 20 steps.
    request: what it is made for in all that is known, in place of these four: its sampler, its second pass, the picture
    that it begins from. The session draws any other, too.
    Raises SafelightError's children: ModelNotFound, DamagedModel, DoesNotApply, Conflict, OutOfMemory, ...
    """
    from safelight import opening, planner

    limits: dict[str, Any] = {"goal": goal, "vram": vram, "max_seconds": max_seconds, "fidelity": fidelity}
    wish = planner.wish(optimize, without, keep=keep, pictures=pictures, **limits)
    files = opening.Files(model, vae, loras, config_folder, allow_pickle)
    sizes: dict[str, Any] = {"width": width, "height": height, "batch_size": batch_size, "steps": steps}
    return opening.opened(files, wish, device, request or Request("", **sizes, count=batch_size))


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
