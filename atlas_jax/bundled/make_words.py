"""Train the word vectors that come with the package: ``python -m atlas_jax.bundled.make_words OUT TEXT...``.

Each TEXT is a ``.jsonl.gz`` file of lines with a ``text`` field or a ``.txt.gz`` file of plain lines. ``OUT`` gets a
directory for :meth:`StaticEmbedding.load` and ``training.json`` with the settings and the hash of every text.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from atlas_jax.files import sha256
from atlas_jax.labels import train_static

SETTINGS = {"width": 128, "min_count": 8, "window": 8, "smoothing": 0.75}


def main() -> None:
    """Train, save, and record the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    args = parser.parse_args()
    embedding = train_static((text for file in args.text for text in _texts(file)), **SETTINGS)
    embedding.save(args.out)
    hashes = {file.name: sha256(file) for file in args.text}
    record = {
        "settings": SETTINGS,
        "words": len(embedding.rows) - 1,
        "vectors": len(embedding.table) - 1,
        "sha256": hashes,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def _texts(file: Path) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"] if file.name.endswith(".jsonl.gz") else line


if __name__ == "__main__":
    main()
