"""One device, eight simulated ones, and two processes of four devices each come to the same results."""

import json
import re
import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import distributed_worker as worker
from helpers.commands import start_worker
from helpers.distributed_worker import BUDGET, LENGTH, METHODS, SAMPLE, SITES, Counted, command
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.corpus import Corpus, build_corpus, installed_documentation
from atlas_jax.experiments import evaluate_quality
from atlas_jax.files import write_json
from atlas_jax.labels import Labels
from atlas_jax.models import LanguageModel, _weights, run
from atlas_jax.models._fingerprint import TEXT as FINGERPRINT
from atlas_jax.pipeline import AlignSettings, SentenceStream, _stream, align, load_pair, pooled_activations
from atlas_jax.sae import SAEConfig, SparseAutoencoder
from atlas_jax.sharding import device_put, make_mesh, row_blocks, to_host
from atlas_jax.statistics import PassStatistics, layout, update_pass
from atlas_jax.statistics._update import _update_pass
from atlas_jax.tensor_file import write_tensors

WIDTH = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus and a narrow atlas, whose features fire in a hundredth to a half of the sentences."""
    folder, rng = tmp_path_factory.mktemp("distributed"), np.random.default_rng(0)
    corpus = build_corpus(installed_documentation(max_bytes=150_000), n_fit=420, n_eval=120)
    corpus.save(folder / "corpus")
    lm = LanguageModel.from_pretrained(ATLAS / "model")
    d = lm.config.hidden_size
    w = rng.normal(size=(d, WIDTH)).astype(np.float32) / d**0.5

    def atlas(bias):
        parts = {"W_enc": w, "W_dec": w.T, "b_enc": bias, "b_dec": np.zeros(d)}
        sae = SparseAutoencoder.build(SAEConfig("relu", d, WIDTH), **parts)
        return ConceptAtlas.from_parts(lm, sae, "resid_post.0", Labels.empty(WIDTH))

    (acts,) = pooled_activations(
        SentenceStream.from_texts([atlas(np.zeros(WIDTH))], corpus.eval, max_length=LENGTH)
    ).values()
    share = rng.uniform(0.5, 0.99, WIDTH)
    threshold = [np.quantile(a, q) for a, q in zip(acts.T, share, strict=True)]
    atlas(-np.array(threshold) - 0.0123).save_pretrained(folder / "atlas")
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """The outputs of two processes, started first so that they work while this one does."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    running = [start_worker(worker, i, port, folder) for i in range(2)]
    yield lambda: [(p.communicate(timeout=500), p.returncode) for p in running]
    for p in running:
        p.kill()


