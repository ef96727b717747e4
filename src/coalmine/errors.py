"""The one exception that Coalmine raises for what a user can mend."""


class CoalmineError(Exception):
    """Bad input or a broken file.

    The message names the file or field, says what was found and what was expected, and gives the remedy.
    Command lines print it without a traceback.
    """
