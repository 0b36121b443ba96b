"""``atlas-jax sae train`` on a tiny model: loss recovered against PyTorch hooks, resumption to the bit, files."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import hf_oracle
from helpers.logged import logged
from safetensors.numpy import load_file

from atlas_jax.corpus import Corpus, CorpusStatistics
from atlas_jax.corpus._corpus import content_hash
from atlas_jax.errors import AtlasError
from atlas_jax.pipeline import Checkpoints, SentenceStream
from atlas_jax.sae import SAEConfig, SparseAutoencoder
from atlas_jax.sae_lab import SAESettings, finished_training, held_out, train_sae, write_result
from atlas_jax.subject import Subject
from atlas_jax.types import Site

SITE = Site("resid_post", 1)
SETTINGS = SAESettings(
    str(SITE), features=64, k=4.0, tokens=128 * 40, batch=128, buffer=1024, held_out=40, max_length=40
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return hf_oracle.jax_model("gemma2")


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    words = lambda: " ".join(f"w{i}" for i in rng.integers(3, hf_oracle.VOCAB, rng.integers(25, 31)))
    fit, held = tuple(words() for _ in range(300)), tuple(words() for _ in range(50))
    counts = CorpusStatistics(1, *[350] * 4, 300, 50, (1.0, 200.0), (0.0, 100.0), 60.0, 30.0, "none", 0)
    return Corpus(fit, held, ("words",) * 350, counts, content_hash(fit, held, ["words"] * 350))


@pytest.fixture(scope="module")
def sae():
    rng = np.random.default_rng(1)
    W = rng.normal(size=(32, 64)) / 6
    arrays = {"W_enc": W, "W_dec": W.T, "b_enc": rng.normal(size=64), "b_dec": rng.normal(size=32)}
    return SparseAutoencoder.build(SAEConfig("jumprelu", 32, 64), **arrays, threshold=np.full(64, 0.5))


@pytest.fixture(scope="module")
def unseen(model, corpus):
    """Sentences that begin with BOS, and a pass over them."""
    texts = [f"<bos> {text}" for text in corpus.eval[:12]]
    return texts, SentenceStream.from_texts([Subject.from_model(model, [SITE])], texts, token_budget=256)


@pytest.fixture(scope="module", params=["batchtopk", "jumprelu"])
def trained(model, corpus, request):
    settings = dataclasses.replace(SETTINGS, architecture=request.param)
    return settings, train_sae(model, corpus, settings, name="tiny")


def interrupted(at):
    """A progress callback that presses Ctrl-C after a step."""

    def progress(stage, done, total, tokens):
        if done == at:
            signal.raise_signal(signal.SIGINT)

    return progress


def test_held_out_losses_are_those_of_transformers_with_a_hook(model, unseen, sae):
    (texts, stream), limit = unseen, 12.0
    found = held_out(sae, stream, SITE, norm_limit=limit)
    losses, seen = {"loss": [], "loss_spliced": [], "loss_ablated": []}, []

    def replaced(new):
        def edit(x):
            content = x[:, 1:]  # BOS stays as it is, and so does what is too long
            far = content.norm(dim=-1, keepdim=True) > limit
            seen.append(content[~far[..., 0]].numpy())
            return torch.cat([x[:, :1], torch.where(far, content, new(content))], 1)

        return edit

    spliced = lambda c: torch.tensor(np.asarray(sae(jnp.asarray(c.numpy()))))
    edits = {"loss": lambda x: None, "loss_spliced": replaced(spliced), "loss_ablated": replaced(torch.zeros_like)}
    hf = hf_oracle.hf_model("gemma2")
    for text in texts:
        ids = torch.tensor(model.tokenizer.encode([text])).long()
        for name, edit in edits.items():
            with torch.no_grad(), hf_oracle.hooks(hf, {SITE: edit}):
                logits = hf(ids).logits.double()
            losses[name] += torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none").tolist()
    clean, inserted, zeroed = (np.mean(losses[k]) for k in losses)
    np.testing.assert_allclose([found.loss, found.loss_spliced, found.loss_ablated], [clean, inserted, zeroed], 2e-5)
    np.testing.assert_allclose(found.loss_recovered, (zeroed - inserted) / (zeroed - clean), rtol=2e-2)
    assert 0 < found.tokens == len(np.concatenate(seen)) / 2 < len(losses["loss"])
    assert abs(inserted - clean) > 1e-3 < abs(zeroed - clean)


def test_a_perfect_sae_recovers_all_of_the_loss_and_a_silent_one_none(unseen):
    eye, (_, stream) = np.eye(32), unseen
    zeros = {"b_enc": np.zeros(64), "b_dec": np.zeros(32), "threshold": np.zeros(64)}
    W = np.concatenate([eye, -eye], 1)
    config = SAEConfig("jumprelu", 32, 64)
    perfect = SparseAutoencoder.build(config, W_enc=W, W_dec=W.T, **zeros)
    silent = SparseAutoencoder.build(config, W_enc=W, W_dec=0 * W.T, **zeros)
    np.testing.assert_allclose(held_out(perfect, stream, SITE).loss_recovered, 1.0, atol=1e-4)
    np.testing.assert_allclose(held_out(silent, stream, SITE).loss_recovered, 0.0, atol=1e-4)


def test_training_explains_the_activations_at_the_asked_l0(trained):
    settings, result = trained
    first, last = result.curves.held_out[0], result.curves.held_out[-1]
    assert [row["step"] for row in result.curves.held_out] == list(range(4, 41, 4))
    assert last["fvu"] < 0.8 * first["fvu"]
    assert last["dead"] < 0.5
    assert abs(last["l0"] - settings.k) < abs(first["l0"] - settings.k)
    assert result.sae.config.advertised_l0 == last["l0"]
    assert (result.sae.config.site, result.sae.config.model) == (SITE, "tiny")


def test_stopping_anywhere_changes_nothing(model, corpus, trained, tmp_path):
    settings, straight = trained
    for stops in ([1], [13, 14, 39]):
        saved = lambda at=stops[0]: Checkpoints(tmp_path / str(at), unit="steps")
        for stop in stops:
            with pytest.raises(KeyboardInterrupt), logged() as said:
                train_sae(model, corpus, settings, name="tiny", checkpoints=saved(), progress=interrupted(stop))
        assert said[-1] == f"saved the train pass after {stops[-1]} steps"
        again = train_sae(model, corpus, settings, name="tiny", checkpoints=saved())
        jax.tree.map(np.testing.assert_array_equal, again.sae, straight.sae)
        assert again.curves == straight.curves
        assert again.passes == straight.passes


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(model, corpus, trained, tmp_path):
    settings, straight = trained
    for stop in (20, 30):
        with pytest.raises(KeyboardInterrupt):
            train_sae(
                model, corpus, settings, name="tiny", checkpoints=Checkpoints(tmp_path), progress=interrupted(stop)
            )
    _, newest = sorted((tmp_path / "train").iterdir())
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-100])
    with logged() as said:
        again = train_sae(model, corpus, settings, name="tiny", checkpoints=Checkpoints(tmp_path))
    assert "damaged" in said[0]
    assert "after 20 of 40" in said[1]
    jax.tree.map(np.testing.assert_array_equal, again.sae, straight.sae)


def test_a_run_with_other_settings_is_refused_with_the_difference(model, corpus, tmp_path):
    saved = Checkpoints(tmp_path)
    saved.fingerprint = SETTINGS.to_dict()
    with pytest.raises(KeyboardInterrupt):
        train_sae(model, corpus, SETTINGS, name="tiny", checkpoints=saved, progress=interrupted(3))
    saved.fingerprint = (changed := dataclasses.replace(SETTINGS, k=5.0)).to_dict()
    with pytest.raises(AtlasError, match=r"k was 4\.0 and is 5\.0"):
        train_sae(model, corpus, changed, name="tiny", checkpoints=saved)


def test_both_layouts_hold_the_trained_sae(trained, tmp_path, rng):
    """Read with numpy by each layout's published math."""
    _, result = trained
    write_result(tmp_path, result, {"site": str(SITE)})
    x = rng.normal(size=(40, 32)).astype(np.float32)
    scope, lens = np.load(tmp_path / "params.npz"), load_file(tmp_path / "saelens" / "sae_weights.safetensors")
    cfg = json.loads((tmp_path / "saelens" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["normalize_activations"]) == ("jumprelu", "none")
    assert cfg["apply_b_dec_to_input"] is False
    assert cfg["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    for w in (scope, lens):
        pre = x.astype(np.float64) @ w["W_enc"] + w["b_enc"]
        f = np.maximum(pre, 0) * (pre > w["threshold"])
        np.testing.assert_allclose(result.sae.encode(jnp.asarray(x)), f, atol=1e-4)
        np.testing.assert_allclose(result.sae(jnp.asarray(x)), f @ w["W_dec"] + w["b_dec"], atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, SparseAutoencoder.from_pretrained(tmp_path).W_dec, result.sae.W_dec)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_sae_lens_itself_loads_the_result(trained, tmp_path, rng):
    sae_lens = pytest.importorskip("sae_lens")
    _, result = trained
    write_result(tmp_path, result, {})
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "saelens")
    x = rng.normal(size=(40, 32)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(theirs.encode(torch.tensor(x)).numpy(), result.sae.encode(jnp.asarray(x)), atol=1e-4)
        np.testing.assert_allclose(theirs(torch.tensor(x)).numpy(), result.sae(jnp.asarray(x)), atol=1e-4)


def test_a_site_without_a_saelens_name_is_said_and_the_rest_written(trained, tmp_path):
    _, result = trained
    config = dataclasses.replace(result.sae.config, site=Site("mlp_in", 1))
    result = result._replace(sae=dataclasses.replace(result.sae, config=config))
    written = write_result(tmp_path, result, {})
    assert "no name for the site mlp_in.1" in written["saelens"]
    assert SparseAutoencoder.from_pretrained(tmp_path).config.site == Site("mlp_in", 1)
    assert not (tmp_path / "saelens" / "cfg.json").exists()


def test_a_finished_run_is_known_again_and_not_replaced(trained, tmp_path):
    _, result = trained
    about = {"k": 4.0, "seed": 0, "model": "abc"}
    assert finished_training(tmp_path, about) is None
    write_result(tmp_path, result, about)
    assert finished_training(tmp_path, about)["measured"] == result.measured._asdict()
    with pytest.raises(AtlasError, match=r"something else: k was 4\.0 and is 5\.0; .*--overwrite"):
        finished_training(tmp_path, about | {"k": 5.0})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"site": "resid_post.9"}, "past the last layer"),
        ({"architecture": "vanilla"}, "unknown architecture 'vanilla'; known are batchtopk, jumprelu"),
        ({"k": 64.0}, "k is 64; it must be above 0 and below the number of features, 64"),
        ({"buffer": 500}, "use 512"),
        ({"tokens": 1000}, "too few for batches of 128; use 1280"),
        ({"learning_rate": 1e30}, "not finite at step"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a number from 1e-12 to inf"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be"),
        ({"dead_after": -5}, "dead_after is -5; it must be a number from 1 to inf"),
        ({"norm_limit": float("inf")}, "norm_limit is inf"),
        ({"sparsity_warmup": 1.5}, "sparsity_warmup is 1.5; it must be a number from 0 to 1"),
    ],
)
def test_mistakes_are_one_sentence(model, corpus, change, says):
    with pytest.raises(AtlasError, match=says) as raised:
        train_sae(model, corpus, dataclasses.replace(SETTINGS, **change), name="tiny")
    assert "\n" not in str(raised.value)


