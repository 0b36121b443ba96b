"""The errors a user can cause: one sentence that says what is wrong, where, and what to do."""


class AtlasError(ValueError):
    """Bad input from outside: text, a directory, a name. The command line prints its message alone and exits with 2."""
