"""What an alignment costs: every stage in sentences/s, tokens/s and its share of the measured matmul rate.

Stages are timed apart, on the same batches, and the streamed pass (``fit_statistics``) as a whole, for each number of
devices, in a process of its own. Claim: peak memory does not grow with the number of sentences (1x and 4x are run).

    python benchmarks/throughput.py [--quick] [--size bundled|scaled|paper] [--devices 1 2 8] [--out throughput.json]

``bundled`` is the pair that ships, ``scaled`` and ``paper`` have random weights: the shapes of the paper at a
sixteenth of the width, and in full (Llama-3.1-8B at five layers, Gemma-2-2B at layer 20 with 16,384 features); ``tiny``
is for a look at whether it runs. On a
CPU several devices are simulated and share its cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SITES = {
    "tiny": ("mlp_act.0", "mlp_act.1"),
    "bundled": ("mlp_act.1", "mlp_act.2", "resid_post.2"),
    "scaled": ("mlp_act.1", "mlp_act.3", "mlp_act.5"),
    "paper": ("mlp_act.3", "mlp_act.11", "mlp_act.19", "mlp_act.27", "mlp_act.31"),
}
SHARED = {"vocab_size": 32000, "max_position_embeddings": 512, "num_key_value_heads": 4, "tie_word_embeddings": True}
LLAMA = {
    "tiny": SHARED
    | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"vocab_size": 300, "eos_token_id": None},
    "scaled": SHARED | {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 6, "num_attention_heads": 8},
    "paper": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}
GEMMA = {
    "tiny": SHARED
    | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    | {"vocab_size": 300},
    "scaled": SHARED
    | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 32},
    "paper": {},  # what transformers takes for Gemma 2 is Gemma-2-2B
}
ATLAS = {"tiny": ("resid_post.1", 96), "scaled": ("resid_post.3", 1024), "paper": ("resid_post.20", 16384)}
BUDGET = {"tiny": 512, "bundled": 4096, "scaled": 4096, "paper": 16384}
METHODS = ("covariance", "correlation", "least_squares", "procrustes", "semantic_lens")
PAPER = {"sentences": 500_000, "rows": 512, "length": 32}  # a batch of it, for the operations of a sentence
H200 = {"bfloat16": 790e12, "float32": 60e12}  # matmul FLOP/s of one card


def subject_of(size: str, make: Callable) -> Any:
    """A Llama of random weights with the bundled subject's tokenizer; ``make`` runs its constructor or finds shapes."""
    import transformers

    from atlas_jax.bundled import SUBJECT

    return _model(transformers.LlamaConfig(**LLAMA[size], architectures=["LlamaForCausalLM"]), SUBJECT, make)


def atlas_of(size: str, make: Callable) -> Any:
    """A Gemma 2 and a JumpReLU SAE of random weights, of which about 2% are active at every token."""
    import jax
    import jax.numpy as jnp
    import transformers

    import atlas_jax as aj
    from atlas_jax.bundled import ATLAS as BUNDLED
    from atlas_jax.labels import Labels
    from atlas_jax.sae import SAEConfig

    site, features = aj.Site.parse(ATLAS[size][0]), ATLAS[size][1]
    gemma = transformers.Gemma2Config(**GEMMA[size], architectures=["Gemma2ForCausalLM"])
    d = gemma.hidden_size
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape) * shape[0] ** -0.5
    sae = aj.SparseAutoencoder.build(
        SAEConfig("jumprelu", d, features, site=site),
        W_enc=draw(0, d, features), b_enc=jnp.zeros(features), W_dec=draw(1, features, d), b_dec=jnp.zeros(d),
        threshold=jnp.full(features, 2.0),
    )  # fmt: skip
    return aj.ConceptAtlas.from_parts(_model(gemma, BUNDLED / "model", make), sae, site, Labels.empty(features))


