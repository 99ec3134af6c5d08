"""How scores are labelled that are not on users' own queries."""

from __future__ import annotations

from collections.abc import Collection

PSEUDO = "pseudo-queries"


def on_queries(pseudo: Collection[bool]) -> str:
    """What a score over collections is on, to be put behind its name; nothing where all queries are judged ones.

    Args:
        pseudo: of each collection, whether its queries are pseudo-queries.
    """
    if not any(pseudo):
        return ""
    return f" on {PSEUDO}" if all(pseudo) else f" partly on {PSEUDO}"
