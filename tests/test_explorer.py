"""The explorer: what its addresses answer, what it refuses, one queue, bad input, and a real browser."""

import contextlib
import dataclasses
import http.client
import json
import re
import shlex
import shutil
import socket
import sys
import threading
from urllib.parse import quote

import numpy as np
import pytest
from helpers.browser import MISSING, chromium, find, look, shown_in, until
from helpers.report_records import HOSTILE, SCRIPT
from typer.testing import CliRunner

import atlas_jax as aj
from atlas_jax import experiments
from atlas_jax.cli._app import app as commands
from atlas_jax.errors import AtlasError
from atlas_jax.explorer import Explorer, make_app, serve
from atlas_jax.explorer._jobs import BusyError, Jobs
from atlas_jax.explorer._requests import BODY_BYTES
from atlas_jax.explorer._server import listen
from atlas_jax.labels import Label, Labels
from atlas_jax.models import _decode

uvicorn = pytest.importorskip("uvicorn")
STEERED = {
    "features": [[39, 1.0]],
    "strengths": {"resid_post.2": 0.5},
    "prompts": ["This function returns"],
    "tokens": 8,
}


@contextlib.contextmanager
def served(explorer):
    """The port of a running server."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(explorer), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def explorer(bundled_run):
    explorer = Explorer(bundled_run)
    with pytest.raises(AtlasError, match=r"The run and its models are being loaded\."):
        explorer.search("attention")
    explorer.load()
    assert explorer.status in ("compiling", "ready")
    until(lambda: explorer.status == "ready")
    return explorer


@pytest.fixture(scope="module")
def port(explorer):
    with served(explorer) as port:
        yield port


def opened(port, path, body=None, headers=()):
    """A connection, and the answer whose body is not read yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body)
    kind = {"Content-Type": "application/json"} if body is not None else {}
    connection.request("GET" if body is None else "POST", path, content, kind | dict(headers))
    return connection, connection.getresponse()


def asked(port, path, body=None, headers=()):
    connection, answer = opened(port, path, body, headers)
    with contextlib.closing(connection):
        content = answer.read()
        json_there = answer.getheader("Content-Type", "").startswith("application/json")
        return answer.status, json.loads(content) if json_there else content


def events(answer):
    """The events of a stream as they come."""
    name = None
    for line in answer:
        line = line.decode().strip()
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def streamed(port, body):
    """Texts, by prompt and row, the scores of each prompt, and the names of all events."""
    connection, answer = opened(port, "/api/steer", body)
    with contextlib.closing(connection):
        seen = list(events(answer))
    texts = [["", ""] for _ in body["prompts"]]
    for name, content in seen:
        for row, pieces in enumerate(content["rows"] if name == "tokens" else ()):
            texts[content["prompt"]][row] += "".join(pieces)
    return texts, [content for name, content in seen if name == "scores"], [name for name, _ in seen]


# What it answers.


def test_concepts_are_found_by_words_and_by_id(port, explorer):
    status, hits = asked(port, f"/api/search?q={quote('attention mask')}")
    found = explorer.alignment.atlas.search("attention mask", 12)
    assert (status, [h["feature"] for h in hits]) == (200, [h.index for h in found])
    assert asked(port, "/api/search?q=39")[1] == [{"feature": 39, "label": "attention", "weight": 1.0}]
    assert asked(port, "/api/search?q=")[1] == asked(port, "/api/search?q=zzzz")[1] == []


