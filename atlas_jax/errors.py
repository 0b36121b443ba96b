"""The errors a user can cause: one sentence that says what is wrong, where, and what to do."""


class AtlasError(ValueError):
    """Bad input from outside: text, a directory, a name. The command line prints its message alone and exits with 2."""


class DamagedError(AtlasError):
    """A file of ours that is missing, cut short, or not what was written.

    Attributes:
      path: the file or folder.
      reason: what is wrong with it: "missing", or "damaged" and how.
    """

    def __init__(self, path: object, reason: str, remedy: str) -> None:
        super().__init__(f"'{path}' is {reason}; {remedy}")
        self.path, self.reason = path, reason


class UnwritableError(AtlasError):
    """A place that cannot be written to.

    Attributes:
      reason: the system's words.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"'{path}' cannot be written ({reason}); make room or choose another place")
        self.reason = reason
