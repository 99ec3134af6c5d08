"""Seeds derived from names, so that every draw is the same in every process."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2³¹) that depends on all `parts` and their order, and on nothing else.

    Python's own `hash` differs between processes, and neighbouring integers are poor seeds for neighbouring
    trials: SHA-256 has neither fault.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
