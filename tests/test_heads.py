"""Single attention heads as sites: parity with transformers, edits, statistics, and their table."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.float64 import distance
from helpers.hf_oracle import hf_model, hf_run, hooks, jax_model, random_ids
from typer.testing import CliRunner

from atlas_jax import AlignSettings, Site, Steer, load_pair, run
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import Heads, QualityRow, RetrievalRow, quality_by_layer
from atlas_jax.metrics import bootstrap_mean
from atlas_jax.models import LanguageModel, every_head
from atlas_jax.pipeline import Alignment, SentenceStream, fit_statistics
from atlas_jax.steering import Add, Replace
from atlas_jax.subject import Subject
from atlas_jax.types import Tokens

MODELS = ["llama31", "qwen3", "gemma2", "phi3", "gpt2", "pythia"]  # four query heads on two key-value heads, or on four
HEADS = tuple(Site("z", layer, head) for layer in (0, 2) for head in range(4))
TOLERANCE, FAULT = 1e-5, 1e-2


def batch(name):
    ids = random_ids(2, 12)
    return Tokens(jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, bool), jnp.arange(2))


@pytest.mark.parametrize("name", MODELS)
def test_heads_are_those_of_transformers(name):
    """What the output projection of transformers reads, a head at a time; heads in another order are told apart."""
    acts = run(jax_model(name), batch(name), capture=(*HEADS, "z.1"), logits=False).acts
    assert set(acts) == {*HEADS, Site("z", 1)}
    theirs = hf_run(hf_model(name), random_ids(2, 12))[1]
    for site in HEADS:
        whole = theirs[Site("z", site.layer)]
        heads = whole.reshape(*whole.shape[:2], 4, -1)
        assert distance(acts[site], heads[:, :, site.head]) < TOLERANCE
        assert distance(acts[site], heads[:, :, (site.head + 1) % 4]) > FAULT
        interleaved = whole.reshape(*whole.shape[:2], -1, 4)[..., site.head]
        assert distance(acts[site], interleaved) > FAULT


@pytest.mark.parametrize("name", ["llama31", "gpt2"])
def test_an_edit_of_one_head_is_that_of_transformers(name):
    lm, ids = jax_model(name), random_ids(2, 12)
    width = lm.config.head_dim
    value = np.random.default_rng(0).normal(size=width).astype(np.float32)

    def theirs(head):
        def added(z):
            z = z.clone()
            z[..., head * width : (head + 1) * width] += torch.tensor(value)
            return z

        with torch.no_grad(), hooks(hf_model(name), {Site("z", 1): added}):
            return hf_model(name)(torch.tensor(ids).long(), use_cache=False).logits.numpy()

    ours = run(lm, batch(name), edits={"z.1.2": Add(value)}).logits
    assert distance(ours, theirs(2)) < TOLERANCE
    assert distance(ours, theirs(1)) > FAULT


def test_edits_of_heads_come_before_those_of_all_and_captures_after_both():
    lm, name = jax_model("llama31"), "llama31"
    width, plain = lm.config.head_dim, run(jax_model(name), batch(name), capture=["z.1"], logits=False).acts
    edits = {"z.1.3": Replace(np.full(width, 5.0)), "z.1": Add(np.ones(4 * width))}
    acts = run(lm, batch(name), capture=["z.1", "z.1.0", "z.1.3"], edits=edits, logits=False).acts
    np.testing.assert_allclose(acts[Site("z", 1, 3)], 6.0)
    np.testing.assert_allclose(acts[Site("z", 1, 0)], plain[Site("z", 1)][..., :width] + 1, atol=1e-5)
    np.testing.assert_array_equal(acts[Site("z", 1)][..., 3 * width :], acts[Site("z", 1, 3)])
    steered = run(lm, batch(name), capture=["z.1"], edits={"z.1.1": Steer(np.ones(width), 3.0)}, logits=False).acts
    whole, before = steered[Site("z", 1)], plain[Site("z", 1)]
    norm = lambda x: np.linalg.norm(x[..., width : 2 * width], axis=-1)
    np.testing.assert_allclose(norm(whole), norm(before), rtol=1e-5)
    assert distance(whole[..., width : 2 * width], before[..., width : 2 * width]) > FAULT
    np.testing.assert_array_equal(whole[..., :width], before[..., :width])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: run(lm, lm.tokenize("a"), capture=["z.1.4"]), "site z.1.4 is past the last head: .* so 0 to 3"),
        (lambda lm: run(lm, lm.tokenize("a"), capture=["z.9.0"]), "past the last layer"),
        (
            lambda lm: run(lm, lm.tokenize("a"), edits={"z.1.0": Add(np.ones(128))}),
            "width 128 cannot go to z.1.0, .* 32",
        ),
        (lambda lm: run(lm, lm.tokenize("a"), edits={"z.1.7": Add(np.ones(32))}), "past the last head"),
        (lambda lm: Site.parse("mlp_act.1.0"), "only z has heads, as in z.1.0; mlp_act has none"),
        (lambda lm: Site.parse("z.1.0.0"), "unknown site 'z.1.0.0'"),
        (lambda lm: Site("z", 1, -1), "the head of a site must be a whole number from 0 up, not -1"),
        (lambda lm: Site("z", 1, "0"), "the head of a site must be a whole number from 0 up, not '0'"),
    ],
)
def test_heads_that_there_are_not(as_for_users, call, message):
    with pytest.raises(AtlasError, match=message):
        call(LanguageModel.from_pretrained(SUBJECT))


def test_names_of_heads(as_for_users):
    sites = [Site("z", 2, 1), Site("z", 2), Site("mlp_act", 3), Site("z", 2, 0)]
    assert sorted(sites) == [sites[2], sites[1], sites[3], sites[0]]
    assert [Site.parse(str(site)) for site in sites] == sites
    assert len({*sites, Site("z", np.int64(2), np.int64(1))}) == 4
    lm = LanguageModel.from_pretrained(SUBJECT)
    assert every_head(SUBJECT, ["z.1", "z.0.all", Site("z", 2)]) == [
        "z.1",
        *(f"z.0.{i}" for i in range(4)),
        Site("z", 2),
    ]
    subject = Subject.from_model(lm, ["z.1", "z.1.3"])
    assert subject.widths == {Site("z", 1): 128, Site("z", 1, 3): 32}


def test_statistics_of_heads_are_parts_of_those_of_the_layer():
    """By covariance, whose rows do not depend on each other; a head's parts are not those of its neighbour."""
    names = ["z.2", *(f"z.2.{head}" for head in range(4))]
    pair = load_pair(SUBJECT, ATLAS, AlignSettings(tuple(names), ("covariance",)))
    texts = [f"the {word} of a {other}" for word in ("font", "list", "value") for other in ("text", "file", "line")]
    fitted = fit_statistics(SentenceStream.from_texts(pair[:2], texts), ["cross"])
    whole = np.asarray(fitted.statistics.statistics(Site("z", 2)).cross.raw)
    for head in range(4):
        part = fitted.statistics.statistics(Site("z", 2, head)).cross.raw
        assert distance(part, whole[32 * head :][:32]) < 1e-5
        assert distance(part, whole[32 * ((head + 1) % 4) :][:32]) > FAULT
        assert fitted.token_norm(Site("z", 2, head)) < fitted.token_norm(Site("z", 2))


