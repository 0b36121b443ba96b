"""An alignment: a subject, an atlas, the corpus both read, and the translations; saved as a run directory."""

import dataclasses
import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.files import RUN, directory_hash, kind_at, reading, write_json
from atlas_jax.models import LanguageModel, fingerprint_difference, is_small, numerical_fingerprint, resolve
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._choose import Choice, Chooser, fit_and_choose, solve_choice
from atlas_jax.pipeline._fit import fit_statistics, solve
from atlas_jax.pipeline._run_files import (
    AGAIN,
    AlignSettings,
    Record,
    asked_for,
    check_same,
    read_rate,
    read_top,
    read_translation,
)
from atlas_jax.pipeline._stream import BLOCK, SentenceStream
from atlas_jax.progress import Progress
from atlas_jax.sharding import is_first, mesh_of
from atlas_jax.statistics import TopK
from atlas_jax.subject import Subject
from atlas_jax.translation import Translation
from atlas_jax.translators import needs_of
from atlas_jax.types import FeatureSpace, Site


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

    def translation(self, site: str | Site, method: str) -> Translation:
        """Return the translation of a site by a method.

        Raises:
          AtlasError: for a site or method that was not aligned, naming those that were.
        """
        key = (Site.parse(site), method)
        if key not in self.translations:
            sites, methods = (
                ", ".join(dict.fromkeys(map(str, names))) for names in zip(*self.translations, strict=True)
            )
            raise AtlasError(f"this run has no translation of {key[0]} by {method}; it has {sites}, each by {methods}")
        return self.translations[key]

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
        fingerprints = {name: numerical_fingerprint(space) for name, space in spaces.items()}
        for (site, method), translation in self.translations.items():
            translation.save_pretrained(directory / "translations" / str(site) / method, dtype=dtype)
        if not is_first():
            return
        for site, top in (self.top or {}).items():
            (directory / "top").mkdir(exist_ok=True)
            save_file({k: np.asarray(v) for k, v in top._asdict().items()}, directory / "top" / f"{site}.safetensors")
        if self.choice is not None:
            write_json(directory / "tables" / "whitened.json", self.choice.record)
        np.save(directory / "rate.npy", self.rate)
        self.corpus.save(directory / "corpus")
        chosen = [m for m in dict.fromkeys(m for _, m in self.translations) if m not in self.settings.methods]
        record = {
            "settings": dataclasses.asdict(self.settings),
            "sources": dict(self.sources),
            "left_out": list(self.left_out),
            "chosen": chosen,
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
        pair = load_pair(sources["subject"]["path"], sources["atlas"]["path"], settings)
        if changed := [k for k in ("subject", "atlas") if pair.sources[k]["sha256"] != sources[k]["sha256"]]:
            path = sources[changed[0]]["path"]
            raise AtlasError(f"the {changed[0]} at {path} is not what this run was made with; align again")
        for name, space in {"subject": pair.subject, "atlas": pair.atlas}.items():
            _verify(name, space, record.fingerprints.get(name), verify)
        with reading(directory / "corpus", AGAIN):
            corpus = Corpus.load(directory / "corpus")
        width = pair.atlas.width
        translations = {
            (site, method): read_translation(directory, site, method, (d_s, width))
            for site, d_s in pair.subject.widths.items()
            for method in record.methods
        }
        top, rate = None, read_rate(directory, width)
        if record.top:
            top = {site: read_top(directory, site, d_s, corpus) for site, d_s in pair.subject.widths.items()}
        return cls(pair.subject, pair.atlas, corpus, settings, sources, translations, rate, top, record.left_out)


def _verify(name: str, space: FeatureSpace, recorded: Mapping[str, Any] | None, verify: bool | None) -> None:
    """Warn if a forward pass is no longer the recorded one."""
    wanted = is_small(space.model) if verify is None else verify
    if wanted and recorded and (changed := fingerprint_difference(recorded, space)):
        warnings.warn(
            f"the {name} no longer computes what this run was made with: {changed}; align again, or go back to the "
            "versions in run.json",
            stacklevel=3,
        )


class Pair(NamedTuple):
    """Both feature spaces of an alignment, loaded.

    Attributes:
      subject: the subject and its sites.
      atlas: the Concept Atlas.
      sources: their paths, and hashes of the files there.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> pair.subject.widths, pair.atlas.width
      ({Site('mlp_act.1'): 384}, 1536)
    """

    subject: Subject
    atlas: ConceptAtlas
    sources: dict[str, Any]


def load_pair(subject: str | Path, atlas: str | Path, settings: AlignSettings, mesh: Mesh | None = None) -> Pair:
    """Load both models and check the settings against them.

    Args:
      subject: the subject model's directory or hub name.
      atlas: the atlas's directory or hub name.
      settings: sites, methods, pooling and dtype.
      mesh: the devices for the parameters, and for everything that is computed with them.

    Raises:
      AtlasError: for anything wrong with a path, a model, a site, a method, the pooling or the dtype.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> len(pair.sources["subject"]["sha256"])
      64
    """
    paths = {"subject": resolve(subject).absolute(), "atlas": resolve(atlas).absolute()}
    sources = {name: {"path": str(path), "sha256": directory_hash(path)} for name, path in paths.items()}
    model = LanguageModel.from_pretrained(paths["subject"], dtype=settings.dtype, mesh=mesh)
    spaces = Subject.from_model(model, settings.sites, settings.pooling)
    return Pair(spaces, ConceptAtlas.from_pretrained(paths["atlas"], dtype=settings.dtype, mesh=mesh), sources)


def is_finished(
    directory: str | Path,
    pair: Pair,
    corpus: Corpus,
    settings: AlignSettings,
    chooser: Chooser | None = None,
    *,
    dtype: str = "float32",
) -> bool:
    """Return true if a directory holds the run that :func:`align` would make of these arguments, saved in this dtype.

    Raises:
      AtlasError: if it holds another run, naming every difference.

    Example:
      >>> from atlas_jax import AlignSettings, build_corpus, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.corpus import Document
      >>> from atlas_jax.pipeline import is_finished
      >>> settings = AlignSettings(("mlp_act.1",), ("covariance",))
      >>> pair = load_pair(SUBJECT, ATLAS, settings)
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All entries are real."
      >>> corpus = build_corpus([Document(text, "matrices", "example")], percentiles=(0, 100))
      >>> is_finished("no/such/run", pair, corpus, settings)
      False
    """
    if kind_at(directory) != "a run":
        return False
    hashes = {name: source["sha256"] for name, source in pair.sources.items()}
    names = () if chooser is None else chooser.names
    check_same(Path(directory), asked_for(settings, hashes, corpus.hash, names, dtype))
    return True


def align(
    pair: Pair,
    corpus: Corpus,
    settings: AlignSettings,
    *,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    chooser: Chooser | None = None,
) -> Alignment:
    """Stream the fit half once, and solve every method at every site.

    Args:
      pair: the subject and the atlas, see :func:`load_pair`.
      corpus: the sentences.
      settings: methods and the rest; the sites are the pair's.
      progress: called after every batch of each pass.
      checkpoints: where the passes are saved now and then; a run stopped at any moment and started again with the
        same arguments ends with the same bits.
      chooser: chooses members of the whitened family on a part of the fit half, see
        :class:`atlas_jax.experiments.Chooser`; they become translations beside the methods.

    Raises:
      AtlasError: for an unknown method, activations that are not finite in many sentences, or checkpoints of another
        run.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.

    Example:
      >>> from atlas_jax import AlignSettings, align, build_corpus, load_pair  # doctest: +SKIP
      >>> from atlas_jax.bundled import ATLAS, SUBJECT  # doctest: +SKIP
      >>> from atlas_jax.corpus import Document  # doctest: +SKIP
      >>> settings = AlignSettings(("mlp_act.1",), ("covariance",))  # doctest: +SKIP
      >>> pair = load_pair(SUBJECT, ATLAS, settings)  # doctest: +SKIP
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero."  # doctest: +SKIP
      >>> text += " The trace is nil. All entries are real."  # doctest: +SKIP
      >>> text += " The trace is nil. All entries are real."  # doctest: +SKIP
      >>> corpus = build_corpus([Document(text, "matrices", "example")], percentiles=(0, 100))  # doctest: +SKIP
      >>> align(pair, corpus, settings).translation("mlp_act.1", "covariance").matrix.shape  # doctest: +SKIP
      (384, 1536)
    """
    subject, atlas, sources = pair
    needs, choice = needs_of(settings.methods), None
    stream = stream_of(subject, atlas, corpus, settings, "fit")
    if checkpoints is not None:
        names = () if chooser is None else chooser.names
        checkpoints.fingerprint = fingerprint(pair, corpus, settings) | {"chosen": list(names)}
    options = {"top_k": settings.top_k, "progress": progress, "checkpoints": checkpoints}
    if chooser is None:
        fitted = fit_statistics(stream, needs, **options)
    else:
        needs |= chooser.needs
        fitted, choice = fit_and_choose(stream, needs, chooser, seed=settings.seed, **options)
    translations = solve(stream, fitted, settings.methods, progress=progress, checkpoints=checkpoints)
    if choice is not None:
        translations |= solve_choice(fitted, choice)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "atlas-jax")}
    sources = sources | {"corpus": {"hash": corpus.hash, **corpus.statistics._asdict()}, **versions}
    rate = np.asarray(fitted.active) / (len(corpus.fit) - len(fitted.faulty))
    left_out = tuple(fitted.faulty)
    return Alignment(subject, atlas, corpus, settings, sources, translations, rate, left_out=left_out, choice=choice)


