"""The command ``atlas-jax``."""

import os
import sys
from pathlib import Path

from atlas_jax.errors import AtlasError


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    from atlas_jax.cli._app import app

    _keep_compiled_programs()
    try:
        app()
    except AtlasError as e:
        sys.stderr.write(f"atlas-jax: {e}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("atlas-jax: interrupted\n")
        sys.exit(130)


def _keep_compiled_programs() -> None:
    """Let a second run find the programs the first one compiled; jax's own variables win."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas-jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