def _model(hf: Any, tokenizer: Path, make: Callable) -> Any:
    from flax import nnx

    import atlas_jax as aj
    from atlas_jax.models import Decoder, ModelConfig, Tokenizer

    config = ModelConfig.from_hf(hf)
    return aj.LanguageModel(
        config, Tokenizer.load(tokenizer), make(lambda: Decoder(config, rngs=nnx.Rngs(0))), hf.to_dict()
    )


def make_pair(size: str, folder: Path) -> None:
    """Write a subject and an atlas, one after the other, in bfloat16."""
    from flax import nnx

    make = lambda build: nnx.jit(build)()
    subject_of(size, make).save_pretrained(folder / "subject", dtype="bfloat16")
    atlas_of(size, make).save_pretrained(folder / "atlas", {}, dtype="bfloat16")


def worker(job: dict[str, Any]) -> dict[str, Any]:
    """Time one pair on all devices of this process."""
    import jax
    from _common import matmul_ceiling, most_bytes, seconds_of

    from atlas_jax.corpus import build_corpus, installed_documentation
    from atlas_jax.pipeline import AlignSettings, SentenceStream, fit_statistics, load_pair, solve
    from atlas_jax.sharding import make_mesh
    from atlas_jax.translators import needs_of

    settings = AlignSettings(SITES[job["size"]], METHODS, dtype=job["dtype"])
    pair = load_pair(job["subject"], job["atlas"], settings, make_mesh() if jax.device_count() > 1 else None)
    spaces = [pair.subject, pair.atlas]
    needs = needs_of(METHODS)
    texts = list(build_corpus(installed_documentation(max_bytes=job["bytes"]), n_fit=job["sentences"]).fit)
    stream = SentenceStream.from_texts(spaces, texts * job["times"], token_budget=BUDGET[job["size"]])
    rest = [tokens for _, tokens in stream.steps()]
    tokens = sum(int(t.attention_mask.sum()) for batch in rest for t in batch)
    report = {"devices": jax.device_count(), "sentences": stream.size, "tokens_of_both_models": tokens}
    fit_statistics(stream, needs, top_k=50)
    whole, fitted = seconds_of(lambda: fit_statistics(stream, needs, top_k=50))
    report |= {"peak_bytes": most_bytes(), "pass_seconds": whole}
    if job["times"] > 1:
        return report
    both = lambda: fit_statistics(stream, needs, top_k=50, further={"mean": needs_of(settings.steer_methods)})
    both()
    report["pass_seconds_with_steering"] = seconds_of(both)[0]
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


def stages_of(spaces: list, mesh: Any) -> dict[str, tuple[Callable, Callable]]:
    """Every stage on the devices: its compiled step, and its arguments from a batch and from what came before."""
    import jax

    from atlas_jax.models import forward
    from atlas_jax.pooling import POOLINGS
    from atlas_jax.statistics import update_pass

    subject, atlas = spaces
    read = lambda space, t: forward(space.model.decoder, t, capture=space.sites, logits=False).acts
    pool = lambda acts, mask: {site: POOLINGS["max"](x, mask).values for site, x in acts.items()}
    encode = lambda sae, acts: {site: sae.encode(x) for site, x in acts.items()}
    add = lambda state, a_s, a_c, t: update_pass(state, a_s, a_c[atlas.site], None, t.index, mesh=mesh)
    return {
        "forward: subject": (jax.jit(read), lambda b, found: (subject, b[0])),
        "pool: subject": (jax.jit(pool), lambda b, found: (found["forward: subject"], b[0].mask)),
        "forward: atlas": (jax.jit(read), lambda b, found: (atlas, b[1])),
        "encode: SAE": (jax.jit(encode), lambda b, found: (atlas.sae, found["forward: atlas"])),
        "pool: atlas": (jax.jit(pool), lambda b, found: (found["encode: SAE"], b[1].mask)),
        "accumulate": (
            jax.jit(add),
            lambda b, found: (found["state"], found["pool: subject"], found["pool: atlas"], b[0]),
        ),
    }