@pytest.fixture(scope="module")
def one(folder):
    """The run of a single device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stream, "SAMPLE", SAMPLE)
        settings = AlignSettings(SITES, METHODS, max_length=LENGTH, token_budget=4 * BUDGET, top_k=5)
        pair = load_pair(SUBJECT, folder / "atlas", settings)
        alignment, quality = evaluate_quality(align(pair, Corpus.load(folder / "corpus"), settings))
    alignment.save(folder / "one")
    write_json(folder / "one/tables/quality.json", quality.to_dict())
    return folder / "one"


def test_statistics_keep_their_layout_and_values(rng):
    mesh = make_mesh(model=2)
    new = lambda mesh: PassStatistics.init(["cross", "atlas_gram", "top_k"], {"a": 24, "b": 5}, 32, top_k=3, mesh=mesh)
    states, before = [new(None), new(mesh)], _update_pass._cache_size()
    wanted = layout(states[0], mesh)
    assert wanted.sums.crosses["a"].raw.spec == wanted.compensation.atlas.raw.gram.spec == P("data", "model")
    assert wanted.sums.crosses["b"].raw.spec == P(None, "model")
    for _ in range(3):
        a, b, c = (rng.normal(size=(40, d)).astype(np.float32) for d in (24, 5, 32))
        for i, rows in enumerate((lambda x: x, lambda x: device_put(x, mesh, "data"))):
            states[i] = update_pass(states[i], {"a": rows(a), "b": rows(b)}, rows(c))
        assert jax.tree.map(lambda x: x.sharding, states[1]) == wanted
    assert _update_pass._cache_size() - before == 2
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(x, to_host(y), atol=2e-5)
    assert states[1].sums.crosses["a"].raw.addressable_shards[0].data.shape == (6, 16)


def test_no_matrix_travels_between_devices(rng):
    mesh, (b, d_s, d_c) = make_mesh(model=2), (16, 512, 512)
    state = PassStatistics.init(["cross", "atlas_gram"], {"a": d_s}, d_c, mesh=mesh)
    rows = [device_put(np.ones((b, d), np.float32), mesh, "data") for d in (d_s, d_c)]
    text = _update_pass.lower(state, {"a": rows[0]}, rows[1], None, None, None, mesh).compile().as_text()
    moves = re.findall(
        r"= (\S+|\(.*?\)) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\(", text
    )
    sizes = [np.prod([int(n) for n in s.split(",") if n]) for move in moves for s in re.findall(r"\[([\d,]*)\]", move)]
    assert len(sizes) > 5
    assert max(sizes) <= max(b, 32) * d_c < d_s * d_c / 8


@pytest.mark.parametrize("block_bytes", [1, 200, 10**6])
def test_a_sharded_file_has_the_bytes_of_a_plain_one(rng, tmp_path, block_bytes):
    import ml_dtypes

    plain = {
        "z": rng.normal(size=(16, 6)).astype(np.float32),
        "b": rng.normal(size=7).astype(ml_dtypes.bfloat16),
        "a": np.arange(5, dtype=np.int32),
        "flag": np.array([True, False]),
        "ä": rng.normal(size=(3, 2, 2)).astype(np.float32),
    }
    save_file(plain, tmp_path / "plain", metadata={"format": "pt"})
    spread = {name: device_put(x, make_mesh(model=2), "data", "model") for name, x in plain.items()}
    assert spread["z"].addressable_shards[0].data.shape == (4, 3)
    for tensors in (plain, spread):
        write_tensors(tmp_path / "ours", tensors, metadata={"format": "pt"}, block_bytes=block_bytes)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "plain").read_bytes()


def test_blocks_are_bounded(rng):
    x = rng.normal(size=(100, 8)).astype(np.float32)
    blocks = list(row_blocks(device_put(x, make_mesh(), "data"), block_bytes=1000))
    assert max(block.nbytes for block in blocks) <= 1000
    np.testing.assert_array_equal(np.concatenate(blocks), x)


def test_every_slice_of_a_checkpoint_is_read_once(monkeypatch):
    sizes, safe_open = [], _weights.safe_open
    monkeypatch.setattr(_weights, "safe_open", lambda *a, **k: Counted(safe_open(*a, **k), sizes))
    lm = LanguageModel.from_pretrained(SUBJECT, mesh=make_mesh(model=4))
    assert sum(sizes) == sum(x.size for x in jax.tree.leaves(lm.decoder))


def test_eight_devices_find_what_one_finds(folder, two, one, capsys):
    app([str(a) for a in command(folder, folder / "eight")], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "eight/tables/quality.json").read_text())
    assert_same_run(folder / "eight", one)


def test_two_processes_find_what_one_device_finds(folder, two, one):
    ended = two()
    assert [code for _, code in ended] == [0, 0], ended[0][0][1][-3000:] + ended[1][0][1][-3000:]
    (said, _), (silent_out, silent_err) = (streams for streams, _ in ended)
    assert_same_run(folder / "two", one)
    assert json.loads(said) == json.loads((folder / "two/tables/quality.json").read_text())
    assert silent_out == ""
    assert "written to" not in silent_err
    read = [json.loads((folder / f"read-{i}.json").read_text()) for i in range(2)]
    corpus = Corpus.load(folder / "corpus")
    fit, held_out = set(corpus.fit), set(corpus.eval)
    assert {*read[0], *read[1]} == fit | held_out | {FINGERPRINT}
    read = [[text for text in one if text != FINGERPRINT] for one in read]
    first, second, samples = 2 * len(fit | held_out), len(fit), 2 * 2 * 2 * SAMPLE  # passes of two models, and of one
    assert first < len(read[0]) + len(read[1]) <= first + second + samples
    assert abs(len(read[0]) - len(read[1])) <= 8
    found = [json.loads((folder / f"found-{i}.json").read_text()) for i in range(2)]
    assert [f["shares"] for f in found] == [[[0, 2], [0, 2], [0, 2], [0, 1]], [[1, 2], [1, 2], [1, 2], [0, 1]]]
    for f in found:
        assert f["read"] == f["held"] < 0.51 * f["whole"]
        assert f["resumed"]
    lm = LanguageModel.from_pretrained(SUBJECT)
    (acts,) = run(lm, lm.tokenize(["A file is read."]), capture=["mlp_act.1"], logits=False).acts.values()
    np.testing.assert_allclose(np.load(folder / "acts.npy"), acts, atol=1e-4)


def assert_same_run(ours: Path, theirs: Path) -> None:
    errors = {}
    for path in sorted(p.relative_to(theirs) for p in theirs.rglob("translation.safetensors")):
        a, b = load_file(ours / path), load_file(theirs / path)
        errors |= {(path.parts[1:3], n): np.linalg.norm(a[n] - b[n]) / np.linalg.norm(b[n]) for n in b}
    assert len(errors) == len(SITES) * (len(METHODS) + 1) * 3  # covariance with the pooling for steering too
    assert max(errors.values()) < 1e-4, errors
    for site in SITES:
        tops = [load_file(run / "top" / f"{site}.safetensors") for run in (ours, theirs)]
        np.testing.assert_allclose(tops[0]["values"], tops[1]["values"], atol=1e-4)
    np.testing.assert_array_equal(np.load(ours / "rate.npy"), np.load(theirs / "rate.npy"))
    tables = [json.loads((run / "tables/quality.json").read_text()) for run in (ours, theirs)]
    assert tables[0]["features"] == tables[1]["features"]
    for x, y in zip(*(table["rows"] for table in tables), strict=True):
        assert (x["site"], x["method"]) == (y["site"], y["method"])
        np.testing.assert_allclose(x["auroc"]["mean"], y["auroc"]["mean"], atol=2e-3)
