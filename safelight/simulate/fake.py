"""A pipeline that weighs nothing: the real classes with fake tensors, which have a shape and a dtype and no numbers.

Comes in: a Blueprint. Goes out: an object that optimizers change as they change a loaded pipeline, for tracing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safelight.errors import DamagedModel
from safelight.probe.blueprint import Blueprint, Part
from safelight.simulate.strides import real_strides


class FakePipeline:
    """What optimizers see of a pipeline: its models by name, and `components`."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.components = dict(parts)
        vars(self).update(parts)

    def encode_prompt(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a fake pipeline encodes no prompts: its text encoders are called one by one")


@dataclass(frozen=True, slots=True)
class Fake:
    """pipe: to be changed and called inside `active`. device: "cpu" or "cuda", whose strides its tensors have."""

    blueprint: Blueprint
    pipe: FakePipeline
    mode: Any
    device: str = "cpu"

    @contextmanager
    def active(self) -> Iterator[None]:
        import torch

        with self.mode, real_strides(self.device), torch.no_grad():
            yield


def fake(blueprint: Blueprint, dtype: str = "float32", device: str = "cpu") -> Fake:
    """Raises DamagedModel when a part cannot be made from its config."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    parts = {name: _made(name, part) for name, part in blueprint.parts.items()}
    with mode:
        for model in parts.values():
            _fill(model, getattr(torch, dtype))
    return Fake(blueprint, FakePipeline(parts), mode, device)


def _made(name: str, part: Part) -> Any:
    """The model on the meta device: no memory, and no time for numbers that nobody looks at."""
    import torch

    try:
        with torch.device("meta"), uninitialized():
            return build(part).eval().requires_grad_(False)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedModel(f"{part.cls.__name__} cannot be made from the config of {name}: {said:.200}") from error


def build(part: Part) -> Any:
    """A model with its config's sizes."""
    import inspect

    if hasattr(part.cls, "config_class"):  # of transformers, whose models take their config as it is
        return part.cls(part.config)
    known = inspect.signature(part.cls).parameters
    return part.cls(**{name: value for name, value in part.config.items() if name in known})


@contextmanager
def uninitialized() -> Iterator[None]:
    """Weights are left as they are allocated; filling FLUX's takes longer than all the rest."""
    from torch.nn import init

    names = [name for name in vars(init) if name.endswith("_") and not name.startswith("_")]
    before: dict[str, Callable[..., Any]] = {name: getattr(init, name) for name in names}
    try:
        for name in names:
            setattr(init, name, lambda tensor, *_, **__: tensor)
        yield
    finally:
        for name, function in before.items():
            setattr(init, name, function)


def _fill(model: Any, dtype: Any) -> None:
    """Fake tensors in the place of meta ones; tied weights stay tied."""
    import torch

    made: dict[int, Any] = {}

    def counterpart(tensor: Any) -> Any:
        if id(tensor) not in made:
            wanted = dtype if tensor.is_floating_point() else tensor.dtype
            made[id(tensor)] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted)
        return made[id(tensor)]

    if hasattr(model, "tie_weights"):
        model.tie_weights()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = counterpart(parameter)
                if not isinstance(fresh, torch.nn.Parameter):
                    made[id(parameter)] = fresh = torch.nn.Parameter(fresh, requires_grad=False)
                module._parameters[name] = fresh
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = counterpart(buffer)
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):  # neither parameter nor buffer: Qwen-Image's rotations
                setattr(module, name, counterpart(value))
