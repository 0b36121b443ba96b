"""The errors a user can cause: one sentence that says what is wrong, where, and what to do."""


class AtlasError(ValueError):
    """Bad input from outside: text, a directory, a name. The command line prints its message alone and exits with 2.

    Example:
      >>> from atlas_jax.errors import AtlasError
      >>> from atlas_jax.types import Site
      >>> try:
      ...     Site("residual", 3)
      ... except AtlasError as error:
      ...     print(str(error).split(";")[0])
      unknown point 'residual' of a site
    """


class DamagedError(AtlasError):
    """A file of this package that is missing, cut short or altered.

    Attributes:
      path: the file or folder.
      reason: its fault: "missing", or "damaged" and how.

    Example:
      >>> from atlas_jax.errors import DamagedError
      >>> str(DamagedError("run/T.npy", "missing", "make the run again"))
      "'run/T.npy' is missing; make the run again"
    """

    def __init__(self, path: object, reason: str, remedy: str) -> None:
        super().__init__(f"'{path}' is {reason}; {remedy}")
        self.path, self.reason = path, reason


class UnwritableError(AtlasError):
    """A place that cannot be written to.

    Attributes:
      reason: the system's message.

    Example:
      >>> from atlas_jax.errors import UnwritableError
      >>> UnwritableError("/run", "No space left on device").reason
      'No space left on device'
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"'{path}' cannot be written ({reason}); make room or choose another place")
        self.reason = reason
