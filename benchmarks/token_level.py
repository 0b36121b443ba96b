"""Claim: statistics of single tokens localise; those of pooled sentences detect. And: heads differ in what they carry.

Table 3's AUROC and AP of translations fitted to pairs of tokens beside those of a run, fitted to pooled sentences, and
how well each finds the token at which an atlas feature fires; then AUROC, AP and MRR of every attention head of the
layers. On a run: ``python benchmarks/token_level.py RUN --out FILE``.
"""

import json
from pathlib import Path

from _common import arguments_of, machine, seconds_of, write

from atlas_jax.experiments import quality_by_head, token_level
from atlas_jax.pipeline import PAIRS, Alignment

METHODS = ("procrustes", "covariance")


def main() -> None:
    """Measure and write."""
    parser = arguments_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--layer", type=int, action="append", help="whose heads are measured; all by default")
    arguments = parser.parse_args()
    alignment = Alignment.load(arguments.run)
    few = {"features": 10} if arguments.quick else {}
    pairs, layers = (("all",), [0]) if arguments.quick else (tuple(PAIRS), arguments.layer)
    took, tokens = seconds_of(lambda: token_level(alignment, pairs=pairs, methods=METHODS, **few))
    heads_took, heads = seconds_of(lambda: quality_by_head(alignment, layers, method="procrustes", **few))
    report = machine() | {"fit_sentences": len(alignment.corpus.fit), "held_out": len(alignment.corpus.eval)}
    report |= {"tokens": tokens.to_dict() | {"seconds": took}, "heads": heads.to_dict() | {"seconds": heads_took}}
    print(json.dumps({name: report[name]["seconds"] for name in ("tokens", "heads")}))
    for table in (tokens.table(), *heads.tables()):
        print(table.title, *(" | ".join(row) for row in table.texts()), table.caption, sep="\n")
    write(report, arguments.out)


if __name__ == "__main__":
    main()
