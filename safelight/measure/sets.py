"""How far two sets of pictures are apart as sets: a Frechet distance and a kernel distance on EfficientNet features.

Comes in: two lists of pictures, or their features. Goes out: numbers with what is known of their uncertainty.

These are not FID and KID: those are on Inception's features, and their values cannot be compared with these. A Frechet
distance of few pictures is too large by about as much as two draws of the very same model are apart: that is the floor.
The kernel distance has no such bias, and a standard error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safelight.errors import UsageError
from safelight.measure import features

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

LEAST = 4  # pictures in a set: two halves of two, each with a spread
SPLITS = 8
FEW = 500  # pictures; below, a Frechet distance of 1280 features is mostly bias


@dataclass(frozen=True, slots=True)
class SetDistance:
    """kernel_error: standard error of `kernel`. floor: the Frechet distance of two halves of the plain pictures.

    A `frechet` under `floor`, or a `kernel` within two of its errors from 0, is no difference that could be told.
    """

    frechet: float
    floor: float
    kernel: float
    kernel_error: float
    pictures: int

    @property
    def note(self) -> str:
        if self.pictures >= FEW:
            return f"of {self.pictures} pictures"
        told = "more than" if self.frechet > self.floor else "no more than"
        return (
            f"of {self.pictures} pictures only: {told} two halves of the plain ones are apart ({self.floor:.3g}); "
            f"from {FEW} on the number itself says something"
        )


def distance(plains: "Sequence[Image]", others: "Sequence[Image]") -> SetDistance:
    """At least four pictures each; as many of both are not needed."""
    if min(len(plains), len(others)) < LEAST:
        few = f"{len(plains)} and {len(others)}"
        raise UsageError(f"sets of {few} pictures have no spread: a set distance needs {LEAST} in each at least")
    some: ndarray = features.of(plains).astype("float64")
    more: ndarray = features.of(others).astype("float64")
    value, error = kernel(some, more)
    return SetDistance(frechet(some, more), floor(some), value, error, min(len(some), len(more)))


def frechet(some: "ndarray", others: "ndarray") -> float:
    """(n, features) and (m, features) -> squared distance of two normal distributions. Dowson and Landau, 1982.

    The trace of the covariances' geometric mean is the sum of the singular values of the product of their roots. A root
    is the centred features themselves, or their triangular factor where that is smaller: no inverse, no complex root.
    """
    import numpy as np

    (mean, root), (other_mean, other_root) = _moments(some), _moments(others)
    shared = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    apart = ((mean - other_mean) ** 2).sum() + (root**2).sum() + (other_root**2).sum() - 2 * shared
    return max(0.0, float(apart))


def _moments(values: "ndarray") -> "tuple[ndarray, ndarray]":
    """(mean, root) with root.T @ root the covariance."""
    import numpy as np

    mean = values.mean(0)
    root = (values - mean) / math.sqrt(len(values) - 1)
    if len(root) > root.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return mean, root


def floor(values: "ndarray") -> float:
    """The median Frechet distance of two random halves, the same halves every time."""
    import numpy as np

    random, half = np.random.default_rng(0), len(values) // 2
    orders = (random.permutation(len(values)) for _ in range(SPLITS))
    return float(np.median([frechet(values[order[:half]], values[order[half : 2 * half]]) for order in orders]))


def kernel(some: "ndarray", others: "ndarray") -> tuple[float, float]:
    """(squared maximum mean discrepancy, its standard error), unbiased: 0 on average for two draws of the same.

    Kernel (x . y / features + 1)^3: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", 2018. The error is
    by leaving out each picture in turn; those of a pair are taken as independent, which overstates it for pictures
    drawn on the same noise.
    """
    import numpy as np

    scale = some.shape[1]
    own, other, cross = ((x @ y.T / scale + 1) ** 3 for x, y in ((some, some), (others, others), (some, others)))
    n, m = len(some), len(others)
    own_rows, other_rows = own.sum(1) - own.diagonal(), other.sum(1) - other.diagonal()
    own_mean, other_mean = own_rows.sum() / (n * (n - 1)), other_rows.sum() / (m * (m - 1))
    without = (own_rows.sum() - 2 * own_rows) / ((n - 1) * (n - 2)) + other_mean
    without -= 2 * (cross.sum() - cross.sum(1)) / ((n - 1) * m)
    other_without = (other_rows.sum() - 2 * other_rows) / ((m - 1) * (m - 2)) + own_mean
    other_without -= 2 * (cross.sum() - cross.sum(0)) / (n * (m - 1))
    error = math.sqrt(sum((len(left) - 1) * float(np.var(left)) for left in (without, other_without)))
    return float(own_mean + other_mean - 2 * cross.mean()), error
