"""The SAE class: the math of every kind against float64 numpy, quality statistics, saving, jit, sharding, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.errors import AtlasError
from atlas_jax.sae import (
    SAEConfig,
    SparseAutoencoder,
    finish_quality,
    init_quality,
    merge_quality,
    quality,
    update_quality,
)
from atlas_jax.sharding import make_mesh
from atlas_jax.types import Site

D, M, K = 12, 40, 5
KINDS = ["jumprelu", "batchtopk", "relu", "topk", "groupmax", "gated"]


def parameters(rng, kind, d=D, m=M):
    """Random parameters of one kind."""
    p = {
        "W_enc": rng.normal(size=(d, m)),
        "b_enc": rng.normal(size=m),
        "W_dec": rng.normal(size=(m, d)),
        "b_dec": rng.normal(size=d),
    }
    if kind in ("jumprelu", "batchtopk"):
        p["threshold"] = np.abs(rng.normal(size=m))
    if kind == "gated":
        p |= {"b_gate": rng.normal(size=m), "r_mag": 0.3 * rng.normal(size=m)}
    return {name: value.astype(np.float32) for name, value in p.items()}


def build(rng, kind, **options):
    return SparseAutoencoder.build(
        SAEConfig(kind, D, M, k=K if kind in ("topk", "batchtopk", "groupmax") else None, **options),
        **parameters(rng, kind),
    )


def reference(sae, x):
    """Features and reconstruction in float64, row by row from the definitions."""
    p = {name: np.asarray(value, np.float64) for name, value in sae.parameters.items()}
    c, x = sae.config, np.asarray(x, np.float64)
    mean, scale = np.zeros((len(x), 1)), np.ones((len(x), 1))
    undo = scale
    if c.normalization == "constant_norm_rescale":
        scale = undo = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(c.d_in)
    elif c.normalization == "layer_norm":
        mean, undo = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        scale = undo + 1e-5
    z = (x - mean) / scale - (p["b_dec"] if c.apply_b_dec_to_input else 0)
    pre = z @ p["W_enc"] + p["b_enc"]
    relu = np.maximum(pre, 0)
    if c.kind in ("jumprelu", "batchtopk"):
        f = relu * (pre > p["threshold"])
    elif c.kind == "relu":
        f = relu
    elif c.kind == "topk":
        f = np.where(relu >= np.sort(relu, axis=1)[:, -c.k][:, None], relu, 0)
    elif c.kind == "groupmax":
        groups = relu.reshape(len(x), c.k, -1)
        f = np.where(groups == groups.max(-1, keepdims=True), groups, 0).reshape(relu.shape)
    else:
        gate = z @ p["W_enc"] + p["b_gate"] > 0
        f = gate * np.maximum(z @ (p["W_enc"] * np.exp(p["r_mag"])) + p["b_enc"], 0)
    return f, (f @ p["W_dec"] + p["b_dec"]) * undo + mean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("normalization", "subtract"),
    [("none", False), ("none", True), ("constant_norm_rescale", True), ("layer_norm", False)],
)
def test_encode_and_decode_follow_the_definition(rng, kind, normalization, subtract):
    sae = build(rng, kind, normalization=normalization, apply_b_dec_to_input=subtract)
    x = (2 * rng.normal(size=(50, D)) + rng.normal(size=D)).astype(np.float32)
    f, y = reference(sae, x)
    assert 0 < (f > 0).mean() < 1
    np.testing.assert_allclose(sae.encode(jnp.asarray(x)), f, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(sae.decode(sae.encode(jnp.asarray(x)), jnp.asarray(x)), y, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("change", [{"apply_b_dec_to_input": True}, {"normalization": "layer_norm"}, {"kind": "relu"}])
def test_a_wrong_description_shows(rng, change):
    """The twin that must fail: each field moves the reconstruction far beyond the tolerance above."""
    sae = build(rng, "jumprelu")
    x = (2 * rng.normal(size=(50, D)) + rng.normal(size=D)).astype(np.float32)
    wrong = dataclasses.replace(sae, config=dataclasses.replace(sae.config, **change))
    _, y = reference(sae, x)
    assert np.abs(np.asarray(wrong(jnp.asarray(x))) - y).max() > 0.1


def test_leading_axes_and_half_precision_inputs(rng):
    sae = build(rng, "jumprelu")
    x = jnp.asarray(rng.normal(size=(2, 3, D)), jnp.bfloat16)
    f = sae.encode(x)
    assert f.shape == (2, 3, M)
    assert f.dtype == jnp.float32
    np.testing.assert_array_equal(f[1], sae.encode(x[1].astype(jnp.float32)))


def test_topk_keeps_k_even_when_features_tie(rng):
    p = parameters(rng, "topk")
    p["W_enc"][:, 1:] = p["W_enc"][:, :1]
    p["b_enc"][:] = 3.0
    sae = SparseAutoencoder.build(SAEConfig("topk", D, M, k=K), **p)
    active = np.asarray(sae.encode(jnp.zeros((4, D))) > 0)
    np.testing.assert_array_equal(active, np.tile(np.arange(M) < K, (4, 1)))


def test_it_is_a_pytree_with_a_static_description(rng):
    sae = build(rng, "jumprelu")
    traces = []

    @jax.jit
    def features(sae, x):
        traces.append(1)
        return sae.encode(x)

    x = jnp.ones((3, D))
    features(sae, x)
    features(dataclasses.replace(sae, threshold=sae.threshold + 1.0), x)
    assert len(traces) == 1
    assert len(jax.tree.leaves(sae)) == 5
    jax.tree.map(lambda leaf: leaf.sharding, sae)


def test_features_spread_over_a_mesh_give_the_same_numbers(rng):
    p = parameters(rng, "jumprelu")
    one = SparseAutoencoder.build(SAEConfig("jumprelu", D, M), **p)
    mesh = make_mesh(data=2, model=4)
    spread = SparseAutoencoder.build(SAEConfig("jumprelu", D, M), mesh=mesh, **p)
    x = jnp.asarray(rng.normal(size=(16, D)), jnp.float32)
    assert spread.W_enc.sharding.spec == jax.sharding.PartitionSpec(None, "model")
    np.testing.assert_allclose(spread.encode(x), one.encode(x), atol=1e-5)
    np.testing.assert_allclose(spread(x), one(x), atol=1e-4)


def test_quality_is_the_definition_and_merges(rng):
    sae = build(rng, "jumprelu")
    x = (rng.normal(size=(90, D)) + 30 * rng.normal(size=D)).astype(np.float32)
    x[70:] = np.nan
    mask = np.arange(90) < 70
    f, y = reference(sae, x[:70])
    fvu = ((x[:70] - y) ** 2).sum() / ((x[:70] - x[:70].mean(0, dtype=np.float64)) ** 2).sum()
    whole = quality(sae, jnp.asarray(x), jnp.asarray(mask))
    np.testing.assert_allclose(whole.fvu, fvu, rtol=1e-4)
    np.testing.assert_allclose(whole.l0, (f > 0).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(whole.dead, ((f > 0).sum(0) == 0).mean(), rtol=1e-6)
    assert int(whole.count) == 70

    parts = [
        update_quality(init_quality(sae), sae, jnp.asarray(x[i : i + 30]), jnp.asarray(mask[i : i + 30]))
        for i in (0, 30, 60)
    ]
    merged = finish_quality(merge_quality(merge_quality(parts[0], parts[1]), parts[2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), merged, whole)


def test_quality_of_nothing_and_of_a_constant(rng):
    sae = build(rng, "relu")
    assert np.isnan(finish_quality(init_quality(sae)).fvu)
    assert np.isnan(quality(sae, jnp.ones((5, D))).fvu)


def test_quality_of_a_transcoder_uses_its_target(rng):
    p = parameters(rng, "relu")
    sae = SparseAutoencoder.build(SAEConfig("relu", D, M, transcoder=True), W_skip=rng.normal(size=(D, D)), **p)
    x = jnp.asarray(rng.normal(size=(20, D)), jnp.float32)
    state = update_quality(init_quality(sae), sae, x, None, sae(x))
    assert float(finish_quality(state).fvu) < 1e-10
    with pytest.raises(ValueError, match="decode"):
        sae.decode(sae.encode(x))


@pytest.mark.parametrize("kind", ["jumprelu", "batchtopk", "relu", "topk", "gated"])
def test_saelens_layout_round_trip(rng, tmp_path, kind):
    sae = build(rng, kind, site=Site("resid_post", 3), model="m", apply_b_dec_to_input=True, normalization="layer_norm")
    sae.save_pretrained(tmp_path, format="saelens")
    back = SparseAutoencoder.from_pretrained(tmp_path)
    x = jnp.asarray(rng.normal(size=(8, D)), jnp.float32)
    np.testing.assert_array_equal(back(x), sae(x))
    assert (back.config.site, back.config.model) == (Site("resid_post", 3), "m")


def test_gemma_scope_layout_round_trip_folds_the_decoder_bias(rng, tmp_path):
    sae = build(rng, "batchtopk", site=Site("mlp_out_post", 2), model="m", apply_b_dec_to_input=True)
    (tmp_path / "labels.json").write_text("{}")
    sae.save_pretrained(tmp_path)
    back = SparseAutoencoder.from_pretrained(tmp_path)
    x = jnp.asarray(rng.normal(size=(8, D)), jnp.float32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.json", "params.npz", "sae.json"]
    assert not back.config.apply_b_dec_to_input
    assert (back.config.kind, back.config.site, back.config.model) == ("jumprelu", Site("mlp_out_post", 2), "m")
    np.testing.assert_allclose(back(x), sae(x), atol=1e-4)


def test_a_layout_that_cannot_hold_the_sae_refuses(rng, tmp_path):
    with pytest.raises(AtlasError, match="saelens"):
        build(rng, "topk").save_pretrained(tmp_path / "out")
    with pytest.raises(AtlasError, match="choose one of"):
        build(rng, "relu").save_pretrained(tmp_path / "out", format="llama_scope")
    assert not list((tmp_path).rglob("*.npz"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": None}, "no threshold"),
        ({"b_gate": np.zeros(M)}, "no place for b_gate"),
        ({"W_dec": np.zeros((D, M))}, "W_dec"),
        ({"b_enc": np.full(M, np.nan)}, "not finite"),
        ({"W_skip": np.zeros((D, D))}, "transcoder"),
    ],
)
def test_incomplete_or_contradictory_parameters_are_refused(rng, change, says):
    p = {name: value for name, value in (parameters(rng, "jumprelu") | change).items() if value is not None}
    with pytest.raises(AtlasError, match=says):
        SparseAutoencoder.build(SAEConfig("jumprelu", D, M), **p)


def test_a_wrong_width_is_refused(rng):
    with pytest.raises(ValueError, match="width 12, got 11"):
        build(rng, "relu").encode(jnp.ones((2, D - 1)))
