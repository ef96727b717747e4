"""What no text of a configuration may hold, wherever it stands.

Texts become arguments of commands, names of files and lines of logs, and the whole configuration is written down
beside the results that are published: what is secret, or means something to a terminal or to Snakemake, has no place
there.

Not imported by any stage, so that what is refused here retrains nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coalmine.data.download import objection_to_address
from coalmine.problems import Problem

LONGEST = 4096
"""Characters of a text: what file systems take for a path."""

_CREDENTIALS = re.compile(r"://[^/\s]*@")
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|gh[a-z]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|(AKIA|ASIA)[A-Z0-9]{16})"
)
_QUERY_SECRETS = re.compile(r"[?&;](token|access_token|api_?key|key|password|sig(nature)?|X-Amz-\w+)=", re.IGNORECASE)


def secrets(value: Any, path: str = "") -> Iterator[Problem]:
    """Yield where plain data hold what looks like a password or a token, without repeating it."""
    for where, _, text in _texts(value, path):
        if _CREDENTIALS.search(text) or _TOKENS.search(text) or _QUERY_SECRETS.search(text):
            yield Problem(
                where,
                "holds what looks like a password or token, which the results would publish; leave it "
                "out: fetch the file by hand and name its path.",
            )


def objections(value: Any, path: str = "") -> Iterator[Problem]:
    """Yield which texts in plain data would be taken for something else than what they are."""
    for where, key, text in _texts(value, path):
        if len(text) > LONGEST:
            yield Problem(where, f"has {len(text)} characters, expected at most {LONGEST}.")
        elif any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
            yield Problem(where, "holds a control character, such as a line break; leave it out.")
        elif key == "url" and (objection := objection_to_address(text)):
            yield Problem(where, f"{objection}.")
        elif key == "path" and (objection := _objection_to_path(text)):
            yield Problem(where, objection)


def _objection_to_path(text: str) -> str | None:
    if "://" in text:
        return "is an address, expected a file or folder of this machine; fetch it and name where it lies."
    if text.startswith("-"):
        return "begins with a hyphen, which commands take for an option; write ./ before it."
    if "{" in text or "}" in text:
        return "holds a brace, which Snakemake takes for a wildcard; rename the file, or link to it."
    try:
        Path(text).expanduser().stat()
    except FileNotFoundError:
        return None  # the section that it belongs to tells so
    except (OSError, RuntimeError) as error:
        return f"cannot be looked up ({getattr(error, 'strerror', None) or error}); mend it."
    return None


def _texts(value: Any, path: str, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield every text with where it stands and the key that it belongs to; a key is a text as well."""
    if isinstance(value, dict):
        for name, entry in value.items():
            inner = f"{path}.{name}" if path else name
            yield (path or "(top)"), "", name
            yield from _texts(entry, inner, name)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _texts(entry, f"{path}.{number}", key)
    elif isinstance(value, str):
        yield path, key, value
