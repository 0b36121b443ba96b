"""Documents, their prose without code, tables and markup, and its sentences."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from atlas_jax.errors import AtlasError

_MARK = "\ufeff"
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_ITEM = re.compile(
    r"[-*+•] +|\(?\d{1,2}[.)] +|:\w+(?: [^:\n]{1,40})?: +"
    r"|\*{0,2}`{0,2}\w+`{0,2}(?: ?\([^)\n]{0,80}\))?\*{0,2} ?: +(?=[A-Z])"
)
_RULE = re.compile(r"([-=~^#*_+`\"'.:])\1{2,}")
_FENCE = re.compile(r"```|~~~")
_LITERAL = re.compile(r"(?!\.\. ).*::$|\.\. (?:code|math|plot|sourcecode|parsed-literal|ipython|doctest|testcode)")
_NOT_PROSE = re.compile(r"\.\.(?: |$)|https?://\S+$|[|+@<]|\$ |:\w+:$|#+ |Copyright ")
_MARKUP = (  # (what must occur, pattern, replacement)
    ("](", re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)"), r"\1"),
    ("`", re.compile(r"`([^`<\n]+?) *<[^`>\n]*>`_{0,2}"), r"\1"),
    (":`", re.compile(r"(?::[\w.+-]+)?:[\w+-]+:`[~!]?([^`\n]+)`"), r"\1"),
    ("`", re.compile(r"`{1,2}([^`]+)`{1,2}_?"), r"\1"),
    ("*", re.compile(r"(\*{1,2})([^*\s](?:[^*]*[^*\s])?)\1"), r"\2"),
    ("://", re.compile(r"<?https?://[^\s>)]+>?"), ""),
)
_WORD = re.compile(r"[A-Za-z]{2,}")
_LETTER = re.compile(r"[A-Za-z ,]")
PUBLISHED = "punkt_tab/english"
TRAINING_CHARACTERS = 1_000_000
_PARAGRAPH_BREAK = re.compile(r"\n[ \t\r]*\n\s*")
_INNER_STOP = re.compile(r"[.!?](?=.)", re.DOTALL)


class Document(NamedTuple):
    """A text of any length before it is split into sentences.

    Attributes:
      text: the text; blank lines separate paragraphs.
      domain: subject of the text, the unit whose share is kept when a corpus is cut down.
      source: a relative name of the file it came from.

    Example:
      >>> from atlas_jax.corpus import Document
      >>> Document("A matrix is orthogonal when its rows are orthonormal.", "numpy.linalg", "numpy/linalg").domain
      'numpy.linalg'
    """

    text: str
    domain: str
    source: str


def columns_read(names: Iterable[str], text: str, domain: str) -> list[str]:
    """Return the columns of a table with the text and, whole or as a field (see :func:`domain_of`), the domain."""
    return [name for name in names if name in (text, domain, domain.partition(".")[0])]


def domain_of(row: Mapping[str, Any], column: str) -> str | None:
    """Return the domain of a record, if any; ``meta.name`` is column ``meta.name`` or else field ``name`` of ``meta``.

    Example:
      >>> from atlas_jax.corpus._prose import domain_of
      >>> domain_of({"text": "A proof.", "meta": {"pile_set_name": "ArXiv"}}, "meta.pile_set_name")
      'ArXiv'
    """
    value: Any = row
    for part in [column] if column in row else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is None else plain(str(value))


def text_of(row: Mapping[str, Any], column: str, where: str) -> str | None:
    """Return the text of a record; None where it is missing, null or blank.

    Raises:
      AtlasError: naming its place, ``where``, if it is something else than text.

    Example:
      >>> from atlas_jax.corpus._prose import text_of
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
    """Remove byte order marks, and put ``?`` for lone surrogates, which no encoding holds."""
    return text if text.isascii() else text.replace(_MARK, "").encode("utf-8", "replace").decode()


