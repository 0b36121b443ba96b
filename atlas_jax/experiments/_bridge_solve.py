"""Bridges solved from statistics of both halves, without the dimensions that outweigh all others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from atlas_jax.bridge import Bridge
from atlas_jax.errors import AtlasError
from atlas_jax.statistics import (
    Statistics,
    cross_product,
    gram_matrix,
    gram_moments,
    outlying_features,
    without_features,
)
from atlas_jax.translation import Translation
from atlas_jax.translators import Path, Solution, explained_variance, procrustes, ridge_path

NEEDS = "cross", "atlas_gram"
HELD_OUT_NEEDS = (*NEEDS, "subject_gram")
OUTLIER = 10.0


class Halves(NamedTuple):
    """Statistics of both halves, where the dimensions left out are zero.

    Attributes:
      fit: of the half that is fitted to.
      held_out: of the other.
      target: dimensions of the target that are left out.
      source: those of the source.
    """

    fit: Statistics
    held_out: Statistics
    target: Bool[np.ndarray, " d_s"]
    source: Bool[np.ndarray, " d_c"]

    @classmethod
    def from_statistics(cls, fit: Statistics, held_out: Statistics, outlier: float | None) -> "Halves":
        """Leave out the dimensions whose root mean square in the fit half exceeds ``outlier`` times the median's."""
        sides = [outlying_features(side.raw, fit.weight, outlier) for side in (fit.subject, fit.atlas)]
        return cls(*(without_features(half, *sides) for half in (fit, held_out)), *sides)


class Solved(NamedTuple):
    """The solutions of one pair of sites.

    Attributes:
      solutions: by method.
      r2: by method, the share of held-out variance explained.
      path: of the ridge.
      halves: what they were solved from.
    """

    solutions: dict[str, Solution]
    r2: dict[str, float]
    path: Path
    halves: Halves

    @classmethod
    def from_halves(cls, halves: Halves, penalties: Sequence[float]) -> "Solved":
        """Solve ridge and Procrustes."""
        ridge, path = ridge_path(halves.fit, halves.held_out, penalties)
        rotation = scaled_procrustes(halves.fit)
        r2 = explained_variance(rotation.matrix, halves.fit, halves.held_out)
        solutions = {"ridge": ridge, "procrustes": rotation}
        return cls(solutions, {"ridge": path.r2[path.best], "procrustes": r2}, path, halves)

    def bridges(self, fit: Statistics, **known: Any) -> dict[str, Bridge]:
        """Return the bridges between the means of all dimensions, ``fit``, those left out among them."""
        means = jnp.array(fit.subject.raw.mean), jnp.array(fit.atlas.raw.mean)
        return {
            method: Bridge(Translation(own.matrix, *means, method=method, certificate=own.certificate, **known))
            for method, own in self.solutions.items()
        }

    @property
    def outliers(self) -> dict[str, list[int]]:
        """The dimensions left out."""
        sides = {"source": self.halves.source, "target": self.halves.target}
        return {f"outlying_{name}_dimensions": np.flatnonzero(side).tolist() for name, side in sides.items()}


def scaled_procrustes(stats: Statistics) -> Solution:
    """Solve Procrustes about the means, times the factor by which it explains most of the fit half."""
    rotation = procrustes(stats, normalize_rows=False, centre=True)
    with jax.enable_x64(True):
        t = jnp.asarray(np.asarray(rotation.matrix), jnp.float64)
        gram = gram_matrix(gram_moments(stats, "atlas", unit=False), centre=True)
        cross = cross_product(stats, unit=False, centre=True, one_device=True)
        scale = float(jnp.sum(t * cross) / jnp.sum((t @ gram) * t))
    return Solution(rotation.matrix * scale, rotation.certificate | {"scale": scale})


def check_enough(rows: int, width: int, remedy: str) -> None:
    """Refuse fewer rows than a regression with an intercept on ``width`` features needs.

    Raises:
      AtlasError: saying how many there are, how many are needed, and the remedy.
    """
    if rows <= width:
        there = f"there {'is' if rows == 1 else 'are'} {rows}"
        raise AtlasError(
            f"a bridge from {width} dimensions needs at least {width + 1} rows to fit on, and {there}; {remedy}"
        )
