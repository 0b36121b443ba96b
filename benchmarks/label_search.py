"""Search over real labels: mean AUROC and recall@50 of each retriever, and the time of a query.

Three kinds of queries, so that no choice hangs on ten of them:
  table_8     the ten concept names of the paper's Table 8 over 16k descriptions of 20-gemmascope-res-16k; the truth is
              the paper's list of features, chosen on other labels, so that 1.0 is out of reach
  known_item  another explainer's description of a feature, over the same 16k; the truth is that feature
  intents     150 intent names over 15,000 utterances of CLINC150; precision@50 in place of recall

With --scale, labels recombined from the real ones are written, indexed, and opened by a new process.

    ATLAS_JAX_DATA=DIR python benchmarks/label_search.py [--embedding DIR] [--scale 65536 1000000] [--out FILE]
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy

from atlas_jax.labels import Label, Labels, StaticEmbedding, TextIndex, open_index, write_index
from atlas_jax.metrics import auroc

LABELS = "labels/gemma-2-2b_20-gemmascope-res-16k.json.gz"
TABLE_8 = {
    "reddit comments": """
        1786, 13945, 9829, 9346, 9736, 13851, 7937, 1914, 2402, 3204, 12203, 10075, 1917, 5067
    """,
    "dreams and imagination": """
        5095, 6195, 320, 9017, 9273, 7225, 11922, 1974, 5755, 6576, 13207, 7342, 10331, 2104, 12727, 1631, 10669,
        14509, 8630
    """,
    "gardening": """
        6607, 568, 1689, 13279, 5514, 10459, 3138, 9328, 6056, 1676, 12871, 10010, 5680, 7747, 10759, 6369, 9839,
        6316, 9125, 10678, 7360, 12587, 5317, 9396, 2725
    """,
    "science fiction and fantasy": """
        6020, 9273, 8850, 8544, 3088, 6139, 3120, 6561, 2942, 11922, 2777, 8877, 5267, 6990, 2212, 11512, 13710,
        1659, 7995, 10004, 779, 12857, 12899, 7365, 8927, 13805, 13602
    """,
    "eating": """
        13834, 11544, 1351, 2793, 11867, 5898, 7683, 5531, 9027, 1247, 8513, 9750, 11847, 12394, 5838, 13497, 6621,
        11491, 184, 8337, 8991, 668, 1538, 14334, 2480, 1632, 8771, 6657, 9125, 6847, 2247, 13567, 6643
    """,
    "smart devices": """
        6211, 11318, 257, 5110, 8672, 7105, 14663, 12058, 8356, 1341, 13177, 13000, 948, 5950, 5078, 5791, 13434,
        8092, 2942, 5833, 8450, 11350, 8124, 14292, 63, 13363, 1446
    """,
    "driving and cars": """
        856, 6418, 11182, 3178, 6571, 5814, 11212, 11620, 5877, 14326, 7054, 7732, 8038, 10526, 6964, 10870, 14386,
        11957, 10196, 11028, 14566, 13018, 11309, 2724, 9791, 3154, 6375, 7224, 1336, 10172, 207, 9032, 6767, 14137
    """,
    "dogs and cats": """
        6772, 1089, 12082, 13747
    """,
    "video games": """
        8877, 13641, 12839, 13962, 3016, 12805, 13317, 13596, 13064, 7522, 14643, 10390, 5864, 8026, 67, 3089, 5380,
        2003, 211, 9270, 1537, 14751, 12039, 4950, 6538, 14259, 1276, 5979, 2942
    """,
    "health and well-being": """
        12413, 986, 5090, 13997, 6624, 12235, 668, 2162, 10317, 155, 11583, 12425, 9404, 2963, 11867, 7943, 2009,
        1705, 2912, 10078, 13216, 12593, 1462, 10355, 49, 11043, 5522, 8521
    """,
}

Queries = list[tuple[str, np.ndarray]]


def table_8(index: TextIndex) -> Queries:
    lists = {name: [int(i) for i in features.split(",")] for name, features in TABLE_8.items()}
    return [(name, np.isin(index.features, features)) for name, features in lists.items()]


def known_items(index: TextIndex, labels: Labels, limit: int = 300) -> Queries:
    rows = [row for i in labels.described() for row in labels.alternatives(i) if row.polarity == "positive"]
    return [(row.description, index.features == row.index) for row in rows[:limit]]


def intents(path: Path) -> tuple[Labels, Queries]:
    pairs = [(text, name) for text, name in json.loads(gzip.decompress(path.read_bytes()))["train"] if name != "oos"]
    labels = Labels.from_rows(Label(i, text) for i, (text, _) in enumerate(pairs))
    names = np.array([name for _, name in pairs])
    return labels, [(name.replace("_", " "), names == name) for name in sorted(set(names))]


def measure(index: TextIndex, queries: Queries, method: str) -> dict:
    scores = np.stack([index.scores(text, method) for text, _ in queries])
    truth = np.stack([positive for _, positive in queries])
    top = np.argsort(-scores, axis=1, kind="stable")[:, :50]
    found = np.take_along_axis(truth, top, axis=1).sum(axis=1)
    return {
        "auroc": float(auroc(scores, truth).mean()),
        "recall_50": float(np.mean(found / truth.sum(axis=1))),
        "precision_50": float(found.mean() / 50),
    }


def per_method(index: TextIndex, queries: Queries) -> dict:
    return {method: measure(index, queries, method) for method in index.methods}


def timings(labels: Labels, embeddings: list[StaticEmbedding]) -> dict:
    start = time.perf_counter()
    index = TextIndex.from_labels(labels, embeddings)
    built = time.perf_counter() - start
    seconds = [searched(index, name) for name in TABLE_8]
    return {"build_s": built, "query_ms_median": 1e3 * np.median(seconds), "query_ms_worst": 1e3 * max(seconds)}


def recombined(labels: Labels, n: int) -> Labels:
    """As many labels as wanted, each the first half of one real description and the second half of another."""
    words = [str(labels[i]).split() for i in labels.described()]
    pairs = np.random.default_rng(0).integers(len(words), size=(n, 2)).tolist()
    halves = ([*words[a][: len(words[a]) // 2 + 1], *words[b][len(words[b]) // 2 :]] for a, b in pairs)
    return Labels.from_rows((Label(i, " ".join(half), "recombined") for i, half in enumerate(halves)), n)


def at_scale(labels: Labels, n: int) -> dict:
    """Labels of an SAE with n features on disk: made, indexed, and opened by a new process."""
    with tempfile.TemporaryDirectory() as directory:
        recombined(labels, n).save(Path(directory) / "labels.jsonl")
        steps = [json.loads(subprocess.check_output([sys.executable, __file__, "--open", directory])) for _ in range(2)]
        size = sum(file.stat().st_size for file in (Path(directory) / "index").iterdir())
    made, opened = steps
    return {"index_made_s": made["index_s"], "index_made_peak_gb": made["peak_gb"], "index_gb": size / 1e9, **opened}


def opened(directory: Path) -> dict:
    """Load the labels and the index, making the latter where there is none, and search."""
    start = time.perf_counter()
    labels = Labels.load(directory / "labels.jsonl")
    loaded = time.perf_counter()
    if not (directory / "index").exists():
        write_index(labels, directory / "index")
    index = open_index(labels, directory / "index")
    ready = time.perf_counter()
    seconds = [searched(index, name) for name in TABLE_8]
    return {
        "labels": len(index.texts),
        "labels_loaded_s": loaded - start,
        "index_s": ready - loaded,
        "first_query_ms": 1e3 * seconds[0],
        "query_ms_median": 1e3 * float(np.median(seconds[1:])),
        "query_ms_worst": 1e3 * max(seconds[1:]),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def searched(index: TextIndex, name: str) -> float:
    start = time.perf_counter()
    index.search(name, k=50)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedding", type=Path, action="append", help="static embeddings beside the package's own")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--scale", type=int, nargs="*", default=[], help="also time this many labels, such as 65536")
    parser.add_argument("--open", type=Path, help="only time opening the labels in a directory (used by --scale)")
    args = parser.parse_args()
    if args.open:
        print(json.dumps(opened(args.open)))
        return
    if "ATLAS_JAX_DATA" not in os.environ:
        sys.exit("set ATLAS_JAX_DATA to the folder with labels/ and labelled/")
    data = Path(os.environ["ATLAS_JAX_DATA"])
    embeddings = [StaticEmbedding.default(), *map(StaticEmbedding.load, args.embedding or [])]
    labels = Labels.load(data / LABELS, n_features=16_384)
    utterances, named = intents(data / "labelled/clinc150_train.json.gz")
    index = TextIndex.from_labels(labels, embeddings)
    report = {
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
        "embeddings": ["package", *(directory.name for directory in args.embedding or [])],
        "labels": len(index.texts),
        "coverage": labels.coverage,
        **timings(labels, embeddings),
        "table_8": per_method(index, table_8(index)),
        "known_item": per_method(index, known_items(index, labels)),
        "intents": per_method(TextIndex.from_labels(utterances, embeddings), named),
        "at_scale": {str(n): at_scale(labels, n) for n in args.scale},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
