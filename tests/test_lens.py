"""The Jacobian lens: its matrices against torch, how batches are made, files, commands, and what is refused."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.float64 import distance
from helpers.hf_oracle import LAYERS, hf_model, hooks, jax_model
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import atlas_jax as aj
from atlas_jax import lens as lens_module
from atlas_jax.bundled import SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.lens import FILE, JacobianLens
from atlas_jax.pipeline import Alignment
from atlas_jax.types import Site

SITES = [Site("resid_post", 0), Site("resid_post", 1), Site("mlp_act", 1), Site("z", 2)]
SITE = "resid_post.2"


def texts(lengths=(7, 4, 9), seed=0):
    """Texts of so many tokens of the zoo."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.integers(3, 96, n)) for n in lengths]


@functools.cache
def jacobian(name, text, site):
    """How transformers, in float64, moves every final residual with every activation of a site ``[u, d, t, w]``."""
    model, ids = hf_model(name).double(), torch.tensor(jax_model(name).tokenizer.encode([text]))
    final, held = Site("resid_post", LAYERS - 1), {}

    def output(delta):
        with hooks(model, {site: lambda x: x + delta, final: lambda x: held.__setitem__("h", x)}):
            model(ids, use_cache=False)
        return held["h"]

    with torch.no_grad(), hooks(model, {site: lambda x: held.__setitem__("a", x)}):
        model(ids, use_cache=False)
    found = torch.autograd.functional.jacobian(output, torch.zeros_like(held["a"]))[0, :, :, 0].numpy()
    model.float()
    return found


def by_torch(name, site, skip, *, itself=False, power=1):
    """The estimator; with a token that moves itself alone, or a mean over both tokens, one that is wrong."""
    means = []
    for text in texts():
        n = len(text.split())
        counts = slice(skip, n - 1)
        if n - 1 > skip:
            part = jacobian(name, text, site)[counts, :, counts]
            summed = np.einsum("udtw,ut->dw", part, np.eye(len(part))) if itself else part.sum((0, 2))
            means.append(summed / len(part) ** power)
    return np.mean(means, axis=0)


@pytest.mark.parametrize("name", ["llama31", "gemma2", "gpt2"])
def test_matrices_are_the_mean_of_the_jacobians_of_transformers(name):
    for skip, sentences in ((1, 3), (4, 2)):
        lens = JacobianLens.fit(jax_model(name), texts(), SITES, skip=skip, token_budget=32)
        assert lens.sentences == sentences
        for site in SITES:
            assert distance(lens.matrices[site], by_torch(name, site, skip)) < 1e-5
    own, site = lens.matrices[SITES[0]], SITES[0]
    assert distance(own, by_torch(name, site, 4, itself=True)) > 1e-2  # a token moves itself alone
    assert distance(own, by_torch(name, site, 4, power=2)) > 1e-2  # a mean over both
    assert distance(own, by_torch(name, site, 3)) > 1e-2  # a token more


def alike(a, b):
    """The same tokens, with scores that differ by rounding."""
    return [t[:2] for t in a] == [t[:2] for t in b] and np.allclose([t[2] for t in a], [t[2] for t in b], rtol=1e-5)


@pytest.mark.parametrize("name", ["llama31", "gemma2", "gpt2"])
def test_names_and_pull_backs_are_derivatives_of_the_logits(name):
    """At a final residual of root mean square 1, along what does not change it."""
    lm, rng = jax_model(name), np.random.default_rng(0)
    lens = JacobianLens.fit(lm, texts(), SITES, token_budget=32)
    read = hf_model(name)
    norm = read.base_model.ln_f if name == "gpt2" else read.base_model.norm
    gain = norm.weight.detach().numpy() + (name == "gemma2")
    unembed = read.lm_head.weight.detach().numpy() * gain
    if name == "gpt2":
        unembed -= unembed.mean(axis=1, keepdims=True)
    for site in SITES:
        v = rng.normal(size=lens.matrices[site].shape[1]).astype(np.float32)
        expected = unembed @ (lens.matrices[site] @ v)
        named = lens.name(v, site, k=96)
        assert [t.id for t in named] == np.argsort(-expected).tolist()
        assert np.allclose([t.score for t in named], np.sort(expected)[::-1], atol=1e-4)
        assert named[0].text == lm.tokenizer.decode([named[0].id], skip_special_tokens=False)
        assert distance(lens.direction(17, site), unembed[17] @ lens.matrices[site]) < 1e-5
        assert np.array_equal(lens.direction("w17", site), lens.direction(17, site))
    several = lens.name(np.stack([v, -v]), site, k=2)
    assert alike(several[0], lens.name(v, site, k=2))
    assert not alike(several[1], lens.name(v, site, k=2))
    assert alike(lens.name_features([3], site, k=4)[0], lens.name(np.eye(len(v))[3], site, k=4))


