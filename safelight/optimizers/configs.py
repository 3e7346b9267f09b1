"""A Target from a model's configs alone, for asking what would fit before a weight is loaded or downloaded."""

from safelight.optimizers.target import Target
from safelight.probe.blueprint import Blueprint, read
from safelight.probe.device import Device


def target_from(
    model: str,
    device: Device,
    *,
    batch_size: int = 1,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    config_folder: str | None = None,
) -> Target:
    """The target that a model would be; None stands for its own size. model, config_folder: as `blueprint.read` takes.

    Raises ModelNotFound, DamagedModel, UsageError; EnvironmentProblem when the hub cannot be reached.
    """
    blueprint = read(model, config_folder=config_folder)
    return target_of_blueprint(blueprint, device, batch_size=batch_size, width=width, height=height, frames=frames)


def target_of_blueprint(
    blueprint: Blueprint,
    device: Device,
    *,
    batch_size: int = 1,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    guided: bool | None = None,
) -> Target:
    """None stands for what the model does by itself. Raises UsageError for a pipeline without a denoiser."""
    assert blueprint.denoiser_name
    return Target(
        device,
        blueprint.parts,
        width or blueprint.width,
        height or blueprint.height,
        batch_size,
        text_is_encoded=any(name.startswith("text_encoder") for name in blueprint.parts),
        pipeline=blueprint.pipeline,
        disposable=True,
        frames=frames or blueprint.frames,
        guided=blueprint.guided if guided is None else guided,
    )
