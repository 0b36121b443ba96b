"""What the explorer can do with a run: requests of the page, answered by the package's public functions."""

import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from atlas_jax import experiments
from atlas_jax.errors import AtlasError
from atlas_jax.explorer import _code
from atlas_jax.explorer._generation import continue_both
from atlas_jax.explorer._jobs import Job, Jobs
from atlas_jax.explorer._requests import WAITING, Place, Query, Saving, Steering
from atlas_jax.models import LanguageModel
from atlas_jax.pipeline import Alignment
from atlas_jax.pipeline._run_files import Record
from atlas_jax.steering import Steer
from atlas_jax.translation import Translation
from atlas_jax.types import Site
from atlas_jax.vectors import export_gguf, save_edits

HITS, SIMILAR, NAMES, SENTENCES, ACTIVE = 12, 4, 3, 3, 6  # most of each that is shown
WIDEST = 1.0  # strength at the end of a slider where the run suggests none


class LoadingError(AtlasError):
    """Refusal of a request because the run is not loaded yet."""


class Explorer:
    """A run, loaded and compiled by a thread of its own, and the queue of its generations.

    Args:
      run: its directory.

    Raises:
      AtlasError: if it is no run.

    Example:
      >>> from atlas_jax.explorer import Explorer               # doctest: +SKIP
      >>> explorer = Explorer("runs/quickstart")                # doctest: +SKIP
      >>> explorer.load()                                       # doctest: +SKIP
      >>> explorer.search("attention")[0]["label"]              # doctest: +SKIP
      'attention'
    """

    def __init__(self, run: str | Path):
        self.run, self.jobs = Path(run), Jobs(most=WAITING)
        self.status, self.said, self.notes = "loading", "The run and its models are being loaded.", []
        self._alignment: Alignment | None = None
        Record.read(self.run)

    def start(self) -> None:
        """Load in a thread."""
        threading.Thread(target=self.load, name="load", daemon=True).start()

    def load(self) -> None:
        """Read the run, and have the first programs compiled; what goes wrong is kept to be shown."""
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always", UserWarning)
                alignment = Alignment.load(self.run)
            if alignment.atlas.labels.described():
                alignment.atlas.search("a")  # opens the index, so that the first letter typed is answered at once
            self.notes = [str(w.message) for w in heard if w.category is UserWarning]
            if alignment.top is None:
                self.notes.append(
                    "this run was saved without the strongest held-out sentences of its features, so none are shown"
                )
        except Exception as error:  # noqa: BLE001 - the page says why there is nothing to explore
            self.status, self.said = "failed", f"The run could not be loaded: {error}"
            return
        self.status, self.said = "compiling", "The model is still being compiled; search works already."
        self._alignment = alignment
        self.jobs.submit(self._compile, self._compiled)

    def _compile(self, job: Job) -> None:
        model, width = self.alignment.subject.model, self.alignment.subject.widths
        ids = model.tokenizer.encode(["The"])[0]
        still = {site: (jnp.zeros(d), 0.0) for site, d in width.items()}
        continue_both(model, ids, still, job, 0, max_new_tokens=40, temperature=0.5, seed=[0, 0])

    def _compiled(self, name: str, content: dict[str, Any]) -> None:
        if name == "error":
            self.notes.append(content["error"])
        if name in ("done", "error", "cancelled"):
            self.status, self.said = "ready", ""

    @property
    def alignment(self) -> Alignment:
        """The run.

        Raises:
          LoadingError: as long as it is not loaded.
        """
        if self._alignment is None:
            raise LoadingError(self.said)
        return self._alignment

    def facts(self) -> dict[str, Any]:
        """Return what the page begins with: how far loading is, and the sites with their ranges of strength."""
        facts = {"status": self.status, "said": self.said, "notes": self.notes, "run": str(self.run), "sites": []}
        if self._alignment is None:
            return facts
        alignment = self.alignment
        facts["sites"] = [self._site(site) for site in alignment.subject.sites]
        facts["chat"] = bool(alignment.subject.model.tokenizer.hf.chat_template)
        facts["context"] = alignment.subject.model.config.max_positions
        names = {key: Path(alignment.sources[key]["path"]).name for key in ("subject", "atlas")}
        return facts | names | {"features": alignment.atlas.width}

    def _site(self, site: Site) -> dict[str, Any]:
        suggested = self.alignment.strengths.get(site)
        translation = self._translation("steer", site)
        return {
            "site": str(site),
            "features": translation.d_s,
            "suggested": suggested,
            "most": 2 * suggested if suggested else WIDEST,
            "method": translation.described,
        }

    def search(self, text: str) -> list[dict[str, Any]]:
        """Return the atlas features whose labels fit a text best, or the one whose number it is."""
        atlas, text = self.alignment.atlas, text.strip()
        if text.isascii() and text.isdigit() and int(text) < atlas.width:
            return [{"feature": int(text), "label": atlas.labels[int(text)] or "", "weight": 1.0}]
        hits = atlas.search(text, HITS) if text else []
        return [{"feature": h.index, "label": h.label, "weight": round(h.weight, 3)} for h in hits]

    def features(self, asked: Query) -> dict[str, Any]:
        """Return the subject's features of a concept at every site, named, with their strongest sentences."""
        query = self._query(asked)
        labels = {h.index: h.label for h in query.features}
        sites = [self._features(site, query.vector) for site in self.alignment.subject.sites]
        return {"labels": labels, "sites": sites}

    def _features(self, site: Site, vector: Any) -> dict[str, Any]:
        alignment, translation = self.alignment, self._translation("identify", site)
        tokenizer = alignment.subject.model.tokenizer
        top, k = (alignment.top or {}).get(site), min(SIMILAR, translation.d_s)
        sentence = alignment.corpus.sentence
        similar = experiments.identify(translation, vector, top, sentence, tokenizer, k=k, sentences=SENTENCES)
        rows = [one.to_dict() | {"names": self._names(translation, one.feature)} for one in similar]
        return {"site": str(site), "method": translation.described, "features": rows}

    def _names(self, translation: Translation, feature: int) -> list[str]:
        named = translation.name_feature(feature, min(NAMES, translation.d_c), self.alignment.atlas.labels)
        rows = zip(named.features.tolist(), named.labels, named.scores.tolist(), strict=True)
        return [label or str(i) for i, label, score in rows if score > 0]

    def steering(self, asked: Steering) -> Callable[[Job], None]:
        """Check a request to steer, and return the work of it.

        Raises:
          AtlasError: for no concept, no prompt, a site the run does not have, or a prompt past the model's context.
        """
        directions, model = self._directions(asked), self.alignment.subject.model
        if not asked.prompts or not all(prompt.strip() for prompt in asked.prompts):
            raise AtlasError("there is no prompt, or a blank one; write some words to continue")
        rows = [_ids(model, prompt, asked.chat) for prompt in asked.prompts]
        context = model.config.max_positions
        if (longest := max(map(len, rows))) + asked.tokens > context:
            raise AtlasError(
                f"a prompt of {longest} tokens and {asked.tokens} new ones exceed the model's context of {context}; "
                "shorten the prompt, or ask for fewer tokens"
            )

        def work(job: Job) -> None:
            options = {"max_new_tokens": asked.tokens, "temperature": asked.temperature}
            for i, ids in enumerate(rows):
                continue_both(model, ids, directions, job, i, seed=[asked.seed + i] * 2, **options)

        return work

    def _directions(self, asked: Steering) -> dict[Site, tuple[Any, float]]:
        """Direction and strength at every site of the run, zeros where it is not steered."""
        vector, strengths = self._query(asked).vector, {Site.parse(s): x for s, x in asked.strengths.items()}
        directions = {}
        for site in dict.fromkeys([*self.alignment.subject.sites, *strengths]):
            translation, strength = self._translation("steer", site), strengths.get(site, 0.0)
            along = translation.direction(vector) if strength else jnp.zeros(translation.d_s)
            directions[site] = along, strength
        return directions

    def place(self, asked: Place) -> dict[str, Any]:
        """Return the concepts that are active at a character of a text: those of the atlas, and of every site."""
        alignment, model, text = self.alignment, self.alignment.subject.model, asked.text
        atlas = alignment.atlas
        seen = experiments.token_features(atlas, text, range(atlas.width))
        here = _token_at(atlas.model, text, asked.at)
        place = {"token": seen.tokens[here], "atlas": self._strongest(seen.values[here])}
        here, sites = _token_at(model, text, asked.at), []
        translations = {site: self._translation("steer", site) for site in alignment.subject.sites}
        along = self._along(translations, asked)
        for i, (site, translation) in enumerate(translations.items()):
            seen = experiments.token_concepts(model, translation, text)
            own = {"site": str(site), "token": seen.tokens[here], "concepts": self._strongest(seen.values[here])}
            sites.append(own | {"along": None if along is None else float(along[here, i])})
        return place | {"sites": sites}

    def _along(self, translations: dict[Site, Translation], asked: Place) -> np.ndarray | None:
        if not asked.features:
            return None
        vector = self._query(asked).vector
        return experiments.token_projections(self.alignment.subject.model, translations, vector, asked.text).values

    def _strongest(self, values: np.ndarray) -> list[dict[str, Any]]:
        best = [int(i) for i in np.argsort(-values, kind="stable")[:ACTIVE] if values[i] > 0]
        labels = self.alignment.atlas.labels
        return [{"feature": i, "label": labels[i] or "", "value": float(values[i])} for i in best]

    def code(self, asked: Steering) -> dict[str, str]:
        """Return a state of the page as a Python snippet and as a command."""
        self._query(asked)
        method = ":".join(self.alignment.recommended("steer"))
        return {"python": _code.python(self.run, method, asked), "command": _code.command(self.run, method, asked)}

    def save(self, asked: Saving) -> bytes:
        """Return the steering vectors as a file.

        Raises:
          AtlasError: if no site is steered, or as :func:`atlas_jax.export_gguf`.
        """
        edits = {
            site: Steer(along, strength) for site, (along, strength) in self._directions(asked).items() if strength
        }
        if not edits:
            raise AtlasError("every strength is 0, so there is no vector to save; move a slider first")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"vector.{asked.format}"
            if asked.format == "gguf":
                family = self.alignment.subject.model.config.family
                export_gguf(edits, path, family=family, additive=asked.additive)
            else:
                save_edits(edits, path)
            return path.read_bytes()

    def _query(self, asked: Query) -> experiments.ConceptQuery:
        if not asked.features:
            raise AtlasError("no concept is chosen; search for one, and choose features of it")
        return experiments.concept_query(self.alignment.atlas, features=dict(asked.features))

    def _translation(self, use: str, site: Site) -> Translation:
        return self.alignment.translation(site, *self.alignment.recommended(use))


def _ids(model: LanguageModel, prompt: str, chat: bool) -> list[int]:
    return model.chat([{"role": "user", "content": prompt}]) if chat else model.tokenizer.encode([prompt])[0]


def _token_at(model: LanguageModel, text: str, at: int) -> int:
    """The token, among those that count, that a character is in."""
    ends = [end for _, end in model.tokenizer.spans([text])[0]]
    places = np.flatnonzero(np.asarray(model.tokenize(text).mask[0])).tolist()
    return next((i for i, place in enumerate(places) if ends[place] > at), len(places) - 1)
