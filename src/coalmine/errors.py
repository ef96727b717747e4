"""The one exception that Coalmine raises for what a user can mend, and the remedy for its own files."""


class CoalmineError(Exception):
    """Bad input or a broken file.

    The message names the file or field, says what was found and what was expected, and gives the remedy.
    Command lines print it without a traceback.
    """


REMEDY = "Delete the file and run Snakemake again: it makes the file anew."
"""What mends any file that Coalmine made."""
