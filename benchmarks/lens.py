"""Question: where does the Jacobian lens name a subject's features better than the atlas, and where worse?

A name is tested on held-out text in two ways. What a feature detects: do the words of its name tell the sentences that
activate it most from others (AUROC, by the similarity of static word vectors and by whether a sentence has one of the
words)? And what it does: are the words' tokens among those whose logits rise where the feature is added to the stream
(AUROC over the vocabulary)? Names: the lens's tokens (J), the same without a Jacobian (what the feature writes itself,
the logit lens), the atlas's labels by the row of T, and the atlas's labels of another feature, which say nothing.

On a run: ``python benchmarks/lens.py RUN --out FILE``; the sites are the run's, all of ``resid_post`` and ``mlp_act``.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from _common import arguments_of, machine, seconds_of, write

import atlas_jax as aj
from atlas_jax.labels import StaticEmbedding
from atlas_jax.lens import JacobianLens
from atlas_jax.metrics import auroc, bootstrap_mean
from atlas_jax.pipeline import SentenceStream, pooled_activations
from atlas_jax.rows import unit
from atlas_jax.types import Site

WORDS = 6  # of a name
STRONGEST = 0.05  # share of the sentences that a feature is to be found by
NAMES = "lens", "no Jacobian", "atlas", "another's"


def main() -> None:
    """Measure and write."""
    parser = arguments_of(__doc__)
    parser.add_argument("run", type=Path)
    arguments = parser.parse_args()
    run = aj.Alignment.load(arguments.run)
    features, held_out, fitted = (8, 200, 20) if arguments.quick else (48, 1500, 100)
    lm, sites = run.subject.model, [s for s in run.subject.sites if s.point in ("resid_post", "mlp_act")]
    took, lens = seconds_of(lambda: JacobianLens.fit(lm, list(run.corpus.fit[:fitted]), sites))
    texts = list(run.corpus.eval[:held_out])
    subject = aj.Subject.from_model(lm, sites)
    acts = pooled_activations(SentenceStream.from_texts([subject], texts))
    rows = []
    for site in sites:
        rng = np.random.default_rng(0)
        alive = np.flatnonzero(np.std(acts[site], axis=0) > 0)
        chosen = np.sort(rng.choice(alive, min(features, len(alive)), replace=False))
        rows += measure(run, lens, site, chosen, texts, acts[site][:, chosen])
    report = machine() | {"fit_sentences": len(run.corpus.fit), "lens_sentences": lens.sentences, "lens_seconds": took}
    report |= {"held_out": len(texts), "features": features, "words": WORDS, "rows": rows}
    for row in rows:
        print(json.dumps(row))
    write(report, arguments.out)


def measure(
    run: Any, lens: JacobianLens, site: Site, chosen: np.ndarray, texts: Sequence[str], acts: np.ndarray
) -> list[dict[str, Any]]:
    """The AUROCs of every way to name the features of a site, and how they differ from the atlas's."""
    names = {name: make(run, lens, site, chosen) for name, make in WAYS.items()}
    names["another's"] = names["atlas"][1:] + names["atlas"][:1]
    active = acts >= np.quantile(acts, 1 - STRONGEST, axis=0)
    rises = logit_rises(lens.model, site, chosen, texts[:24], np.abs(acts).max(axis=0))
    scores = {name: scored(lens.model, words, texts, active, rises) for name, words in names.items()}
    interval = lambda x: [round(v, 4) for v in bootstrap_mean(x)[:3]]
    return [
        {"site": str(site), "name": name, "measure": kind, "auroc": interval(values)}
        | {"over atlas": interval(values - scores["atlas"][kind])}
        for name in NAMES
        for kind, values in scores[name].items()
    ]


def by_lens(run: Any, lens: JacobianLens, site: Site, chosen: np.ndarray) -> list[list[str]]:
    """Words of the lens's tokens."""
    return [distinct(t.text for t in tokens) for tokens in lens.name_features(chosen.tolist(), site, 5 * WORDS)]


