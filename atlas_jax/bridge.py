"""A bridge: an affine map from the residual stream of one model to that of another."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from atlas_jax.checks import as_number, finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.translation import Translation
from atlas_jax.types import Site

SOURCE = "source_site"  # in the metadata of a translation that is a bridge


@dataclasses.dataclass(frozen=True)
class Bridge:
    """An affine map ``y = b + W (x - a)`` from activations at a site of one model to a site of another.

    The same object as a translation, whose atlas is the residual stream of the source. Activations pass through all of
    it, directions (an SAE's decoder rows, a difference of means) through W alone.

    Attributes:
      translation: W as its matrix ``[d_target, d_source]``, a as its ``mean_atlas``, b as its ``mean_subject``.

    Raises:
      AtlasError: for a translation that does not name the site it comes from.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Bridge, Site, Translation
      >>> known = {"site": Site("resid_post", 2), "metadata": {"source_site": "resid_post.4"}}
      >>> bridge = Bridge(Translation(jnp.array([[0.0, 2.0]]), jnp.array([5.0]), jnp.zeros(2), "ridge", **known))
      >>> bridge(jnp.array([1.0, 1.0])).tolist(), bridge.direction(jnp.array([1.0, 1.0])).tolist()
      ([7.0], [2.0])
    """

    translation: Translation

    def __post_init__(self) -> None:
        if SOURCE not in self.translation.metadata:
            raise AtlasError("this translation is from an atlas; a bridge is from a site of another model (bridge fit)")

    @property
    def source(self) -> Site:
        """The site whose activations go in."""
        return Site.parse(self.translation.metadata[SOURCE])

    @property
    def target(self) -> Site:
        """The site whose activations come out."""
        return self.translation.site

    def __call__(self, x: Any) -> Float[Array, "*n d_target"]:
        """Map activations ``[*n, d_source]`` of the source, the means included.

        Raises:
          AtlasError: if their width is not that of the source, or (outside ``jit``) a value is not finite.
        """
        t = self.translation
        x = self._checked(x)
        y = self.direction(x - jnp.broadcast_to(jnp.asarray(t.mean_atlas), x.shape))
        return y + jnp.broadcast_to(jnp.asarray(t.mean_subject), y.shape)

    def direction(self, v: Any) -> Float[Array, "*n d_target"]:
        """Map directions ``[*n, d_source]`` of the source: the linear part alone, not normalised.

        Raises:
          AtlasError: as :meth:`__call__`.
        """
        return jnp.matmul(self._checked(v), jnp.asarray(self.translation.matrix).T, precision=lax.Precision.HIGHEST)

    def inverse(self, cut: float = 1e-6) -> "Bridge":
        """Return the bridge back, by the pseudo-inverse of W; singular values up to ``cut`` of the largest are zero.

        Where the target is narrower, only what it keeps comes back.

        Example:
          >>> import jax.numpy as jnp
          >>> from atlas_jax import Bridge, Site, Translation
          >>> known = {"site": Site("resid_post", 2), "metadata": {"source_site": "resid_post.4"}}
          >>> bridge = Bridge(Translation(jnp.array([[2.0]]), jnp.array([5.0]), jnp.zeros(1), "ridge", **known))
          >>> bridge.inverse()(bridge(jnp.array([3.0]))).tolist()
          [3.0]
        """
        as_number(cut, "cut", least=0)
        t = self.translation
        back = np.linalg.pinv(np.asarray(t.matrix, np.float64), rcond=cut)
        means = {"mean_subject": t.mean_atlas, "mean_atlas": t.mean_subject}
        metadata = _of_models(t, t, swap=True) | {SOURCE: str(t.site), "inverse": True}
        new = {"site": self.source, "certificate": {}, "metadata": metadata, "token_norm": None}
        return Bridge(dataclasses.replace(t, matrix=jnp.asarray(back, jnp.float32), **means, **new))

    def then(self, further: "Bridge") -> "Bridge":
        """Return the bridge from this one's source to the target of another that starts where this one ends.

        Raises:
          AtlasError: if it starts at another site or, where both name the model there, in another model.

        Example:
          >>> import jax.numpy as jnp
          >>> from atlas_jax import Bridge, Site, Translation
          >>> known = {"site": Site("resid_post", 2), "metadata": {"source_site": "resid_post.2"}}
          >>> bridge = Bridge(Translation(jnp.array([[2.0]]), jnp.array([5.0]), jnp.zeros(1), "ridge", **known))
          >>> bridge.then(bridge)(jnp.array([1.0])).tolist()
          [19.0]
        """
        t, other = self.translation, further.translation
        if further.source != self.target or other.d_c != t.d_s:
            ends = f"{self.target} ({t.d_s} wide)", f"{further.source} ({other.d_c} wide)"
            raise AtlasError("the second bridge starts at {1}, and the first ends at {0}".format(*ends))
        models = [side.get("sha256") for side in (t.metadata.get("target", {}), other.metadata.get("source", {}))]
        if None not in models and models[0] != models[1]:
            raise AtlasError("the second bridge starts in another model than the first ends in; fit it from that one")
        matrix = jnp.matmul(other.matrix, t.matrix, precision=lax.Precision.HIGHEST)
        metadata = _of_models(t, other) | {SOURCE: t.metadata[SOURCE], "composed": True}
        means = {"mean_subject": further(t.mean_subject), "mean_atlas": t.mean_atlas}
        return Bridge(dataclasses.replace(other, matrix=matrix, **means, metadata=metadata, certificate={}))

    def save_pretrained(self, directory: str | os.PathLike, *, dtype: str = "float32") -> Path:
        """Write the bridge as a translation, see :meth:`Translation.save_pretrained`."""
        return self.translation.save_pretrained(directory, dtype=dtype)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "Bridge":
        """Read what :meth:`save_pretrained` wrote.

        Raises:
          AtlasError: if a file is missing or damaged, or the translation is no bridge.
        """
        return cls(Translation.from_pretrained(directory))

    def _checked(self, x: Any) -> Float[Array, "*n d_source"]:
        x = jnp.asarray(finite_numbers(x, "what goes over a bridge"), jnp.float32)
        if x.ndim == 0 or x.shape[-1] != self.translation.d_c:
            raise AtlasError(
                f"this bridge takes vectors of {self.translation.d_c} numbers, those of its source at {self.source}, "
                f"and not an array of shape {x.shape}"
            )
        return x


def _of_models(first: Translation, last: Translation, *, swap: bool = False) -> dict[str, Any]:
    """What is known of the model that one translation comes from, and of the one that another leads to."""
    known = {"source": first.metadata.get("source"), "target": last.metadata.get("target")}
    known = dict(zip(known, reversed(known.values()), strict=True)) if swap else known
    return {side: about for side, about in known.items() if about is not None}