def test_the_last_layer_is_the_identity():
    lens = JacobianLens.fit(jax_model("llama31"), texts())
    assert list(lens.matrices) == [Site("resid_post", layer) for layer in range(LAYERS)]
    assert np.allclose(lens.matrices[Site("resid_post", LAYERS - 1)], np.eye(32), atol=1e-6)


def test_batches_do_not_matter_and_shapes_are_traced_once(monkeypatch):
    lm, many = jax_model("gemma2"), texts([4, 6, 9, 12, 20, 30, 31, 5] * 2)
    one = JacobianLens.fit(lm, many, SITES, token_budget=64)
    shapes, moved = [], lens_module.forward
    monkeypatch.setattr(lens_module, "forward", lambda d, t, **o: shapes.append(t.ids.shape) or moved(d, t, **o))
    other = JacobianLens.fit(lm, many[::-1], SITES, token_budget=96)
    single = [JacobianLens.fit(lm, [t], SITES, token_budget=96) for t in many[:3]]
    assert one.sentences == other.sentences == len(many)
    three = JacobianLens.fit(lm, many[:3], SITES, token_budget=96)
    for site in SITES:
        assert distance(one.matrices[site], other.matrices[site]) < 1e-5
        assert distance(np.mean([x.matrices[site] for x in single], axis=0), three.matrices[site]) < 1e-5
    again = JacobianLens.fit(lm, many[::-1], SITES, token_budget=96)
    assert all(np.array_equal(again.matrices[s], other.matrices[s]) for s in SITES)
    assert 1 < len(shapes) == len(set(shapes)) < 6


def test_several_sites_and_a_real_width_agree_with_forward_mode():
    """Many rows of the Jacobian at once came out wrong at this width, by XLA for CPUs."""
    import jax

    lm = aj.LanguageModel.from_pretrained(SUBJECT)
    sentences = ["Return the value of the key that was given.", "Close the file."] * 2
    lens = JacobianLens.fit(lm, sentences, [SITE, "mlp_act.1"])
    tokens = lm.tokenize(sentences[:2])
    counts = tokens.mask & (jnp.arange(tokens.ids.shape[1])[None] < tokens.attention_mask.sum(1, keepdims=True) - 1)
    counts = counts.astype(jnp.float32)
    share = counts / counts.sum(1, keepdims=True)
    final = Site("resid_post", 3)
    for site, matrix in lens.matrices.items():
        move = lambda v, site=site: aj.models.forward(
            lm.decoder, tokens, capture=[final], edits={site: lens_module._Move(v, share)}, logits=False
        ).acts[final]
        v = np.random.default_rng(0).normal(size=matrix.shape[1]).astype(np.float32)
        pushed = jax.jit(lambda v, move=move: jax.jvp(move, (jnp.zeros_like(v),), (v,))[1])(jnp.asarray(v))
        assert distance(matrix @ v, np.einsum("btd,bt->d", pushed, counts) / 2) < 1e-5


def test_a_saved_lens_reads_back(tmp_path):
    lm = jax_model("llama31")
    lens = JacobianLens.fit(lm, texts(), SITES)
    back = JacobianLens.from_pretrained(lens.save_pretrained(tmp_path / "lens"), lm)
    assert back.sentences == lens.sentences
    assert back.facts == lens.facts
    assert set(back.matrices) == set(lens.matrices)
    assert all(np.array_equal(back.matrices[s], lens.matrices[s]) for s in SITES)


