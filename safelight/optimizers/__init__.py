"""Everything that can be changed, one function each; see registry.py. The order here is the order in listings."""

from safelight.optimizers import attention, cache, decode, precision
from safelight.optimizers.registry import OPTIMIZERS, Fidelity, Optimizer, Proof, Registry, Stage, optimizer
from safelight.optimizers.target import Target, target_of

__all__ = [
    "OPTIMIZERS",
    "Fidelity",
    "Optimizer",
    "Proof",
    "Registry",
    "Stage",
    "Target",
    "attention",
    "cache",
    "decode",
    "optimizer",
    "precision",
    "target_of",
]
