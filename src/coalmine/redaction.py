"""Messages without the secrets that addresses in them may hold (standard library only)."""

from __future__ import annotations

import re


def without_secrets(text: object) -> str:
    """Return a message without the passwords and queries of the addresses in it: servers redirect to signed ones."""
    return re.sub(r"\?[^\s'\"<>)]*", "?…", re.sub(r"//[^/\s@]*@", "//…@", str(text)))
