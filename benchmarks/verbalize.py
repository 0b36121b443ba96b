"""Claim: 45 directions verbalized together are one compiled program, and the same tokens as one at a time, sooner.

A Llama of random weights at unit gain takes each direction in place of a placeholder's embedding; greedy.

    python benchmarks/verbalize.py [--quick] [--out verbalize.json]
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from _common import alternate, arguments_of, machine, write
from decoding import FULL, QUICK, make_checkpoint

import atlas_jax as aj
from atlas_jax.models._decode import complete

DIRECTIONS = 45
TEMPLATE = "w5 w6 w7 w8 w9 w10 w11 {injection_char} w12 w13 w14 w15"


def measured(sizes: dict) -> dict:
    """Seconds of both ways, compiled programs of the first, and whether all texts agree."""
    with tempfile.TemporaryDirectory() as directory:
        make_checkpoint(Path(directory), sizes)
        lm = aj.LanguageModel.from_pretrained(directory)
    lm.tokenizer.backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    lm.tokenizer.hf.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    d = sizes["hidden"]
    contract = aj.Contract(TEMPLATE, "w40", 40, (11, 12), d**0.5, d)
    vectors = np.random.default_rng(0).normal(size=(DIRECTIONS, d)).astype(np.float32)
    say = lambda v: aj.verbalize(lm, v, contract, max_new_tokens=sizes["new"]).texts
    before = complete._cache_size()
    say(vectors)
    programs = complete._cache_size() - before
    say(vectors[0])
    ways = {"together": lambda: say(vectors), "one at a time": lambda: [t for v in vectors for t in say(v)]}
    seconds, texts = alternate(ways, sizes["repeats"])
    return {
        "directions": DIRECTIONS,
        "tokens each": sizes["new"],
        "seconds": seconds,
        "ratio": seconds["one at a time"] / seconds["together"],
        "compiled programs": programs,
        "texts agree": texts["together"] == texts["one at a time"],
        "distinct texts": len(set(texts["together"])),
    }


def main() -> None:
    """Measure, print and write."""
    arguments = arguments_of(__doc__).parse_args()
    sizes = QUICK if arguments.quick else FULL
    report = machine(transformers) | {"sizes": sizes, "result": measured(sizes)}
    print(json.dumps(report["result"], indent=1))
    write(report, arguments.out)


if __name__ == "__main__":
    main()
