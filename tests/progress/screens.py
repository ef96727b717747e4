"""A terminal, as far as the display uses one: which text stands where after some bytes."""

from __future__ import annotations

import re
import unicodedata

_ESCAPE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """The lines of a terminal, those that have left it at the top included.

    Args:
        columns: its width; longer lines are wrapped.
        rows: its height: the cursor cannot go further up.
    """

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns, self.rows = columns, rows
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0
        self.modes: list[str] = []

    def feed(self, text: str) -> Screen:
        """Take in what a program writes."""
        position = 0
        while position < len(text):
            if escape := _ESCAPE.match(text, position):
                self._obey(escape[1], escape[2])
                position = escape.end()
                continue
            self._write(text[position])
            position += 1
        return self

    def text(self) -> str:
        """Return what stands there."""
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip("\n")

    def _obey(self, argument: str, command: str) -> None:
        if command == "F":
            self.row = max(self.row - int(argument), len(self.lines) - self.rows, 0)
            self.column = 0
        elif command == "K":
            del self.lines[self.row][self.column :]
        elif command == "J":
            del self.lines[self.row][self.column :], self.lines[self.row + 1 :]
        elif command in "hl":
            self.modes.append(argument + command)
        elif command != "m":
            raise AssertionError(f"This terminal knows no ESC [ {argument} {command}.")

    def _write(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._next_line()
        else:
            wide = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self.column + wide > self.columns:
                self._next_line()
            line = self.lines[self.row]
            line += " " * (self.column + wide - len(line))
            line[self.column : self.column + wide] = [character, *[""] * (wide - 1)]
            self.column += wide

    def _next_line(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append([])
