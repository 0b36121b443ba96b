"""Text of corpora, labels and models on a page: none of it may act as markup, as a script, or on the text beside it."""

import json
import math
import re
from typing import Any

from markupsafe import Markup

from atlas_jax.table import REMOVED, UNPAIRED, clean

_SUSPECT = re.compile(rf"{REMOVED.pattern}|{UNPAIRED.pattern}|\\u00")  # most JSON has none, and is not walked through


def embedded(data: Any) -> Markup:
    """Return plain values as JSON for a ``script`` element, which nothing in it can end; no number is nan.

    Example:
      >>> from atlas_jax.report._text import embedded
      >>> print(embedded(["</script>", float("nan")]))
      ["\\u003c/script\\u003e",null]
    """
    try:
        text = _dumped(data)
    except ValueError:
        text = ""
    if not text or _SUSPECT.search(text):
        text = _dumped(_cleaned(data))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _dumped(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _cleaned(data: Any) -> Any:
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {clean(str(key)): _cleaned(value) for key, value in data.items()}
    return [_cleaned(value) for value in data] if isinstance(data, list | tuple) else data
