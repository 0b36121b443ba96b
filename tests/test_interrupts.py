"""Ctrl-C and SIGTERM end a command in seconds wherever it is, with 130 or 143 and nothing unfinished left behind."""

import os
import signal
import time

import pytest
from helpers import interrupt_worker as worker, plain_text
from helpers.commands import start_command, start_worker

from atlas_jax.bundled import ATLAS, SUBJECT

SOON = 30  # seconds; nothing here takes one, but the machine may be busy
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def _stopped(way, folder, number, *, again=False):
    """A worker that got the signal, what it printed first, and the rest of its output."""
    process = start_worker(worker, way, folder)
    first = process.stdout.readline().split()
    process.send_signal(number)
    if again:
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(number)
    printed, said = process.communicate(timeout=SOON)
    assert first[0] == "ready", said
    return process.returncode, first, printed, said


WAYS = ["waits_outside_of_python", "swallows_exceptions", "catches_all", "writes_something", "fails_to_tidy"]
WAYS += ["stops_a_fork", "never_looks", "is_overruled"]


@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
@pytest.mark.parametrize("way", WAYS)
def test_a_signal_ends_the_process_wherever_it_is(tmp_path, way, number):
    code, _, printed, said = _stopped(way, tmp_path, number)
    assert (code, printed) == (CODES[number], "")
    assert "Traceback" not in said or way == "fails_to_tidy"
    assert said.endswith("atlas-jax: interrupted; goodbye\n") or way == "fails_to_tidy"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
@pytest.mark.parametrize("way", ["saves", "is_saving"])
def test_a_pass_saves_its_state_first_however_long_that_takes(tmp_path, way, number):
    code, _, printed, said = _stopped(way, tmp_path, number)
    assert (code, printed) == (CODES[number], "")
    first, last = said.splitlines()
    assert first == "atlas-jax: stopping as soon as the state is saved; once more to stop at once"
    assert last == "atlas-jax: interrupted; goodbye"
    assert (tmp_path / "saved").exists()


def test_a_second_signal_does_not_wait_for_the_pass(tmp_path):
    start = time.monotonic()
    assert _stopped("looks_late", tmp_path, signal.SIGINT, again=True)[0] == 130
    assert time.monotonic() - start < worker.FOREVER / 10


def test_helpers_end_too(tmp_path):
    code, (_, helper), _, _ = _stopped("has_helpers", tmp_path, signal.SIGINT)
    assert code == 130
    deadline = time.monotonic() + SOON
    while _alive(int(helper)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(int(helper))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


COMMANDS = {
    "quickstart": [],
    "align": ["--subject", SUBJECT, "--atlas", ATLAS, "--site", "mlp_act.1"],
}


@pytest.mark.parametrize(
    ("command", "moment", "number"),
    [
        ("quickstart", "loading both models", signal.SIGINT),  # while jax is imported
        ("quickstart", "to fit on", signal.SIGTERM),  # while the first program is compiled
        ("align", "reading text", signal.SIGTERM),
        ("align", "loading both models", signal.SIGINT),
    ],
)
def test_commands_stop_in_their_first_seconds(tmp_path, command, moment, number):
    (tmp_path / "text.txt").write_text(" ".join(plain_text.sentences(400)))
    options = [*COMMANDS[command], "--text", tmp_path / "text.txt", "--out", tmp_path / "out"]
    process = start_command(command, *options)
    said = ""
    while moment not in said:
        said += (line := process.stderr.readline())
        assert line, said
    process.send_signal(number)
    printed, rest = process.communicate(timeout=SOON)
    assert (process.returncode, printed) == (CODES[number], ""), rest
    assert "Traceback" not in rest
    assert "ignored" not in rest
    end = "interrupted; no checkpoint was saved yet" if command == "align" else "interrupted"
    assert rest.endswith(f"atlas-jax: {end}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]