def test_subject_features_are_those_of_identify(port, explorer):
    run = explorer.alignment
    answer = asked(port, "/api/features", {"features": [[39, 1.0], [40, -0.5]]})[1]
    assert [site["site"] for site in answer["sites"]] == [str(site) for site in run.subject.sites]
    assert answer["labels"]["39"] == "attention"
    t = run.translation("mlp_act.1", *run.recommended("identify"))
    query, tokenizer = run.atlas.query([39, 40], [1.0, -0.5]), run.subject.model.tokenizer
    right = experiments.identify(t, query, run.strongest("mlp_act.1"), run.corpus.sentence, tokenizer, k=4)
    shown = answer["sites"][0]["features"]
    assert [one["feature"] for one in shown] == [one.feature for one in right]
    assert shown[0]["peaks"] == [peak._asdict() for peak in right[0].peaks]
    assert shown[0]["names"][0] == t.name_feature(right[0].feature, 1, run.atlas.labels).labels[0]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 0.0},
        {"prompts": ["The", "A longer prompt, of several words", "The"], "seed": 7},
        {"strengths": {"resid_post.2": -0.4, "mlp_act.1": 2.0}, "features": [[17, 0.5], [40, 1.0]]},
    ],
)
def test_the_stream_is_what_generate_makes(port, explorer, change):
    body = STEERED | change
    texts, scores, names = streamed(port, body)
    assert (names[:2], names[-1]) == (["queued", "started"], "done")
    run = explorer.alignment
    model, query = run.subject.model, run.atlas.query(*map(list, zip(*body["features"], strict=True)))
    along = lambda site: run.translation(site, *run.recommended("steer")).direction(query)
    edits = {site: aj.Steer(along(site), strength) for site, strength in body["strengths"].items()}
    for i, prompt in enumerate(body["prompts"]):
        options = {"max_new_tokens": 8, "temperature": body.get("temperature", 0.5), "seed": body.get("seed", 0) + i}
        right = [aj.generate(model, prompt, edits=e, **options) for e in (None, edits)]
        assert texts[i] == [g.texts[0] for g in right]
        for row, (generation, e) in enumerate(zip(right, (None, edits), strict=True)):
            assert scores[i]["own"][row] == pytest.approx(log_probabilities(model, prompt, generation, e), abs=1e-3)
            assert scores[i]["unsteered"][row] == pytest.approx(
                log_probabilities(model, prompt, generation, None), abs=1e-3
            )
    assert texts[0][0] != texts[0][1]


def test_prompts_are_messages_in_the_chat_template(port, explorer, monkeypatch):
    model = explorer.alignment.subject.model
    monkeypatch.setattr(
        model.tokenizer.hf, "chat_template", "{% for m in messages %}Return {{ m.content }}{% endfor %}"
    )
    texts, _, _ = streamed(port, STEERED | {"prompts": ["the value"], "chat": True})
    ids = model.chat([{"role": "user", "content": "the value"}])
    assert model.tokenizer.decode(ids) == "Return the value"
    assert texts[0][0] == aj.generate(model, [ids], max_new_tokens=8, temperature=0.5).texts[0]
    assert asked(port, "/api/state")[1]["chat"] is True


def log_probabilities(model, prompt, generation, edits):
    """In float64, of the new tokens of the first row."""
    ids, n = model.tokenizer.encode([prompt])[0], int(generation.lengths[0])
    new = generation.ids[0, :n].tolist()
    tokens = model.tokenizer.pad([[*ids, *new]], len(ids) + n, [0])
    logits = np.asarray(aj.run(model, tokens, edits=edits).logits[0, len(ids) - 1 : -1], np.float64)
    logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(
        -1, keepdims=True
    )
    return logits[np.arange(n), new].tolist()


def test_a_second_generation_compiles_nothing(port):
    streamed(port, STEERED)
    programs = lambda: (_decode.start._cache_size(), _decode.advance._cache_size())
    before = programs()
    other = {"prompts": ["Other words, more of them", "The"], "strengths": {"mlp_act.2": 1.0}, "features": [[17, 1.0]]}
    streamed(port, STEERED | other | {"seed": 3, "temperature": 0.9})
    assert programs() == before