def test_the_table_of_heads_is_that_of_their_sites(bundled_run, tmp_path):
    """One pass over all heads gives what a run at one of them gives."""
    words = ["evaluate", "heads", bundled_run, "--layer", 2, "--features", 20, "--out", tmp_path / "heads.json"]
    found = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    heads = json.loads((tmp_path / "heads.json").read_text())["rows"]
    assert [row["site"] for row in heads] == [f"z.2.{head}" for head in range(4)]
    (one,) = quality_by_layer(Alignment.load(bundled_run), "z.2.1", methods=["procrustes"], features=20).rows
    assert heads[1]["auroc"]["mean"] == pytest.approx(one.auroc.mean, abs=2e-3)
    assert heads[1]["ap"]["mean"] == pytest.approx(one.average_precision.mean, abs=2e-3)
    for measure in ("auroc", "ap", "mrr"):
        values = [row[measure]["mean"] for row in heads]
        assert len(set(values)) == 4
        assert all(f"{value:.3f}" in found.stdout for value in values)


def test_the_tables_of_layers_and_heads():
    """A row a layer and a column a head, whatever the order of the rows."""
    value = lambda mean: bootstrap_mean(np.array([mean]))
    places = [(3, 1, 0.4), (1, 0, 0.1), (3, 0, 0.3), (1, 1, 0.2)]
    quality = [QualityRow(Site("z", i, j), "ridge", value(x), value(x)) for i, j, x in places]
    retrieval = [RetrievalRow(row.site, "ridge", row.auroc, row.auroc) for row in quality]
    heads = Heads(quality, retrieval, {row.site: 32 for row in quality}, [3], (0.005, 0.2), 0.04, 100)
    assert heads.matrix("ap").tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert [list(table.texts()) for table in heads.tables()] == [[["1", "0.100", "0.200"], ["3", "0.300", "0.400"]]] * 3
