"""The prose of technical text: docstrings, reStructuredText and Markdown without code, tables and markup."""

import re
from collections.abc import Iterator

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


def prose(text: str) -> str:
    r"""The paragraphs of a docstring, README or manual that are sentences, joined by blank lines.

    Doctests, fenced and literal blocks, headings, tables, directives and lines that are only a link are dropped; list
    items and parameter descriptions become paragraphs of their own, without their marker. No equation of the paper.

    Args:
      text: technical text in any of the usual docstring styles.

    Returns:
      Paragraphs of at least five words; empty when there is none.

    Example:
      >>> prose("Rows\n----\n\nArgs:\n  x: The matrix whose ``rows`` are scaled.\n\n>>> scale(x)\n")
      'The matrix whose rows are scaled.'
    """
    return "\n\n".join(p for p in map(_plain, _paragraphs(text)) if _is_prose(p))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(depth, stripped line) of what is not code; an empty line ends a paragraph."""
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
    """Blocks of lines of one depth; a list item keeps its deeper continuation; underlined headings are dropped."""
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
    """Words and letters enough for a sentence; stricter where it does not begin or end like one."""
    head = paragraph[:400]
    words, letters = len(_WORD.findall(head)), len(_LETTER.findall(head)) / max(len(head), 1)
    begins = head[:1].isupper() or head[:1] in {'"', "'", "("}
    ends = paragraph[-1:] in {".", "!", "?"}
    if begins and ends:
        return words >= 5 and letters >= 0.8
    if begins or ends:
        return words >= 8 and letters >= 0.92 and paragraph[-1] not in ":,;"
    return False
