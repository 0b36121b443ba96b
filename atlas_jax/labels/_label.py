"""One description of a feature, and what descriptions say they are of."""

from typing import Literal, NamedTuple


class Label(NamedTuple):
    """One description of one feature.

    Attributes:
      index: the feature.
      description: text without surrounding blanks, never empty.
      explainer: the model or method that wrote it, "" where unknown.
      source: the kind of explanation or the file's own source field, "" where unknown.
      score: quality reported with it (detection score, correlation, ...), None where there is none.
      polarity: "negative" where it describes what makes the activation most negative.
    """

    index: int
    description: str
    explainer: str = ""
    source: str = ""
    score: float | None = None
    polarity: Literal["positive", "negative"] = "positive"


class Origin(NamedTuple):
    """What labels say they are of.

    Attributes:
      model: name of the model, "" where unknown.
      layer: layer number, or Neuronpedia's name of the SAE such as ``20-gemmascope-res-16k``, "" where unknown.
      hook: the hook point the SAE reads, "" where unknown.
      release: the release the SAE is of, "" where unknown.
    """

    model: str = ""
    layer: str = ""
    hook: str = ""
    release: str = ""
