"""Seconds to compile models of 2, 8 and 32 layers, from shapes alone: no weights.

The models are Llamas of Llama-3.1-8B's widths; what is compiled is a batch of 4096 tokens read at the last layer, and
the logits of one token of 16 rows, as a decoding step has them but for its cache.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import transformers
from _common import machine, write
from flax import nnx

from atlas_jax import Site, Tokens
from atlas_jax.models import Decoder, ModelConfig, forward

LAYERS = 2, 8, 32


def decoder_of(layers: int) -> Any:
    """A decoder of shapes, in bfloat16."""
    hf = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192,
    )  # fmt: skip
    decoder = nnx.eval_shape(lambda: Decoder(ModelConfig.from_hf(hf), rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), decoder)


def seconds(function: Any, *arguments: Any) -> dict[str, float]:
    """Seconds to trace, to lower and to compile, and the size of the program."""
    times = [time.perf_counter()]
    traced = jax.jit(function).trace(*arguments)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    parts = dict(
        zip(("trace", "lower", "compile"), (b - a for a, b in zip(times, times[1:], strict=False)), strict=True)
    )
    return parts | {
        "operations": lowered.as_text().count("\n"),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


def tokens_of(rows: int, length: int) -> Tokens:
    """A batch of shapes."""
    make = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    wide = rows, length
    return Tokens(make(jnp.int32, *wide), make(bool, *wide), make(jnp.int32, rows), make(bool, *wide))


def measure(layers: int) -> dict[str, Any]:
    """Both programs of a number of layers."""
    decoder, last = decoder_of(layers), Site("resid_post", layers - 1)
    read = lambda d, t: forward(d, t, capture=(last,), logits=False, pool=lambda x: jnp.max(x, axis=1)).acts
    logits = lambda d, t: forward(d, t).logits[:, -1]
    found = {
        "reading": seconds(read, decoder, tokens_of(32, 128)),
        "logits of a token": seconds(logits, decoder, tokens_of(16, 1)),
    }
    print(layers, found, flush=True)
    return {"layers": layers} | found


def main() -> None:
    """Measure every number of layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    write({"machine": machine(jax), "layers": [measure(layers) for layers in LAYERS]}, asked.out)


if __name__ == "__main__":
    main()
