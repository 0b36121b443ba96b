"""A direction that steers towards a concept, as a value that can be saved."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.files import new_file, reading
from atlas_jax.types import Site

FILE = "direction.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A direction of one site that steers towards a concept; numpy takes it for its vector.

    Attributes:
      vector: float32 ``[d_s]``, one mean token norm of the site long, as :meth:`Translation.direction`.
      query: the concept query ``[d_c]``, float32.
      site: of the subject.
      how: the way it was found, see :func:`concept_direction`.
      cost: what finding it took: ``seconds`` and ``tokens`` read, of the concepts found together an equal share each;
        and what else is known of it, as plain values.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site, Steer
      >>> from atlas_jax.experiments import Direction
      >>> along = Direction(np.array([0.0, 5.0]), np.array([1.0]), Site("resid_post", 2), "gradient", {"seconds": 0.2})
      >>> Steer(along.vector, 0.5).width
      2
    """

    vector: Float[np.ndarray, " d_s"]
    query: Float[np.ndarray, " d_c"]
    site: Site
    how: str
    cost: Mapping[str, Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Float[np.ndarray, " d_s"]:
        return np.array(self.vector, dtype, copy=copy)

    def along(self, unit: str) -> Float[np.ndarray, " d_s"]:
        """Return what steering at strength 1 adds; units as in :func:`atlas_jax.experiments.steer`.

        Raises:
          AtlasError: for "raw", λ of Eq. 4, which is along a similarity vector.
        """
        if unit == "raw":
            raise AtlasError(f"a direction by {self.how} has no λ of Eq. 4; give strengths in units of norm or length")
        return self.vector if unit == "norm" else self.vector / np.linalg.norm(self.vector)

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write ``direction.safetensors``, with site, way and cost in its header; never seen half-written.

        Raises:
          AtlasError: if the directory cannot be written.

        Example:
          >>> import tempfile
          >>> import numpy as np
          >>> from atlas_jax import Site
          >>> from atlas_jax.experiments import Direction
          >>> along = Direction(np.float32([0, 5]), np.float32([1]), Site("resid_post", 2), "gradient", {})
          >>> Direction.from_pretrained(along.save_pretrained(tempfile.mkdtemp())).vector.tolist()
          [0.0, 5.0]
        """
        directory = Path(directory)
        words = {"site": str(self.site), "how": self.how, "cost": json.dumps(dict(self.cost))}
        with new_file(directory / FILE) as file:
            save_file({"vector": self.vector, "query": self.query}, file, metadata=words)
        return directory

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "Direction":
        """Read what :meth:`save_pretrained` wrote.

        Raises:
          AtlasError: if the file is missing or damaged.
        """
        path = Path(directory) / FILE
        with reading(path, "save the direction again"), safe_open(path, "numpy") as file:
            words = file.metadata()
            arrays = file.get_tensor("vector"), file.get_tensor("query")
            return cls(*arrays, Site.parse(words["site"]), words["how"], json.loads(words["cost"]))