def test_a_published_lens_is_read(tmp_path):
    """The layout of the lenses that neuronpedia hosts: half precision, layer k the output of block k."""
    lm = jax_model("gemma2")
    lens = JacobianLens.fit(lm, texts(), ["resid_post.0", "resid_post.1"])
    halves = {s.layer: torch.tensor(x).half() for s, x in lens.matrices.items()}
    torch.save({"J": halves, "n_prompts": 7, "source_layers": [0, 1], "d_model": 32}, tmp_path / "lens.pt")
    back = JacobianLens.from_pretrained(tmp_path / "lens.pt", lm)
    assert back.sentences == 7
    assert all(distance(back.matrices[s], x) < 1e-3 for s, x in lens.matrices.items())
    assert back.matrices[Site("resid_post", 0)].dtype == np.float32
    torch.save({"jacobian_sum": halves}, tmp_path / "unfinished.pt")
    with pytest.raises(AtlasError, match="'.*unfinished.pt' is damaged .it has no 'J'"):
        JacobianLens.from_pretrained(tmp_path / "unfinished.pt", lm)
    (tmp_path / "other.pt").write_bytes(b"no weights")
    with pytest.raises(AtlasError, match="'.*other.pt' is damaged"):
        JacobianLens.from_pretrained(tmp_path / "other.pt", lm)
    with pytest.raises(AtlasError, match="was fitted on another model: resid_post.0 has a matrix of"):
        JacobianLens.from_pretrained(tmp_path / "lens.pt", aj.LanguageModel.from_pretrained(SUBJECT))


@pytest.fixture(scope="module")
def lens():
    return JacobianLens.fit(jax_model("llama31"), texts(), SITES)