def prose(text: str) -> str:
    r"""Return the paragraphs of a docstring, README or manual that are sentences, joined by blank lines.

    Doctests, fenced and literal blocks, headings, tables, directives and lines that are only a link are dropped; list
    items and parameter descriptions become paragraphs of their own, without their marker. No equation of the paper.

    Args:
      text: technical text in any of the usual docstring styles.

    Returns:
      Paragraphs of at least five words; empty when there is none.

    Example:
      >>> from atlas_jax.corpus import prose
      >>> prose("Rows\n----\n\nArgs:\n  x: The matrix whose ``rows`` are scaled.\n\n>>> scale(x)\n")
      'The matrix whose rows are scaled.'
    """
    return "\n\n".join(p for p in map(_plain, _paragraphs(text)) if _is_prose(p))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (depth, stripped line) of the lines that are not code; an empty line ends a paragraph."""
    fenced, example, literal = False, False, -1
    for line in text.expandtabs().splitlines():
        stripped = line.lstrip()
        depth = len(line) - len(stripped)
        stripped = stripped.rstrip()
        if _FENCE.match(stripped):
            fenced, stripped = not fenced, ""
        elif fenced:
            continue
        if not stripped:
            example = False
            yield 0, ""
        elif literal < 0 or depth <= literal:
            literal = depth if _LITERAL.match(stripped) else -1
            example = example or stripped.startswith(">>>")
            yield (0, "") if example or _NOT_PROSE.match(stripped) else (depth, stripped)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield blocks of lines of one depth; a list item keeps its deeper continuation; headings are dropped."""
    block: list[str] = []
    indent, item = 0, False
    for depth, line in _lines(text):
        marker = _ITEM.match(line)
        rule = _RULE.fullmatch(line)
        goes_on = line and not marker and not rule and (depth == indent or (item and depth > indent))
        if block and not goes_on:
            if not rule:
                yield " ".join(block)
            block = []
        if line and not rule:
            if not block:
                indent, item = depth, bool(marker)
            block.append(line[marker.end() :] if marker else line)
    if block:
        yield " ".join(block)


def _plain(paragraph: str) -> str:
    for needle, pattern, replacement in _MARKUP:
        if needle in paragraph:
            paragraph = pattern.sub(replacement, paragraph)
    return " ".join(paragraph.split())


def _is_prose(paragraph: str) -> bool:
    """True if a paragraph has words and letters enough for a sentence; stricter where it does not look like one."""
    head = paragraph[:400]
    words, letters = len(_WORD.findall(head)), len(_LETTER.findall(head)) / max(len(head), 1)
    begins = head[:1].isupper() or head[:1] in {'"', "'", "("}
    ends = paragraph[-1:] in {".", "!", "?"}
    if begins and ends:
        return words >= 5 and letters >= 0.8
    if begins or ends:
        return words >= 8 and letters >= 0.92 and paragraph[-1] not in ":,;"
    return False


class Splitter(NamedTuple):
    """A Punkt sentence splitter and the origin of its parameters.

    Attributes:
      tokenize: paragraph -> sentences.
      source: ``punkt_tab/english`` or ``trained on N characters``.

    Example:
      >>> from atlas_jax.corpus import Splitter
      >>> list(Splitter(str.splitlines, "lines").split("Rows sum.\\nColumns sum.\\n\\nThe end"))
      ['Rows sum.', 'Columns sum.', 'The end']
    """

    tokenize: Callable[[str], list[str]]
    source: str

    def split(self, text: str) -> Iterator[str]:
        """Yield the sentences of a text: blank lines end a sentence, other white space becomes one space.

        Example:
          >>> from atlas_jax.corpus import train_splitter
          >>> splitter = train_splitter(["Rows sum to one. Columns do not."])
          >>> list(splitter.split("Rows sum\\nto one. Columns do not.\\n\\nThe end"))
          ['Rows sum to one.', 'Columns do not.', 'The end']
        """
        for paragraph in _PARAGRAPH_BREAK.split(text):
            stripped = paragraph.strip()
            for sentence in self.tokenize(stripped) if _INNER_STOP.search(stripped) else [stripped]:
                if joined := " ".join(sentence.split()):
                    yield joined


def published_splitter() -> Splitter | None:
    """Return the published English Punkt model where NLTK's data directories hold it, else None. Never downloads.

    Example:
      >>> from atlas_jax.corpus import published_splitter
      >>> splitter = published_splitter()
      >>> splitter is None or splitter.source == "punkt_tab/english"
      True
    """
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        return Splitter(PunktTokenizer("english").tokenize, PUBLISHED)
    except LookupError:
        return None


def train_splitter(texts: Iterable[str]) -> Splitter:
    """Fit a Punkt model, unsupervised, to the corpus' own text; the order of ``texts`` does not matter.

    At most the first million characters of the sorted texts are used.

    Example:
      >>> from atlas_jax.corpus import train_splitter
      >>> train_splitter(["One sentence. Another one."]).source
      'trained on 26 characters'
    """
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    text = "\n\n".join(sorted(texts))[:TRAINING_CHARACTERS]
    trainer = PunktTrainer()
    trainer.train(text, finalize=True)
    return Splitter(PunktSentenceTokenizer(trainer.get_params()).tokenize, f"trained on {len(text)} characters")
