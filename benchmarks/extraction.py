"""Max-pooled MLP activations of sentences, beside transformers with forward hooks on the same weights.

Claim: at least 7.5 times the useful tokens/s of the usual loop (causal model, batches in the given order), at least
1.8 times those of the best arrangement in transformers (base model, sorted by length), and peak memory that grows
neither with the number of captured layers nor with the number of batches.

    python benchmarks/extraction.py [--quick] [--out extraction.json]
"""

import resource
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from _common import alternate, arguments_of, machine, matmul_ceiling, sentence_lengths, write
from decoding import FULL as FULL_MODEL, QUICK as QUICK_MODEL, make_checkpoint

import atlas_jax as aj
from atlas_jax.models import forward

FULL = FULL_MODEL | {"sentences": 600, "sites": (1, 4, 7), "early": (0, 1, 2), "budget": 1024}
QUICK = QUICK_MODEL | {"sentences": 80, "sites": (0, 1, 3), "early": (0,), "budget": 512}


def sentences(sizes: dict, rng: np.random.Generator) -> list[list[int]]:
    """Random ids with the lengths of real sentences."""
    return [rng.integers(3, sizes["vocab"], n).tolist() for n in sentence_lengths(sizes["sentences"], rng)]


def peer(
    model: torch.nn.Module,
    layers: torch.nn.ModuleList,
    rows: list,
    sites: tuple,
    by_length: bool,
    budget: int | None = None,
) -> np.ndarray:
    """Hooks on the inputs of ``down_proj``, masked max over positions, batches padded on the right.

    They are of 32 rows, or of as many as have ``budget`` tokens, padding included.
    """
    order = np.argsort([len(r) for r in rows]) if by_length else np.arange(len(rows))
    out = np.zeros((len(sites), len(rows), model.config.intermediate_size), np.float32)
    kept: dict[int, torch.Tensor] = {}
    hooks = [
        layers[i].mlp.down_proj.register_forward_pre_hook(lambda _module, inputs, i=i: kept.__setitem__(i, inputs[0]))
        for i in sites
    ]
    with torch.no_grad():
        for places in peer_batches([len(rows[i]) for i in order], budget):
            places = order[places]
            length = max(len(rows[i]) for i in places)
            ids = torch.tensor([rows[i] + [0] * (length - len(rows[i])) for i in places], device=model.device)
            mask = [[1] * len(rows[i]) + [0] * (length - len(rows[i])) for i in places]
            mask = torch.tensor(mask, device=model.device)
            model(ids, attention_mask=mask, use_cache=False)
            for k, i in enumerate(sites):
                out[k, places] = kept[i].masked_fill(mask[..., None] == 0, -torch.inf).amax(1).float().cpu().numpy()
    for hook in hooks:
        hook.remove()
    return out


def peer_batches(lengths: list[int], budget: int | None) -> Iterator[slice]:
    """Which rows go together, in the given order."""
    start = 0
    while start < len(lengths):
        stop = start + 32
        if budget is not None:
            stop = start + 1
            while stop < len(lengths) and (stop + 1 - start) * max(lengths[start : stop + 1]) <= budget:
                stop += 1
        yield slice(start, stop)
        start = stop


