"""Fused attention: a kernel interpreted on the CPU against transformers, and kernels that are refused."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_oracle import hf_model, hf_run, random_ids, saved, sites
from helpers.parity import ROW_LENGTHS, errors, padded, with_config
from typer.testing import CliRunner

from atlas_jax import AlignSettings, AtlasError
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.models import (
    LanguageModel,
    _attention,
    choose_kernel,
    forward,
    generate,
    load_config,
    run,
)
from atlas_jax.pipeline import load_pair
from atlas_jax.sharding import make_mesh
from atlas_jax.types import Site

TOLERANCE, FAULT = 1e-5, 1e-4
GEMMA = (4, 2, 16, 0.25, True)  # heads of keys and queries, their width, scale, capped scores


@pytest.fixture(autouse=True)
def _trials_anew():
    _attention._fault.cache_clear()
    yield
    _attention._fault.cache_clear()


@pytest.fixture
def interpreted(monkeypatch):
    """Tokamax's Triton kernel, interpreted on the CPU."""
    pytest.importorskip("tokamax")
    from jax.experimental import pallas
    from tokamax._src.ops.attention.pallas_triton import PallasTritonFlashAttention

    call, program_id, ids = pallas.pallas_call, pallas.program_id, []

    def interpret(kernel, *args, grid_spec, compiler_params=None, **kwargs):
        def with_ids(*refs):  # read first, for within loops the interpreter does not know them
            ids[:] = map(program_id, range(len(grid_spec.grid)))
            return kernel(*refs)

        return call(with_ids, *args, grid_spec=grid_spec, interpret=True, **kwargs)

    def known_id(axis):
        if axis >= len(ids):
            raise ValueError("there is no such axis")
        return ids[axis]

    monkeypatch.setattr(pallas, "pallas_call", interpret)
    monkeypatch.setattr(pallas, "program_id", known_id)
    monkeypatch.setattr(PallasTritonFlashAttention, "supported_on", lambda self, device: True)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # the kernel needs both
        yield


def error(name, model):
    """Of logits and all sites against transformers, on real tokens of rows padded on the left."""
    tokens, spans = padded("left", ROW_LENGTHS)
    return max(errors(run(model, tokens, capture=sites(name)), hf_run(hf_model(name), random_ids()), spans).values())


FAULTS = {
    "llama31": {"query scale": {"query_scale": 0.3}},
    "gemma2": {"no soft cap": {"attn_softcap": None}, "window of one less": {"windows": (7, None, 7)}},
    "mistral": {"no window": {"windows": (None,) * 3}},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fused_kernel_equals_transformers_where_its_twins_do_not(name, interpreted):
    model = LanguageModel.from_pretrained(saved(name), attention="tokamax")
    assert model.decoder.config.attention == "tokamax"
    assert error(name, model) <= TOLERANCE
    for fault, changes in FAULTS[name].items():
        assert error(name, model.replace(decoder=with_config(model.decoder, **changes))) > FAULT, fault


def test_derivatives_and_texts_are_those_of_xla(interpreted):
    fused, plain = (LanguageModel.from_pretrained(saved("gemma2"), attention=by) for by in ("tokamax", "xla"))
    tokens, _ = padded("left", ROW_LENGTHS)

    def loss(model, scale):
        edit = lambda x, where: x * scale
        return jnp.sum(jnp.square(forward(model.decoder, tokens, edits={Site("resid_pre", 0): edit}).logits[:, -1]))

    for derivative in (jax.grad, jax.jacfwd):
        slopes = [float(derivative(loss, argnums=1)(model, jnp.float32(1.3))) for model in (fused, plain)]
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-5)
        assert abs(slopes[1]) > 1e-2
    prompts = [random_ids()[i, :n].tolist() for i, n in enumerate((12, 5))]
    texts = [np.asarray(generate(model, prompts, max_new_tokens=6).ids) for model in (fused, plain)]
    assert np.array_equal(*texts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_takes_a_kernel_that_passes(dtype, interpreted):
    assert choose_kernel("auto", load_config(SUBJECT)[0], dtype) == "tokamax"
    pair = load_pair(SUBJECT, ATLAS, AlignSettings(("z.1",), ("covariance",), dtype=dtype, attention="auto"))
    assert pair.subject.model.config.attention == pair.atlas.model.config.attention == "tokamax"


def right(kernel, scale, softcap, mask, q, keys, values):
    return _attention.attend(
        q, (_attention.Block(keys, values, jnp.zeros(mask[:, 0].shape, int)),), mask, scale, softcap
    )


def causal(mask):
    return jnp.broadcast_to(jnp.tril(jnp.ones(mask.shape[1:], bool))[None], mask.shape)


WRONG = {
    "no window and no padding": lambda k, s, c, mask, *qkv: right(k, s, c, causal(mask), *qkv),
    "no soft cap": lambda k, s, c, *rest: right(k, s, None, *rest),
    "another scale": lambda k, s, c, *rest: right(k, 1.02 * s, c, *rest),
    "queries rounded": lambda k, s, c, m, q, *kv: right(k, s, c, m, q.astype("float8_e4m3fn").astype(q.dtype), *kv),
    "values of other heads": lambda k, s, c, m, q, keys, v: right(k, s, c, m, q, keys, v[:, ::-1]),
    "not finite": lambda k, s, c, mask, *qkv: jnp.where(
        mask.any(-1)[:, :, None, None], right(k, s, c, mask, *qkv), jnp.nan
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_kernel_that_is_wrong_is_not_offered(wrong, dtype, monkeypatch):
    monkeypatch.setattr(_attention, "_by_kernel", right)
    assert _attention._fault("cudnn", *GEMMA, dtype) is None
    _attention._fault.cache_clear()
    monkeypatch.setattr(_attention, "_by_kernel", WRONG[wrong])
    assert ("not finite" if wrong == "not finite" else "its error is") in _attention._fault("cudnn", *GEMMA, dtype)


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("flash", "unknown attention 'flash'; known are auto, xla, tokamax, cudnn"),
        (
            "cudnn",
            "attention 'cudnn' cannot be used here: it runs on one device, and the model is on 8; use xla, or auto",
        ),
    ],
)
def test_mistakes_are_one_sentence(attention, said, tmp_path):
    words = ["align", "--subject", str(SUBJECT), "--atlas", str(ATLAS), "--site", "z.1", "--attention", attention]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, AtlasError), done.output
    assert str(done.exception) == said
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_is_not_used_where_it_cannot_be(monkeypatch):
    config = load_config(SUBJECT)[0]
    assert choose_kernel("auto", config, "float32", make_mesh()) == "xla"
    with pytest.raises(AtlasError, match="'cudnn' cannot be used here: it has no soft cap of scores;"):
        choose_kernel("cudnn", dataclasses.replace(config, attn_softcap=30.0), "float32")
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(AtlasError, match=r"tokamax is not installed \(pip install 'atlas-jax\[tokamax\]'\)"):
        choose_kernel("tokamax", config, "float32")
