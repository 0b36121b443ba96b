"""Published atlases by name: their parts are of known layouts, and a broken download goes on."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from atlas_jax.atlas import fetch_labels, preset
from atlas_jax.atlas._presets import __file__ as home
from atlas_jax.errors import AtlasError
from atlas_jax.types import Site

NAMES = list(yaml.safe_load((Path(home).parent / "presets.yaml").read_text()))


@pytest.fixture
def server(monkeypatch):
    """Two of three files are there, and the second is cut off the first time."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            number = self.path.split("batch-")[1][0]
            content = gzip.compress(f'{{"index": "{number}", "description": "a label"}}\n'.encode())
            gone = number == "2"
            self.send_response(404 if gone else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            cut = number == "1" and sum("batch-1" in path for path in asked) == 1
            self.wfile.write(content[: len(content) // 2] if cut else content)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("ATLAS_JAX_LABELS", f"http://127.0.0.1:{running.server_port}")
    yield asked
    running.shutdown()


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_whole(name):
    chosen = preset(name)
    assert Site.parse(chosen.site).point == "resid_post"
    assert chosen.model.count("/") == 1
    assert chosen.sae.count("/") >= 2
    assert (chosen.source is None) == (chosen.files == 0)


def test_an_unknown_preset_names_the_known():
    with pytest.raises(AtlasError, match="unknown preset 'gemma-scope'; known are gemma-scope-2b-16k"):
        preset("gemma-scope")


def test_a_broken_download_is_one_sentence_and_goes_on(server, tmp_path):
    chosen = preset("gemma-scope-2b-16k")._replace(files=2)
    with pytest.raises(AtlasError, match=r"batch-1.jsonl.gz could not be downloaded .*give the same command again"):
        fetch_labels(chosen, tmp_path)
    folder = fetch_labels(chosen, tmp_path)
    assert [path[-10] for path in server] == ["0", "1", "1"]
    assert sorted(file.name for file in folder.iterdir()) == ["batch-0.jsonl.gz", "batch-1.jsonl.gz"]
    with pytest.raises(AtlasError, match="404"):
        fetch_labels(chosen._replace(files=3), tmp_path)
