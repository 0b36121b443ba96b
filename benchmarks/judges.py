"""How well judges that need no endpoint rate labelled texts, and how far they agree with the labels and each other.

Concepts are the intents of SNIPS and half of those of CLINC150 (their names in words), texts are utterances, and a text
has the concept where it is of that intent. Neutral text, which sets the thresholds of the offline proxy, is utterances
of the other half. The labels stand for a judge that makes no mistake, because no chat model can be reached where this
was run; with --chat-model one is asked as well.

  proxy   the offline proxy and its two parts, with the bundled atlas: mean AUROC over concepts with its 95% bootstrap
          interval, and the share rated 2 of the texts with the concept and of those without. "activation, learnt
          query" is the bound that the atlas sets: its query is the mean of ten other texts of the concept less that
          of neutral text
  models  judges by likelihood on as many texts with as without the concept: AUROC of the expected rating, and the
          share rated right (2 with, 0 without). Models this small know no task, so expect chance: 0.5
  kappa   Cohen's kappa with quadratic weights on the same texts; 0 is chance, and where a judge rates all alike

    ATLAS_JAX_DATA=DIR python benchmarks/judges.py [--quick] [--chat-model NAME --base-url URL] [--out FILE]
"""

import gzip
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from _common import arguments_of, machine, write

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import AtlasJudge, ChatJudge, Judge, ModelJudge, agreement
from atlas_jax.experiments._judges import PARTS
from atlas_jax.metrics import auroc, bootstrap_mean
from atlas_jax.models import LanguageModel
from atlas_jax.pipeline import SentenceStream, pooled_activations

FULL = {"concepts": 75, "texts": 20, "neutral": 1000, "pairs": 12}
QUICK = {"concepts": 8, "texts": 6, "neutral": 60, "pairs": 2}
LEARNT = 10  # texts of a concept that its learnt query is made of
Sets = dict[str, list[str]]


def shuffled(items: Sequence[str]) -> list[str]:
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))]


def clinc(data: Path) -> Sets:
    """Utterances by intent, in random order."""
    pairs = json.loads(gzip.decompress((data / "labelled/clinc150_train.json.gz").read_bytes()))["train"]
    by_name: Sets = {}
    for text, name in pairs:
        by_name.setdefault(name.replace("_", " "), []).append(text)
    return {name: shuffled(by_name[name]) for name in shuffled(sorted(by_name))}


def snips(data: Path) -> Sets:
    found = {}
    for file in sorted((data / "labelled/snips").glob("*.json.gz")):
        content = gzip.decompress(file.read_bytes())
        try:
            rows = json.loads(content)
        except UnicodeDecodeError:
            rows = json.loads(content.decode("latin-1"))
        for name, items in rows.items():
            words = " ".join(re.findall("[A-Z][a-z]*", name)).lower()
            found[words] = shuffled(["".join(part["text"] for part in item["data"]) for item in items])
    return found


