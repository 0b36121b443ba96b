"""The parts of ``accelerator.py`` that run atlas_jax. Each is a generator of what it has found."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import _accelerator_inputs as inputs
import flax
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from _accelerator_inputs import SENTENCES, SIZES
from _common import machine, matmul_ceiling, most_bytes, seconds_of, steered
from _reference import activations as reference_activations
from throughput import BUDGET, METHODS

import atlas_jax as aj
from atlas_jax import metrics
from atlas_jax.models import KERNELS, Decoder, ModelConfig, choose_kernel, forward
from atlas_jax.models._attention import attention as one_layer
from atlas_jax.models._cache import Block
from atlas_jax.pipeline import Setup, encode_batch, known_device, plan_alignment
from atlas_jax.pipeline._fit import _lens_step, fit_step
from atlas_jax.pipeline._run import encode_norms
from atlas_jax.sharding import to_host
from atlas_jax.statistics import NormSums, has_double, lens_init, update_pass
from atlas_jax.translators import least_squares, polar_express
from atlas_jax.types import POINTS

Found = Iterator[dict[str, Any]]
CHECKED_ROWS = 64


def device() -> dict[str, Any]:
    """On what a part ran, and how much of its memory it needed."""
    memory = jax.local_devices()[0].memory_stats() or {}
    return {"machine": machine(flax, transformers, np), "peak_bytes": most_bytes(), "limit": memory.get("bytes_limit")}


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the first call, which compiles, and the shorter of two more."""
    first, _ = seconds_of(call)
    return {"first_seconds": first, "seconds": min(seconds_of(call)[0] for _ in range(2))}


def parity(size: str) -> Found:
    """Every site of every layer and the logits of small float32 models, against float64 on the host."""
    families = {
        "llama": transformers.LlamaConfig(**_small(size), num_key_value_heads=2),
        "gemma2": transformers.Gemma2Config(
            **_small(size), num_key_value_heads=2, head_dim=16, sliding_window=5, query_pre_attn_scalar=24
        ),
    }
    table = {}
    for name, hf in families.items():
        config = ModelConfig.from_hf(hf)
        decoder = inputs.drawn(jax.eval_shape(lambda config=config: Decoder(config, rngs=flax.nnx.Rngs(0))))
        ids = np.random.default_rng(0).integers(3, config.vocab_size, (4, 24))
        tokens = aj.Tokens(jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, bool), jnp.arange(4))
        sites = [aj.Site(point, layer) for layer in range(config.num_layers) for point in POINTS]
        found = jax.jit(partial(forward, capture=sites))(decoder, tokens)
        expected = reference_activations(config, decoder, ids)
        pairs = {str(site): (found.acts[site], expected[site]) for site in sites}
        pairs["logits"] = found.logits, expected["logits"]
        table[name] = {site: distance(a, b) for site, (a, b) in pairs.items()}
        yield {"relative_error": table}
    yield {"largest_relative_error": max(max(errors.values()) for errors in table.values())}


def _small(size: str) -> dict[str, Any]:
    return SIZES[size]["small"] | {"vocab_size": 512, "max_position_embeddings": 64}


def distance(found: Any, exact: np.ndarray) -> float:
    """Relative, in the Frobenius norm."""
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def ceilings(size: str) -> Found:
    """TFLOP/s of products by dtype and precision, float32 ones with their error, and GB/s of a copy."""
    n = SIZES[size]["matmul"]
    ways = {"bfloat16": ("bfloat16", "highest"), "float32": ("float32", "highest"), "tf32": ("float32", "default")}
    ways |= {name: ("float32", jax.lax.DotAlgorithmPreset[name]) for name in ("TF32_TF32_F32_X3", "BF16_BF16_F32_X6")}
    table: dict[str, Any] = {}
    for name, (dtype, precision) in ways.items():
        try:
            table[name] = {"tflops": matmul_ceiling(dtype, n, precision, calls=8) / 1e3}
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as e:
            table[name] = {"refused": str(e)[:200]}  # not every backend has every algorithm
        else:
            table[name] |= {"relative_error": product_error(precision, min(n, 2048))} if dtype == "float32" else {}
        yield {"products": table}
    if has_double(jnp.zeros(1)):
        with jax.enable_x64(True):
            table["float64"] = {"tflops": matmul_ceiling("float64", n, calls=4) / 1e3}
    table["linear"] = linear_layer(size)
    yield {"products": table, "copy_gb_per_s": copy_rate(SIZES[size]["copied_bytes"]) / 1e9}


