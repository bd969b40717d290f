"""The one exception that quantkit raises for input it cannot work with."""


class QuantkitError(Exception):
    """A problem the user can mend: one line that names the file, tensor or option, and what to do about it."""
