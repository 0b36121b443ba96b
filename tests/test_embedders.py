"""Search with the user's own embedder: an endpoint over real HTTP, sentence-transformers, and the cache of vectors."""

import http.server
import json
import sys
import threading
import time
import types

import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.labels import CachedEmbedder, EndpointEmbedder, Label, Labels, Retry, TextIndex, open_embedder

TOPICS = {"dog": 0, "puppy": 0, "cat": 1, "bank": 2, "loan": 2}


def vector(text):
    """One axis a topic, so that "puppy" means "dog" though they share no letter that matters."""
    rows = [np.eye(4)[TOPICS[w]] for w in text.split() if w in TOPICS]
    return (np.sum(rows, axis=0) if rows else np.eye(4)[3]).tolist()


class Server(http.server.BaseHTTPRequestHandler):
    """OpenAI's embeddings protocol; answers out of order, fails as ``plan`` says, and is too slow for status 0."""

    plan, seen, keys = [], [], []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.seen.append((self.path, body))
        Server.keys.append(self.headers.get("Authorization"))
        status, answer = Server.plan.pop(0) if Server.plan else (200, None)
        if status == 0:
            time.sleep(2)
            return
        data = [{"index": i, "embedding": vector(t)} for i, t in enumerate(body["input"])][::-1]
        answer = {"data": data} if answer is None else answer
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    Server.plan, Server.seen, Server.keys = [], [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def index():
    texts = ["about a dog", "about a cat", "about a bank", "about the weather"]
    return TextIndex.from_labels(Labels.from_rows(Label(2 * i, text) for i, text in enumerate(texts)))


def test_an_endpoint_finds_meaning(url, index):
    found = index.with_embedder(open_embedder("endpoint:m", base_url=url, api_key="secret"))
    assert found.methods == ("hybrid", "bm25", "embedder")
    hits = found.search("puppy", k=2)
    assert (hits[0].index, hits[0].weight) == (0, 1.0)
    assert index.search("puppy", method="bm25") == []
    np.testing.assert_allclose(found.scores("loan", "embedder"), [0, 0, 1, 0])
    assert Server.seen[0][0] == "/v1/embeddings"
    assert Server.seen[0][1]["model"] == "m"
    assert set(Server.keys) == {"Bearer secret"}


def test_many_texts_go_in_batches_and_keep_their_order(url):
    texts = ["dog", "cat", "bank"] * 200
    rows = open_embedder("endpoint:m", base_url=url).encode(texts)
    np.testing.assert_array_equal(rows, [vector(t) for t in texts])
    assert [len(body["input"]) for _, body in Server.seen] == [256, 256, 88]
    assert rows.dtype == np.float32
    assert Server.keys[0] is None


def test_passing_faults_are_tried_again(url):
    Server.plan = [(503, {}), (429, {}), (200, b"no json"), (500, b"")]
    embedder = EndpointEmbedder("m", url)
    np.testing.assert_array_equal(embedder.encode(["dog"]), [vector("dog")])
    assert len(Server.seen) == 5
    Server.plan = [(503, {"error": {"message": "busy"}})] * 9
    with pytest.raises(AtlasError, match=r"no answer in 8 tries: 503 busy"):
        embedder.encode(["dog"])
    with pytest.raises(AtlasError, match="no answer in 2 tries"):
        EndpointEmbedder("m", "http://127.0.0.1:9/v1", retry=Retry(tries=2)).encode(["dog"])


@pytest.mark.parametrize(
    ("answer", "timeout"), [((0, None), 0.3), ((200, b"no json"), 9), ((200, b""), 9)], ids=["slow", "damaged", "empty"]
)
def test_an_endpoint_that_never_answers_well_is_one_sentence(url, answer, timeout):
    Server.plan = [answer] * 2
    with pytest.raises(AtlasError, match="gave no answer in 2 tries: ") as caught:
        EndpointEmbedder("m", url, retry=Retry(tries=2, timeout=timeout)).encode(["dog"])
    assert "\n" not in str(caught.value)
    assert answer[0] == 0 or len(Server.seen) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_url": "http://host:port/v1"}, "the address http://host:port/v1.* of the endpoint cannot be read"),
        ({"base_url": "http://[::1/v1"}, "cannot be read"),
        ({"api_key": "sec\nret"}, "the API key has characters that no key has"),
        ({"api_key": "sécret"}, "the API key has characters that no key has"),
    ],
)
def test_an_address_or_a_key_that_cannot_be_sent_is_refused(url, given, message):
    with pytest.raises(AtlasError, match=message) as caught:
        EndpointEmbedder(**{"model": "m", "base_url": url} | given).encode(["dog"])
    assert "ret" not in str(caught.value)
    with pytest.raises(AtlasError, match=message):
        open_embedder("endpoint:m", **{"base_url": url} | given)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {"error": {"message": "bad\nkey"}}), "refused: 401 bad key"),
        ((404, {"error": "no such model"}), "refused: 404 no such model"),
        ((200, {"result": []}), "did not answer with embeddings"),
        ((200, {"data": [{"index": 1, "embedding": [1.0]}]}), "one finite vector for each of 1"),
        ((200, {"data": [{"index": 0, "embedding": [float("nan")]}]}), "one finite vector for each of 1"),
    ],
)
def test_refusals_and_nonsense_are_one_sentence(url, answer, message):
    Server.plan = [answer]
    with pytest.raises(AtlasError, match=message) as caught:
        EndpointEmbedder("m", url, "secret").encode(["dog"])
    assert len(Server.seen) == 1
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value) + repr(EndpointEmbedder("m", url, "secret"))