def fingerprint(pair: Pair, corpus: Corpus, settings: AlignSettings) -> dict[str, Any]:
    """Return all that decides the bits of an alignment, as plain values, for a checkpoint to agree with.

    Models and SAE enter by the hashes of their files, the corpus by its own.

    Example:
      >>> from atlas_jax import AlignSettings, build_corpus, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.corpus import Document
      >>> from atlas_jax.pipeline import fingerprint
      >>> settings = AlignSettings(("mlp_act.1",), ("covariance",))
      >>> pair = load_pair(SUBJECT, ATLAS, settings)
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All entries are real."
      >>> corpus = build_corpus([Document(text, "matrices", "example")], percentiles=(0, 100))
      >>> fingerprint(pair, corpus, settings)["sites"]
      ['mlp_act.1']
    """
    device = jax.devices()[0]
    return dataclasses.asdict(settings) | {
        "sites": [str(site) for site in pair.subject.sites],
        "subject": pair.sources["subject"]["sha256"],
        "atlas": pair.sources["atlas"]["sha256"],
        "corpus": corpus.hash,
        "sentences": len(corpus.fit),
        "block": BLOCK,
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "mesh": str(dict(mesh.shape)) if (mesh := mesh_of(pair.subject)) else None,
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "atlas-jax": importlib.metadata.version("atlas-jax"),
    }


def stream_of(
    subject: Subject, atlas: ConceptAtlas, corpus: Corpus, settings: AlignSettings, half: str
) -> SentenceStream:
    """Return a pass of subject and atlas over one half of a corpus."""
    texts: Sequence[str] = corpus.fit if half == "fit" else corpus.eval
    first = 0 if half == "fit" else len(corpus.fit)
    options = {"max_length": settings.max_length, "token_budget": settings.token_budget}
    return SentenceStream.from_texts([subject, atlas], texts, first=first, **options)
