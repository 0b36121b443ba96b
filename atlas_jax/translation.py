"""A translation: the matrix T of a subject site, the means it was fitted around, and what can be asked of it."""

import dataclasses
import json
import numbers
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from safetensors.numpy import load_file

from atlas_jax.checks import finite_numbers, known
from atlas_jax.errors import AtlasError
from atlas_jax.files import local_or_hub, new_file, reading, sha256
from atlas_jax.labels import Labels
from atlas_jax.rows import unit
from atlas_jax.sharding import device_put, mesh_of, row_blocks
from atlas_jax.statistics import Statistics, lens_init, lens_update, update
from atlas_jax.table import Column, Table, facts_table
from atlas_jax.tensor_file import write_tensors
from atlas_jax.translators import METHODS, needs_of
from atlas_jax.types import Site

TENSORS, RECORD = "translation.safetensors", "translation.json"
_RENAMED = {"accepted": "within_tolerance"}  # in certificates of version 0.1


class Ranked(NamedTuple):
    """Feature ids and their scores, best first; ties to the lowest id.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.translation import Ranked
      >>> ranked = Ranked(jnp.array([7, 2]), jnp.array([0.9, 0.4]))
      >>> int(ranked.features[0])
      7
    """

    features: Int[Array, "*q k"]
    scores: Float[Array, "*q k"]

    def _repr_html_(self) -> str | None:
        return _ranked_html(self) if jnp.ndim(self.features) == 1 else None


class Named(NamedTuple):
    """Atlas feature ids, their scores and their labels ("" where there is none), best first.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.translation import Named
      >>> named = Named(jnp.array([7]), jnp.array([0.5]), ["dogs"])
      >>> list(zip(named.labels, named.scores.tolist()))
      [('dogs', 0.5)]
    """

    features: Int[Array, " k"]
    scores: Float[Array, " k"]
    labels: list[str]

    def _repr_html_(self) -> str:
        return _ranked_html(self, Column("label"))


def _ranked_html(ranked: Ranked | Named, *more: Column) -> str:
    columns = Column("feature", "d"), Column("score", ".3f"), *more
    features, scores = np.asarray(ranked.features).tolist(), np.asarray(ranked.scores).tolist()
    return Table("Features, best first", columns, list(zip(features, scores, *ranked[2:], strict=True)))._repr_html_()