def test_the_cache_asks_once_and_resumes(url, tmp_path):
    texts = ["dog", "cat", "bank", "loan", "puppy"]
    embedder = CachedEmbedder(EndpointEmbedder("m", url, retry=Retry(tries=1)), tmp_path, batch=2)
    Server.plan = [(200, None), (200, None), (503, {})]
    with pytest.raises(AtlasError, match="no answer"):
        embedder.encode(texts)
    np.testing.assert_array_equal(embedder.encode(texts), [vector(t) for t in texts])
    assert len(Server.seen) == 4
    np.testing.assert_array_equal(embedder.encode(texts), [vector(t) for t in texts])
    assert len(Server.seen) == 4
    CachedEmbedder(EndpointEmbedder("other", url), tmp_path, batch=2).encode(texts[:2])
    assert len(Server.seen) == 5


def test_the_command_searches_through_an_endpoint(url, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    arguments = ["atlas", "search", "loan", "--embedder", "endpoint:m", "--base-url", url, "--json", "-k", "1"]
    found = [CliRunner().invoke(app, arguments, catch_exceptions=False) for _ in range(2)]
    assert json.loads(found[0].stdout) == json.loads(found[1].stdout)
    assert Server.keys[0] == "Bearer k"
    assert len(Server.seen) == 1444 // 256 + 2
    assert list((tmp_path / "atlas-jax" / "embeddings").glob("*.npy"))


def test_unusable_embedders_are_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(AtlasError, match="OPENAI_BASE_URL"):
        open_embedder("endpoint:m")
    with pytest.raises(AtlasError, match="unknown embedder 'glove'"):
        open_embedder("glove")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(AtlasError, match="pip install sentence-transformers"):
        open_embedder("sentence-transformers:x")


def test_sentence_transformers_is_asked_for_arrays(monkeypatch, index):
    class Fake:
        def __init__(self, name):
            if name != "good":
                raise OSError("no model\nhere")

        def encode(self, texts, *, show_progress_bar, convert_to_numpy):
            assert convert_to_numpy
            assert not show_progress_bar
            return np.array([vector(t) for t in texts])

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=Fake))
    found = index.with_embedder(open_embedder("sentence-transformers:good"))
    assert found.search("puppy", k=1)[0].index == 0
    with pytest.raises(AtlasError, match="could not load 'bad': no model$"):
        open_embedder("sentence-transformers:bad")


def test_the_real_sentence_transformers_loads_a_directory(tmp_path, index):
    package = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*TOPICS, "about"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="about"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.array([vector(w) for w in words], np.float32)
    package.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(tmp_path))
    embedder = open_embedder(f"sentence-transformers:{tmp_path}", cache=tmp_path / "cache")
    np.testing.assert_allclose(embedder.encode(["dog puppy", "bank"]), [vector("dog"), vector("bank")], atol=1e-6)
    assert index.with_embedder(embedder).search("puppy", k=1)[0].index == 0