def test_the_command_survives_kill_and_ctrl_c(model, corpus, tmp_path):
    """SIGKILL in the middle, then SIGINT, then to the end: the same bytes as in one go; then known and refused."""
    corpus.save(tmp_path / "corpus")
    settings = dataclasses.replace(SETTINGS, tokens=128 * 2000)
    out, states = tmp_path / "out", tmp_path / "out.partial" / "checkpoints" / "train"
    words = ["--model", hf_oracle.saved("gemma2"), "--text", tmp_path / "corpus", "--out", out]
    for name in ("site", "features", "k", "tokens", "batch", "buffer", "held_out", "max_length"):
        words += [f"--{name.replace('_', '-')}", getattr(settings, name)]
    code = "import jax; jax.config.update('jax_num_cpu_devices', 8); from atlas_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "sae", "train", *map(str, words), "--checkpoint-every", "0.2"]
    latest = lambda: max([int(p.name) for p in states.glob("*") if p.name.isdigit()], default=0)
    reached = 0
    for stop, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and latest() <= reached:
            time.sleep(0.02)
        process.send_signal(stop)
        _, told = process.communicate()
        assert process.returncode == code, told
        assert reached < (reached := latest()) < 2000
    assert "give the same command again to go on" in told
    assert not out.exists()
    finished = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert f"going on with the train pass after {reached:,} of 2,000 steps" in " ".join(finished.stderr.split())
    assert not states.exists()
    straight = train_sae(model, corpus, settings, name=hf_oracle.saved("gemma2").name)
    np.testing.assert_allclose(straight.measured.l0, settings.k, rtol=0.15)
    straight.sae.save_pretrained(tmp_path / "straight")
    assert (tmp_path / "straight" / "params.npz").read_bytes() == (out / "params.npz").read_bytes()
    assert json.loads(finished.stdout)["curves"] == straight.curves._asdict()
    again = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (2, "")
    assert "seed was 0 and is 1" in " ".join(again.stderr.split())