def product_error(precision: Any, n: int) -> float:
    """Of some rows of a square float32 product, relative to float64."""
    x, y = jax.random.normal(jax.random.key(3), (2, n, n))
    found = jax.jit(lambda x, y: jnp.matmul(x, y, precision=precision))(x, y)[:CHECKED_ROWS]
    return distance(found, np.asarray(x[:CHECKED_ROWS], np.float64) @ np.asarray(y, np.float64))


def linear_layer(size: str) -> dict[str, float]:
    """TFLOP/s of the subject's widest product in bfloat16: as the decoder asks for it, and with a bfloat16 result."""
    config = inputs.subject(size, inputs.abstract_in("bfloat16")).model.config
    rows, d, f = BUDGET[size], config.hidden_size, config.intermediate_size
    x, w = (jax.random.normal(jax.random.key(i), shape, "bfloat16") for i, shape in enumerate(((rows, d), (d, f))))
    options = {"precision": jax.lax.Precision.HIGHEST}
    exact = jax.jit(lambda x, w: jnp.matmul(x, w, preferred_element_type=jnp.float32, **options).astype(x.dtype))
    short = jax.jit(lambda x, w: jnp.matmul(x, w, **options))
    rate = lambda f: 8 * 2e-12 * x.size * w.shape[1] / timed(lambda: [f(x, w) for _ in range(8)])["seconds"]
    return {"summed_in_float32_tflops": rate(exact), "bfloat16_result_tflops": rate(short)}


