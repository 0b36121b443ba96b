"""The unit every reader yields: a text and where it came from."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text of any length before it is split into sentences.

    Attributes:
      text: the text; blank lines separate paragraphs.
      domain: what the text is about, the unit whose share is kept when a corpus is cut down.
      source: a relative name of the file it came from.

    Example:
      >>> Document("A matrix is orthogonal when its rows are orthonormal.", "numpy.linalg", "numpy/linalg").domain
      'numpy.linalg'
    """

    text: str
    domain: str
    source: str
