"""Steered decoding of prompts x strengths as one batch, beside transformers with forward hooks on the same weights.

Claim: in float32 at least 5 times the tokens/s of the usual loop over strengths, and at least 2.2 times those of
transformers' own single batch, with the same tokens; in bfloat16 at least 7 times the float32 loop.

    python benchmarks/decoding.py [--quick] [--out decoding.json]
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import numpy as np
import tokenizers
import torch
import transformers
from _common import STRENGTHS, alternate, arguments_of, machine, matmul_ceiling, steered, write

import atlas_jax as aj

FULL = {"hidden": 512, "ffn": 1376, "layers": 8, "heads": 8, "vocab": 32000, "prompts": 16, "new": 100, "repeats": 3}
QUICK = {"hidden": 128, "ffn": 352, "layers": 4, "heads": 4, "vocab": 2000, "prompts": 4, "new": 16, "repeats": 1}
PROMPT_LENGTH = 12


def make_checkpoint(directory: Path, sizes: dict) -> transformers.PreTrainedModel:
    """A Llama at unit gain, so that greedy texts differ, with a tokenizer of numbered words."""
    config = transformers.LlamaConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["ffn"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=512,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[1] ** -0.5)
    model.save_pretrained(directory)
    words = {f"w{i}": i for i in range(sizes["vocab"])}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w0")).save(str(directory / "tokenizer.json"))
    return model


def hook_of(direction: torch.Tensor, strength: torch.Tensor) -> Callable:
    """Eq. 4 as a forward hook; without the guard for zero strength, which random activations do not need."""

    def hook(_module: torch.nn.Module, _inputs: tuple, a: torch.Tensor) -> torch.Tensor:
        moved = a + strength * direction
        return moved * (a.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True))

    return hook


def peer(model: transformers.PreTrainedModel, prompts: np.ndarray, direction: np.ndarray, layer: int, new: int) -> dict:
    """The two ways to do it in transformers: one strength after another, and all as one batch."""
    vector = torch.tensor(direction, dtype=model.dtype, device=model.device)

    def decode(rows: np.ndarray, strength: np.ndarray) -> np.ndarray:
        hook = hook_of(vector, torch.tensor(strength, dtype=model.dtype, device=model.device)[:, None, None])
        handle = model.model.layers[layer].register_forward_hook(hook)
        try:
            with torch.no_grad():
                ids = torch.tensor(rows, device=model.device)
                options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
                out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        finally:
            handle.remove()
        return out[:, rows.shape[1] :].cpu().numpy()

    return {
        "one strength at a time": lambda: np.concatenate([decode(prompts, k[None]) for k in STRENGTHS]),
        "one batch": lambda: decode(np.tile(prompts, (len(STRENGTHS), 1)), np.repeat(STRENGTHS, len(prompts))),
    }


def measure(sizes: dict) -> dict:
    """Run all ways in turn on one random model."""
    rng, layer = np.random.default_rng(0), sizes["layers"] // 2
    prompts = rng.integers(3, sizes["vocab"], (sizes["prompts"], PROMPT_LENGTH))
    direction = rng.normal(size=sizes["hidden"]).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        float32 = make_checkpoint(Path(folder), sizes)
        bfloat16 = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        models = {d: aj.LanguageModel.from_pretrained(folder, dtype=d) for d in ("float32", "bfloat16")}
    ways = {}
    for model, dtype in ((float32, "float32"), (bfloat16, "bfloat16")):
        for name, way in peer(model, prompts, direction, layer, sizes["new"]).items():
            ways[f"transformers, {name}, {dtype}"] = way
        ways[f"atlas_jax, one batch, {dtype}"] = steered(models[dtype], prompts, direction, layer, sizes["new"])
    for name, way in ways.items():
        if name.startswith("atlas_jax"):
            way()
    for model in (float32, bfloat16):
        peer(model, prompts, direction, layer, 2)["one batch"]()
    seconds, results = alternate(ways, sizes["repeats"])
    return summary(seconds, results, models["float32"], sizes)


def summary(seconds: dict, results: dict, model: aj.LanguageModel, sizes: dict) -> dict:
    """Tokens/s, ratios to the usual loop, agreement of tokens, and the share of the matmul ceiling."""
    tokens = len(STRENGTHS) * sizes["prompts"] * sizes["new"]
    first = "transformers, one strength at a time, float32"
    weights = sum(x.size for x in jax.tree.leaves(model.decoder)) - sizes["vocab"] * sizes["hidden"]
    ceiling = matmul_ceiling()
    rows = {
        name: {
            "tokens_per_s": tokens / s,
            "ratio": seconds[first] / s,
            "same_tokens": float(np.mean(results[name] == results[first])),
            "share_of_float32_ceiling": 2 * weights * tokens / s / 1e9 / ceiling,
        }
        for name, s in seconds.items()
    }
    return {"ways": rows, "float32_gflops_ceiling": ceiling, "tokens": tokens, "weights_per_token": weights}


def main() -> None:
    """Measure, print and write."""
    arguments = arguments_of(__doc__).parse_args()
    sizes = QUICK if arguments.quick else FULL
    report = {"sizes": sizes} | machine(flax, torch, transformers, np) | measure(sizes)
    for name, row in report["ways"].items():
        print(
            f"{name:52s} {row['tokens_per_s']:8.0f} tokens/s {row['ratio']:6.2f}x "
            f"{row['same_tokens']:7.1%} same tokens {row['share_of_float32_ceiling']:5.0%} of the float32 ceiling"
        )
    write(report, arguments.out)


if __name__ == "__main__":
    main()
