"""A block of lines at the bottom of a terminal that is drawn anew in place.

No mode of the terminal is changed: the cursor stays visible, below the block. Whatever ends the process, nothing has
to be put right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TextIO

from snakemake_logger_plugin_coalmine.display import columns

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_UP, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[{}F", "\x1b[K", "\x1b[J"
_DEFAULT_SIZE = (80, 24)


class Block:
    """Lines that are replaced by the next ones.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn: list[int] = []

    def size(self) -> tuple[int, int]:
        """Return the columns and lines that the block may have at the moment."""
        try:
            width, height = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            width, height = 0, 0
        # A line of full width would leave the cursor in doubt; below the block, one line is the cursor's.
        return max((width or _DEFAULT_SIZE[0]) - 1, 1), max((height or _DEFAULT_SIZE[1]) - 1, 1)

    def draw(self, lines: Sequence[str], above: str = "") -> None:
        """Replace the block.

        Args:
            lines: the new lines, no wider than ``size`` says.
            above: text that stays, with its line breaks.
        """
        kept = "".join(f"{line}{_CLEAR_LINE}\n" for line in above.splitlines())
        text = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
        self._stream.write(f"{self._to_top()}{kept}{text}{_CLEAR_BELOW}")
        self._stream.flush()
        self._drawn = [columns(_COLOURS.sub("", line)) for line in lines]

    def _to_top(self) -> str:
        """Return what moves the cursor to the first line of the block.

        A terminal that became narrower has wrapped the lines of the block.
        """
        width, height = self.size()
        drawn = sum(max(1, -(-line // (width + 1))) for line in self._drawn)
        return _UP.format(min(drawn, height)) if drawn else ""