def queries_of(atlas: ConceptAtlas, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Queries of the concepts that the atlas has a label for."""
    found = {}
    for name in names:
        try:
            found[name] = np.asarray(atlas.query_text(name))
        except AtlasError as error:
            print(error, file=sys.stderr)
    return found


def learnt_queries(atlas: ConceptAtlas, sets: Sets, neutral: list[str]) -> dict[str, np.ndarray]:
    """Mean activation of the last texts of each concept less that of neutral ones."""
    texts = [text for own in sets.values() for text in own[-LEARNT:]]
    own, other = (pooled_activations(SentenceStream.from_texts([atlas], t))[atlas.site] for t in (texts, neutral[:200]))
    return dict(zip(sets, own.reshape(len(sets), LEARNT, -1).mean(axis=1) - other.mean(axis=0), strict=True))


def rated(judge: AtlasJudge, texts: list[str], truth: np.ndarray) -> dict:
    scores = judge.scores(texts).T
    above = scores > judge.thresholds[:, None]
    interval = bootstrap_mean(auroc(scores, truth))
    return {
        "auroc": interval.mean,
        "auroc_95": [interval.low, interval.high],
        "rated_2_of_those_with": float(above[truth].mean()),
        "rated_2_of_those_without": float(above[~truth].mean()),
    }


def proxies(atlas: ConceptAtlas, sets: Sets, size: int, neutral: list[str]) -> dict:
    queries = queries_of(atlas, sets)
    texts = [text for own in sets.values() for text in own[:size]]
    of = np.repeat(list(sets), size)
    truth = np.stack([of == name for name in queries])
    judges = {"+".join(p): AtlasJudge(atlas, queries, neutral, parts=p) for p in (PARTS[:1], PARTS[1:], PARTS)}
    known = learnt_queries(atlas, {name: sets[name] for name in queries}, neutral)
    judges["activation, learnt query"] = AtlasJudge(atlas, known, neutral, parts=PARTS[:1])
    counts = {"concepts": len(queries), "without_a_label": len(sets) - len(queries), "texts": len(texts)}
    return counts | {name: rated(judge, texts, truth) for name, judge in judges.items()}


def pairs_of(sets: Sets, size: int) -> dict[str, tuple[list[str], list[int]]]:
    """As many texts with as without each concept, with the ratings the labels give them."""
    found = {}
    for at, (name, own) in enumerate(sets.items()):
        others = [text for other, texts in sets.items() if other != name for text in texts[:size]]
        found[name] = (own[:size] + others[at % (len(sets) - 1) :: len(sets) - 1][:size], [2] * size + [0] * size)
    return found


def by_judge(judge: Judge, pairs: dict[str, tuple[list[str], list[int]]]) -> list[int | None]:
    return [rating for name, (texts, _) in pairs.items() for rating in judge.judge(name, texts)]


def likelihoods(judge: ModelJudge, pairs: dict[str, tuple[list[str], list[int]]]) -> dict:
    found = {name: judge.probabilities(name, texts) for name, (texts, _) in pairs.items()}
    areas = [auroc(p @ np.arange(3.0), np.array(pairs[name][1]) == 2) for name, p in found.items()]
    interval = bootstrap_mean(np.array(areas))
    right = [p.argmax(axis=1) == pairs[name][1] for name, p in found.items()]
    share = np.bincount(np.concatenate([p.argmax(axis=1) for p in found.values()]), minlength=3) / np.size(right)
    low_high = [interval.low, interval.high]
    return {"auroc": interval.mean, "auroc_95": low_high, "right": float(np.mean(right)), "rated": share.tolist()}


def kappas(ratings: dict[str, list[int | None]]) -> dict[str, float]:
    both = itertools.combinations(ratings, 2)
    return {f"{a} / {b}": agreement(ratings[a], ratings[b]) for a, b in both}


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--chat-model", help="also ask this model for the kappas")
    parser.add_argument("--base-url", help="OpenAI-compatible API; OPENAI_BASE_URL by default")
    args = parser.parse_args()
    if "ATLAS_JAX_DATA" not in os.environ:
        sys.exit("set ATLAS_JAX_DATA to the folder with labelled/ and models/")
    data, sizes = Path(os.environ["ATLAS_JAX_DATA"]), QUICK if args.quick else FULL
    atlas, intents, music = ConceptAtlas.from_pretrained(ATLAS), clinc(data), snips(data)
    halves = [dict(list(intents.items())[:75][: sizes["concepts"]]), dict(list(intents.items())[75:])]
    neutral = shuffled([text for texts in halves[1].values() for text in texts])[: sizes["neutral"]]
    report = {"sizes": sizes, "proxy": {}, "models": {}, **machine()}
    for name, sets in (("snips", music), ("clinc150", halves[0])):
        report["proxy"][name] = proxies(atlas, sets, sizes["texts"], neutral)
    pairs = pairs_of(music, sizes["pairs"])
    ratings = {"labels": [rating for _, truth in pairs.values() for rating in truth]}
    for parts in (PARTS[:1], PARTS[1:], PARTS):
        judge = AtlasJudge(atlas, queries_of(atlas, music), neutral, parts=parts)
        ratings[f"atlas-proxy, {'+'.join(parts)}"] = by_judge(judge, pairs)
    models = {"bundled subject": LanguageModel.from_pretrained(SUBJECT), "bundled foundation": atlas.model}
    models |= {d.name: LanguageModel.from_pretrained(d) for d in sorted((data / "models").iterdir()) if d.is_dir()}
    for name, model in models.items():
        judge = ModelJudge(model, name, examples=False)
        try:
            report["models"][name] = likelihoods(judge, pairs)
            ratings[judge.name] = by_judge(judge, pairs)
        except AtlasError as error:
            report["models"][name] = str(error)
    if args.chat_model:
        with tempfile.TemporaryDirectory() as directory:
            judge = ChatJudge.connect(args.chat_model, Path(directory) / "replies.jsonl", base_url=args.base_url)
            ratings[judge.name] = by_judge(judge, pairs)
            report["chat"] = {"missing": judge.missing, "tokens": judge.spent}
    report["kappa"] = kappas(ratings) | {"texts": len(ratings["labels"])}
    print(json.dumps(report, indent=1))
    write(report, args.out)


if __name__ == "__main__":
    main()
