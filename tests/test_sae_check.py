"""The self-check of an SAE: silent when all is well, and each planted mistake found and named."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from helpers.plain_text import sentences

from atlas_jax.atlas import ConceptAtlas, Manifest
from atlas_jax.bundled import ATLAS
from atlas_jax.labels import Labels
from atlas_jax.models import LanguageModel, Tokenizer, run
from atlas_jax.sae import SAEConfig, SparseAutoencoder
from atlas_jax.sae_lab import atlas_facts, check_sae, mean_activation
from atlas_jax.types import Site


@pytest.fixture(scope="module")
def atlas():
    loaded = ConceptAtlas.from_pretrained(ATLAS)
    return dataclasses.replace(loaded, labels=Labels.empty(loaded.width))


@pytest.fixture(scope="module")
def texts():
    return sentences(120)


def examine(atlas, texts):
    facts = atlas_facts(atlas, texts)
    return facts, check_sae(atlas, texts, facts)


def agreeing(check):
    return [t.name for t in check.trials if t.agrees]


def scale_of(atlas, texts):
    tokens = atlas.tokenize(texts)
    x = np.asarray(run(atlas.model, tokens, capture=[atlas.site]).acts[atlas.site])[np.asarray(tokens.mask)]
    return float(np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1).mean())


def test_a_sound_atlas_raises_no_alarm(atlas, texts):
    facts, check = examine(atlas, texts)
    assert (check.warnings, check.trials) == ([], [])
    assert check.advertised == (10, None, None)
    assert check.built.fvu == pytest.approx(0.0886, abs=1e-3)
    assert abs(facts["L0"] - 10) < 3
    assert "label AUROC" not in facts


@pytest.mark.parametrize(("site", "sound"), [("resid_post.3", True), ("resid_post.0", False)])
def test_a_fault_measured_when_the_atlas_was_built_is_no_standard(atlas, texts, tmp_path, site, sound):
    config = dataclasses.replace(atlas.sae.config, advertised_l0=None, advertised_fvu=None, advertised_dead=None)
    sae = dataclasses.replace(atlas.sae, config=config)
    built = dataclasses.replace(atlas, sae=sae, site=Site.parse(site), home=tmp_path)
    facts = atlas_facts(built, texts)
    files = {part: {} for part in ("model", "sae", "labels")}
    Manifest(site, files, metadata={"measured": facts}).write(tmp_path)
    check = check_sae(built, texts, facts)
    assert check.advertised == (None, None, None)
    assert check.built == ((facts["L0"], facts["FVU"], facts["dead share"]) if sound else (None, None, None))
    assert (check.warnings == []) == sound


@pytest.mark.parametrize("site", ["resid_post.2", "resid_pre.3", "resid_mid.3"])
def test_a_neighbouring_site_is_named(atlas, texts, site):
    wrong = dataclasses.replace(atlas, site=Site.parse(site))
    _, check = examine(wrong, texts)
    assert "FVU is" in check.warnings[0]
    assert agreeing(check)[0] == "the SAE reads resid_post.3"
    assert "What would agree: the SAE reads resid_post.3 (L0" in check.warnings[0]


def test_bos_among_the_tokens_is_named(atlas, texts):
    tokenizer = Tokenizer.from_backend(atlas.model.tokenizer.backend, "<s>")
    tokenizer.special_ids = frozenset()
    wrong = dataclasses.replace(atlas, model=_with_tokenizer(atlas.model, tokenizer))
    assert wrong.tokenize(["a"]).mask[0, 0]
    _, check = examine(wrong, texts)
    assert agreeing(check)[0] == "no first token"


def test_a_tokenizer_without_bos_is_named(atlas, texts):
    plain = json.loads(atlas.model.tokenizer.backend.to_str()) | {"post_processor": None}
    tokenizer = Tokenizer.from_backend(tokenizers.Tokenizer.from_str(json.dumps(plain)), None)
    wrong = dataclasses.replace(atlas, model=_with_tokenizer(atlas.model, tokenizer))
    tight = dataclasses.replace(wrong.sae.config, advertised_fvu=0.02)
    _, check = examine(dataclasses.replace(wrong, sae=dataclasses.replace(wrong.sae, config=tight)), texts)
    trial = next(t for t in check.trials if t.name == "BOS stands before every text")
    fvu, _ = examine(atlas, texts)
    assert trial.fvu == pytest.approx(fvu["FVU"], rel=1e-3)


@pytest.mark.parametrize("plant", ["threshold", "activations"])
def test_a_forgotten_scale_is_named(atlas, texts, plant):
    scale, sae = scale_of(atlas, texts), atlas.sae
    assert abs(np.log(scale)) > 0.3
    if plant == "threshold":
        wrong = dataclasses.replace(sae, threshold=sae.threshold / scale)
    else:
        parts = {"W_enc": sae.W_enc / scale, "W_dec": sae.W_dec * scale, "b_dec": sae.b_dec * scale}
        wrong = dataclasses.replace(sae, **parts)
    _, check = examine(dataclasses.replace(atlas, sae=wrong), texts)
    names = agreeing(check)
    expected = "thresholds times" if plant == "threshold" else "activations times"
    assert any(name.startswith(expected) for name in names), check.trials


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_other_readings_of_a_threshold_are_named(atlas, texts, power):
    """Rows of the decoder of many norms, and thresholds stored in units of the pre-activation times them."""
    scale, sae = scale_of(atlas, texts), atlas.sae
    sizes = jnp.asarray(np.random.default_rng(0).permutation(np.geomspace(5, 100, sae.config.d_sae)), jnp.float32)
    norms = jnp.linalg.norm(sae.W_dec, axis=1) * sizes
    resized = {"W_dec": sae.W_dec * sizes[:, None], "W_enc": sae.W_enc / sizes[None, :], "b_enc": sae.b_enc / sizes}
    right = dataclasses.replace(sae, **resized, threshold=sae.threshold / sizes)
    facts, check = examine(dataclasses.replace(atlas, sae=right), texts)
    assert check.warnings == []
    wrong = dataclasses.replace(right, threshold=right.threshold * norms * scale**power)
    _, check = examine(dataclasses.replace(atlas, sae=wrong), texts)
    best = next(t for t in check.trials if t.agrees)
    also = ("", f" times {scale:.3g}", f" times {scale:.3g} squared")[power]
    assert best.name == f"thresholds divided by the decoder norms{also}"
    assert best.l0 == pytest.approx(facts["L0"], rel=0.1)


def test_b_dec_subtracted_by_mistake_is_named(atlas, texts):
    config = dataclasses.replace(atlas.sae.config, apply_b_dec_to_input=True)
    shift = dataclasses.replace(atlas.sae, config=config, b_dec=atlas.sae.b_dec + 3.0, b_enc=atlas.sae.b_enc)
    offset = dataclasses.replace(shift, b_dec=atlas.sae.b_dec)
    _, check = examine(dataclasses.replace(atlas, sae=offset), texts)
    assert not check.warnings or "b_dec not subtracted from the input" in agreeing(check)
    _, check = examine(dataclasses.replace(atlas, sae=shift), texts)
    assert check.warnings


def _with_tokenizer(model, tokenizer):
    return LanguageModel(model.config, tokenizer, model.decoder, model.hf_config)


def components(atlas, texts, site, rank=60):
    """An SAE of the leading principal components of one site, each with both signs; thresholds of one deviation."""
    tokens = atlas.tokenize(texts)
    x = np.asarray(run(atlas.model, tokens, capture=[site]).acts[Site.parse(site)], np.float64)[np.asarray(tokens.mask)]
    mean = x.mean(0)
    _, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    v, deviation = vt[:rank].T, s[:rank] / np.sqrt(len(x))
    W = np.concatenate([v, -v], axis=1)
    arrays = {"W_enc": W, "b_enc": -mean @ W, "W_dec": W.T, "b_dec": mean}
    config = SAEConfig("jumprelu", x.shape[1], 2 * rank, site=Site.parse(site))
    sae = SparseAutoencoder.build(config, threshold=np.concatenate([deviation, deviation]), **arrays)
    pre = x @ W - mean @ W
    f = np.where(pre > np.concatenate([deviation, deviation]), pre, 0)
    fvu = ((x - f @ W.T - mean) ** 2).sum() / ((x - mean) ** 2).sum()
    told = dataclasses.replace(config, advertised_l0=float((f > 0).sum(1).mean()), advertised_fvu=float(fvu))
    return dataclasses.replace(sae, config=told)


def uneven(model, layer):
    """The model with a post-MLP norm that weighs widths very differently, so that no one factor stands in for it."""
    decoder = nnx.clone(model.decoder)
    weight = decoder.layers[layer].post_feedforward_layernorm.weight
    weight[...] = jnp.asarray(np.random.default_rng(0).permutation(np.geomspace(0.1, 10, len(weight[...]))) - 1)
    return LanguageModel(model.config, model.tokenizer, decoder, model.hf_config)


def test_the_raw_output_of_the_mlp_is_not_its_contribution(atlas, texts):
    model = uneven(atlas.model, 3)
    sae = components(dataclasses.replace(atlas, model=model), texts, "mlp_out_post.3")
    right = ConceptAtlas.from_parts(model, sae, "mlp_out_post.3", Labels.empty(120))
    facts, check = examine(right, texts)
    assert check.warnings == []
    assert facts["L0"] == pytest.approx(sae.config.advertised_l0, rel=1e-3)
    assert facts["FVU"] == pytest.approx(sae.config.advertised_fvu, rel=1e-3)
    _, check = examine(dataclasses.replace(right, site=Site("mlp_out", 3)), texts)
    assert agreeing(check) == ["the SAE reads mlp_out_post.3"]


def test_what_no_mistake_explains_is_said(atlas, texts, rng):
    noise = jnp.asarray(rng.normal(size=atlas.sae.W_enc.shape) * 0.1, jnp.float32)
    wrong = dataclasses.replace(atlas.sae, W_enc=noise)
    _, check = examine(dataclasses.replace(atlas, sae=wrong), texts)
    assert "None of the usual mistakes explains it" in check.warnings[0]
    assert agreeing(check) == []


def test_a_transcoder_is_held_against_its_output(atlas, texts):
    tokens = atlas.tokenize(texts)
    sites = [Site("mlp_in", 3), Site("mlp_out_post", 3)]
    acts = run(atlas.model, tokens, capture=sites).acts
    x, y = (np.asarray(acts[s], np.float64)[np.asarray(tokens.mask)] for s in sites)
    skip = np.linalg.lstsq(x, y, rcond=None)[0]
    nothing = {
        "W_enc": np.zeros((160, 8)),
        "b_enc": np.full(8, -1.0),
        "W_dec": np.zeros((8, 160)),
        "b_dec": np.zeros(160),
    }
    config = SAEConfig("relu", 160, 8, transcoder=True, site=sites[0], site_out=sites[1])
    made = SparseAutoencoder.build(config, W_skip=skip, **nothing)
    facts, _ = examine(ConceptAtlas.from_parts(atlas.model, made, sites[0], Labels.empty(8)), texts)
    expected = ((y - x @ skip) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert facts["FVU"] == pytest.approx(expected, rel=1e-3)
    unknown = dataclasses.replace(made, config=dataclasses.replace(config, site_out=None))
    facts, check = examine(ConceptAtlas.from_parts(atlas.model, unknown, sites[0], Labels.empty(8)), texts)
    assert np.isnan(facts["FVU"])
    assert check.warnings == []


def test_the_mean_activation_is_the_mean_over_sentences(atlas, texts):
    expected = np.asarray(atlas.activations(texts), np.float64).mean(0)
    np.testing.assert_allclose(mean_activation(atlas, texts), expected, atol=2e-5)