def buckets(lengths: np.ndarray, budget: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """``(length, rows, places)``: multiples of 8 up to 112 and 128, as many rows as the token budget allows.

    Rows that do not fill a batch go with the next longer ones.
    """
    rounded = np.where(lengths > 112, 128, -(-lengths // 8) * 8)
    left, longest = np.empty(0, int), rounded.max()
    for length in np.unique(rounded).tolist():
        places = np.concatenate([left, np.flatnonzero(rounded == length)])
        height = budget // length
        whole = len(places) if length == longest else len(places) // height * height
        yield from ((length, height, places[i : min(i + height, whole)]) for i in range(0, whole, height))
        left = places[whole:]


@partial(jax.jit, static_argnames="sites")
def pooled(model: aj.LanguageModel, tokens: aj.Tokens, sites: tuple) -> list[jax.Array]:
    """Forward pass and masked max in one program; stops after the last site."""
    highest = lambda x: jnp.where(tokens.mask[:, :, None], x, -jnp.inf).max(axis=1)
    acts = forward(model.decoder, tokens, capture=sites, logits=False, pool=highest).acts
    return [acts[site] for site in sites]


def ours(model: aj.LanguageModel, rows: list, layers: tuple, budget: int) -> np.ndarray:
    """Length buckets through :func:`pooled`; results are fetched when all batches are under way."""
    sites = tuple(aj.Site("mlp_act", i) for i in layers)
    out = np.zeros((len(sites), len(rows), model.config.intermediate_size), np.float32)
    running = []
    for length, height, places in buckets(np.array([len(r) for r in rows]), budget):
        ids = [rows[i] for i in places] + [[]] * (height - len(places))
        tokens = model.tokenizer.pad(ids, length, range(height))
        running.append((places, pooled(model, tokens, sites)))
    for places, acts in running:
        for k, a in enumerate(acts):
            out[k, places] = np.asarray(a)[: len(places)]
    return out


def naive(model: aj.LanguageModel, rows: list, layers: tuple) -> np.ndarray:
    """The same program on batches of 32 in the given order, all padded to the longest sentence."""
    sites = tuple(aj.Site("mlp_act", i) for i in layers)
    length = -(-max(map(len, rows)) // 8) * 8
    parts = []
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        tokens = model.tokenizer.pad(part + [[]] * (32 - len(part)), length, range(32))
        parts.append(np.stack(pooled(model, tokens, sites))[:, : len(part)])
    return np.concatenate(parts, axis=1)


def memory_by_layers(model: aj.LanguageModel, sizes: dict) -> dict[str, dict[int, float]]:
    """MiB of temporaries and outputs of one pass by the number of captured layers, pooled inside and not."""
    tokens = model.tokenizer.pad([[5] * 64] * 32, 64, range(32))
    table: dict[str, dict[int, float]] = {"pooled inside": {}, "raw": {}}
    for n in (1, sizes["layers"] // 2, sizes["layers"]):
        sites = tuple(aj.Site("mlp_act", i) for i in range(sizes["layers"] - n, sizes["layers"]))
        raw = jax.jit(lambda m, t, s=sites: forward(m.decoder, t, capture=s, logits=False).acts)
        for name, lowered in (("pooled inside", pooled.lower(model, tokens, sites)), ("raw", raw.lower(model, tokens))):
            m = lowered.compile().memory_analysis()
            table[name][n] = (m.temp_size_in_bytes + m.output_size_in_bytes) / 2**20
    return table


def growth_over_batches(work: Callable, times: int) -> float:
    """MiB by which the process' peak memory grows over ``times`` repetitions, after two."""
    work(), work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(times):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(sizes: dict) -> dict:
    """Run all ways in turn on one random model."""
    rng = np.random.default_rng(0)
    rows = sentences(sizes, rng)
    with tempfile.TemporaryDirectory() as folder:
        theirs = make_checkpoint(Path(folder), sizes)
        model = aj.LanguageModel.from_pretrained(folder)
    base, sites, early, budget = theirs.model, sizes["sites"], sizes["early"], sizes["budget"]
    ways = {
        "transformers, causal model, given order": lambda: peer(theirs, base.layers, rows, sites, False),
        "transformers, base model, given order": lambda: peer(base, base.layers, rows, sites, False),
        "transformers, base model, by length": lambda: peer(base, base.layers, rows, sites, True),
        "atlas_jax, all padded alike": lambda: naive(model, rows, sites),
        "atlas_jax, length buckets": lambda: ours(model, rows, sites, budget),
        "atlas_jax, length buckets, early layers only": lambda: ours(model, rows, early, budget),
    }
    for name, way in ways.items():
        if name.startswith("atlas_jax"):
            way()
    peer(base, base.layers, rows[:32], sites, True)
    seconds, results = alternate(ways, sizes["repeats"])
    reference = results["transformers, base model, by length"]
    worst = np.abs(results["atlas_jax, length buckets"] - reference).max() / np.abs(reference).max()
    report = summary(seconds, rows, model, sizes)
    few = lambda: ours(model, rows[:64], sites, budget)
    return report | {
        "largest_relative_difference": float(worst),
        "memory_mib_by_captured_layers": memory_by_layers(model, sizes),
        "memory_growth_mib_over_20_repetitions": growth_over_batches(few, 20),
    }


def summary(seconds: dict, rows: list, model: aj.LanguageModel, sizes: dict) -> dict:
    """Useful tokens/s, ratios to the usual loop, and the share of the matmul ceiling that useful tokens reach."""
    tokens, first = sum(map(len, rows)), "transformers, causal model, given order"
    layer = sum(x.size for x in jax.tree.leaves(model.decoder.layers[0]))
    ceiling = matmul_ceiling()
    table = {}
    for name, s in seconds.items():
        depth = max(sizes["early"]) + 1 if "early" in name else max(sizes["sites"]) + 1
        rate = tokens / s
        table[name] = {
            "useful_tokens_per_s": rate,
            "ratio": seconds[first] / s,
            "share_of_float32_ceiling": 2 * layer * depth * rate / 1e9 / ceiling,
        }
    return {"ways": table, "tokens": tokens, "float32_gflops_ceiling": ceiling}


def main() -> None:
    """Measure, print and write."""
    arguments = arguments_of(__doc__).parse_args()
    sizes = QUICK if arguments.quick else FULL
    report = {"sizes": sizes} | machine(flax, torch, transformers, np) | measure(sizes)
    for name, row in report["ways"].items():
        print(
            f"{name:48s} {row['useful_tokens_per_s']:8.0f} tokens/s {row['ratio']:6.2f}x "
            f"{row['share_of_float32_ceiling']:5.0%} of the float32 ceiling"
        )
    print("largest relative difference", report["largest_relative_difference"])
    print("MiB by captured layers", report["memory_mib_by_captured_layers"])
    print("MiB more after 20 repetitions", report["memory_growth_mib_over_20_repetitions"])
    write(report, arguments.out)


if __name__ == "__main__":
    main()