def stage_seconds(stream: Any, texts: list[str], batches: list, needs: frozenset[str]) -> dict[str, dict[str, float]]:
    """Seconds and floating-point operations of every stage over all batches, each after a run that compiles."""
    import jax
    from _common import seconds_of

    from atlas_jax.pipeline import Block
    from atlas_jax.statistics import PassStatistics

    subject, atlas = stream.spaces
    tokenizers = [s.model.tokenizer for s in stream.spaces]
    index = jax.numpy.arange(len(texts)).__array__()
    table = {
        "tokenize": {
            "seconds": seconds_of(lambda: Block.from_texts(tokenizers, texts, index, stream.max_length).tokens)[0]
        }
    }
    steps = stages_of(stream.spaces, stream.mesh)
    table |= {name: {"seconds": 0.0, "flops": 0.0} for name in steps}
    compiled: dict[Any, float] = {}
    state = PassStatistics.init(needs, subject.widths, atlas.width, top_k=50, mesh=stream.mesh)
    for batch in batches:
        found: dict[str, Any] = {"state": state}
        for name, (step, inputs) in steps.items():
            given, key = inputs(batch, found), (name, batch[0].ids.shape)
            if key not in compiled:
                compiled[key] = step.lower(*given).cost_analysis()["flops"]
                jax.block_until_ready(step(*given))
            seconds, found[name] = seconds_of(lambda step=step, given=given: step(*given))
            table[name]["seconds"] += seconds
            table[name]["flops"] += compiled[key]
    return table


def projection(measured: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the paper's pass from its floating-point operations, at the shares of the matmul rate reached here.

    All its five sites in one pass over 500,000 sentences, each padded to 32 tokens: on this machine, and on one H200
    with the models in bfloat16 and the statistics in float32. What moves memory alone (pooling) is left out.
    """
    import jax
    import jax.numpy as jnp

    import atlas_jax as aj
    from atlas_jax.statistics import PassStatistics
    from atlas_jax.translators import needs_of

    subject, atlas = subject_of("paper", jax.eval_shape), atlas_of("paper", jax.eval_shape)
    subject = aj.Subject.from_model(subject, SITES["paper"])
    rows, length = PAPER["rows"], PAPER["length"]
    array = lambda *shape, dtype: jax.ShapeDtypeStruct(shape, dtype)
    tokens = aj.Tokens(
        array(rows, length, dtype=jnp.int32), array(rows, length, dtype=bool), array(rows, dtype=jnp.int32),
        array(rows, length, dtype=bool),
    )  # fmt: skip
    state = jax.eval_shape(lambda: PassStatistics.init(needs_of(METHODS), subject.widths, atlas.width, top_k=50))
    found: dict[str, Any] = {"state": state}
    table = {}
    for name, (step, inputs) in stages_of([subject, atlas], None).items():
        given = inputs((tokens, tokens), found)
        found[name] = jax.eval_shape(step, *given)
        if name.startswith("pool"):
            continue
        flops = step.lower(*given).cost_analysis()["flops"] * PAPER["sentences"] / rows
        share = measured["stages"][name]["share_of_matmul_rate"]
        rate = H200["float32" if name == "accumulate" else "bfloat16"]
        table[name] = {
            "flops": flops,
            "seconds_here": flops / share / measured["gflops_ceiling"] / 1e9,
            "seconds_h200": flops / share / rate,
        }
    return PAPER | {"assumed_flops_h200": H200, "stages": table}


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
    report["projection_to_the_paper"] = projected = projection(runs[0])
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
    print("projected to the paper's pass: 500,000 sentences, five sites, this machine and one H200")
    for stage, row in projected["stages"].items():
        print(f"  {stage:24s} {row['flops']:.1e} FLOP {row['seconds_here']:12.0f} s {row['seconds_h200']:9.0f} s")
    print(f"peak memory at 4x the sentences: {growth:.2f} of that at 1x")
    write(report | {"memory_growth_1x_to_4x": growth}, arguments.out)


if __name__ == "__main__":
    main()