class _Record(dict):
    """A dictionary of plain values that hashes by content, as static metadata of a pytree must."""

    def __hash__(self) -> int:
        return hash(json.dumps(self, sort_keys=True, default=str))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Translation:
    """The matrix ``T [d_s, d_c]`` that maps concept queries to one site of a subject.

    Attributes:
      matrix: float32 ``[d_s, d_c]``; row k is subject feature k in terms of the atlas features.
      mean_subject: mean subject activations of the fitting corpus ``[d_s]``.
      mean_atlas: mean atlas activations of the fitting corpus ``[d_c]``; subtract it from averaged queries.
      method: name of the translator.
      site: the subject site, None where there is none.
      certificate: how the matrix was computed and how good it is.
      metadata: anything else worth keeping, as plain JSON values.
      token_norm: mean L2 norm of the site's activation at a token of the fitting corpus (BOS, special tokens and
        padding left out), the unit of steering strengths; None where it is not known.
      pooling: of the subject's activations over a sentence; None where it is not known.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Translation
      >>> t = Translation(jnp.eye(2, 3), jnp.zeros(2), jnp.zeros(3), "covariance")
      >>> t.similarity(jnp.array([0.0, 2.0, 0.0])).tolist()
      [0.0, 1.0]
    """

    matrix: Any
    mean_subject: Any
    mean_atlas: Any
    method: str = dataclasses.field(metadata={"static": True})
    site: Site | None = dataclasses.field(default=None, metadata={"static": True})
    certificate: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={"static": True})
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={"static": True})
    token_norm: float | None = dataclasses.field(default=None, metadata={"static": True})
    pooling: str | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "certificate", _Record(self.certificate))
        object.__setattr__(self, "metadata", _Record(self.metadata))

    @classmethod
    def from_statistics(
        cls,
        stats: Statistics,
        method: str,
        *,
        site: Site | None = None,
        metadata: Mapping[str, Any] | None = None,
        token_norm: float | None = None,
        pooling: str | None = None,
        **options: Any,
    ) -> "Translation":
        """Solve by a method of the registry, its options included, and keep the means of the corpus.

        The matrix lies on the mesh of the statistics where they have one: rows over "data", columns over "model".

        Raises:
          AtlasError: for an unknown method, or statistics that lack what it needs.

        Example:
          >>> import jax.numpy as jnp
          >>> from atlas_jax import Site, Statistics, Translation, update
          >>> x = jnp.array([[1.0], [3.0]])
          >>> stats = update(Statistics.init(["cross"], 1, 1), x, 2 * x)
          >>> Translation.from_statistics(stats, "covariance", site=Site("mlp_act", 1)).matrix.tolist()
          [[2.0]]
        """
        needs_of([method])
        matrix, certificate = METHODS[method].solve(stats, **options)
        if mesh := mesh_of(stats):
            matrix = device_put(matrix, mesh, "data", "model")
        means = jnp.array(stats.subject.raw.mean), jnp.array(stats.atlas.raw.mean)
        return cls(matrix, *means, method, site, certificate, metadata or {}, token_norm, pooling)

    def _repr_html_(self) -> str:
        facts = {"method": self.described, "site": self.site and str(self.site), "subject features": self.d_s}
        facts |= {"atlas features": self.d_c, "mean token norm": self.token_norm}
        more = {k: v for k, v in self.certificate.items() if k not in facts and isinstance(v, str | int | float)}
        return facts_table("Translation", facts | more)._repr_html_()

    @property
    def described(self) -> str:
        """The method with its pooling, in words."""
        return self.method if self.pooling is None else f"{self.method} ({self.pooling} pooling)"

    @property
    def d_s(self) -> int:
        """Number of subject features."""
        return self.matrix.shape[0]

    @property
    def d_c(self) -> int:
        """Number of atlas features."""
        return self.matrix.shape[1]

    def similarity(self, q: Any) -> Float[Array, "*q d_s"]:
        """Cosine of each row of T with the query, Eq. 3; 0 where the row or the query is zero.

        Args:
          q: concept queries ``[*q, d_c]``, any real dtype, or a list.

        Raises:
          AtlasError: if the last axis of ``q`` is not ``d_c`` wide, or (outside ``jit``) a value is not finite.
        """
        q = finite_numbers(q, "the query")
        if jnp.shape(q)[-1:] != (self.d_c,):
            raise AtlasError(
                f"a query of this atlas has {self.d_c} features, got an array of shape {tuple(jnp.shape(q))}"
            )
        return _similarity(self.matrix, jnp.asarray(q, jnp.float32))

    def direction(self, q: Any) -> Float[Array, "*q d_s"]:
        """Return what :class:`Steer` adds at strength 1: :meth:`similarity` scaled to one mean token norm of the site.

        A strength then means the same at every site of every model, ``s_c * token_norm / |s_c|``.

        Raises:
          AtlasError: as :meth:`similarity`; or if the token norm is not known, or (outside ``jit``) a query has no
            direction here.

        Example:
          >>> import jax.numpy as jnp
          >>> from atlas_jax import Translation
          >>> t = Translation(jnp.eye(2), jnp.zeros(2), jnp.zeros(2), "covariance", token_norm=5.0)
          >>> t.direction(jnp.array([0.0, 2.0])).tolist()
          [0.0, 5.0]
        """
        if self.token_norm is None:
            raise AtlasError(
                f"the mean token norm of {self.site} is not known here, and it is the unit of strengths; "
                "align again, or give strengths as λ of Eq. 4 (--raw-strength, unit='raw')"
            )
        similarity = self.similarity(q)
        length = jnp.linalg.norm(similarity, axis=-1, keepdims=True)
        if known(length) and not jnp.all(length > 0):
            raise AtlasError(f"the concept has no direction at {self.site}: no feature there is similar to it")
        return similarity * (self.token_norm / length)

    def top_features(self, q: Any, k: int = 10) -> Ranked:
        """The k subject features most similar to each query.

        Raises:
          AtlasError: as :meth:`similarity`, or if k is no whole number between 1 and ``d_s``.

        Example:
          >>> import jax.numpy as jnp
          >>> from atlas_jax import Translation
          >>> t = Translation(jnp.eye(3), jnp.zeros(3), jnp.zeros(3), "covariance")
          >>> t.top_features(jnp.array([0.0, 2.0, 1.0]), k=2).features.tolist()
          [1, 2]
        """
        return _ranked(self.similarity(q), k)

    def name_feature(self, feature: int, k: int = 10, labels: Labels | None = None) -> Ranked | Named:
        """The k atlas features that weigh most in a subject feature's row of T, scaled to unit norm.

        Args:
          feature: the subject feature.
          k: atlas features to return.
          labels: of the atlas; with them the result is :class:`Named`, with the labels too.

        Raises:
          AtlasError: if there is no such feature, k is not between 1 and ``d_c``, or the labels are of another width.

        Example:
          >>> import jax.numpy as jnp
          >>> from atlas_jax import Labels, Translation
          >>> from atlas_jax.labels import Label
          >>> t = Translation(jnp.array([[3.0, 0.0, 4.0]]), jnp.zeros(1), jnp.zeros(3), "covariance")
          >>> t.name_feature(0, k=1).features.tolist()
          [2]
          >>> t.name_feature(0, k=1, labels=Labels.from_rows([Label(2, "dogs")])).labels
          ['dogs']
        """
        if not isinstance(feature, numbers.Integral) or not 0 <= feature < self.d_s:
            raise AtlasError(f"subject feature {feature} does not exist; there are {self.d_s}, counted from 0")
        ranked = _ranked(unit(self.matrix[feature]), k)
        return ranked if labels is None else _named(ranked, self._fitting(labels))

    def name_features(self, k: int = 10, labels: Labels | None = None) -> Iterator[Named]:
        """Yield :meth:`name_feature` of every subject feature in order, computed a block of rows at a time.

        Raises:
          AtlasError: if k is not between 1 and ``d_c``, or the labels are of another width.

        Example:
          >>> import jax.numpy as jnp
          >>> from atlas_jax import Translation
          >>> t = Translation(jnp.eye(2, 3), jnp.zeros(2), jnp.zeros(3), "covariance")
          >>> [named.features.tolist() for named in t.name_features(k=1)]
          [[0], [1]]
        """
        labels = Labels.empty(self.d_c) if labels is None else self._fitting(labels)
        for block in row_blocks(self.matrix):
            ranked = jax.tree.map(np.asarray, _ranked(unit(jnp.asarray(block)), k))
            for features, scores in zip(*ranked, strict=True):
                yield _named(Ranked(features, scores), labels)

    def _fitting(self, labels: Labels) -> Labels:
        if len(labels) != self.d_c:
            raise AtlasError(f"these labels are of {len(labels)} features, and this atlas has {self.d_c}")
        return labels

    def save_pretrained(self, directory: str | os.PathLike, *, dtype: str = "float32") -> Path:
        """Write ``translation.safetensors`` and ``translation.json``; neither is ever seen half-written.

        A matrix on a mesh is written in blocks of rows. In a run of several processes all must call this, and
        process 0 writes.

        Args:
          directory: where to.
          dtype: of the stored matrix, "float32" or "bfloat16"; the means are float32 always, and so is all that is
            read back.

        Raises:
          AtlasError: if the directory cannot be written, or for another dtype.

        Example:
          >>> import jax.numpy as jnp
          >>> import tempfile
          >>> from pathlib import Path
          >>> from atlas_jax import Translation
          >>> tmp = Path(tempfile.mkdtemp())
          >>> t = Translation(jnp.eye(2), jnp.zeros(2), jnp.zeros(2), "covariance")
          >>> Translation.from_pretrained(t.save_pretrained(tmp / "translation")).matrix.tolist()
          [[1.0, 0.0], [0.0, 1.0]]
        """
        check_stored_dtype(dtype)
        directory = Path(directory)
        dtypes = {"matrix": dtype, "mean_subject": "float32", "mean_atlas": "float32"}
        tensors = {name: jnp.asarray(getattr(self, name), jnp.dtype(d)) for name, d in dtypes.items()}
        if jax.process_index() != 0:
            write_tensors(os.devnull, tensors)
            return directory
        with new_file(directory / TENSORS) as file:
            write_tensors(file, tensors)
        record = {
            "format": 1,
            "method": self.method,
            "site": None if self.site is None else str(self.site),
            "shape": [self.d_s, self.d_c],
            "certificate": self.certificate,
            "metadata": self.metadata,
            "token_norm": self.token_norm,
            "pooling": self.pooling,
            "sha256": sha256(directory / TENSORS),
        }
        with new_file(directory / RECORD) as file:
            file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return directory

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "Translation":
        """Read what :meth:`save_pretrained` wrote, from a directory or a repository of the hub (``owner/name``).

        Raises:
          AtlasError: if a file is missing, damaged, or does not belong to the other.
        """
        directory = local_or_hub(directory)
        record_file, file, again = Path(directory) / RECORD, Path(directory) / TENSORS, "save it again"
        with reading(record_file, again):
            record = json.loads(record_file.read_text(encoding="utf-8"))
            site = None if record["site"] is None else Site.parse(record["site"])
            certificate = {_RENAMED.get(name, name): value for name, value in record["certificate"].items()}
            known = str(record["method"]), site, certificate, dict(record["metadata"])
            token_norm, pooling = record.get("token_norm"), record.get("pooling")
            digest, shape = record["sha256"], tuple(record["shape"])
        with reading(file, again):
            tensors = load_file(file)
            arrays = [jnp.asarray(tensors[name], jnp.float32) for name in ("matrix", "mean_subject", "mean_atlas")]
            if sha256(file) != digest:
                raise ValueError(f"it is not the file that {RECORD} describes")
            if [x.shape for x in arrays] != [shape, shape[:1], shape[1:]]:
                raise ValueError(f"its arrays do not have the shape {shape} of {RECORD}")
        return cls(*arrays, *known, token_norm, pooling)