def without_jacobian(run: Any, lens: JacobianLens, site: Site, chosen: np.ndarray) -> list[list[str]]:
    """The same by what the features write into the stream themselves."""
    block = lens.model.decoder.layers[site.layer]
    width = lens.matrices[site].shape[1]
    written = np.eye(width) if site.point == "resid_post" else np.asarray(block.mlp.down_proj.weight[...]).T
    own = JacobianLens(lens.model, {site: written.astype(np.float32)}, 0, {})
    return by_lens(run, own, site, chosen)


def by_atlas(run: Any, lens: JacobianLens, site: Site, chosen: np.ndarray) -> list[list[str]]:
    """Words of the labels of the atlas features that weigh most in a feature's row of T."""
    translation = run.translation(site, "procrustes")
    named = [translation.name_feature(int(f), 2 * WORDS, run.atlas.labels).labels for f in chosen]
    return [distinct(w for label in labels for w in label.split(", ")) for labels in named]


WAYS: dict[str, Callable[..., list[list[str]]]] = {"lens": by_lens, "no Jacobian": without_jacobian, "atlas": by_atlas}


def distinct(words: Any) -> list[str]:
    """The first words, of letters, each once."""
    plain = (w.strip().lower() for w in words)
    return list(dict.fromkeys(w for w in plain if re.fullmatch(r"[^\W\d_]{2,}", w)))[:WORDS]


def scored(
    lm: Any, names: list[list[str]], texts: Sequence[str], active: np.ndarray, rises: np.ndarray
) -> dict[str, np.ndarray]:
    """AUROC of each name, by measure: nan where there is no word to go by."""
    vectors = StaticEmbedding.default()
    sentences, own = unit(vectors.encode(list(texts))), unit(vectors.encode([" ".join(words) for words in names]))
    lower = [t.lower() for t in texts]
    has = np.array([[sum(w in t for w in words) for t in lower] for words in names], np.float32)
    labels = np.ascontiguousarray(active.T)
    token = [{i for w in words for form in (w, f" {w}") for i in single(lm, form)} for words in names]
    named = np.array([np.isin(np.arange(lm.config.vocab_size), list(ids)) for ids in token])
    found = {"detects, by similarity": auroc(own @ sentences.T, labels), "detects, by its words": auroc(has, labels)}
    found["does"] = auroc(rises, named)
    empty = np.array([not words for words in names])
    return {kind: np.where(empty, np.nan, np.asarray(values, np.float64)) for kind, values in found.items()}


def single(lm: Any, word: str) -> list[int]:
    """The token of a word, where it is one."""
    ids = [i for i in lm.tokenizer.encode([word])[0] if i not in lm.tokenizer.special_ids]
    return ids if len(ids) == 1 else []


def logit_rises(lm: Any, site: Site, chosen: np.ndarray, texts: Sequence[str], size: np.ndarray) -> np.ndarray:
    """Mean change of logits, less that of all, where a feature is raised by its largest activation ``[n, v]``."""
    tokens = lm.tokenize(list(texts), max_length=32)
    real = np.asarray(tokens.mask, np.float32)
    mean = jnp.asarray(real / real.sum())

    def read(edits: Any) -> np.ndarray:
        logits = aj.run(lm, tokens, edits=edits).logits
        logits = logits - jnp.mean(logits, axis=-1, keepdims=True)
        return np.asarray(jnp.einsum("btv,bt->v", logits, mean))

    width = lm.config.width(site)
    before = read({site: aj.Add(np.zeros(width, np.float32))})
    raised = [s * np.eye(width, dtype=np.float32)[f] for f, s in zip(chosen, size, strict=True)]
    return np.stack([read({site: aj.Add(direction)}) for direction in raised]) - before


if __name__ == "__main__":
    main()