MISTAKES = {
    "no text": (lambda _: JacobianLens.fit(jax_model("llama31"), []), "there is no sentence|no text"),
    "short texts": (lambda _: JacobianLens.fit(jax_model("llama31"), ["w3 w4", "w5"]), "has a token that counts"),
    "all skipped": (lambda _: JacobianLens.fit(jax_model("llama31"), texts(), skip=40), "counts behind the first 40"),
    "skip": (lambda _: JacobianLens.fit(jax_model("llama31"), texts(), skip=-1), "tokens to skip"),
    "layer": (lambda _: JacobianLens.fit(jax_model("llama31"), texts(), "resid_post.3"), "past the last layer"),
    "read only": (lambda _: JacobianLens.fit(jax_model("llama31"), texts(), "head_norm.1"), "can only be read"),
    "site": (lambda x: x.name(np.ones(32), "resid_post.2"), "has no matrix of resid_post.2; it has resid_post.0"),
    "width": (lambda x: x.name(np.ones(33), SITES[0]), "at resid_post.0 has 32 features, got an array of shape .33,"),
    "axes": (lambda x: x.name(np.ones((1, 1, 32)), SITES[0]), "got an array of shape"),
    "nan": (lambda x: x.name([np.nan] * 32, SITES[0]), "the direction"),
    "feature": (lambda x: x.name_features([56], "mlp_act.1"), "a feature of mlp_act.1"),
    "k": (lambda x: x.name(np.ones(32), SITES[0], k=97), "number of tokens"),
    "several": (lambda x: x.direction("w4 w5", SITES[0]), "'w4 w5' is 'w4' . 'w5' to this model's tokenizer; give one"),
    "unknown": (lambda x: x.direction("dog", SITES[0]), "'dog' is nothing to this model's tokenizer; give one token"),
    "id": (lambda x: x.direction(96, SITES[0]), "the id of a token"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_sentences(lens, mistake, as_for_users):
    make, sentence = MISTAKES[mistake]
    with pytest.raises(AtlasError, match=sentence):
        make(lens)


def test_lenses_of_other_models_and_damaged_files_are_refused(lens, tmp_path):
    place = lens.save_pretrained(tmp_path / "lens")
    with pytest.raises(AtlasError, match="on another model, or its forward pass has changed: logits differ by"):
        JacobianLens.from_pretrained(place, jax_model("qwen2"))
    with pytest.raises(AtlasError, match="on another model: mlp_act.1 has a matrix of .32, 56. there"):
        JacobianLens.from_pretrained(place, aj.LanguageModel.from_pretrained(SUBJECT))
    save_file(load_file(place / FILE), place / FILE)
    with pytest.raises(AtlasError, match="is damaged .it has no 'lens'.; fit the lens again"):
        JacobianLens.from_pretrained(place, jax_model("llama31"))
    with pytest.raises(AtlasError, match="is missing; fit the lens again"):
        JacobianLens.from_pretrained(tmp_path, jax_model("llama31"))


@pytest.fixture(scope="module")
def fitted(bundled_run, tmp_path_factory):
    """A lens of the bundled subject, by the command."""
    place = tmp_path_factory.mktemp("lens") / "lens"
    arguments = ["fit", "--model", SUBJECT, "--text", bundled_run / "corpus", "--sentences", 8, "--out", place]
    done = CliRunner().invoke(app, ["lens", *map(str, arguments), "--site", SITE, "--site", "mlp_act.1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"sites": f"{SITE}, mlp_act.1", "sentences": 8, "skip": 1}
    return place


@pytest.fixture(scope="module")
def alignment(bundled_run):
    return Alignment.load(bundled_run)


@pytest.fixture
def command(alignment, monkeypatch):
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)

    def run(*arguments, refused=False):
        done = CliRunner().invoke(app, [*map(str, arguments), *([] if refused else ["--json"])])
        if refused:
            assert isinstance(done.exception, AtlasError), done.output
            return str(done.exception)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


def test_commands_show_tokens_and_steer_towards_one(command, fitted, alignment, bundled_run, tmp_path):
    lens = JacobianLens.from_pretrained(fitted, alignment.subject.model)
    by_lens = lambda site, feature, k: lens.name_features([feature], site, k)[0]
    read = lambda tokens: [tuple(t.values()) for t in tokens]
    named = command("lens", "name", fitted, "--model", SUBJECT, "--site", SITE, "--feature", 5, "--k", 3)
    assert named[0]["feature"] == 5
    assert alike(read(named[0]["tokens"]), by_lens(SITE, 5, 3))
    both = command("name", bundled_run, "--site", SITE, "--feature", 5, "--lens", fitted, "--k", 3)
    assert alike(read(both["tokens"]), by_lens(SITE, 5, 3))
    assert both["atlas_features"] == command("name", bundled_run, "--site", SITE, "--feature", 5, "--k", 3)
    found = command("identify", bundled_run, "--site", SITE, "--concept", "file", "--lens", fitted)["identified"]
    assert [i["tokens"] for i in found] == [[t.text for t in by_lens(SITE, i["feature"], 5)] for i in found]
    every = tmp_path / "names.jsonl"
    CliRunner().invoke(
        app, ["name", str(bundled_run), "--site", SITE, "--all", "--out", str(every), "--lens", str(fitted)]
    )
    assert alike(read(json.loads(every.read_text().splitlines()[5])["tokens"]), by_lens(SITE, 5, 5))
    towards = [
        "--lens",
        fitted,
        "--token",
        " file",
        "--prompt",
        "This function",
        "--max-new-tokens",
        8,
        "--strength",
        0.5,
    ]
    steered = command("steer", bundled_run, "--site", SITE, *towards, "--temperature", 0, "--save", tmp_path / "kept")
    assert steered["method"] == "lens"
    text = {s["strength"]: s["text"] for s in steered["steered"] if s["along"] == "concept"}
    assert text[0.5].count("file") > text[0.0].count("file")
    vectors = tmp_path / "steering.safetensors"
    command("export", bundled_run, "--site", SITE, "--concept", "file", "--how", tmp_path / "kept", "--out", vectors)
    own = command("lens", "name", fitted, "--model", SUBJECT, "--vectors", vectors, "--k", 1)
    assert own[0]["site"] == SITE
    assert own[0]["tokens"][0]["text"] == " file"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--token", " file"], "give --lens and --token together"),
        (["--lens", "LENS"], "give --lens and --token together"),
        (["--lens", "LENS", "--token", " file", "--how", "gradient"], "neither --method nor --how with them"),
        (["--lens", "LENS", "--token", "file system"], "to this model's tokenizer; give one token, such as ' the'"),
    ],
)
def test_steering_mistakes(command, fitted, bundled_run, arguments, sentence):
    arguments = [fitted if a == "LENS" else a for a in arguments]
    concept = [] if "--token" in arguments else ["--concept", "file"]
    said = command("steer", bundled_run, "--site", SITE, "--prompt", "A", *concept, *arguments, refused=True)
    assert sentence in said


@pytest.mark.parametrize("arguments", [[], ["--site", SITE], ["--feature", 1], ["--site", SITE, "--vectors", "x"]])
def test_naming_needs_features_or_vectors(command, fitted, arguments):
    said = command("lens", "name", fitted, "--model", SUBJECT, *arguments, refused=True)
    assert said == "give either --site POINT.LAYER with --feature ID, or --vectors FILE"
