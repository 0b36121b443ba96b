"""Docstrings as mkdocstrings reads them: roles such as ``:class:`` become code, ``:math:`` becomes MathML."""

import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

ROLE = re.compile(r":(class|func|meth|data|math):`([^`]+)`")


def _markdown(role: re.Match) -> str:
    """Code, or a formula as MathML, which needs no script; in a span, since Markdown takes ``<math>`` for a block."""
    name, text = role.groups()
    return f"<span>{convert(text)}</span>" if name == "math" else f"`{text}`"


class Docstrings(Extension):
    """Rewrite every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one; for griffe only the plural ``Examples:`` is a section."""
        if obj.docstring:
            plural = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = ROLE.sub(_markdown, plural)
