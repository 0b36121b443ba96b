"""Steered texts for an evaluation: which are made, along which directions, and how they are kept on disk."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.checks import finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._steering import Unit, perplexities, steering_direction
from atlas_jax.models import LanguageModel, generate
from atlas_jax.pipeline import Alignment, SentenceStream, encode_batch
from atlas_jax.progress import Progress, unreported
from atlas_jax.steering import Steer
from atlas_jax.subject import Subject
from atlas_jax.types import FeatureSpace, Site, Tokens

UNSTEERED, PROMPTED, NATIVE = "unsteered", "prompt", "native"
CONTROLS = ("random", "other concept", "diffmean", PROMPTED, NATIVE)
ROW_BYTES = 2**31  # of keys, values and logits that decode at once
SENTENCES = 4096  # that differences of means are over
BUCKET = 32  # tokens that lengths of texts are rounded up to, so that few shapes are compiled


class SteeringConcept(NamedTuple):
    """A concept to steer along.

    Attributes:
      name: in words, as a judge is asked for it.
      features: atlas features.
      weights: one a feature.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class SteeringSettings:
    """What an evaluation of steering decodes.

    Attributes:
      concepts: what is steered along.
      prompts: texts that are continued.
      strengths: steering strengths in ``unit``, without 0, which is decoded once for all concepts.
      unit: what a strength of 1 is, see :func:`atlas_jax.experiments.steer`; "length" is ``s_c`` of unit length, so
        strengths are in units of the activation.
      sites: groups of sites that are steered at once.
      methods: translators.
      controls: of :data:`CONTROLS`.
      random: how many random directions.
      max_new_tokens: tokens that continue a prompt.
      temperature: of sampling, 0 is greedy. A prompt has the same random numbers in every cell.
      seed: of sampling and of the random directions.
      chat: prompts are messages in the model's chat template.

    Example:
      >>> from atlas_jax.experiments import SteeringConcept, SteeringSettings
      >>> dogs = SteeringConcept("dogs", (7,), (1.0,))
      >>> SteeringSettings((dogs,), ("I saw",), (0.5,), (("mlp_act.1",),), ("procrustes",)).unit
      'norm'
    """

    concepts: tuple[SteeringConcept, ...]
    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    sites: tuple[tuple[str, ...], ...]
    methods: tuple[str, ...]
    unit: Unit = "norm"
    controls: tuple[str, ...] = CONTROLS
    random: int = 3
    max_new_tokens: int = 100
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False

    def __post_init__(self) -> None:
        for name in ("concepts", "prompts", "strengths", "sites", "methods"):
            if not getattr(self, name):
                raise AtlasError(f"an evaluation of steering needs {name}; give at least one")
        finite_numbers(self.strengths, "the strength")
        strengths = tuple(s for s in dict.fromkeys(map(float, self.strengths)) if s)
        if not strengths:
            raise AtlasError("an evaluation of steering needs a strength other than 0, which is decoded anyway")
        object.__setattr__(self, "strengths", strengths)
        if unknown := [c for c in self.controls if c not in CONTROLS]:
            raise AtlasError(f"unknown control '{unknown[0]}'; known are {', '.join(CONTROLS)}")
        if len(names := {c.name for c in self.concepts}) < len(self.concepts):
            raise AtlasError(f"two concepts have one name, of {', '.join(sorted(names))}; give each its own")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self) | {"concepts": [c._asdict() for c in self.concepts]}


class Cell(NamedTuple):
    """Texts that differ only in their prompt.

    Attributes:
      concept: what is steered along, None without steering.
      method: a translator, a control, or :data:`UNSTEERED`.
      sites: steered at once, joined by "+"; empty where nothing is steered.
      strength: in the unit of the settings.
    """

    concept: str | None
    method: str
    sites: str
    strength: float


