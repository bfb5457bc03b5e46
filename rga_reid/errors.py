"""The one exception that a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a file, an option or an array that the user can put right.

    The message is one line. It names the file or option, says what was expected and what was found.
    The command line prints it without a traceback and exits with code 2.
    """
