"""The contents of a run directory, and a concept token by token in a text, as atlas and subject see it."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._identify import check_query
from atlas_jax.files import read_json, reading
from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline._run_files import AGAIN, Record, folder_of
from atlas_jax.rows import unit
from atlas_jax.table import Column, Marked, Table
from atlas_jax.translation import RECORD, Translation
from atlas_jax.types import Site, Tokens

MB = 1e6
BUCKET = 32


class RunFacts(NamedTuple):
    """A run in plain values.

    Attributes:
      facts: names and values: models, corpus, settings, versions, sizes.
      translations: a row a site and method: pooling, shape, the site's mean token norm, the strength suggested for
        steering, whether the certificate is within its tolerances (None where it judges nothing), bytes.

    Example:
      >>> from atlas_jax.experiments import RunFacts
      >>> RunFacts({"fit sentences": 20000}, []).tables()[0].rows
      [('fit sentences', '20000')]
    """

    facts: dict[str, Any]
    translations: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict()

    as_json = to_dict

    def tables(self) -> list[Table]:
        """Tabulate the run's facts, its sites and its translations."""
        facts = [(name, _shown(name, value)) for name, value in self.facts.items()]
        known = lambda value: "unknown" if value is None else value
        sites = [
            (r["site"], r["subject features"], r["atlas features"], known(r["token norm"]), known(r["strength"]))
            for r in {row["site"]: row for row in self.translations}.values()
        ]
        judged = {True: "within", False: "misses", None: "-"}
        solved = [
            (r["site"], r["method"], known(r["pooling"]), judged[r["within tolerances"]], r["bytes"] / MB)
            for r in self.translations
        ]
        norm = (
            "token norm: mean length of the site's activation at a token, the unit of strengths; strength: the largest "
            "that leaves neutral text its sense, the default of atlas-jax steer"
        )
        certificate = "certificate: whether the solution is within its tolerances, - where it judges nothing"
        widths = Column("subject features", "d"), Column("atlas features", "d")
        units = Column("token norm", ".4g"), Column("strength", "g")
        size = Column("size", ".1f", " MB")
        return [
            Table("Run", (Column(), Column()), facts),
            Table("Sites", (Column("site"), *widths, *units), sites, norm),
            Table(
                "Translations",
                (Column("site"), Column("method"), Column("pooling"), Column("certificate"), size), solved, certificate,
            ),
        ]  # fmt: skip


def run_facts(directory: str | Path) -> RunFacts:
    """Describe the run in a directory.

    Raises:
      AtlasError: if it is no run, or a file of it is missing or damaged.

    Example:
      >>> from atlas_jax.experiments import run_facts  # doctest: +SKIP
      >>> run_facts("runs/quickstart").facts["fit sentences"]       # doctest: +SKIP
      20000
    """
    directory = Path(directory)
    record = Record.read(directory)
    with reading(directory / "corpus" / "corpus.json", AGAIN):
        corpus = read_json(directory / "corpus" / "corpus.json")
        facts = _facts(directory, record, corpus)
    steering = [(method, record.settings.steer_pooling) for method in record.steering]
    each = [*((method, None) for method in record.methods), *steering]
    rows = [_translation(directory, site, *of) for site in record.settings.sites for of in each]
    strengths = {str(site): strength for site, strength in record.strengths.items()}
    return RunFacts(facts, [row | {"strength": strengths.get(row["site"])} for row in rows])


def _facts(directory: Path, record: Record, corpus: Mapping[str, Any]) -> dict[str, Any]:
    settings, sources = dataclasses.asdict(record.settings), record.sources
    facts = {name: _source(sources[name]) for name in ("subject", "atlas")}
    facts |= {f"{name} hash": sources[name]["sha256"] for name in ("subject", "atlas")}
    facts |= {"sites": list(settings["sites"]), "methods": list(record.methods)}
    facts |= {"fit sentences": corpus["n_fit"], "held-out sentences": corpus["n_eval"], "corpus hash": corpus["hash"]}
    facts |= {"sentences left out": len(record.left_out)}
    facts |= {k.replace("_", " "): v for k, v in settings.items() if k not in ("sites", "methods")}
    facts |= {"strongest sentences": _names(directory / "top", "*.safetensors"), "tables": _names(directory / "tables")}
    facts |= {name: sources.get(name, "unknown") for name in ("jax", "atlas-jax")}
    return facts | {"bytes": _bytes(directory)}


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value / MB:.1f} MB" if name == "bytes" else str(value) or "none"


