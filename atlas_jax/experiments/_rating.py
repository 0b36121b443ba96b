"""The questions that judges are asked about texts, and how an answer is read (appendix A.7)."""

import functools
import json
from collections.abc import Sequence
from typing import Annotated

import pydantic

from atlas_jax.checks import as_texts
from atlas_jax.errors import AtlasError
from atlas_jax.labels import read_form

ASPECTS = ("concept", "instruction", "fluency")

_ANSWER = """Each sequence has a unique ID. Provide your ratings as a Python dictionary with sequence IDs as keys and \
respective ratings as values.
Output only the dictionary - no additional text, comments, or symbols."""

_CONCEPT = f"""You are given a TOPIC and a set of sequences. Score each sequence for whether the TOPIC is expressed, \
counting either literal string matches or clear semantic references (either is sufficient).
Scoring: 2 = present. 1 = vague/partial. 0 = not expressed. Score independently per sequence.
{_ANSWER}"""

_EXAMPLES = r"""
Below we show examples of input and outputs for three topics.

Example Input: 'Concept: Germany
Sequence ID 0: "German scientists unveiled a new fusion experiment."
Sequence ID 1: "Berlin's Brandenburg Gate was illuminated last night."
Sequence ID 2: "A Munich-based automaker expanded its EV lineup."
Sequence ID 3: "Several European countries adjusted tax policy."
Sequence ID 4: "The federal republic that reunified in 1990 tightened export rules."
Sequence ID 5: "country = \"Deutschland\""
Sequence ID 6: "Mount Fuji is a popular destination for hikers."
Sequence ID 7: "Silicon Valley companies are racing ahead in AI."'
Example Output: '{"0": 2, "1": 2, "2": 2, "3": 0, "4": 2, "5": 2, "6": 0, "7": 0}'

Example Input: 'Concept: Football
Sequence ID 0: "The quarterback threw a 60-yard touchdown pass."
Sequence ID 1: "The UEFA Champions League final kicks off on Saturday."
Sequence ID 2: "topic = \"football\""
Sequence ID 3: "#football fans filled the stadium after the derby."
Sequence ID 4: "The offside rule was explained by the referee."
Sequence ID 5: "The match ended 2-1 after extra time."
Sequence ID 6: "The chef prepared sushi with fresh tuna."
Sequence ID 7: "Quantum entanglement was demonstrated in a new experiment."'
Example Output: '{"0": 2, "1": 2, "2": 2, "3": 2, "4": 2, "5": 1, "6": 0, "7": 0}'

Example Input: 'Concept: Paris
Sequence ID 0: ", there was a young Parisian named Hugo. He found a book filled with maps."
Sequence ID 1: "Paris, Texas, USA, 2005, 2006, 2007, 2008, 2009, 2010, 2011, 2012, 2013, 2014, 2015, 2016..."
Sequence ID 2: "renowned for its cuisine, and the Parisians are proud of their heritage."
Sequence ID 3: "# (1)\nimport numpy as np"
Sequence ID 4: "to use the 'git' command to get the latest version of the 'paris' tool, run these steps..."
Sequence ID 5: "You can write 'konnichiwa' in the title, but not the word 'Tokyo'."'
Example Output: '{"0": 2, "1": 2, "2": 2, "3": 0, "4": 2, "5": 0}'
"""

_INSTRUCTION = f"""You are given a set of sequences, each with the instruction it was written for. Score how well each \
sequence does what its instruction asks, or goes on from it where it is the beginning of a text, whatever else it says.
Scoring: 2 = it clearly does. 1 = partly, or only at first. 0 = it has nothing to do with it.
{_ANSWER}"""

_FLUENCY = f"""You are given a set of sequences. Score how fluent each of them is as text, whatever it is about and \
even if its beginning or end is cut off.
Scoring: 2 = reads as written by a person. 1 = understandable, with clear faults such as repetition or broken \
grammar. 0 = not understandable, or the same words over and over.
{_ANSWER}"""

_SYSTEMS = {"concept": _CONCEPT, "instruction": _INSTRUCTION, "fluency": _FLUENCY}


