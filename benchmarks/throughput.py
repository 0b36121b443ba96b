"""What an alignment costs: every stage in sentences/s, tokens/s and its share of the measured matmul rate.

Stages are timed apart, on the same batches, and the streamed pass (``fit_statistics``) as a whole, for each number of
devices, in a process of its own. Claim: peak memory does not grow with the number of sentences (1x and 4x are run).

    python benchmarks/throughput.py [--quick] [--size bundled|scaled|paper] [--devices 1 2 8] [--out throughput.json]

``bundled`` is the pair that ships, ``scaled`` and ``paper`` have random weights: the shapes of the paper at a
sixteenth of the width, and in full (Llama-3.1-8B at five layers, Gemma-2-2B at layer 20 with 16,384 features). On a
CPU several devices are simulated and share its cores.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SITES = {
    "bundled": ("mlp_act.1", "mlp_act.2", "resid_post.2"),
    "scaled": ("mlp_act.1", "mlp_act.3", "mlp_act.5"),
    "paper": ("mlp_act.3", "mlp_act.11", "mlp_act.19", "mlp_act.27", "mlp_act.31"),
}
LLAMA = {
    "scaled": {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 6, "num_attention_heads": 8},
    "paper": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
GEMMA = {
    "scaled": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    "paper": {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 21, "num_attention_heads": 8},
}
ATLAS = {"scaled": ("resid_post.3", 1024), "paper": ("resid_post.20", 16384)}
BUDGET = {"bundled": 4096, "scaled": 4096, "paper": 16384}
METHODS = ("covariance", "correlation", "least_squares", "procrustes", "semantic_lens")


def make_pair(size: str, folder: Path) -> None:
    """Write a subject and an atlas with random weights, and the tokenizers of the bundled pair."""
    import jax
    import jax.numpy as jnp
    import transformers
    from flax import nnx

    import atlas_jax as aj
    from atlas_jax.bundled import ATLAS as ATLAS_THERE, SUBJECT
    from atlas_jax.labels import Labels
    from atlas_jax.models import Decoder, ModelConfig
    from atlas_jax.sae import SAEConfig

    def model(hf: Any, tokenizer: Any) -> aj.LanguageModel:
        config = ModelConfig.from_hf(hf)
        make = nnx.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))
        return aj.LanguageModel(config, tokenizer, make(), hf.to_dict())

    shared = {
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    llama = transformers.LlamaConfig(**LLAMA[size], **shared, architectures=["LlamaForCausalLM"])
    subject = model(llama, aj.LanguageModel.from_pretrained(SUBJECT).tokenizer)
    subject.save_pretrained(folder / "subject", dtype="bfloat16")
    del subject
    site, features = aj.Site.parse(ATLAS[size][0]), ATLAS[size][1]
    gemma = transformers.Gemma2Config(
        **GEMMA[size], **shared, head_dim=GEMMA[size]["hidden_size"] // 8, architectures=["Gemma2ForCausalLM"]
    )
    d = gemma.hidden_size
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape) * shape[0] ** -0.5
    sae = aj.SparseAutoencoder.build(
        SAEConfig("jumprelu", d, features, site=site),
        W_enc=draw(0, d, features), b_enc=jnp.zeros(features), W_dec=draw(1, features, d), b_dec=jnp.zeros(d),
        threshold=jnp.full(features, 2.0),
    )  # fmt: skip
    foundation = model(gemma, aj.ConceptAtlas.from_pretrained(ATLAS_THERE).model.tokenizer)
    atlas = aj.ConceptAtlas.of(foundation, sae, site, Labels.empty(features))
    atlas.save_pretrained(folder / "atlas", {}, dtype="bfloat16")


def worker(job: dict[str, Any]) -> dict[str, Any]:
    """Time one pair on all devices of this process."""
    import jax
    from _common import matmul_ceiling, seconds_of

    from atlas_jax.corpus import build_corpus, installed_documentation
    from atlas_jax.mesh import make_mesh
    from atlas_jax.pipeline import AlignSettings, Pass, fit_statistics, load_pair, solve
    from atlas_jax.translators import needs_of

    settings = AlignSettings(SITES[job["size"]], METHODS, dtype=job["dtype"])
    pair = load_pair(job["subject"], job["atlas"], settings, make_mesh() if jax.device_count() > 1 else None)
    spaces = [pair.subject, pair.atlas]
    needs = needs_of(METHODS)
    texts = list(build_corpus(installed_documentation(max_bytes=job["bytes"]), n_fit=job["sentences"]).fit)
    stream = Pass.of(spaces, texts * job["times"], token_budget=BUDGET[job["size"]])
    rest = [tokens for _, tokens in stream.steps()]
    tokens = sum(int(t.attention_mask.sum()) for batch in rest for t in batch)
    report = {"devices": jax.device_count(), "sentences": stream.size, "tokens_of_both_models": tokens}
    fit_statistics(stream, needs, top_k=50)
    whole, fitted = seconds_of(lambda: fit_statistics(stream, needs, top_k=50))
    report |= {"peak_bytes": peak_bytes(), "pass_seconds": whole}
    if job["times"] > 1:
        return report
    ceiling = matmul_ceiling(job["dtype"])
    stages = stage_seconds(stream, texts, rest, needs)
    for method in METHODS:
        solve(stream, fitted, [method])
        stages[f"solve: {method}"] = {"seconds": seconds_of(lambda m=method: solve(stream, fitted, [m]))[0]}
    stages["whole pass"] = {"seconds": whole, "flops": sum(s.get("flops", 0.0) for s in stages.values())}
    for name, stage in stages.items():
        if "flops" in stage:
            stage["share_of_matmul_rate"] = stage["flops"] / stage["seconds"] / 1e9 / ceiling
        if not name.startswith("solve"):
            stage["sentences_per_s"] = stream.size / stage["seconds"]
            stage["tokens_per_s"] = tokens / stage["seconds"]
    return report | {"gflops_ceiling": ceiling, "stages": stages}


def stage_seconds(stream: Any, texts: list[str], batches: list, needs: frozenset[str]) -> dict[str, dict[str, float]]:
    """Seconds and floating-point operations of every stage over all batches, each after a run that compiles."""
    import jax
    from _common import seconds_of

    from atlas_jax.models import forward
    from atlas_jax.pipeline import Block
    from atlas_jax.pooling import POOLINGS
    from atlas_jax.statistics import PassStatistics, update_pass

    subject, atlas = stream.spaces
    tokenizers = [s.model.tokenizer for s in stream.spaces]
    read = lambda space, t: forward(space.model.decoder, t, capture=space.sites, logits=False).acts
    pool = lambda acts, mask: {site: POOLINGS["max"](x, mask).values for site, x in acts.items()}
    encode = lambda sae, acts: {site: sae.encode(x) for site, x in acts.items()}
    add = jax.jit(lambda s, a_s, a_c, t: update_pass(s, a_s, a_c[atlas.site], None, t.index, mesh=stream.mesh))
    steps = {
        "forward: subject": (jax.jit(read), lambda b: (subject, b[0])),
        "pool: subject": (jax.jit(pool), lambda b: (acts(0, b), b[0].mask)),
        "forward: atlas": (jax.jit(read), lambda b: (atlas, b[1])),
        "encode: SAE": (jax.jit(encode), lambda b: (atlas.sae, acts(1, b))),
        "pool: atlas": (jax.jit(pool), lambda b: (features(b), b[1].mask)),
        "accumulate": (add, lambda b: (state, subject.encode(b[0]), atlas.encode(b[1]), b[0])),
    }
    acts = lambda side, b: steps[f"forward: {('subject', 'atlas')[side]}"][0](stream.spaces[side], b[side])
    features = lambda b: steps["encode: SAE"][0](atlas.sae, acts(1, b))
    state = PassStatistics.init(needs, subject.widths, atlas.width, top_k=50, mesh=stream.mesh)
    index = jax.numpy.arange(len(texts)).__array__()
    found = {
        "tokenize": {"seconds": seconds_of(lambda: Block.of(tokenizers, texts, index, stream.max_length).tokens)[0]}
    }
    for name, (step, inputs) in steps.items():
        seconds = flops = 0.0
        compiled: dict[Any, float] = {}
        for batch in batches:
            given = jax.block_until_ready(inputs(batch))
            shape = batch[0].ids.shape
            if shape not in compiled:
                compiled[shape] = step.lower(*given).compile().cost_analysis()["flops"] * jax.device_count()
                jax.block_until_ready(step(*given))
            flops += compiled[shape]
            seconds += seconds_of(lambda step=step, given=given: step(*given))[0]
        found[name] = {"seconds": seconds, "flops": flops}
    return found


def peak_bytes() -> int:
    """Most memory in use so far: of a device where it says so, else of the process."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def run(job: dict[str, Any], devices: int) -> dict[str, Any]:
    """A worker with so many devices: simulated ones on a CPU, else the first of those there."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(devices)))}
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"XLA_FLAGS": flags} | visible
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print and write."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(json.loads(sys.argv[2]))))
        return
    from _common import arguments_of, machine, write

    parser = arguments_of(__doc__)
    parser.add_argument("--size", choices=SITES, default="scaled", help="which pair")
    parser.add_argument("--devices", type=int, nargs="+", default=[1], help="how many devices, one run for each")
    parser.add_argument("--sentences", type=int, default=4000, help="of installed documentation")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the models")
    arguments = parser.parse_args()
    sentences = 300 if arguments.quick else arguments.sentences
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.size == "bundled":
            from atlas_jax.bundled import ATLAS as ATLAS_THERE, SUBJECT

            places = {"subject": str(SUBJECT), "atlas": str(ATLAS_THERE)}
        else:
            code = f"import throughput, pathlib; throughput.make_pair({arguments.size!r}, pathlib.Path({name!r}))"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
            places = {part: str(folder / part) for part in ("subject", "atlas")}
        job = {"size": arguments.size, "dtype": arguments.dtype, "sentences": sentences, "bytes": sentences * 600}
        runs = [run(job | places | {"times": 1}, devices) for devices in arguments.devices]
        longer = run(job | places | {"times": 4}, arguments.devices[0])
    growth = longer["peak_bytes"] / runs[0]["peak_bytes"]
    report = machine() | {"size": arguments.size, "dtype": arguments.dtype, "runs": runs, "four_times": longer}
    for found in runs:
        print(
            f"{found['devices']} devices, {found['sentences']} sentences, {found['gflops_ceiling']:.0f} GFLOP/s at most"
        )
        for stage, row in found["stages"].items():
            rates = (
                f"{row['sentences_per_s']:9.0f} sentences/s {row['tokens_per_s']:9.0f} tokens/s"
                if "tokens_per_s" in row
                else ""
            )
            share = f"{row['share_of_matmul_rate']:5.0%} of the matmul rate" if "share_of_matmul_rate" in row else ""
            print(f"  {stage:24s} {row['seconds']:8.2f} s {rates} {share}")
    print(f"peak memory at 4x the sentences: {growth:.2f} of that at 1x")
    write(report | {"memory_growth_1x_to_4x": growth}, arguments.out)


if __name__ == "__main__":
    main()
