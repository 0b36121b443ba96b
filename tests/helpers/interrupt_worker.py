"""Ways a command can be at work when a signal comes, one for each name; prints ``ready`` when it is."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from atlas_jax import interrupts

FOREVER = 600


def ready(*words):
    print("ready", *words, flush=True)


def waits_outside_of_python(folder):
    """As a compilation or a linear solver does: no bytecode is run, so no handler."""
    lock = threading.Lock()
    lock.acquire()
    ready()
    lock.acquire()


def swallows_exceptions(folder):
    """As a callback of the garbage collector does."""

    class Slow:
        def __del__(self):
            ready()
            time.sleep(FOREVER)

    thing = Slow()
    del thing
    print("swallowed", flush=True)


def catches_all(folder):
    ready()
    for _ in range(FOREVER * 10):
        try:
            time.sleep(0.1)
        except BaseException:  # noqa: BLE001 - as a callback may
            print("caught", flush=True)


def writes_something(folder):
    (folder / "half").write_text("x")
    with interrupts.before_leaving(lambda: (folder / "half").unlink()):
        ready()
        time.sleep(FOREVER)


def fails_to_tidy(folder):
    def tidy():
        raise RuntimeError

    with interrupts.before_leaving(tidy):
        ready()
        time.sleep(FOREVER)


def has_helpers(folder):
    helper = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(FOREVER,))
    helper.start()
    ready(helper.pid)
    time.sleep(FOREVER)


def stops_a_fork(folder):
    """A signal to a forked process is not one to its parent."""
    if (child := os.fork()) == 0:
        time.sleep(FOREVER)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    time.sleep(0.2)
    ready()
    time.sleep(FOREVER)


def saves(folder):
    """A pass that looks now and then whether it should stop, and takes longer to save than it is given to look."""
    interrupts.GRACE = 0.2
    with interrupts.postponed_interrupts() as stopped:
        ready()
        while not stopped():
            time.sleep(0.01)
        time.sleep(1)
        (folder / "saved").write_text("x")
    print("not reached", flush=True)


def is_saving(folder):
    """The signal comes while a state is being saved, and the pass goes on and looks after that."""
    interrupts.GRACE = 0.2
    with interrupts.postponed_interrupts() as stopped:
        with interrupts.unhurried():
            ready()
            time.sleep(1)
            (folder / "saved").write_text("x")
        if stopped():
            raise KeyboardInterrupt
    print("not reached", flush=True)


def never_looks(folder):
    interrupts.GRACE = 0.2
    with interrupts.postponed_interrupts():
        ready()
        time.sleep(FOREVER)


def looks_late(folder):
    """Has long to come to a point where it can save, unless a second signal comes."""
    with interrupts.postponed_interrupts():
        ready()
        time.sleep(FOREVER)


def is_overruled(folder):
    """A library puts handlers of its own in the place of ours."""
    for s in interrupts.SIGNALS:
        signal.signal(s, signal.SIG_IGN)
    interrupts.take_back()
    ready()
    time.sleep(FOREVER)


if __name__ == "__main__":
    interrupts.take_over()
    interrupts.say_at_end(lambda: "interrupted; goodbye")
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]))
    except KeyboardInterrupt:
        interrupts.leave()