class Row(NamedTuple):
    """A generated text with what is measured of it without a judge.

    Attributes:
      cell: where it belongs.
      prompt: what was continued.
      seed: of its sampling.
      text: the continuation.
      ids: its token ids.
      activations: by concept, the activation of the query's atlas features on it; for a steered text of its own alone.
      perplexity: of the continuation under the unsteered model; None where it has no token.
    """

    cell: Cell
    prompt: str
    seed: int
    text: str
    ids: list[int]
    activations: dict[str, float]
    perplexity: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, one level deep."""
        return self.cell._asdict() | {k: v for k, v in self._asdict().items() if k != "cell"}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Row":
        """Read what :meth:`to_dict` returned."""
        return cls(Cell(*(content[k] for k in Cell._fields)), *(content[k] for k in cls._fields[1:]))


class Directions(NamedTuple):
    """What steering at strength 1 adds, by method, site and concept: ``[d]``.

    Attributes:
      subject: of the translators and the controls in the subject.
      native: by concept, in the foundation model at the atlas's site.
    """

    subject: dict[tuple[str, Site, str], Float[np.ndarray, " _"]]
    native: dict[str, Float[np.ndarray, " _"]]


def concept_queries(atlas: ConceptAtlas, concepts: Sequence[SteeringConcept]) -> dict[str, Float[np.ndarray, " d_c"]]:
    """Return the atlas query of every concept ``[d_c]``, by name.

    Raises:
      AtlasError: for a feature that the atlas does not have, naming the concept.
    """
    queries = {}
    for concept in concepts:
        try:
            queries[concept.name] = np.asarray(atlas.query(concept.features, concept.weights))
        except AtlasError as error:
            raise AtlasError(f"concept '{concept.name}': {error}") from None
    return queries


def read_steering_concepts(path: Path) -> tuple[SteeringConcept, ...]:
    """Read concepts from JSON lines with ``concept``, ``features`` and perhaps ``weights``.

    Raises:
      AtlasError: for a file that cannot be read, or a line that is none, with its number.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.experiments import read_steering_concepts
      >>> path = Path(tempfile.mkdtemp()) / "concepts.jsonl"
      >>> _ = path.write_text('{"concept": "dogs", "features": [3, 5]}')
      >>> read_steering_concepts(path)
      (SteeringConcept(name='dogs', features=(3, 5), weights=(1.0, 1.0)),)
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AtlasError(f"'{path}' cannot be read ({error}); give JSON lines with concept and features") from error
    concepts = [_concept(line, path, n) for n, line in enumerate(lines, 1) if line.strip()]
    if not concepts:
        raise AtlasError(f'\'{path}\' has no concept; write one a line, such as {{"concept": ..., "features": [...]}}')
    return tuple(concepts)


