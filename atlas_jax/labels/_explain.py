"""What is asked about a feature, and how the answers are read."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import pydantic

_EXPLAIN = """Below are sentences that activate one feature of a language model most. The token at which it is most \
active stands between « and », and the number before each sentence is how active it is there, the strongest being 10.

{examples}

What do these have in common that the feature reacts to? Answer with one short description of at most twelve words, \
as specific as the sentences allow, as JSON and with nothing else: {{"description": "..."}}"""

_DETECT = """A feature of a language model is described as: {description}

Which of these sentences would activate it?

{sentences}

Answer with the numbers of those sentences, an empty list if there are none, as JSON and with nothing else: \
{{"numbers": [...]}}"""


class Description(pydantic.BaseModel, extra="forbid", strict=True):
    """An answer to :func:`explanation_prompt`."""

    description: str


class Detection(pydantic.BaseModel, extra="forbid", strict=True):
    """An answer to :func:`detection_prompt`: the numbers of the sentences that fit."""

    numbers: list[int]


_Form = TypeVar("_Form", bound=pydantic.BaseModel)


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
    """Return the question what a feature stands for.

    Example:
      >>> "10  The «cat» sat." in explanation_prompt([Context(3.0, "The ", "cat", " sat.")])
      True
    """
    strongest = max(c.activation for c in contexts)
    lines = (f"{10 * c.activation / strongest:.0f}  {c.before}«{c.token}»{c.after}" for c in contexts)
    return _EXPLAIN.format(examples="\n".join(line.replace("\n", " ") for line in lines))


def description_in(answer: str) -> str:
    """Return the description in an answer without quotes, marks and a final full stop; "" where none can be read.

    Example:
      >>> description_in('{"description": "Words for time."}')
      'Words for time'
    """
    form = read_form(Description, answer)
    return "" if form is None else " ".join(form.description.split()).strip("\"'`*- ").removesuffix(".").strip()


def detection_prompt(description: str, sentences: Sequence[str]) -> str:
    """Return the question which of some sentences fit a description."""
    numbered = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(sentences, 1))
    return _DETECT.format(description=description, sentences=numbered)


def detected_in(answer: str, count: int) -> list[bool] | None:
    """Return which of some sentences an answer names; None where it cannot be read or names one that is not there.

    Example:
      >>> detected_in('{"numbers": [1, 3]}', 3), detected_in("I cannot tell", 2)
      ([True, False, True], None)
    """
    form = read_form(Detection, answer)
    if form is None or not set(form.numbers) <= set(range(1, count + 1)):
        return None
    return [i in form.numbers for i in range(1, count + 1)]


def read_form(form: type[_Form], answer: str) -> _Form | None:
    """Return an answer that is JSON of a form, perhaps in a code block; None for any other.

    Example:
      >>> read_form(Detection, "```json\\n{\\"numbers\\": [2]}\\n```").numbers, read_form(Detection, "Number 2.")
      ([2], None)
    """
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        return form.model_validate_json(text)
    except pydantic.ValidationError:
        return None