@pytest.mark.parametrize(("at", "token"), [(5, " function"), (12, " function"), (14, " returns"), (10_000, " value")])
def test_a_token_has_the_concepts_of_both_sides(port, explorer, at, token):
    run, text = explorer.alignment, "This function returns the value"
    answer = asked(port, "/api/token", {"features": [[39, 1.0]], "text": text, "at": at})[1]
    assert answer["token"] == token
    seen = experiments.token_features(run.atlas, text, range(run.atlas.width))
    place = seen.tokens.index(token)
    assert answer["atlas"][0]["feature"] == int(seen.values[place].argmax())
    assert answer["atlas"][0]["value"] == pytest.approx(float(seen.values[place].max()))
    site = answer["sites"][0]
    t = run.translation(site["site"], *run.recommended("steer"))
    best = site["concepts"][0]["feature"]
    x = aj.run(run.subject.model, run.subject.model.tokenize([text]), capture=[t.site]).acts[t.site][0]
    masked = np.asarray(x, np.float64)[np.asarray(run.subject.model.tokenize([text]).mask[0])]
    own = experiments.token_concepts(run.subject.model, t, text)
    s = np.asarray(t.similarity(run.atlas.query([best])), np.float64)
    right = (
        (masked[own.tokens.index(site["token"])] - np.asarray(t.mean_subject)) @ s / np.linalg.norm(s) / t.token_norm
    )
    assert site["concepts"][0]["value"] == pytest.approx(right, abs=1e-4)
    along = experiments.token_projections(run.subject.model, {t.site: t}, run.atlas.query([39]), text)
    assert site["along"] == pytest.approx(float(along.values[own.tokens.index(site["token"]), 0]), abs=1e-4)


def test_the_snippet_and_the_command_make_the_same_texts(port, bundled_run, capsys):
    body = STEERED | {"prompts": ["It's a 'test'", "The $HOME"]}
    texts, _, _ = streamed(port, body)
    code = asked(port, "/api/code", body)[1]
    exec(code["python"], {})  # noqa: S102 - the snippet is what is tested
    assert capsys.readouterr().out == "".join(f"{text}\n" for pair in texts for text in pair)
    words = shlex.split(code["command"])
    assert words[:3] == ["atlas-jax", "steer", str(bundled_run)]
    done = CliRunner().invoke(commands, [*words[1:], "--json"])
    assert done.exit_code == 0, done.output
    steered = [s for s in json.loads(done.stdout)["steered"] if s["along"] == "concept"]
    assert [s["text"] for s in steered] == [text for pair in texts for text in pair]


def test_a_vector_is_saved(port, explorer, tmp_path):
    status, content = asked(port, "/api/save", STEERED | {"format": "safetensors"})
    (tmp_path / "vector.safetensors").write_bytes(content)
    (site, edit) = next(iter(aj.load_edits(tmp_path / "vector.safetensors").items()))
    run = explorer.alignment
    right = run.translation(site, *run.recommended("steer")).direction(run.atlas.query([39]))
    assert (status, str(site), edit.strength) == (200, "resid_post.2", 0.5)
    assert edit.direction == pytest.approx(np.asarray(right))
    assert asked(port, "/api/save", STEERED | {"format": "gguf", "additive": True})[1][:4] == b"GGUF"


# The queue.

LONG = STEERED | {"tokens": 400, "temperature": 1.0}


def test_a_generation_is_cancelled_and_the_next_one_runs(port):
    connection, answer = opened(port, "/api/steer", LONG)
    with contextlib.closing(connection):
        stream = events(answer)
        job = next(stream)[1]["job"]
        next(content for name, content in stream if name == "tokens")
        assert asked(port, f"/api/cancel/{job}", {}) == (200, {"cancelled": True})
        assert [name for name, _ in stream][-1] == "cancelled"
    assert streamed(port, STEERED)[2][-1] == "done"
    assert asked(port, f"/api/cancel/{job}", {}) == (200, {"cancelled": False})


def test_two_pages_wait_for_each_other_and_leaving_cancels(port, explorer):
    first, answer = opened(port, "/api/steer", LONG)
    stream = events(answer)
    next(content for name, content in stream if name == "tokens")
    second, other = opened(port, "/api/steer", STEERED)
    with contextlib.closing(second):
        waiting = events(other)
        assert next(waiting)[1]["ahead"] == 1
        answer.close()
        first.close()
        assert [name for name, _ in waiting][-1] == "done"
    until(lambda: not explorer.jobs._there)


