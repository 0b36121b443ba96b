"""Descriptions of features: one chosen for each, the rest kept."""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.labels._label import Label, Origin
from atlas_jax.labels._read import read_labels
from atlas_jax.types import Site


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The descriptions of the features of one SAE or one layer of neurons.

    One description a feature is chosen by a fixed policy, in this order: positive polarity (a feature that has only
    negative ones gets none, because pooled activations are maxima); the highest score, scored before unscored (nan and
    infinity are no scores); the
    explainer named first in ``prefer``; the explainer that describes the most features here, which keeps descriptions
    uniform; the one that comes first in the file.

    Equality is identity, so that labels can be the static part of a pytree.

    Attributes:
      n_features: width; indices run from 0 to n_features - 1.
      entries: for each described feature all its labels, the chosen one first.
      origin: the model and layer the labels are of, as their file states.

    Example:
      >>> from atlas_jax.labels import Label, Labels
      >>> rows = [Label(0, "cats"), Label(2, "dogs", score=0.6), Label(2, "pets", score=0.9)]
      >>> labels = Labels.from_rows(rows, n_features=4)
      >>> labels[2], labels[1], labels.coverage, labels.described(), labels.missing()
      ('pets', None, 0.5, [0, 2], [1, 3])
      >>> labels.chosen(2).score, labels.alternatives(2)[0].description
      (0.9, 'dogs')
    """

    n_features: int
    entries: Mapping[int, tuple[Label, ...]]
    origin: Origin = Origin()

    @classmethod
    def empty(cls, n_features: int) -> "Labels":
        """Return no labels, for an SAE of a given width.

        Example:
          >>> from atlas_jax.labels import Labels
          >>> Labels.empty(8).coverage
          0.0
        """
        return cls(n_features, {})

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Label],
        n_features: int | None = None,
        prefer: Sequence[str] = (),
        origin: Origin = Origin(),  # noqa: B008 - immutable
    ) -> "Labels":
        """Group rows by feature and choose one for each; the example is that of the class.

        Args:
          rows: labels in any order; a repeated (feature, description, polarity) counts once.
          n_features: width of the SAE; by default the largest index plus one.
          prefer: explainers, best first.
          origin: the model and layer the rows are of.

        Raises:
          AtlasError: where no row is left, or an index lies outside the width.
        """
        unique = list({(row.index, row.description, row.polarity): row for row in reversed(list(rows))}.values())[::-1]
        if not unique:
            raise AtlasError("there are no labels: no row has both an index and a description")
        n_features = _checked_width(unique, n_features)
        common = Counter(row.explainer for row in unique)
        order = {name: i for i, name in enumerate(prefer)}

        def rank(row: Label) -> tuple[bool, float, int, int]:
            scored = row.score is not None and math.isfinite(row.score)
            score = -row.score if scored else float("inf")
            return row.polarity == "negative", score, order.get(row.explainer, len(order)), -common[row.explainer]

        return cls(n_features, _grouped(sorted(unique, key=rank)), origin)

    @classmethod
    def load(
        cls,
        path: str | Path,
        n_features: int | None = None,
        *,
        prefer: Sequence[str] = (),
        layer: str | int | None = None,
        only: Mapping[str, str] | None = None,
        site: Site | None = None,
        columns: Mapping[str, str] | None = None,
        format: str | None = None,
    ) -> "Labels":
        """Read labels from a file or folder.

        Reads a folder of Neuronpedia's bulk export (``batch-*.jsonl.gz``, also one level up, with its
        ``explanations`` folder), and JSON, JSONL, CSV, each plain or gzipped, and Parquet. Columns are ``index``
        (or ``feature``, ``neuron``) and ``description`` (or ``label``, ``explanation``); optional are ``explainer``
        (or ``explanationModelName``), ``source`` (or ``typeName``), ``score``, ``polarity``, ``layer`` and ``model``
        (or ``modelId``), ``hook_point`` and ``release``; all others, such as embeddings, are left out. Transluce's
        ``neuron_id`` gives model, layer and neuron. Rows without text are dropped; a description that ends in
        "(negative activations)" has negative polarity.

        Args:
          path: file or folder; a file written by :meth:`save` keeps its choices.
          n_features: width of the SAE; by default that stated in the file, or its largest index plus one.
          prefer: explainers, best first.
          layer: the ``layer`` of the rows to read; needed where a file has several and ``site`` does not decide.
          only: values that ``model``, ``layer``, ``hook`` or ``release`` of a row must have, where a file has several.
          site: site of the SAE, which decides among several layers or hook points.
          columns: the file's own name for a field, such as ``{"index": "feature_id"}``.
          format: "json", "jsonl", "csv" or "parquet"; by default that of the suffix.

        Raises:
          AtlasError: for a missing or corrupt file, an unknown format, labels of several SAEs, no usable row, a column
            that cannot be the feature's number, or an index outside the width.

        Example:
          >>> import tempfile
          >>> from pathlib import Path
          >>> from atlas_jax.labels import Labels
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     _ = Path(directory, "mine.csv").write_text("feature,label\\n3,dogs\\n5,cats\\n")
          ...     Labels.load(f"{directory}/mine.csv", n_features=8)[3]
          'dogs'
        """
        only = dict(only or {}) | ({} if layer is None else {"layer": str(layer)})
        width, rows, origin = read_labels(Path(path), columns, format, only=only, site=site)
        if width is None:
            return cls.from_rows(rows, n_features, prefer, origin)
        if n_features not in (None, width):
            raise AtlasError(f"{path} holds labels of {width} features, and {n_features} were expected")
        return cls(_checked_width(rows, width), _grouped(rows), origin)

    def save(self, path: str | Path) -> None:
        """Write all labels as JSONL: a line with the width, then a line a label, chosen ones first.

        Example:
          >>> import tempfile
          >>> from atlas_jax.labels import Label, Labels
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     Labels.from_rows([Label(0, "cats")], n_features=4).save(f"{directory}/labels.jsonl")
          ...     len(Labels.load(f"{directory}/labels.jsonl"))
          4
        """
        rows = (label for index in sorted(self.entries) for label in self.entries[index])
        head = {"n_features": self.n_features} | {k: v for k, v in self.origin._asdict().items() if v}
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            for line in itertools.chain([head], (row._asdict() for row in rows)):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def chosen(self, index: int) -> Label | None:
        """Return the chosen label of a feature, None where it has none.

        Raises:
          AtlasError: for an index outside the width.
        """
        if not 0 <= index < self.n_features:
            raise AtlasError(f"feature {index} does not exist; indices run from 0 to {self.n_features - 1}")
        first = self.entries.get(index, (None,))[0]
        return first if first is not None and first.polarity == "positive" else None

    def alternatives(self, index: int) -> tuple[Label, ...]:
        """Return the labels of a feature that were not chosen, best first."""
        return self.entries.get(index, ())[0 if self.chosen(index) is None else 1 :]

    def __getitem__(self, index: int) -> str | None:
        label = self.chosen(index)
        return None if label is None else label.description

    def __len__(self) -> int:
        return self.n_features

    def described(self) -> list[int]:
        """Return the features that have a chosen label, in order."""
        return sorted(index for index, group in self.entries.items() if group[0].polarity == "positive")

    def missing(self) -> list[int]:
        """Return the features that have no chosen label, in order."""
        return sorted(set(range(self.n_features)).difference(self.described()))

    @property
    def coverage(self) -> float:
        """Share of the features that have a chosen label."""
        return len(self.described()) / self.n_features


def _grouped(rows: Iterable[Label]) -> dict[int, tuple[Label, ...]]:
    entries: dict[int, list[Label]] = {}
    for row in rows:
        entries.setdefault(row.index, []).append(row)
    return {index: tuple(group) for index, group in entries.items()}


def _checked_width(rows: Sequence[Label], n_features: int | None) -> int:
    indices = [row.index for row in rows]
    low, high = min(indices, default=0), max(indices, default=-1)
    n_features = high + 1 if n_features is None else n_features
    if low < 0 or high >= n_features:
        wrong = low if low < 0 else high
        raise AtlasError(f"a label names feature {wrong}, and there are {n_features}: are these labels of another SAE?")
    return n_features
