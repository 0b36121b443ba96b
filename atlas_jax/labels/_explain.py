"""What is asked about a feature, and how the answers are read."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_EXPLAIN = """Below are sentences that activate one feature of a language model most. The token at which it is most \
active stands between « and », and the number before each sentence is how active it is there, the strongest being 10.

{examples}

What do these have in common that the feature reacts to? Answer with one short description of at most twelve words, \
as specific as the sentences allow, and with nothing else."""

_DETECT = """A feature of a language model is described as: {description}

Which of these sentences would activate it?

{sentences}

Answer with the numbers of those sentences, separated by commas, or with the word none, and with nothing else."""


class Context(NamedTuple):
    """A sentence with the token at which a feature is most active in it: ``before + token + after``."""

    activation: float
    before: str
    token: str
    after: str

    @property
    def text(self) -> str:
        """The sentence."""
        return self.before + self.token + self.after


def explanation_prompt(contexts: Sequence[Context]) -> str:
    """The question what a feature stands for.

    Example:
      >>> "10  The «cat» sat." in explanation_prompt([Context(3.0, "The ", "cat", " sat.")])
      True
    """
    strongest = max(c.activation for c in contexts)
    lines = (f"{10 * c.activation / strongest:.0f}  {c.before}«{c.token}»{c.after}" for c in contexts)
    return _EXPLAIN.format(examples="\n".join(line.replace("\n", " ") for line in lines))


def description_in(answer: str) -> str:
    """The description in an answer: its first line with text, without quotes, marks and a final full stop.

    Example:
      >>> description_in('"Words for time."')
      'Words for time'
    """
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return lines[0].strip("\"'`*- ").removesuffix(".").strip() if lines else ""


def detection_prompt(description: str, sentences: Sequence[str]) -> str:
    """The question which of some sentences fit a description."""
    numbered = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(sentences, 1))
    return _DETECT.format(description=description, sentences=numbered)


def detected_in(answer: str, count: int) -> list[bool] | None:
    """Which of the sentences an answer names; None where it names none of them and does not say so.

    Example:
      >>> detected_in("1, 3", 3), detected_in("None.", 2), detected_in("I cannot tell", 2)
      ([True, False, True], [False, False], None)
    """
    named = {int(n) for n in re.findall(r"\d+", answer)}
    if not named & set(range(1, count + 1)) and (named or not re.search(r"\bnone\b", answer, re.IGNORECASE)):
        return None
    return [i in named for i in range(1, count + 1)]