def check_aspect(name: str, known: Sequence[str], aspect: str) -> None:
    """Refuse an aspect that a judge does not rate.

    Raises:
      AtlasError: naming those that it does.
    """
    if aspect not in known:
        raise AtlasError(f"the judge {name} rates {', '.join(known)}, not '{aspect}'")


def items_of(texts: Sequence[str], aspect: str, instruction: Sequence[str] | None) -> list[str]:
    """Return each text as a prompt shows it: in quotes on one line, after its instruction where that is rated.

    Raises:
      AtlasError: for what is no text, or instructions that are missing or not one a text.

    Example:
      >>> from atlas_jax.experiments._rating import items_of
      >>> items_of(['He said "no".'], "concept", None)
      ['"He said \\\\"no\\\\"."']
    """
    quoted = [json.dumps(text, ensure_ascii=False) for text in as_texts(texts)]
    if aspect != "instruction":
        return quoted
    asked = [] if instruction is None else as_texts(instruction)
    if len(asked) != len(quoted):
        raise AtlasError(f"to rate the aspect instruction give one instruction a text, {len(quoted)} in all")
    return [f"{json.dumps(q, ensure_ascii=False)} -> {text}" for q, text in zip(asked, quoted, strict=True)]


def rating_prompt(aspect: str, concept: str, items: Sequence[str], *, examples: bool = True) -> str:
    r"""Return the question how strongly each of some texts has an aspect: 0, 1 or 2.

    For the concept it is the paper's prompt with its three examples; the paper has no other aspects.

    Args:
      aspect: "concept", "instruction" or "fluency"; the last two do not name the concept.
      concept: in words.
      items: of :func:`items_of`, numbered from 0.
      examples: whether the three examples are shown.

    Example:
      >>> from atlas_jax.experiments._rating import rating_prompt
      >>> rating_prompt("concept", "dogs", ['"A puppy."'])[-56:]
      'Input: \'Concept: dogs\nSequence ID 0: "A puppy."\'\nOutput:'
    """
    shown = _EXAMPLES if examples and aspect == "concept" else ""
    head = [f"Concept: {' '.join(concept.split())}"] if aspect == "concept" else []
    lines = "\n".join([*head, *(f"Sequence ID {i}: {item}" for i, item in enumerate(items))])
    return f"{_SYSTEMS[aspect]}\n{shown}\nInput: '{lines}'\nOutput:"


Rating = Annotated[
    int, pydantic.Field(strict=True, ge=0, le=2), pydantic.WithJsonSchema({"type": "integer", "enum": [0, 1, 2]})
]


class _Ratings(pydantic.RootModel[dict[str, Rating]]):
    """A rating for every sequence id."""


@functools.lru_cache
def ratings_form(count: int) -> type[pydantic.BaseModel]:
    """Return the form of an answer about so many texts: an object with a rating for every id.

    Example:
      >>> from atlas_jax.experiments._rating import ratings_form
      >>> ratings_form(2)(**{"0": 2, "1": 0}).model_dump()
      {'0': 2, '1': 0}
    """
    fields = {str(i): (Rating, ...) for i in range(count)}
    return pydantic.create_model("Ratings", __config__=pydantic.ConfigDict(extra="forbid"), **fields)


def ratings_in(answer: str, count: int) -> list[int | None]:
    """Return the rating of each text in an answer, None for those it leaves out.

    Quotes around it are taken off, as the prompt's examples have them. An answer that is no such object, rates with
    anything but 0, 1 and 2, or names an id that was not asked for (so that its ids may be shifted) says nothing about
    any text.

    Example:
      >>> from atlas_jax.experiments._rating import ratings_in
      >>> ratings_in('{"0": 2, "2": 0}', 3), ratings_in('{"1": 2, "2": 0}', 2), ratings_in("All of them: 2", 2)
      ([2, None, 0], [None, None], [None, None])
    """
    form = read_form(_Ratings, answer.strip().strip("'"))
    ratings = {} if form is None or not set(form.root) <= set(map(str, range(count))) else form.root
    return [ratings.get(str(i)) for i in range(count)]
