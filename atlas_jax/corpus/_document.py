"""The unit every reader yields: a text and where it came from."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from atlas_jax.errors import AtlasError

_MARK = "\ufeff"
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


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


def columns_read(names: Iterable[str], text: str, domain: str) -> list[str]:
    """Which columns of a table hold the text and, whole or as a field (see :func:`domain_of`), the domain."""
    return [name for name in names if name in (text, domain, domain.partition(".")[0])]


def domain_of(row: Mapping[str, Any], column: str) -> str | None:
    """The domain of a record, if it has one; ``meta.name`` is column ``meta.name`` or else field ``name`` of ``meta``.

    Example:
      >>> domain_of({"text": "A proof.", "meta": {"pile_set_name": "ArXiv"}}, "meta.pile_set_name")
      'ArXiv'
    """
    value: Any = row
    for part in [column] if column in row else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is None else plain(str(value))


def text_of(row: Mapping[str, Any], column: str, where: str) -> str | None:
    """The text of a record; None where it is missing, null or blank.

    Raises:
      AtlasError: naming ``where`` it is, if it is something else than text.

    Example:
      >>> text_of({"text": "A proof."}, "text", "line 1 of 'a.jsonl'"), text_of({"text": None}, "text", "line 2")
      ('A proof.', None)
    """
    value = row.get(column)
    if not isinstance(value, str | None):
        kind = _KINDS.get(type(value), type(value).__name__)
        raise AtlasError(f'"{column}" in {where} is {kind}, not text; mend it, or name the column that holds the text')
    text = plain(value or "")
    return text if text.strip() else None


def plain(text: str) -> str:
    """Text without byte order marks, and with ``?`` for lone surrogates, which no encoding holds."""
    return text if text.isascii() else text.replace(_MARK, "").encode("utf-8", "replace").decode()