def _source(source: Mapping[str, Any]) -> str:
    path = source["path"]
    return path if Path(path).is_dir() else f"{path} (no longer there)"


def _translation(directory: Path, site: str, method: str, pooling: str | None) -> dict[str, Any]:
    folder = folder_of(directory, site, method, pooling)
    with reading(folder / RECORD, AGAIN):
        record = read_json(folder / RECORD)
        (d_s, d_c), certificate = record["shape"], record["certificate"]
        return {
            "site": site,
            "method": method if pooling is None else f"{method}:{pooling}",
            "pooling": record.get("pooling"),
            "subject features": d_s,
            "atlas features": d_c,
            "token norm": record.get("token_norm"),
            "within tolerances": certificate.get("within_tolerance"),
            "bytes": _bytes(folder),
        }


def _names(directory: Path, pattern: str = "*") -> Sequence[str]:
    return sorted(path.stem for path in directory.glob(pattern))


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


class Traced(NamedTuple):
    """Values at the tokens of a text, those left out of pooling (BOS, special tokens) left out here too.

    Attributes:
      tokens: the part of the text that each token stands for.
      values: float32, one column a feature or site.
      title: of the table.
      columns: of the table, one a feature or site.
      caption: of the table.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments import Traced
      >>> from atlas_jax.table import Column
      >>> traced = Traced(["the", " font"], np.array([[0.0], [2.5]], np.float32), "Trace", (Column("17"),), "")
      >>> traced.to_dict()["values"]
      [[0.0], [2.5]]
    """

    tokens: list[str]
    values: Float[np.ndarray, "t c"]
    title: str
    columns: tuple[Column, ...]
    caption: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"tokens": self.tokens, "values": self.values.tolist()}

    as_json = to_dict

    def table(self) -> Table:
        """Tabulate the tokens; zeros are blank, and the largest value of each column stands out."""
        highest, rows = self.values.argmax(axis=0).tolist(), []
        for i, (token, values) in enumerate(zip(self.tokens, self.values.tolist(), strict=True)):
            cells = [Marked(x) if x and i == top else x or None for x, top in zip(values, highest, strict=True)]
            rows.append((token.replace("\n", "⏎").replace(" ", "␣"), *cells))
        return Table(self.title, (Column("token"), *self.columns), rows, self.caption)


def token_features(atlas: ConceptAtlas, text: str, features: Sequence[int]) -> Traced:
    """Return SAE activations of some atlas features at every token of a text, ``[t, f]``.

    Raises:
      AtlasError: for an empty text, one longer than the model's context, or a feature the atlas does not have.

    Example:
      >>> from atlas_jax import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.experiments import token_features
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> token_features(atlas, "The font family", [17, 40]).values.shape[1]
      2
    """
    atlas.query(features)
    tokens = _tokens(atlas.model, text)
    values = _features(atlas, tokens, jnp.asarray(features, jnp.int32))
    columns = tuple(Column(str(i), ".2f") for i in features)
    caption = "activation of each atlas feature; blank where it is 0"
    return Traced(*_traced(atlas.model, text, tokens, values), "The atlas, token by token", columns, caption)


def token_projections(
    model: LanguageModel, translations: Mapping[Site, Translation], query: Float[Array | np.ndarray, " d_c"], text: str
) -> Traced:
    """Project the activation of every token of a text on the concept, at every site, ``[t, sites]``.

    That is ``x · s_c / |s_c|`` with the similarity vector ``s_c`` of Eq. 3, divided by the site's mean token norm where
    that is known: a token has as much of the concept as steering at that strength would add.

    Raises:
      AtlasError: for an empty text, one longer than the model's context, or a query that is zero or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import LanguageModel, Site, Translation
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.experiments import token_projections
      >>> lm, site = LanguageModel.from_pretrained(SUBJECT), Site("resid_post", 2)
      >>> t = Translation(jnp.eye(lm.config.width("resid_post"), 3), jnp.zeros(2), jnp.zeros(3), "covariance", site)
      >>> token_projections(lm, {site: t}, jnp.ones(3), "The font family").values.shape[1]
      1
    """
    check_query(query)
    tokens = _tokens(model, text)
    directions = {}
    for site, translation in translations.items():
        similarity = translation.similarity(query)
        length = jnp.linalg.norm(similarity) * (translation.token_norm or 1.0)
        directions[site] = similarity / jnp.where(length > 0, length, 1.0)
    along = _projections(model, tokens, directions)
    values = jnp.stack([along[site] for site in translations], axis=-1)
    title = f"The subject, token by token, by {', '.join(dict.fromkeys(t.method for t in translations.values()))}"
    columns = tuple(Column(str(site), ".3f") for site in translations)
    caption = f"length of the activation along the concept, {_unit_of_length(translations)}"
    return Traced(*_traced(model, text, tokens, values), title, columns, caption)


