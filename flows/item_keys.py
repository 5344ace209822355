"""Keys of what a mapped step works on."""

from __future__ import annotations

import hashlib

LONGEST = 200


def item_key(name: str) -> str:
    """A name, in costs and lists of what failed; a digest of it where it is too long or can't be
    shown.
    """
    if 0 < len(name) <= LONGEST and name.isprintable():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