def fit(
    a_s: Float[Array | np.ndarray, "n d_s"],
    a_c: Float[Array | np.ndarray, "n d_c"],
    method: str = "procrustes",
    *,
    weight: Float[Array | np.ndarray, " n"] | None = None,
    top_k: int = 50,
    **options: Any,
) -> Translation:
    """Fit a translation to two arrays of activations of the same sentences.

    Args:
      a_s: pooled subject activations, any float dtype.
      a_c: pooled atlas activations, any float dtype, in the same order.
      method: a name in :data:`atlas_jax.translators.METHODS`.
      weight: weights of the rows, one each by default.
      top_k: sentences a feature that ``"semantic_lens"`` averages over.
      options: of the method, such as ``centre=True``.

    Returns:
      The translation, without a site and token norm, which arrays do not hold.

    Raises:
      AtlasError: for an unknown method, or as :func:`atlas_jax.update`.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import fit
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> abs(fit(x, x[:, ::-1], "procrustes").matrix).round(4).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    needs = needs_of([method])
    if np.ndim(a_s) != 2 or np.ndim(a_c) != 2:
        raise AtlasError(f"activations are matrices [n, d], not arrays of shape {np.shape(a_s)} and {np.shape(a_c)}")
    stats = update(Statistics.init(needs, a_s.shape[1], a_c.shape[1], top_k=top_k), a_s, a_c, weight)
    if METHODS[method].second_pass:
        rows = np.arange(len(a_c), dtype=np.int32)
        stats = stats._replace(lens=lens_update(lens_init(stats.top, a_c.shape[1]), rows, a_c))
    return Translation.from_statistics(stats, method, **options)


def check_stored_dtype(dtype: str) -> None:
    """Refuse a dtype that translations are not stored in.

    Raises:
      AtlasError: for any but "float32" and "bfloat16".

    Example:
      >>> from atlas_jax.translation import check_stored_dtype
      >>> check_stored_dtype("bfloat16")
      >>> check_stored_dtype("int8")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: a translation is stored in float32 or bfloat16, not in 'int8'
    """
    if dtype not in ("float32", "bfloat16"):
        raise AtlasError(f"a translation is stored in float32 or bfloat16, not in '{dtype}'")


@jax.jit
def _similarity(matrix: Float[Array, "d_s d_c"], q: Float[Array, "*q d_c"]) -> Float[Array, "*q d_s"]:
    size = jnp.sqrt(jnp.sum(matrix * matrix, axis=1))
    scores = jnp.matmul(unit(q), matrix.T, precision=lax.Precision.HIGHEST)
    return scores / jnp.broadcast_to(jnp.where(size > 0, size, 1.0), scores.shape)


def _ranked(scores: Float[Array, "*q d"], k: int) -> Ranked:
    if not isinstance(k, numbers.Integral) or not 1 <= k <= scores.shape[-1]:
        raise AtlasError(f"asked for the top {k} of {scores.shape[-1]} features")
    best, features = lax.top_k(scores, k)
    return Ranked(features, best)


def _named(ranked: Ranked, labels: Labels) -> Named:
    return Named(*ranked, [labels[i] or "" for i in ranked.features.tolist()])
