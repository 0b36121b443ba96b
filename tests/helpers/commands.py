"""The command line and workers, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

CODE = "from atlas_jax.cli import main; main()"
QUICKSTART = ["--sentences", "400", "--concept", "file", "--prompt", "The", "--strength", "0", "--strength", "60"]


def start_command(*arguments, code=CODE, **options):
    """``atlas-jax`` with these arguments, started and not waited for."""
    return _python("-c", code, *arguments, **options)


def command_line(*arguments, **options):
    """The same from its first import to its exit code."""
    process = start_command(*arguments, **options)
    printed, said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, said)


def start_worker(module, *arguments):
    """A module of this package as a program, which may import the others."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return _python("-m", module.__name__, *arguments, env=os.environ | {"PYTHONPATH": path})


def _python(*arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], **pipes, **options)