def test_the_queue_has_an_end_and_a_fault_is_not_its_own():
    jobs, seen, go = Jobs(most=1), [], threading.Event()
    emit = lambda name, content: seen.append((name, content))
    jobs.submit(lambda job: go.wait(60), emit)
    waiting, ahead = jobs.submit(lambda job: 1 / 0, emit)
    with pytest.raises(BusyError, match="2 generations wait or run already; try again when some are done"):
        jobs.submit(lambda job: None, emit)
    go.set()
    jobs.close()
    assert ahead == 1
    assert seen[-1] == ("error", {"error": "the generation failed (ZeroDivisionError: division by zero)"})


# What it refuses.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8765"}, 403),
        ({"Host": "10.0.0.1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "localhost:1", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "null"}, 403),
    ],
)
def test_hosts_and_origins_that_are_not_its_own_are_refused(port, headers, status):
    for path, body in (("/api/state", None), ("/", None), ("/api/features", {"features": [[39, 1]]})):
        assert asked(port, path, body, headers)[0] == status


@pytest.mark.parametrize("path", ["/static/", "/..%2f..%2fpyproject.toml", "/explorer.py", "/docs", "/openapi.json"])
def test_nothing_else_is_served(port, path):
    status, answer = asked(port, path)
    assert (status, answer["error"].split(":")[0]) == (404, "Not Found")


def test_answers_carry_the_policy(port):
    connection, answer = opened(port, "/")
    with contextlib.closing(connection):
        assert answer.getheader("Content-Security-Policy").startswith("default-src 'none'; script-src 'self'")
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert not re.search(r"(src|href)=\"?(https?:|//)", answer.read().decode())


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"prompts": ["x"] * 9}, 422, "prompts: List should have at most 8 items"),
        ({"prompts": ["x" * 20_001]}, 422, "prompts.0: String should have at most 20000 characters"),
        ({"tokens": 513}, 422, "tokens: Input should be less than or equal to 512"),
        ({"features": [[1, 1]] * 65}, 422, "features: List should have at most 64 items"),
        ({"strengths": {"resid_post.2": "much"}}, 422, "strengths.resid_post.2: Input should be a valid number"),
        ({"seed": -1}, 422, "seed: Input should be greater than or equal to 0"),
        ({"unknown": 1}, 422, "unknown: Extra inputs are not permitted"),
        ({"prompts": ["word " * 600]}, 400, r"a prompt of \d+ tokens and 8 new ones exceed the model's context of 512"),
        ({"tokens": 511}, 400, r"a prompt of \d tokens and 511 new ones exceed the model's context of 512"),
        ({"prompts": []}, 400, "there is no prompt, or a blank one"),
        ({"prompts": ["The", " "]}, 400, "there is no prompt, or a blank one"),
        ({"features": []}, 400, "no concept is chosen; search for one"),
        ({"features": [[99_999, 1]]}, 400, "atlas feature 99999 does not exist"),
        ({"features": [[39, 0]]}, 400, "the concept query is zero everywhere"),
        ({"strengths": {"resid_post.9": 1}}, 400, "this run has no translation of resid_post.9"),
        ({"strengths": {"nowhere": 1}}, 400, "'nowhere'"),
        ({"chat": True}, 400, "this model has no chat template"),
    ],
)
def test_what_cannot_be_steered_is_said_in_a_sentence(port, change, status, said):
    got, answer = asked(port, "/api/steer", STEERED | change)
    assert got == status, answer
    assert re.match(said, answer["error"]) or re.search(said, answer["error"])
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/api/steer", b"{", 422, "JSON decode error"),
        ("/api/steer", b'{"seed": NaN}', 422, "features: Field required"),
        ("/api/steer", b"x" * (BODY_BYTES + 1), 413, f"a request may have {BODY_BYTES:,} bytes"),
        ("/api/token", {"features": [], "text": "", "at": 0}, 400, "the text to inspect has no token"),
        ("/api/token", {"features": [], "text": "a " * 2000, "at": 0}, 400, "exceeds the model's context of 512"),
        ("/api/save", STEERED | {"format": "exe"}, 422, "format: Input should be 'safetensors' or 'gguf'"),
        ("/api/save", STEERED | {"format": "gguf"}, 400, "scales activations back to their norm"),
        ("/api/save", STEERED | {"format": "gguf", "strengths": {}}, 400, "every strength is 0"),
        ("/api/state", {}, 405, "Method Not Allowed"),
        ("/api/search?q=" + "x" * 501, None, 422, "q: String should have at most 500 characters"),
    ],
)
def test_other_bad_requests_are_told_and_the_server_lives(port, path, body, status, said):
    got, answer = asked(port, path, body)
    assert got == status, answer
    assert said in answer["error"]
    assert asked(port, "/api/state")[1]["status"] == "ready"


