"""Steered texts of an evaluation: decoded in chunks of one shape, measured without a judge, and kept on disk."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from atlas_jax.experiments._steering import as_chat, concept_activations, perplexities
from atlas_jax.experiments._steering_directions import Directions
from atlas_jax.experiments._steering_plan import NATIVE, PROMPTED, Cell, SteeringSettings, concept_queries, plan
from atlas_jax.files import new_file
from atlas_jax.models import LanguageModel, generate
from atlas_jax.pipeline import Alignment
from atlas_jax.progress import Progress, unreported
from atlas_jax.steering import Steer
from atlas_jax.types import Site

ROW_BYTES = 2**31  # of keys, values and logits that decode at once


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
        self.widths = {site: self.model.config.width(site) for site in sites}
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
        """Return the number of cells that fit the memory."""
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
        queries = np.stack(list(self.queries.values()), axis=1)
        acts = concept_activations(self.atlas, queries, generation.texts)[:kept]
        rows = []
        for i, (cell, number, prompt) in enumerate(prompts[:kept]):
            of = [cell.concept] if cell.concept else self.queries
            every = dict(zip(self.queries, acts[i].tolist(), strict=True))
            activations = {name: every[name] for name in of}
            new = generation.ids[i, : generation.lengths[i]].tolist()
            rows.append(Row(cell, prompt, self.settings.seed + number, generation.texts[i], new, activations, nats[i]))
        return rows

    def _ids(self, model: LanguageModel, cell: Cell, prompt: str) -> list[int]:
        text = f"Write about {cell.concept}. {prompt}" if cell.method == PROMPTED else prompt
        if self.settings.chat and model is self.model:
            return as_chat(model, text)
        return model.tokenizer.encode([text])[0] or model.tokenizer.encode(["\n"])[0]

    def _edits(self, cells: Sequence[Cell]) -> dict[Site, Steer]:
        count = len(self.settings.prompts)
        if cells[0].method == NATIVE:
            zero = np.zeros(self.atlas.model.config.width(self.atlas.site), np.float32)
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
    report("steer", len(rows), ends[-1], 0)
    tokens = 0
    with appended(path, [row.to_dict() for row in rows]) as add:
        for chunk in chunks[done:]:
            new = decoder.rows(chunk)
            add([row.to_dict() for row in new])
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


@contextlib.contextmanager
def appended(path: Path, kept: Iterable[Any]) -> Iterator[Callable[[Iterable[Any]], None]]:
    """Leave these JSON lines alone in a file, never losing them on the way, and give what adds others to it."""
    text = lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with new_file(path) as file:
        file.write_text(text(kept), "utf-8")
    with path.open("a", encoding="utf-8", newline="\n") as file:

        def add(rows: Iterable[Any]) -> None:
            file.write(text(rows))
            file.flush()

        yield add