def token_concepts(model: LanguageModel, translation: Translation, text: str) -> Traced:
    """Project every token of a text on every concept of the atlas, as one site sees it, ``[t, d_c]``.

    That is :func:`token_projections` of each atlas feature by itself, after ``mean_subject`` is subtracted, for what is
    the same at most tokens would come first everywhere. Translations of mean pooling serve best, whose means are those
    of tokens (``alignment.recommended("steer")``).

    Raises:
      AtlasError: for an empty text, one longer than the model's context, or a translation without a site.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import LanguageModel, Site, Translation
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.experiments import token_concepts
      >>> lm, site = LanguageModel.from_pretrained(SUBJECT), Site("resid_post", 2)
      >>> t = Translation(jnp.eye(128, 3), jnp.zeros(128), jnp.zeros(3), "covariance", site)
      >>> token_concepts(lm, t, "The font family").values.shape[1]
      3
    """
    if translation.site is None:
        raise AtlasError("this translation has no site, so there is nothing of the model to read by it")
    tokens = _tokens(model, text)
    values = _concepts(model, tokens, translation, translation.site) / (translation.token_norm or 1.0)
    columns = tuple(Column(str(i), ".3f") for i in range(translation.d_c))
    caption = f"length of the activation along each concept, {_unit_of_length({translation.site: translation})}"
    title = f"Concepts at {translation.site}, token by token, by {translation.described}"
    return Traced(*_traced(model, text, tokens, values), title, columns, caption)


def _unit_of_length(translations: Mapping[Site, Translation]) -> str:
    known = [str(site) for site, t in translations.items() if t.token_norm is not None]
    if not known:
        return "in units of the activation"
    elsewhere = f" at {', '.join(known)}, and in units of the activation elsewhere"
    return "in mean token norms of the site" + elsewhere * (len(known) < len(translations))


def _tokens(model: LanguageModel, text: str) -> Tokens:
    """Tokens of a text, padded so that texts of several lengths share one compiled program."""
    length = model.tokenize(text).ids.shape[1]
    tokens = model.tokenize(text, length=min(-(-length // BUCKET) * BUCKET, model.config.max_positions))
    if not bool(tokens.mask.any()):
        raise AtlasError("the text to inspect has no token; give some words")
    return tokens


def _traced(
    model: LanguageModel, text: str, tokens: Tokens, values: Float[Array, "1 t c"]
) -> tuple[list[str], Float[np.ndarray, "n c"]]:
    """Return the text and the values of the tokens that count."""
    places = np.flatnonzero(np.asarray(tokens.mask[0]))
    spans = model.tokenizer.spans([text])[0]
    return [text[slice(*spans[place])] for place in places.tolist()], np.asarray(values[0, places], np.float32)


@jax.jit
def _features(atlas: ConceptAtlas, tokens: Tokens, features: Int[Array, " f"]) -> Float[Array, "1 t f"]:
    pool = lambda x: atlas.sae.encode(x)[..., features]
    return forward(atlas.model.decoder, tokens, capture=atlas.sites, logits=False, pool=pool).acts[atlas.site]


@jax.jit
def _projections(
    model: LanguageModel, tokens: Tokens, directions: dict[Site, Float[Array, " _"]]
) -> dict[Site, Float[Array, "1 t"]]:
    acts = forward(model.decoder, tokens, capture=tuple(directions), logits=False).acts
    along = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    return {site: along(acts[site].astype(jnp.float32), direction) for site, direction in directions.items()}


@partial(jax.jit, static_argnames=("site",))
def _concepts(model: LanguageModel, tokens: Tokens, translation: Translation, site: Site) -> Float[Array, "1 t d_c"]:
    x = forward(model.decoder, tokens, capture=(site,), logits=False).acts[site].astype(jnp.float32)
    similarity = unit(translation.matrix)
    norm = jnp.linalg.norm(similarity, axis=0)
    along = jnp.matmul(x - translation.mean_subject[None, None], similarity, precision=jax.lax.Precision.HIGHEST)
    return along / jnp.where(norm > 0, norm, 1.0)[None, None]
