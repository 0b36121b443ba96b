"""The parts of ``accelerator.py`` that run others on the same card: transformers with hooks, and torch's SVD."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from _accelerator_inputs import SIZES, decoding_inputs
from _common import sentence_lengths
from decoding import peer as decoders
from extraction import peer as extract
from throughput import BUDGET, LLAMA, SITES

Found = Iterator[dict[str, Any]]
CARD = "cuda" if torch.cuda.is_available() else "cpu"
SVD = {"paper": (2048, 2304), "tiny": (24, 32)}
SENTENCES = {"paper": 2048, "tiny": 24}


def device() -> dict[str, Any]:
    """On what a part ran, and how much of its memory it needed."""
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    if CARD == "cpu":
        return {"device": CARD, "versions": versions, "peak_bytes": None}
    peak = torch.cuda.max_memory_allocated()
    return {"device": torch.cuda.get_device_name(), "versions": versions, "peak_bytes": peak}


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall-clock seconds until the card is done."""
    start = time.perf_counter()
    call()
    if CARD == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def causal_model(size: str) -> transformers.PreTrainedModel:
    """The subject with random weights, made on the card in bfloat16, with torch's own attention."""
    config = transformers.LlamaConfig(**LLAMA[size])
    with torch.device(CARD):
        options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        return transformers.AutoModelForCausalLM.from_config(config, **options).eval()


def transformers_extraction(size: str) -> Found:
    """Real tokens/s with hooks, sorted by length, without statistics: batches of 32, and of our token budget."""
    base = causal_model(size).model
    sites = tuple(int(site.split(".")[1]) for site in SITES[size])
    rng = np.random.default_rng(0)
    lengths = sentence_lengths(SENTENCES[size], rng)
    rows = [rng.integers(3, base.config.vocab_size, n).tolist() for n in lengths]
    for name, budget in (("batches_of_32", None), ("same_budget", BUDGET[size])):
        extract(base, base.layers, rows[:: len(rows) // 8], sites, True, budget)
        seconds = seconds_of(lambda budget=budget: extract(base, base.layers, rows, sites, True, budget))
        yield {name: {"seconds": seconds, "tokens_per_s": int(lengths.sum()) / seconds}}


def transformers_decoding(size: str) -> Found:
    """Greedy tokens/s with a hook that steers, all strengths as one batch."""
    model, sizes = causal_model(size), SIZES[size]
    config = model.config
    prompts, direction = decoding_inputs(config.vocab_size, config.hidden_size, sizes["prompts"])
    layer = config.num_hidden_layers // 2
    warm, way = (decoders(model, prompts, direction, layer, new)["one batch"] for new in (2, sizes["new"]))
    warm()
    seconds, tokens = seconds_of(way), 7 * len(prompts) * sizes["new"]
    yield {"one_batch": {"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds}}


def torch_svd(size: str) -> Found:
    """Seconds of torch's SVD in float32 at a size it can do, and what the polar factor at the paper's would take."""
    (p, q), (rows, columns) = SVD[size], SIZES[size]["polar"]
    m = torch.randn(p, q, device=CARD, generator=torch.Generator(CARD).manual_seed(0))
    growth = rows**2 * columns / (p**2 * q)
    for driver in (None, "gesvd") if CARD == "cuda" else (None,):
        call = lambda driver=driver: torch.linalg.svd(m, full_matrices=False, driver=driver)
        call()
        seconds = seconds_of(call)
        yield {driver or "default": {"shape": (p, q), "seconds": seconds, "extrapolated_seconds": seconds * growth}}