def test_a_body_without_a_length_is_limited_too(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = "POST /api/steer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):  # it may hang up before all is sent
            for _ in range(2 + BODY_BYTES // 2**16):
                connection.sendall(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
        assert b"413" in connection.recv(64)


# Bad runs.


def without_top(run):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"top": False}))


def moved(run):
    record = json.loads((run / "run.json").read_text())
    record["sources"]["subject"]["path"] = "/nowhere/model"
    (run / "run.json").write_text(json.dumps(record))


def older(run):
    record = json.loads((run / "run.json").read_text())
    for name in ("fingerprints", "dtype", "strengths"):
        record.pop(name, None)
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (without_top, "ready", "this run was saved without the strongest held-out sentences"),
        (moved, "failed", "The run could not be loaded: .*/nowhere/model"),
        (older, "ready", ""),
    ],
)
def test_a_run_that_lacks_something_is_served_and_says_so(bundled_run, tmp_path, monkeypatch, change, status, said):
    shutil.copytree(bundled_run, tmp_path / "run")
    change(tmp_path / "run")
    monkeypatch.setattr(Explorer, "_compile", lambda self, job: None)
    explorer = Explorer(tmp_path / "run")
    explorer.load()
    until(lambda: explorer.status in ("ready", "failed"))
    facts = explorer.facts()
    assert facts["status"] == status
    assert re.search(said, " ".join([facts["said"], *facts["notes"]]))
    if change is older:
        assert [(site["suggested"], site["most"]) for site in facts["sites"]] == [(None, 1.0)] * 3
    with served(explorer) as port:
        got, answer = asked(port, "/api/features", {"features": [[39, 1]]})
    assert got == (503 if status == "failed" else 200)
    assert change is not without_top or all(one["peaks"] == [] for one in answer["sites"][0]["features"])


def test_the_page_waits_while_nothing_is_loaded(bundled_run):
    with served(Explorer(bundled_run)) as port:
        assert asked(port, "/api/state")[1]["status"] == "loading"
        for path, body in (("/api/search?q=a", None), ("/api/steer", STEERED)):
            assert asked(port, path, body) == (503, {"error": "The run and its models are being loaded."})


def test_mistakes_of_the_command_end_in_one_sentence(bundled_run, tmp_path, monkeypatch):
    invoke = lambda *arguments: str(CliRunner().invoke(commands, ["serve", *map(str, arguments)]).exception)
    assert "is not a run (no run.json); make one with atlas-jax align" in invoke(tmp_path)
    with listen("127.0.0.1", 0) as taken:
        number = taken.getsockname()[1]
        said = invoke(bundled_run, "--port", number)
    assert re.fullmatch(
        rf"port {number} of 127\.0\.0\.1 cannot be had \(.*\); choose another with --port, or 0 .*", said
    )
    assert "of no.such.host.invalid cannot be had" in invoke(bundled_run, "--host", "no.such.host.invalid")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(AtlasError, match=r'the explorer needs fastapi and uvicorn: pip install "atlas-jax\[serve\]"'):
        serve(bundled_run)


# A browser.


@pytest.fixture(scope="module")
def browser():
    if MISSING:
        pytest.skip(f"{' and '.join(MISSING)} not installed")
    with chromium(offline=False) as driver:
        yield driver


def scored(driver, count):
    """Whether the tokens of so many texts have their log-probabilities."""
    script = "return [...document.querySelectorAll('.text')].map(e => e.querySelector('[title]') !== null)"
    return driver.execute_script(script) == [True] * count


def begin(driver, port, fragment="", **options):
    look(driver, f"http://127.0.0.1:{port}/{fragment}", **options)
    until(lambda: driver.execute_script("return document.body.dataset.status") == "ready")