def _concept(line: str, path: Path, number: int) -> SteeringConcept:
    wanted = 'write {"concept": text, "features": [ids], "weights": [numbers]}, weights only where they are not 1'
    try:
        row = json.loads(line)
        name, features = row["concept"], row["features"]
        weights = row.get("weights") or [1.0] * len(features)
        whole = all(isinstance(f, int) and not isinstance(f, bool) for f in features)
        if not (isinstance(name, str) and name.strip() and features and whole and len(weights) == len(features)):
            raise ValueError
        return SteeringConcept(name, tuple(features), tuple(map(float, weights)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AtlasError(f"line {number} of '{path}' is no concept; {wanted}") from None


def plan(settings: SteeringSettings) -> list[Cell]:
    """List every cell that is decoded, in order; the first is without steering."""
    groups = ["+".join(group) for group in settings.sites]
    steered = [*settings.methods]
    steered += [f"random {i}" for i in range(settings.random)] if "random" in settings.controls else []
    steered += [c for c in ("other concept", "diffmean") if c in settings.controls]
    cells = [Cell(None, UNSTEERED, "", 0.0)]
    for concept in settings.concepts:
        cells += [Cell(concept.name, m, g, s) for m in steered for g in groups for s in settings.strengths]
    if PROMPTED in settings.controls:
        cells += [Cell(concept.name, PROMPTED, "", 0.0) for concept in settings.concepts]
    if NATIVE in settings.controls:
        cells += [Cell(None, NATIVE, "", 0.0)]
        cells += [Cell(c.name, NATIVE, "atlas", s) for c in settings.concepts for s in settings.strengths]
    return cells


def directions(alignment: Alignment, settings: SteeringSettings, *, progress: Progress | None = None) -> Directions:
    """Find what is added at strength 1 by every method and control.

    Random directions, those of another concept (the next of the list) and differences of means have the length that the
    first method's direction has there. The foundation model is steered along its own SAE's decoder; the length there is
    the same share of its mean token norm as the first method's is at the last site.

    Raises:
      AtlasError: for a translation that the run lacks, or one that knows no token norm where ``unit`` needs it.
    """
    queries = concept_queries(alignment.atlas, settings.concepts)
    sites = list(dict.fromkeys(Site.parse(site) for group in settings.sites for site in group))
    rng, names = np.random.default_rng(settings.seed), list(queries)
    along: dict[tuple[str, Site, str], np.ndarray] = {}
    means = {}
    if "diffmean" in settings.controls:
        means = difference_of_means(alignment, queries, sites, progress=progress)
    for site in sites:
        translations = {m: alignment.translation(site, m) for m in settings.methods}
        for method, translation in translations.items():
            for name, query in queries.items():
                along[method, site, name] = np.asarray(steering_direction(translation, query, settings.unit))
        for number, name in enumerate(names):
            own = along[settings.methods[0], site, name]
            size = float(np.linalg.norm(own))
            for i in range(settings.random):
                along[f"random {i}", site, name] = _of_length(rng.standard_normal(own.size), size)
            other = along[settings.methods[0], site, names[(number + 1) % len(names)]]
            along["other concept", site, name] = _of_length(other, size)
            if means:
                along["diffmean", site, name] = _of_length(means[site, name], size)
    native = {}
    if NATIVE in settings.controls:
        native = _native(alignment, settings, sites[-1], queries, along)
    return Directions(along, native)


def _of_length(x: Float[np.ndarray, " d"], size: float) -> Float[np.ndarray, " d"]:
    norm = np.linalg.norm(x)
    return (x * (size / norm if norm > 0 else 0.0)).astype(np.float32)


def _native(
    alignment: Alignment,
    settings: SteeringSettings,
    site: Site,
    queries: Mapping[str, Float[np.ndarray, " d_c"]],
    along: Mapping[tuple[str, Site, str], Float[np.ndarray, " _"]],
) -> dict[str, Float[np.ndarray, " _"]]:
    """The decoder's direction of every concept in the foundation model."""
    atlas, method = alignment.atlas, settings.methods[0]
    if (own := alignment.translation(site, method).token_norm) is None:
        raise AtlasError(
            f"the run does not know the token norm of {site}, which the native control is scaled by; align again, or "
            "leave the control out"
        )
    foundation = Subject.from_model(atlas.model, [atlas.site])
    texts = [alignment.corpus.fit[i] for i in range(min(256, len(alignment.corpus.fit)))]
    stream = SentenceStream.from_texts([foundation], texts, max_length=alignment.settings.max_length)
    total = count = 0.0
    for (tokens,) in stream.batches():
        _, norms = foundation.encode_norms(tokens)
        total += float(jnp.sum(jnp.where(tokens.index >= 0, norms[atlas.site], 0.0)))
        count += float(jnp.sum(tokens.mask & (tokens.index >= 0)[:, None]))
    share = total / count / own
    decoder = np.asarray(atlas.sae.W_dec)
    return {
        name: _of_length(query @ decoder, share * float(np.linalg.norm(along[method, site, name])))
        for name, query in queries.items()
    }


def difference_of_means(
    alignment: Alignment,
    queries: Mapping[str, Float[np.ndarray, " d_c"]],
    sites: Sequence[Site],
    *,
    sentences: int = SENTENCES,
    progress: Progress | None = None,
) -> dict[tuple[Site, str], Float[np.ndarray, " _"]]:
    """Subtract mean subject activations of fit sentences without a concept from those of sentences with it (DiffMean).

    A sentence has the concept where a feature of its query fires; no label is needed. Activations are means over the
    tokens of a sentence.

    Args:
      alignment: the run.
      queries: atlas queries by concept.
      sites: where.
      sentences: how many at most, evenly spread over the fit half.
      progress: called after every batch.

    Returns:
      ``mean(a | fires) - mean(a | does not)`` by site and concept, zero where every sentence is of one kind.
    """
    subject = Subject.from_model(alignment.subject.model, sites, "mean")
    atlas, options = alignment.atlas, alignment.settings
    fit = alignment.corpus.fit
    texts = [fit[i] for i in np.unique(np.linspace(0, len(fit) - 1, sentences).astype(int)).tolist()]
    stream = SentenceStream.from_texts(
        [subject, atlas], texts, max_length=options.max_length, token_budget=options.token_budget
    )
    weights = jnp.asarray(np.stack(list(queries.values())) != 0, jnp.float32)
    zero = lambda: {s: jnp.zeros((len(queries), d), jnp.float32) for s, d in subject.widths.items()}
    state = zero(), zero(), jnp.zeros(len(queries)), jnp.zeros(len(queries))
    for tokens_s, tokens_c in stream.batches(stage="difference of means", progress=progress):
        state = _add_means(state, subject, atlas, tokens_s, tokens_c, weights)
    with_it, without, present, absent = state
    mean = lambda total, count: np.asarray(total) / np.maximum(np.asarray(count), 1)[:, None]
    both = (np.asarray(present) > 0) & (np.asarray(absent) > 0)
    return {
        (site, name): (mean(with_it[site], present) - mean(without[site], absent))[i] * both[i]
        for site in sites
        for i, name in enumerate(queries)
    }


@partial(jax.jit, donate_argnums=0)
def _add_means(
    state: Any, subject: FeatureSpace, atlas: ConceptAtlas, tokens_s: Tokens, tokens_c: Tokens, weights: Array
) -> Any:
    acts, a_c = subject.encode(tokens_s), atlas.encode(tokens_c)[atlas.site]
    real = (tokens_s.index >= 0).astype(jnp.float32)
    fires = (jnp.dot((a_c > 0).astype(jnp.float32), weights.T) > 0).astype(jnp.float32) * real[:, None]
    rest = (1.0 - fires) * real[:, None]
    with_it, without, present, absent = state
    times = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    add = lambda total, chosen: {
        s: x + times(chosen.T, jnp.where(real[:, None] > 0, acts[s], 0.0)) for s, x in total.items()
    }
    return add(with_it, fires), add(without, rest), present + fires.sum(0), absent + rest.sum(0)


class Decoder:
    """Decodes cells a fixed number at a time, so that one program serves all, and measures what needs no judge.

    Args:
      alignment: the run.
      settings: what is decoded.
      along: returns :func:`directions`; called once something is decoded.
      row_bytes: memory for keys, values and logits of the rows that decode at once.
    """

    def __init__(
        self,
        alignment: Alignment,
        settings: SteeringSettings,
        along: Callable[[], Directions],
        row_bytes: int = ROW_BYTES,
    ) -> None:
        self.settings, self.along, self.atlas, self.model = settings, along, alignment.atlas, alignment.subject.model
        self.queries = concept_queries(alignment.atlas, settings.concepts)
        sites = dict.fromkeys(Site.parse(site) for group in settings.sites for site in group)
        self.widths = {site: self.model.config.width(site.point) for site in sites}
        self.row_bytes = row_bytes

    def chunks(self) -> list[list[Cell]]:
        """Return the cells of the plan in the groups that decode together, always the same."""
        cells, chunks = plan(self.settings), []
        for program in (lambda c: c.method not in (PROMPTED, NATIVE), lambda c: c.method == PROMPTED,
                        lambda c: c.method == NATIVE):  # fmt: skip
            chosen = [c for c in cells if program(c)]
            model = self.atlas.model if chosen and chosen[0].method == NATIVE else self.model
            size = self._cells(model)
            chunks += [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return chunks

    def _cells(self, model: LanguageModel) -> int:
        """How many cells fit the memory."""
        config, tokens = model.config, self.settings.max_new_tokens + 64
        width = np.dtype(jnp.dtype(model.decoder.norm.weight[...].dtype)).itemsize
        cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * width
        return max(1, min(self.row_bytes // (cache + 16 * config.vocab_size), 512) // len(self.settings.prompts))

    def rows(self, cells: Sequence[Cell]) -> list[Row]:
        """Decode some cells and measure their texts."""
        native = cells[0].method == NATIVE
        model = self.atlas.model if native else self.model
        full = [*cells, *[cells[-1]] * ((self._cells(model) - len(cells)) if cells[0].method != PROMPTED else 0)]
        prompts = [(cell, i, p) for cell in full for i, p in enumerate(self.settings.prompts)]
        ids = [self._ids(model, cell, prompt) for cell, _, prompt in prompts]
        options = {"max_new_tokens": self.settings.max_new_tokens, "temperature": self.settings.temperature}
        seeds = [self.settings.seed + i for _, i, _ in prompts]
        generation = generate(model, ids, edits=self._edits(full), seed=seeds, **options)
        nats = perplexities(model, ids, generation)
        kept = len(cells) * len(self.settings.prompts)
        acts = self._activations(generation.texts)[:kept]
        rows = []
        for i, (cell, number, prompt) in enumerate(prompts[:kept]):
            of = [cell.concept] if cell.concept else list(self.queries)
            activations = {name: float(acts[i, list(self.queries).index(name)]) for name in of}
            new = generation.ids[i, : generation.lengths[i]].tolist()
            rows.append(Row(cell, prompt, self.settings.seed + number, generation.texts[i], new, activations, nats[i]))
        return rows

    def _ids(self, model: LanguageModel, cell: Cell, prompt: str) -> list[int]:
        text = f"Write about {cell.concept}. {prompt}" if cell.method == PROMPTED else prompt
        if self.settings.chat and model is self.model:
            return model.chat([{"role": "user", "content": text}])
        return model.tokenizer.encode([text])[0] or model.tokenizer.encode(["\n"])[0]

    def _edits(self, cells: Sequence[Cell]) -> dict[Site, Steer]:
        count = len(self.settings.prompts)
        if cells[0].method == NATIVE:
            zero = np.zeros(self.atlas.model.config.width(self.atlas.site.point), np.float32)
            vectors = {self.atlas.site: [self.along().native.get(c.concept, zero) for c in cells]}
        else:
            vectors = {site: [self._vector(c, site) for c in cells] for site in self.widths}
        strengths = jnp.asarray(np.repeat([c.strength for c in cells], count), jnp.float32)
        return {site: Steer(jnp.asarray(np.repeat(x, count, axis=0)), strengths) for site, x in vectors.items()}

    def _vector(self, cell: Cell, site: Site) -> Float[np.ndarray, " d"]:
        """The direction of a cell at a site, zero (which changes no bit) where it does not steer."""
        steered = str(site) in cell.sites.split("+")
        zero = np.zeros(self.widths[site], np.float32)
        return self.along().subject[cell.method, site, cell.concept] if steered else zero

    def _activations(self, texts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """``a_c · q / sum |q|`` of pooled atlas activations, a column a concept."""
        limit = self.atlas.model.config.max_positions
        rows = [row[:limit] for row in self.atlas.model.tokenizer.encode(list(texts))]
        length = min(limit, -(-max(map(len, rows)) // BUCKET) * BUCKET)
        tokens = self.atlas.model.tokenizer.pad(rows, max(1, length), range(len(rows)))
        acts = np.asarray(encode_batch(self.atlas, tokens)[self.atlas.site])
        queries = np.stack(list(self.queries.values()), axis=1)
        return acts @ queries / np.abs(queries).sum(axis=0)


def decode(decoder: Decoder, path: Path, *, progress: Progress | None = None) -> list[Row]:
    """Decode what a file of generations lacks, a chunk at a time, and return all rows.

    A chunk is in the file as a whole or is decoded again, so a run that was killed ends as one that was not.

    Raises:
      AtlasError: if the file cannot be read or written.
    """
    chunks, report = decoder.chunks(), progress or unreported
    size = len(decoder.settings.prompts)
    rows = read_rows(path)
    done = 0
    ends = np.cumsum([len(c) * size for c in chunks]).tolist()
    for i, chunk in enumerate(chunks):
        start = ends[i] - len(chunk) * size
        there = [row.cell for row in rows[start : ends[i] : size]]
        if len(rows) < ends[i] or there != chunk:
            break
        done = i + 1
    rows = rows[: ends[done - 1] if done else 0]
    _rewrite(path, rows)
    report("steer", len(rows), ends[-1], 0)
    tokens = 0
    with path.open("a", encoding="utf-8", newline="\n") as file:
        for chunk in chunks[done:]:
            new = decoder.rows(chunk)
            file.write("".join(json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in new))
            file.flush()
            rows += new
            tokens += sum(len(row.ids) for row in new)
            report("steer", len(rows), ends[-1], tokens)
    return rows


def file_name(judge: str) -> str:
    """Return the name of a judge as a part of a file's name.

    Example:
      >>> from atlas_jax.experiments import file_name
      >>> file_name("chat:gpt-4o-mini")
      'chat-gpt-4o-mini'
    """
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in judge)


def read_rows(path: Path) -> list[Row]:
    """Read the generations of a file up to the first line that is not whole; none where there is no file."""
    rows = []
    for content in json_lines(path):
        try:
            rows.append(Row.from_dict(content))
        except (KeyError, TypeError, AttributeError):
            break
    return rows


def json_lines(path: Path) -> Iterator[Any]:
    """Read JSON lines up to the first that is not whole, as a process that was killed leaves them."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return


def _rewrite(path: Path, rows: Sequence[Row]) -> None:
    """Leave these rows alone in the file."""
    from atlas_jax.files import new_file

    with new_file(path) as file:
        file.write_text("".join(json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows), "utf-8")
