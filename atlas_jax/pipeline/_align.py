"""An alignment made: the fit half streamed once, and every method solved."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from atlas_jax.checks import as_count
from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.files import kind_at
from atlas_jax.pipeline._alignment import Alignment, stream_of
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._choose import Choice, Chooser, fit_and_choose, merge_choices, solve_choice
from atlas_jax.pipeline._fit import fit_statistics, solve
from atlas_jax.pipeline._pair import Pair
from atlas_jax.pipeline._run_files import AlignSettings, asked_for, check_same
from atlas_jax.pipeline._stream import BLOCK, SentenceStream
from atlas_jax.progress import Progress
from atlas_jax.sharding import mesh_of
from atlas_jax.stored import StoredModel
from atlas_jax.translation import Translation
from atlas_jax.translators import needs_of
from atlas_jax.types import Site

_KINDS = "translations", "steering"


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
    at_once: int | None = None,
    host_statistics: bool = False,
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
      at_once: sites whose statistics are held together; where there are more, the text is read once for each so many of
        them, and a sentence whose activations are not finite at one is left out for those read with it alone. All by
        default.
      host_statistics: hold the statistics and solve in the memory of the host: slower, for what no device has room.

    Raises:
      AtlasError: for ``host_statistics`` on several devices or with a chooser, an unknown method, activations that are
        not finite in many sentences, or checkpoints of another run.
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
    for space in (subject, atlas):
        if isinstance(space.model, StoredModel):
            space.model.check_corpus((corpus.fit, corpus.eval), corpus.hash)
    if host_statistics and (chooser is not None or mesh_of(subject) is not None):
        raise AtlasError("statistics in host memory are for one device and without a chooser; leave one of them out")
    if checkpoints is not None:
        names = () if chooser is None else chooser.names
        checkpoints.fingerprint = fingerprint(pair, corpus, settings) | {"chosen": list(names)}
    size = len(subject.sites) if at_once is None else as_count(at_once, "at_once")
    sites = sorted(subject.sites)
    groups = [tuple(sites[i : i + size]) for i in range(0, len(sites), size)]
    device = jax.local_devices(backend="cpu")[0] if host_statistics else None
    fits = []
    for number, group in enumerate(groups):
        saved = checkpoints
        if checkpoints is not None and len(groups) > 1:
            saved = checkpoints.of_part(f"part-{number}", sites=[str(site) for site in group])
        stream = stream_of(dataclasses.replace(subject, sites=group), atlas, corpus, settings, "fit")
        fit = _fit_sites(stream, settings, chooser, progress=progress, checkpoints=saved, device=device)
        fits.append(_on_host(fit) if host_statistics or len(groups) > 1 else fit)
    translations, steering = ({k: t for fit in fits for k, t in getattr(fit, name).items()} for name in _KINDS)
    left_out = sorted({row for fit in fits for row in fit.left_out})
    choice = None if chooser is None else merge_choices([fit.choice for fit in fits])
    versions = {name: importlib.metadata.version(name) for name in ("jax", "atlas-jax")}
    sources = sources | {"corpus": {"hash": corpus.hash, **corpus.statistics._asdict()}, **versions}
    more = {"left_out": tuple(left_out), "choice": choice, "steering": steering}
    return Alignment(subject, atlas, corpus, settings, sources, translations, fits[0].rate, **more)


class _Fit(NamedTuple):
    """What one pass over some of the sites gives."""

    translations: dict[tuple[Site, str], Translation]
    steering: dict[tuple[Site, str], Translation]
    choice: Choice | None
    left_out: list[int]
    rate: Float[np.ndarray, " d_c"]


def _fit_sites(
    stream: SentenceStream,
    settings: AlignSettings,
    chooser: Chooser | None,
    *,
    progress: Progress | None,
    checkpoints: Checkpoints | None,
    device: jax.Device | None,
) -> _Fit:
    """Stream the fit half through the sites of a stream, and solve every method at each."""
    needs, choice = needs_of(settings.methods), None
    steered = settings.steer_chosen(() if chooser is None else chooser.names)
    further = {}
    if settings.steer_pooling:
        further = {settings.steer_pooling: needs_of(settings.steer_methods) | (chooser.needs if steered else set())}
    options = {"top_k": settings.top_k, "further": further, "progress": progress, "checkpoints": checkpoints}
    if chooser is None:
        fitted = fit_statistics(stream, needs, device=device, **options)
    else:
        needs |= chooser.needs
        fitted, choice = fit_and_choose(stream, needs, chooser, seed=settings.seed, **options)
    translations = solve(stream, fitted, settings.methods, progress=progress, checkpoints=checkpoints)
    steering = solve(stream, fitted, settings.steer_methods, pooling=settings.steer_pooling)
    if choice is not None:
        others = [name for name in chooser.names if name not in steered]
        translations |= solve_choice(fitted, choice, settings.pooling, others)
        steering |= solve_choice(fitted, choice, settings.steer_pooling or settings.pooling, steered)
    rate = np.asarray(fitted.active) / (stream.size - len(fitted.faulty))
    return _Fit(translations, steering, choice, fitted.faulty, rate)


def _on_host(fit: _Fit) -> _Fit:
    """Translations as numpy arrays, so that they leave the device to the next pass."""
    host = lambda t: jax.tree.map(lambda x: np.asarray(x) if x.is_fully_addressable else x, t)
    return fit._replace(**{name: {k: host(t) for k, t in getattr(fit, name).items()} for name in _KINDS})


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
    return {name: value for name, value in dataclasses.asdict(settings).items() if value != ()} | {
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