def test_search_steer_stream_cancel_and_the_link(browser, port, explorer):
    begin(browser, port)
    find(browser, "#query")[0].send_keys("attention")
    until(lambda: shown_in(browser, "#results button bdi")[:1] == ["attention"])
    find(browser, "#query")[0].send_keys("\ue007")  # Enter
    until(lambda: len(find(browser, "#features .found mark")) > 9)
    find(browser, "#prompts textarea")[0].send_keys("This function returns")
    slider = (
        "const s = document.querySelectorAll('#strengths input')[2]; s.value = 0.5; s.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(slider)
    find(browser, "#go")[0].click()
    until(lambda: scored(browser, 2))
    shown = shown_in(browser, ".text")
    texts, _, _ = streamed(port, STEERED | {"tokens": 40})
    assert shown[0] == f"This function returns{texts[0][0]}".strip()
    steered = find(find(browser, ".text")[1], "[title]")[0]
    assert steered.get_attribute("title").startswith("log-probability −")
    assert steered.get_attribute("title").endswith("without steering")
    steered.click()
    until(lambda: len(find(browser, "#place ol")) == 1 + len(explorer.alignment.subject.sites))
    link = browser.current_url
    begin(browser, port, "#" + link.split("#")[1])
    assert find(browser, "#prompts textarea")[0].get_property("value") == "This function returns"
    until(lambda: shown_in(browser, "#chosen .feature span") == ["attention 39"])
    find(browser, "#go")[0].click()
    until(lambda: scored(browser, 2))
    assert shown_in(browser, ".text") == shown
    browser.execute_script("document.getElementById('tokens').append(new Option(400)); tokens.value = 400;"
                           "tokens.dispatchEvent(new Event('change'))")  # fmt: skip
    find(browser, "#go")[0].click()
    until(lambda: find(browser, ".text [role=button]"))
    find(browser, "#cancel")[0].click()
    until(lambda: shown_in(browser, "#status") == ["Cancelled."])
    until(find(browser, "#go")[0].is_enabled)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser, port, width, dark):
    state = json.dumps(STEERED | {"prompts": ["w" * 300, "The"]})
    begin(browser, port, "#" + quote(state), width=width, dark=dark)
    find(browser, "#go")[0].click()
    until(lambda: scored(browser, 4))
    until(lambda: find(browser, "#features .found"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    brightness = lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert (brightness(ink) > brightness(paper)) == dark
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(
    "fragment", ["#%7B", "#null", "#[1]", "#%E0%A4%A", '#{"features":[["x",1]],"prompts":[],"seed":"a"}']
)
def test_a_damaged_link_begins_anew(browser, port, fragment):
    begin(browser, port, fragment)
    assert len(find(browser, "#prompts textarea")) == 1
    assert find(browser, "#seed")[0].get_property("value") == "0"
    assert browser.get_log("browser") == []


def test_hostile_text_is_text(browser, bundled_run, explorer):
    run = explorer.alignment
    labels = Labels.from_rows([Label(i, f"{HOSTILE} {i}") for i in range(run.atlas.width)], run.atlas.width)
    atlas = dataclasses.replace(run.atlas, labels=labels)
    corpus = dataclasses.replace(run.corpus, eval=[f"{HOSTILE} {text}" for text in run.corpus.eval])
    turned = Explorer(bundled_run)
    turned.status, turned.said, turned.notes = "ready", HOSTILE, [HOSTILE]
    turned._alignment = dataclasses.replace(run, atlas=atlas, corpus=corpus)
    with served(turned) as port:
        state = STEERED | {"prompts": [HOSTILE.replace("\0", "")], "features": [[39, 1]]}
        begin(browser, port, "#" + quote(json.dumps(state)))
        until(lambda: find(browser, "#features .found mark"))
        find(browser, "#query")[0].send_keys("39")
        until(lambda: find(browser, "#results button"))
        find(browser, "#go")[0].click()
        until(lambda: find(browser, ".text [title]"))
        assert SCRIPT in shown_in(browser, "#results button")[0]
        assert len(find(browser, "script")) == 1
        assert not find(browser, "img")
        assert browser.get_log("browser") == []
