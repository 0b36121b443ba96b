"""``align --plan`` against XLA's own memory analysis at real shapes, and against the memory that alignments here take.

The first compiles the steps of a pass from shapes alone: no weights. The second aligns random models of ten settings,
each in a process of its own whose programs were compiled by another, and compares the most memory it held beyond what
it held before the models were made.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before any device is asked for

import jax.numpy as jnp  # noqa: E402
import transformers  # noqa: E402
from _common import machine, write  # noqa: E402
from flax import nnx  # noqa: E402

from atlas_jax import AlignSettings, ConceptAtlas, LanguageModel, SparseAutoencoder, Subject, build_corpus  # noqa: E402
from atlas_jax.bundled import SUBJECT  # noqa: E402
from atlas_jax.corpus import installed_documentation  # noqa: E402
from atlas_jax.labels import Labels  # noqa: E402
from atlas_jax.models import Decoder, ModelConfig, Tokenizer  # noqa: E402
from atlas_jax.pipeline import Pair, Setup, align, compiled_plan, known_device, plan_alignment  # noqa: E402
from atlas_jax.pipeline._plan_costs import (  # noqa: E402
    batch_bytes,
    columns_of,
    parameter_bytes,
    rows_of,
    statistics_bytes,
)
from atlas_jax.sae import SAEConfig  # noqa: E402
from atlas_jax.types import Site  # noqa: E402

PAPER = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens", "random")
# hidden size, MLP, layers, atlas features, sites, methods, token budget, dtype
SETTINGS = [
    (768, 2048, 4, 6144, (2,), ("covariance",), 4096, "float32"),
    (768, 3072, 6, 8192, (1, 4), ("covariance",), 4096, "float32"),
    (768, 2048, 4, 12288, (0, 1, 2), ("covariance", "correlation"), 4096, "float32"),
    (512, 2048, 4, 6144, (1, 3), ("covariance",), 24576, "float32"),
    (1536, 4096, 4, 6144, (3,), ("covariance",), 4096, "bfloat16"),
    (1024, 3072, 4, 12288, (1, 3), ("covariance",), 8192, "float32"),
    (768, 2048, 4, 8192, (1, 3), ("covariance", "procrustes"), 4096, "float32"),
    (512, 1024, 4, 4096, (1, 3), ("covariance", "ridge"), 4096, "float32"),
    (1024, 3072, 6, 6144, (2, 4), ("semantic_lens", "covariance"), 4096, "float32"),
    (768, 1536, 4, 3072, (1, 3), PAPER, 8192, "float32"),
]  # fmt: skip


def llama(hidden: int, mlp: int, layers: int, vocabulary: int = 3072) -> ModelConfig:
    """A Llama of the usual proportions."""
    heads = hidden // 64
    hf = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=512,
    )  # fmt: skip
    return ModelConfig.from_hf(hf)


def real(name: str) -> ModelConfig:
    """Llama-3.1-8B or Gemma-2-2B, as their configs state them."""
    if name == "gemma":
        return ModelConfig.from_hf(transformers.Gemma2Config())
    hf = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072,
    )  # fmt: skip
    return ModelConfig.from_hf(hf)


def _setup_of(setting: tuple[Any, ...]) -> Setup:
    hidden, mlp, layers, width, sites, methods, budget, dtype = setting
    names = tuple(f"mlp_act.{i}" for i in sites)
    settings = AlignSettings(names, tuple(methods), token_budget=budget, dtype=dtype, max_length=64)
    config, sae = llama(hidden, mlp, layers), SAEConfig("jumprelu", hidden, width)
    return Setup(config, config, sae, Site("resid_post", layers - 1), settings, (600, 100), known_device("cpu"))


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def worker(number: int) -> None:
    """Align random models of a setting, and print the most memory that took."""
    setup = _setup_of(SETTINGS[number])
    corpus = build_corpus(installed_documentation(max_bytes=1_000_000), n_fit=600, n_eval=100)
    tokenizers = [Tokenizer.load(SUBJECT), Tokenizer.load(SUBJECT)]
    jnp.ones(3).block_until_ready()
    before = _memory("VmRSS")
    dtype = jnp.dtype(setup.settings.dtype)
    models = []
    for i, tokenizer in enumerate(tokenizers):
        decoder = jax.tree.map(
            lambda x: x.astype(dtype), jax.jit(lambda i=i: Decoder(setup.subject, rngs=nnx.Rngs(i)))()
        )
        models.append(LanguageModel(setup.subject, tokenizer, decoder, {}))
    sae = jax.jit(lambda: jax.random.normal(jax.random.key(0), (setup.sae.d_in, setup.sae.d_sae)) * 0.05)()
    zeros = lambda d: jnp.zeros(d, jnp.float32)
    parts = {"W_enc": sae, "W_dec": sae.T, "b_enc": zeros(setup.sae.d_sae), "b_dec": zeros(setup.sae.d_in)}
    own = SparseAutoencoder(setup.sae, **parts, threshold=zeros(setup.sae.d_sae) + 1)
    atlas = ConceptAtlas.from_parts(models[1], own, setup.site, Labels.empty(setup.sae.d_sae))
    subject = Subject.from_model(models[0], setup.settings.sites)
    sources = {name: {"sha256": "", "path": ""} for name in ("subject", "atlas")}
    jax.block_until_ready((subject, atlas))
    Path("/proc/self/clear_refs").write_text("5")  # to make random models is no part of an alignment
    run = align(Pair(subject, atlas, sources), corpus, setup.settings)
    jax.block_until_ready([t.matrix for t in run.translations.values()])
    print(json.dumps({"peak": _memory("VmHWM") - before}))


def measured() -> list[dict[str, Any]]:
    """Predicted beside measured memory of every setting."""
    rows = []
    for number, setting in enumerate(SETTINGS):
        plan = compiled_plan(plan_alignment(_setup_of(setting)))  # as `align --plan` for the devices that are here
        with tempfile.TemporaryDirectory() as cache:
            env = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
            }  # fmt: skip
            command = [sys.executable, __file__, "--worker", str(number)]
            for _ in range(2):  # the first compiles
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        peak = json.loads(done.stdout.splitlines()[-1])["peak"]
        fitting = [stage for stage in plan.stages if "eval" not in stage.name]
        predicted = max(stage.peak for stage in fitting)
        row = {"setting": setting, "predicted": predicted, "measured": peak, "ratio": predicted / peak}
        row["stages"] = {stage.name: stage.peak for stage in fitting}
        rows.append(row)
        print(json.dumps({k: row[k] for k in ("setting", "predicted", "measured", "ratio", "stages")}), flush=True)
    return rows


def analysed(width: int, model_parallel: int | None, dtype: str) -> dict[str, Any]:
    """Predicted beside XLA's memory of a pass of the paper's pair: parameters and statistics with each step."""
    layers = (3, 11, 19, 23, 27)
    settings = AlignSettings(tuple(f"mlp_act.{i}" for i in layers), PAPER, dtype=dtype)
    shapes = real("llama"), real("gemma"), SAEConfig("jumprelu", 2304, width), Site("resid_post", 20)
    devices = 1 if model_parallel is None else 8
    setup = Setup(*shapes, settings, (500_000, 500_000), known_device("h100"), devices, model_parallel or 1)
    plan = plan_alignment(dataclasses.replace(setup, at_once=len(layers)))
    compiled = compiled_plan(plan)
    by_xla = compiled.compiled
    statistics, added = statistics_bytes(setup)
    fixed = sum({**parameter_bytes(setup), **statistics}.values())
    predicted, xla = plan.stages[0].peak, compiled.stages[0].peak
    parts = {"held": [fixed, by_xla["held"]]}
    parts["forward"] = [batch_bytes(setup)[1], max(by_xla["subject"], by_xla["atlas"])]
    parts["step"] = [added + 24 * rows_of(setup) * columns_of(setup), by_xla["statistics"]]
    return {
        "atlas features": width, "devices": devices, "model_parallel": setup.model_parallel, "dtype": dtype,
        "predicted": predicted, "xla": xla, "ratio": predicted / xla, "parts, predicted and by XLA": parts,
    }  # fmt: skip


def main() -> None:
    """Run both parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=int)
    parser.add_argument("--part", choices=["measured", "xla"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.worker is not None:
        worker(asked.worker)
        return
    report: dict[str, Any] = {"machine": machine(jax)}
    if asked.part != "measured":
        cases = [(16384, None, "float32"), (65536, None, "float32"), (16384, 1, "float32"), (65536, 2, "float32")]
        report["xla"] = []
        for case in cases:
            report["xla"].append(analysed(*case))
            print(json.dumps(report["xla"][-1]), flush=True)
    if asked.part != "xla":
        report["measured"] = measured()
    write(report, asked.out)


if __name__ == "__main__":
    main()
