"""An alignment: a subject, an atlas, the corpus both read, and the translations; saved as a run directory."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.files import RUN, reading, write_json
from atlas_jax.models import fingerprint_difference, is_small, numerical_fingerprint
from atlas_jax.pipeline._choose import Choice
from atlas_jax.pipeline._pair import load_pair
from atlas_jax.pipeline._run_files import (
    AGAIN,
    AlignSettings,
    Record,
    folder_of,
    read_rate,
    read_top,
    read_translation,
)
from atlas_jax.pipeline._stream import SentenceStream
from atlas_jax.sharding import is_first
from atlas_jax.statistics import TopK
from atlas_jax.stored import StoredModel
from atlas_jax.subject import Subject
from atlas_jax.table import Column, Table
from atlas_jax.translation import Translation
from atlas_jax.types import FeatureSpace, Site

PREFERRED = {
    "identify": ("correlation", "procrustes"),
    "detect": ("whitened_detect", "procrustes"),
    "retrieve": ("whitened_lens", "whitened_retrieve", "procrustes"),
    "steer": ("whitened_steer", "covariance", "procrustes"),
}


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The result of an alignment run.

    Attributes:
      subject: the subject and its sites.
      atlas: the Concept Atlas.
      corpus: the sentences, in a fit and an eval half.
      settings: of the fit.
      sources: names and content hashes of subject, atlas and corpus.
      translations: by site and method.
      rate: share of the fit half in which each atlas feature fires ``[d_c]``.
      top: by site, the held-out sentences that activate each subject feature most; None before they are computed.
      left_out: sentences of the fit half with activations that are not finite, in no statistic.
      steering: by site and method, the translations made for steering, of another pooling than ``translations``.
      strengths: by site, a strength to steer with, see :func:`atlas_jax.experiments.suggested_strength`.
      choice: the members of the whitened family chosen on a part of the fit half, where any were asked for; a run
        that was read back has their translations, and the grid in ``tables/whitened.json``.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> query = run.atlas.query_text("dictionary")  # doctest: +SKIP
      >>> run.translation("mlp_act.1", "procrustes").top_features(query).features.shape  # doctest: +SKIP
      (10,)
    """

    subject: Subject
    atlas: ConceptAtlas
    corpus: Corpus
    settings: AlignSettings
    sources: Mapping[str, Any]
    translations: Mapping[tuple[Site, str], Translation]
    rate: np.ndarray
    top: Mapping[Site, TopK] | None = None
    left_out: tuple[int, ...] = ()
    choice: Choice | None = None
    steering: Mapping[tuple[Site, str], Translation] = dataclasses.field(default_factory=dict)
    strengths: Mapping[Site, float] = dataclasses.field(default_factory=dict)

    def _repr_html_(self) -> str:
        columns = Column("site", group=True), Column("method"), Column("features", "d"), Column("token norm", ".3g")
        known = [*self.translations.items(), *self.steering.items()]
        rows = [(str(site), t.described, t.d_s, t.token_norm) for (site, _), t in known]
        sizes = f"{len(self.corpus.fit)} sentences to fit, {len(self.corpus.eval)} to measure"
        title = f"Alignment to {self.atlas.width} features of an atlas, {sizes}"
        return Table(title, columns, sorted(rows, key=lambda row: row[:2]))._repr_html_()

    def translation(self, site: str | Site, method: str, pooling: str | None = None) -> Translation:
        """Return the translation of a site by a method.

        Args:
          site: the subject site.
          method: its name, or ``METHOD:POOLING``.
          pooling: of the subject's activations; by default that of the settings, and that for steering where the method
            was solved with it alone.

        Raises:
          AtlasError: for a site, method or pooling that was not aligned, naming those that were.
        """
        name, _, given = method.partition(":")
        site, pooling = Site.parse(site), pooling or given
        for known in (self.translations, self.steering):
            t = known.get((site, name))
            if t is not None and pooling in ("", None, t.pooling or self.settings.pooling):
                return t
        sites = ", ".join(dict.fromkeys(str(s) for s, _ in self.translations))
        asked = f"{name} with {pooling} pooling" if pooling else name
        raise AtlasError(
            f"this run has no translation of {site} by {asked}; it has {sites}, each by {', '.join(self.methods)}"
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all translations of a site, as ``METHOD``, and ``METHOD:POOLING`` where the pooling is another."""
        others = [f"{m}:{self.settings.steer_pooling}" for _, m in self.steering]
        return tuple(dict.fromkeys([*(m for _, m in self.translations), *others]))

    def recommended(self, use: str) -> tuple[str, str]:
        """Return the method and the pooling to use where none is asked for.

        To "identify" a concept's features, or name one, that is the correlation, whose rows single features of both
        models share best; to "retrieve" the whitened lens; to "detect", "retrieve" or "steer" the member of the
        whitened family that was chosen for it; for steering without one the first method made for it, or covariance;
        without these Procrustes, and without that the first method of the run. A member chosen for detection does not
        stand in for retrieval, nor the other way about: each is worse there than Procrustes.

        Raises:
          AtlasError: for another use.
        """
        if use not in PREFERRED:
            raise AtlasError(f"unknown use '{use}' of a translation; known are {', '.join(PREFERRED)}")
        of_steering = use == "steer" and bool(self.steering)
        there = dict.fromkeys(m for _, m in (self.steering if of_steering else self.translations))
        pooling = self.settings.steer_pooling if of_steering else self.settings.pooling
        preferred = PREFERRED[use][:1] if of_steering else PREFERRED[use]
        return next((m for m in preferred if m in there), next(iter(there))), pooling

    def strongest(self, site: str | Site) -> TopK:
        """Return the held-out sentences that activate each feature of a site most.

        Raises:
          AtlasError: for a site that was not aligned, or if they were not computed.
        """
        site = Site.parse(site)
        if self.top is None or site not in self.top:
            raise AtlasError(f"this run does not know the strongest sentences of {site}; {AGAIN}")
        return self.top[site]

    def stream(self, half: str) -> SentenceStream:
        """Return a pass of subject and atlas over the "fit" or the "eval" half."""
        return stream_of(self.subject, self.atlas, self.corpus, self.settings, half)

    def save(self, directory: Path, *, dtype: str = "float32") -> None:
        """Write the run into a directory (see :func:`atlas_jax.files.new_directory`).

        In a run of several processes all must call this, and process 0 writes.

        Args:
          directory: where to.
          dtype: of the stored translations, "float32" or "bfloat16".
        """
        spaces = {"subject": self.subject, "atlas": self.atlas}
        computed = {name: space for name, space in spaces.items() if not isinstance(space.model, StoredModel)}
        fingerprints = {name: numerical_fingerprint(space) for name, space in computed.items()}
        for known, pooling in ((self.translations, None), (self.steering, self.settings.steer_pooling)):
            for (site, method), translation in known.items():
                translation.save_pretrained(folder_of(directory, site, method, pooling), dtype=dtype)
        if not is_first():
            return
        for site, top in (self.top or {}).items():
            (directory / "top").mkdir(exist_ok=True)
            save_file({k: np.asarray(v) for k, v in top._asdict().items()}, directory / "top" / f"{site}.safetensors")
        if self.choice is not None:
            write_json(directory / "tables" / "whitened.json", self.choice.record)
        np.save(directory / "rate.npy", self.rate)
        self.corpus.save(directory / "corpus")
        named = {*self.settings.methods, *self.settings.steer_methods}
        chosen = [m for m in dict.fromkeys(m for _, m in [*self.translations, *self.steering]) if m not in named]
        record = {
            "settings": dataclasses.asdict(self.settings),
            "sources": dict(self.sources),
            "left_out": list(self.left_out),
            "chosen": chosen,
            "strengths": {str(site): strength for site, strength in self.strengths.items()},
            "top": self.top is not None,
            "dtype": dtype,
            "fingerprints": fingerprints,
        }
        write_json(directory / RUN, record)

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool | None = None) -> "Alignment":
        """Read a run directory, and its models from where they were.

        Args:
          directory: where it is.
          verify: compute the forward pass of both models on a fixed text, and warn if it is no longer the one the run
            was made with; None for models of up to a billion parameters.

        Raises:
          AtlasError: if it is no run, is damaged, or a model is not where it was or not what it was.
        """
        directory = Path(directory)
        record = Record.read(directory)
        settings, sources = record.settings, record.sources
        stored = {"atlas_activations": there} if (there := sources["atlas"].get("activations")) else {}
        pair = load_pair(sources["subject"]["path"], sources["atlas"]["path"], settings, **stored)
        if changed := [k for k in ("subject", "atlas") if pair.sources[k]["sha256"] != sources[k]["sha256"]]:
            path = sources[changed[0]]["path"]
            raise AtlasError(f"the {changed[0]} at {path} is not what this run was made with; align again")
        for name, space in {"subject": pair.subject, "atlas": pair.atlas}.items():
            _verify(name, space, record.fingerprints.get(name), verify)
        with reading(directory / "corpus", AGAIN):
            corpus = Corpus.load(directory / "corpus")
        width, pooling = pair.atlas.width, settings.steer_pooling
        read = lambda methods, pooling=None: {
            (site, method): read_translation(directory, site, method, (d_s, width), pooling)
            for site, d_s in pair.subject.widths.items()
            for method in methods
        }
        translations, steering = read(record.methods), read(record.steering, pooling)
        top, rate = None, read_rate(directory, width)
        if record.top:
            top = {site: read_top(directory, site, d_s, corpus) for site, d_s in pair.subject.widths.items()}
        more = {"steering": steering, "strengths": record.strengths}
        return cls(
            pair.subject, pair.atlas, corpus, settings, sources, translations, rate, top, record.left_out, **more
        )


def _verify(name: str, space: FeatureSpace, recorded: Mapping[str, Any] | None, verify: bool | None) -> None:
    """Warn if a forward pass is no longer the recorded one."""
    wanted = is_small(space.model) if verify is None else verify
    if wanted and recorded and (changed := fingerprint_difference(recorded, space)):
        warnings.warn(
            f"the {name} no longer computes what this run was made with: {changed}; align again, or go back to the "
            "versions in run.json",
            stacklevel=3,
        )


def stream_of(
    subject: Subject, atlas: ConceptAtlas, corpus: Corpus, settings: AlignSettings, half: str
) -> SentenceStream:
    """Return a pass of subject and atlas over one half of a corpus."""
    texts: Sequence[str] = corpus.fit if half == "fit" else corpus.eval
    first = 0 if half == "fit" else len(corpus.fit)
    options = {"max_length": settings.max_length, "token_budget": settings.token_budget}
    return SentenceStream.from_texts([subject, atlas], texts, first=first, **options)
