"""The callback by which every long computation reports its progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int, int], None]
"""Called as ``progress(stage, done, total, tokens)`` where a pass begins and after every batch.

``stage`` names the pass ("align", "held out", "measure", "train" ...), ``done`` and ``total`` count sentences, steps
or features, and ``tokens`` the tokens so far. A computation reports nothing where it is given None. Sentences
about its course ("going on with the fit pass after ...") go to the logger of its module instead.
"""


def unreported(stage: str, done: int, total: int, tokens: int) -> None:
    """Report nothing: the progress of a computation that was given None.

    Example:
      >>> from atlas_jax.progress import unreported
      >>> unreported("align", 0, 100, 0)
    """
