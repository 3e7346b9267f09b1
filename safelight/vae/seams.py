"""Where a VAE of diffusers is cut open, so that something of ours runs instead of its decoder or encoder, for a while.

Nothing of diffusers' code is copied or changed: one method of one object is replaced, and put back.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safelight.vae.graph import CannotWalk
from safelight.vae.running import Exact


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a VAE class is cut. module: its part, "" for itself. method: of that, is replaced; takes a tensor first.

    call: gives, for a VAE, what runs `module` on one tensor, where that is not the module's own forward.
    together: a batch is the frames of one video.
    """

    module: str
    method: str
    call: Callable[[Any], Callable[[Any], Any]] | None = None
    together: bool = False


def _own(name: str) -> Callable[[Any], Callable[[Any], Any]]:
    """The VAE's own method on the whole video, as its class has it."""
    return lambda vae: lambda given: _plain(getattr(type(vae), name)(vae, given))


def _plain(made: Any) -> Any:
    import torch

    return made if isinstance(made, torch.Tensor) else made[0]


DECODER, ENCODER = Seam("decoder", "forward"), Seam("encoder", "forward")
# video VAEs that call their decoder frame by frame, with what it remembers
STREAMED = (
    "AutoencoderKLWan",
    "AutoencoderKLQwenImage",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLMochi",
    "AutoencoderKLMagvit",
)
SEAMS: Mapping[str, Mapping[str, Seam]] = {
    "AutoencoderKLTemporalDecoder": {"decode": Seam("decoder", "forward", together=True)},
    **{
        name: {"decode": Seam("", "_decode", _own("_decode")), "encode": Seam("", "_encode", _own("_encode"))}
        for name in STREAMED
    },
}


def seam(vae: Any, what: str) -> Seam:
    """what: "decode" or "encode"."""
    return SEAMS.get(type(vae).__name__, {}).get(what) or {"decode": DECODER, "encode": ENCODER}[what]


def exact_of(vae: Any, what: str, budget_bytes: int | None = None, *, sampled: bool = False) -> Exact:
    """sampled: with statistics from crops. Raises CannotWalk for a VAE without such a part."""
    cut = seam(vae, what)
    module = getattr(vae, cut.module, None) if cut.module else vae
    if module is None:
        raise CannotWalk(f"{type(vae).__name__} has no {cut.module}")
    # the forward that is there now, as it may be replaced by what is made here
    return Exact(module, module.forward if cut.call is None else cut.call(vae), budget_bytes, cut.together, sampled)


@contextmanager
def exactly(
    vae: Any, what: str = "decode", budget_bytes: int | None = None, *, sampled: bool = False
) -> Iterator[Exact]:
    """While this is open, the VAE decodes (or encodes) in strips, whoever calls it.

    sampled: with statistics from crops, which is not exact.
    """
    exact = exact_of(vae, what, budget_bytes, sampled=sampled)
    with running(vae, what, exact):
        yield exact


@contextmanager
def running(vae: Any, what: str, run: Callable[..., Any], **more: Any) -> Iterator[None]:
    """While this is open, `run` is called instead of what the VAE is cut at, with what that is called with and `more`.

    diffusers' own tiles are off, which would each be run so, and blended.
    """
    cut = seam(vae, what)
    owner = getattr(vae, cut.module) if cut.module else vae

    def instead(given: Any, *args: Any, **kwargs: Any) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        made = run(given, *args, **kwargs, **more)
        return DecoderOutput(sample=made) if cut.method == "_decode" else made

    with _replaced(owner, cut.method, instead), _untiled(vae):
        yield


@contextmanager
def _replaced(owner: Any, method: str, instead: Any) -> Iterator[None]:
    """A method of one object, not of its class."""
    before = vars(owner).get(method)
    setattr(owner, method, instead)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, method)
        else:
            setattr(owner, method, before)


@contextmanager
def _untiled(vae: Any) -> Iterator[None]:
    tiled = getattr(vae, "use_tiling", False)
    if tiled:
        vae.use_tiling = False
    try:
        yield
    finally:
        if tiled:
            vae.use_tiling = True
