"""The command ``atlas-jax``."""

import os
import sys
import warnings
from pathlib import Path

from atlas_jax import interrupts
from atlas_jax.errors import AtlasError


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2.

    Example:
      >>> import sys
      >>> from atlas_jax.cli import main
      >>> sys.argv = ["atlas-jax", "quickstart"]  # doctest: +SKIP
      >>> main()  # doctest: +SKIP
    """
    interrupts.take_over()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # labels and generated text hold what no terminal may know
    from atlas_jax.cli._app import app
    from atlas_jax.cli._console import log_shown

    _keep_compiled_programs()
    warnings.showwarning = _show_warning
    try:
        with log_shown():
            app()
    except AtlasError as e:
        _end(str(e))
    except OSError as e:
        if e.strerror is None:
            raise
        _end(f"{e.strerror}: '{e.filename}'" if e.filename else e.strerror)
    except KeyboardInterrupt:
        interrupts.leave()


def _show_warning(message: Warning | str, *_: object) -> None:
    from atlas_jax.cli._console import warn

    warn(str(message))


def _end(sentence: str) -> None:
    from atlas_jax.cli._console import plain

    sys.stderr.write(f"atlas-jax: {plain(sentence)}\n")
    sys.exit(2)


def _keep_compiled_programs() -> None:
    """Let a second run find the programs the first one compiled; jax's own variables win."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas-jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
