"""Text of others on a page: escaped by the template, and before that rid of what is no text."""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
REPLACED = "\ufffd"


def readable(value: Any, most: int | None = None) -> str:
    """As text that HTML can hold: control characters and halves of characters are shown as U+FFFD.

    Args:
        value: anything; None is the empty text.
        most: characters, after which the rest is cut off with a sign that it is.
    """
    text = "" if value is None else _CONTROL.sub(REPLACED, str(value))
    return text if most is None or len(text) <= most else text[: most - 1].rstrip() + "…"