def copy_rate(size: float) -> float:
    """Bytes/s, read and written."""
    x = jnp.ones(int(size) // 8, jnp.float32)
    step = jax.jit(lambda x: x + 1.0)
    return 2 * x.nbytes / timed(lambda: step(x))["seconds"]


def compile(size: str) -> Found:
    """Seconds to trace and to compile the reading of a batch by all layers, and what it needs beside its arguments."""
    abstract = inputs.subject(size, inputs.abstract_in("bfloat16"))
    tokens, _ = inputs.batches(size, SIZES[size]["sentences"], abstract.model.config.vocab_size)
    traced, lowered = seconds_of(lambda: encode_norms.lower(abstract, tokens[len(tokens) // 2]))
    took, compiled = seconds_of(lowered.compile)
    memory = compiled.memory_analysis()
    yield {"trace_seconds": traced, "compile_seconds": took, "temporary_bytes": memory.temp_size_in_bytes}


def extraction(size: str) -> Found:
    """Real tokens/s of the subject, pooled at its sites: alone, and with its rows added to all statistics."""
    subject, sizes = inputs.subject(size), SIZES[size]
    tokens, real = inputs.batches(size, sizes["sentences"], subject.model.config.vocab_size)
    state = inputs.nothing_fitted(subject.widths, sizes_of_atlas(size), sizes["top_k"])
    a_c = {height: inputs.atlas_rows(height, sizes_of_atlas(size)) for height in {len(t.index) for t in tokens}}
    yield {"tokens": real, "padded_tokens": sum(t.ids.size for t in tokens), "batches": len(tokens)}

    def add(state: Any, batch: aj.Tokens) -> Any:
        a_s, *norms = encode_norms(subject, batch)
        return fit_step(state, a_s, {}, a_c[len(batch.index)], NormSums(*norms), batch.index, mesh=None)

    compiled = {}
    for batch in {t.ids.shape: t for t in tokens}.values():
        compiled[str(batch.ids.shape)], state = seconds_of(lambda b=batch, s=state: add(s, b))
    yield {"compile_seconds": compiled}
    peak = matmul_ceiling("bfloat16", sizes["matmul"], calls=8) * 1e9
    flops = 2 * sum(x.size for x in jax.tree.leaves(subject.model.decoder.layers))

    def rates(seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "tokens_per_s": real / seconds, "share_of_bf16": flops * real / seconds / peak}

    alone, _ = seconds_of(lambda: [jax.block_until_ready(encode_norms(subject, batch)) for batch in tokens])
    yield {"bf16_tflops": peak / 1e12, "alone": rates(alone)}
    yield {"with_statistics": rates(seconds_of(partial(folded, add, state, tokens))[0])}


def folded(step: Callable[..., Any], state: Any, batches: list) -> Any:
    """``state`` after all batches, one step waiting at most, as the pipeline's passes have it."""
    for batch in batches:
        state = step(jax.block_until_ready(state), batch)
    return state


def sizes_of_atlas(size: str) -> int:
    """Features of the atlas."""
    from throughput import ATLAS

    return ATLAS[size][1]


def atlas(size: str) -> Found:
    """Real tokens/s of the atlas: model, SAE and pooling."""
    space = inputs.atlas(size)
    tokens, real = inputs.batches(size, SIZES[size]["joint_sentences"], space.model.config.vocab_size)
    shapes = {t.ids.shape: t for t in tokens}.values()
    yield {"compile_seconds": {str(t.ids.shape): seconds_of(lambda t=t: encode_batch(space, t))[0] for t in shapes}}
    seconds, _ = seconds_of(lambda: [jax.block_until_ready(encode_batch(space, batch)) for batch in tokens])
    yield {"seconds": seconds, "tokens_per_s": real / seconds}


def joint(size: str) -> Found:
    """Both models over the same sentences into the statistics, then SemanticLens' pass; projected to the paper's."""
    subject, space, sizes = inputs.subject(size), inputs.atlas(size), SIZES[size]
    count, vocab = sizes["joint_sentences"], min(s.model.config.vocab_size for s in (subject, space))
    tokens, _ = inputs.batches(size, count, vocab)
    state = inputs.nothing_fitted(subject.widths, space.width, sizes["top_k"])

    def add(state: Any, batch: aj.Tokens) -> Any:
        a_s, *norms = encode_norms(subject, batch)
        a_c = encode_batch(space, batch)[space.site]
        return fit_step(state, a_s, {}, a_c, NormSums(*norms), batch.index, mesh=None)

    first, state = seconds_of(partial(folded, add, state, list({t.ids.shape: t for t in tokens}.values())))
    seconds, state = seconds_of(partial(folded, add, state, tokens))
    yield {"first_seconds": first, "seconds": seconds, "sentences_per_s": count / seconds}
    planned, measured = planned_bytes(size, subject, space), most_bytes()
    yield {"planned_bytes": planned, "measured_bytes": measured, "planned_to_measured": planned / measured}
    yield {"seconds_of_first_pass": SENTENCES / count * seconds}
    lenses = {site: lens_init(state.statistics.statistics(site).top, space.width) for site in subject.sites}

    def look(lenses: Any, batch: aj.Tokens) -> Any:
        return _lens_step(lenses, encode_batch(space, batch)[space.site], batch.index, mesh=None)

    lenses = folded(look, lenses, list({t.ids.shape: t for t in tokens}.values()))
    seconds, _ = seconds_of(partial(folded, look, lenses, tokens))
    yield {"seconds_of_second_pass": SENTENCES / count * seconds}


def planned_bytes(size: str, subject: aj.Subject, space: aj.ConceptAtlas) -> int:
    """What ``align --plan`` says of the first pass."""
    options = {"token_budget": BUDGET[size], "top_k": SIZES[size]["top_k"], "dtype": "bfloat16", "steer_pooling": None}
    settings = aj.AlignSettings(tuple(map(str, subject.sites)), METHODS, **options)
    shapes = subject.model.config, space.model.config, space.sae.config, space.site
    setup = Setup(*shapes, settings, (SENTENCES, SENTENCES), known_device(), at_once=len(subject.sites))
    return plan_alignment(setup).stages[0].peak


def accumulation(size: str) -> Found:
    """Rows of one site into the statistics, and least squares from them."""
    sizes, d_c = SIZES[size], sizes_of_atlas(size)
    site, d_s = next(iter(inputs.subject(size, inputs.abstract_in("bfloat16")).widths.items()))
    a_s, a_c = jax.random.normal(jax.random.key(0), (sizes["rows"], d_s)), inputs.atlas_rows(sizes["rows"], d_c)
    state = inputs.nothing_fitted({site: d_s}, d_c, sizes["top_k"]).statistics
    turn = jax.jit(lambda x, i: jax.random.permutation(jax.random.key(i), x, axis=1))  # other rows, of the same kind
    add = lambda state, i: update_pass(state, {site: turn(a_s, i)}, turn(a_c, i + 1))
    first, state = seconds_of(lambda: add(state, 0))
    seconds, state = seconds_of(partial(folded, add, state, list(range(sizes["chunks"]))))
    flops = 2.0 * sizes["rows"] * sizes["chunks"] * (2 * d_s * d_c + d_c**2)
    found = {"first_seconds": first, "seconds": seconds, "rows_per_s": sizes["rows"] * sizes["chunks"] / seconds}
    ceiling = matmul_ceiling(n=sizes["matmul"], calls=2) * 1e9
    yield {"update": found | {"share_of_float32": flops / seconds / ceiling, "float32_tflops": ceiling / 1e12}}
    statistics = state.statistics(site)
    solve = lambda: least_squares(statistics)
    yield {"least_squares": timed(solve) | {"certificate": solve().certificate}}


def procrustes(size: str) -> Found:
    """The polar factor where the statistics are, its certificate, and its true distance from the planted factor."""
    shape, reflections = SIZES[size]["polar"], SIZES[size]["reflections"]
    for condition in (1e4, 1e6):
        with jax.enable_x64(has_double(jnp.zeros(1))):
            m, exact = inputs.planted(shape, condition, reflections)
        first, (t, _) = seconds_of(lambda m=m: polar_express(m))
        del t
        seconds, (t, certificate) = seconds_of(lambda m=m: polar_express(m))
        with jax.enable_x64(has_double(jnp.zeros(1))):
            error = float(jnp.linalg.norm(t - exact) / jnp.linalg.norm(exact))
        found = {"first_seconds": first, "seconds": seconds, "relative_error": error, "certificate": certificate}
        yield {f"condition_1e{round(math.log10(condition))}": found}
        del m, exact, t


def decoding(size: str) -> Found:
    """Greedy tokens/s of prompts at all strengths in one batch, steered half way up."""
    model, sizes = inputs.subject(size).model, SIZES[size]
    config = model.config
    prompts, direction = inputs.decoding_inputs(config.vocab_size, config.hidden_size, sizes["prompts"])
    found = timed(steered(model, prompts, direction, config.num_layers // 2, sizes["new"]))
    tokens = 7 * len(prompts) * sizes["new"]
    yield found | {"tokens": tokens, "tokens_per_s": tokens / found["seconds"]}


def detection(size: str) -> Found:
    """AUROC and AP, reciprocal rank and predicted probability, on the device."""
    s = SIZES[size]
    labels = jax.random.uniform(jax.random.key(0), (s["samples"],)) < 0.05
    scores = jax.random.normal(jax.random.key(1), (s["queries"], s["samples"])) + labels[None].astype(jnp.float32)
    step = jax.jit(metrics.detection)
    few = slice(0, min(4, s["queries"]))
    exact, found = metrics.detection(to_host(scores)[few], to_host(labels)), step(scores, labels)
    errors = [np.abs(np.asarray(a)[few] - b).max() for a, b in zip(found[:2], exact[:2], strict=True)]
    yield {"detection": timed(lambda: step(scores, labels)) | {"largest_error": float(max(errors))}}
    similarity = jax.random.normal(jax.random.key(2), (s["targets"], s["features"]))
    target = jax.random.randint(jax.random.key(3), (s["targets"],), 0, s["features"])
    both = jax.jit(lambda s, t: (metrics.reciprocal_rank(s, t), metrics.predicted_probability(s, t)))
    yield {"retrieval": timed(lambda: both(similarity, target))}


def attention(size: str) -> Found:
    """Seconds of one layer's attention of a batch by XLA and by each kernel, or why it is not used, by text length."""
    table: dict[str, Any] = {}
    spaces = [make(size, inputs.abstract_in("bfloat16")) for make in (inputs.subject, inputs.atlas)]
    for name, config in zip(("subject", "atlas"), [space.model.config for space in spaces], strict=True):
        for length in SIZES[size]["lengths"]:
            q, keys, values, position = inputs.heads(config, max(1, BUDGET[size] // length), length)
            here = table.setdefault(name, {}).setdefault(f"{len(q)}x{length}", {})
            for kernel in ("xla", *KERNELS):
                try:
                    choose_kernel(kernel, config, "bfloat16")
                except aj.AtlasError as e:
                    here[kernel] = {"refused": str(e)}
                    continue
                own = kernel, config.query_scale, config.attn_softcap
                here[kernel] = timed(lambda own=own, x=(q, keys, values, position): _attention(*own, *x))
            yield {"attention": table}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _attention(kernel: str, scale: float, softcap: float | None, q: Any, keys: Any, values: Any, position: Any) -> Any:
    return one_layer(kernel, q, (Block(keys, values, position),), position, None, scale, softcap)
