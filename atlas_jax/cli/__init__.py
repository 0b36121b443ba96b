"""The command ``atlas-jax``."""

import sys

from atlas_jax.errors import AtlasError


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    from atlas_jax.cli._app import app

    try:
        app()
    except AtlasError as e:
        sys.stderr.write(f"atlas-jax: {e}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("atlas-jax: interrupted\n")
        sys.exit(130)
