"""The one way in which a long computation tells how far it has come."""

from collections.abc import Callable

Progress = Callable[[str, int, int, int], None]
"""Called as ``progress(stage, done, total, tokens)`` where a pass begins and after every batch.

``stage`` names the pass ("align", "held out", "measure", "train" ...), ``done`` and ``total`` count sentences, steps
or features, and ``tokens`` the tokens so far. What is computed reports nothing where it is given None. Sentences about
what is going on ("going on with the fit pass after ...") go to the logger of their module instead.
"""


def unreported(stage: str, done: int, total: int, tokens: int) -> None:
    """Report nothing."""
