"""Questions to a chat model about a feature, and reading of its answers."""

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


# The docstrings of both forms are part of their schemas, and so of every request and its key in an answer book.


class Description(pydantic.BaseModel, extra="forbid", strict=True):
    """An answer to :func:`explanation_prompt`."""

    description: str


class Detection(pydantic.BaseModel, extra="forbid", strict=True):
    """An answer to :func:`detection_prompt`: the numbers of the sentences that fit."""

    numbers: list[int]


_Form = TypeVar("_Form", bound=pydantic.BaseModel)


class Context(NamedTuple):
    """A sentence with the token at which a feature is most active in it: ``before + token + after``.

    Example:
      >>> from atlas_jax.labels import Context
      >>> Context(3.0, "The ", "cat", " sat.").text
      'The cat sat.'
    """

    activation: float
    before: str
    token: str
    after: str

    @property
    def text(self) -> str:
        """The sentence."""
        return self.before + self.token + self.after


def explanation_prompt(contexts: Sequence[Context]) -> str:
    """Return the prompt that asks for a description of a feature.

    Example:
      >>> from atlas_jax.labels import Context, explanation_prompt
      >>> "10  The «cat» sat." in explanation_prompt([Context(3.0, "The ", "cat", " sat.")])
      True
    """
    strongest = max(c.activation for c in contexts)
    lines = (f"{10 * c.activation / strongest:.0f}  {c.before}«{c.token}»{c.after}" for c in contexts)
    return _EXPLAIN.format(examples="\n".join(line.replace("\n", " ") for line in lines))


def description_in(answer: str) -> str:
    """Return the description in an answer without quotes, marks and a final full stop; "" where none can be read.

    Example:
      >>> from atlas_jax.labels import description_in
      >>> description_in('{"description": "Words for time."}')
      'Words for time'
    """
    form = read_form(Description, answer)
    return "" if form is None else " ".join(form.description.split()).strip("\"'`*- ").removesuffix(".").strip()


def detection_prompt(description: str, sentences: Sequence[str]) -> str:
    """Return the prompt that asks which of some sentences fit a description.

    Example:
      >>> from atlas_jax.labels import detection_prompt
      >>> print(detection_prompt("pets", ["A dog.", "A tax."]))  # doctest: +ELLIPSIS
      A feature of a language model is described as: pets
      <BLANKLINE>
      Which of these sentences would activate it?
      <BLANKLINE>
      1. A dog.
      2. A tax.
      ...
    """
    numbered = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(sentences, 1))
    return _DETECT.format(description=description, sentences=numbered)


def detected_in(answer: str, count: int) -> list[bool] | None:
    """Return for each of ``count`` sentences if an answer names it; None where it cannot be read or names another.

    Example:
      >>> from atlas_jax.labels import detected_in
      >>> detected_in('{"numbers": [1, 3]}', 3), detected_in("I cannot tell", 2)
      ([True, False, True], None)
    """
    form = read_form(Detection, answer)
    if form is None or not set(form.numbers) <= set(range(1, count + 1)):
        return None
    return [i in form.numbers for i in range(1, count + 1)]


def read_form(form: type[_Form], answer: str) -> _Form | None:
    """Parse an answer that is JSON of a form, perhaps in a code block; None for any other.

    Example:
      >>> from atlas_jax.labels import Detection, read_form
      >>> read_form(Detection, "```json\\n{\\"numbers\\": [2]}\\n```").numbers, read_form(Detection, "Number 2.")
      ([2], None)
    """
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        return form.model_validate_json(text)
    except pydantic.ValidationError:
        return None
