"""The exception that quantkit raises for input it cannot work with."""

from collections.abc import Sequence


class QuantkitError(Exception):
    """A problem the user can mend: one line that names the file, tensor or option, and what to do about it."""


class Faults(QuantkitError):
    """Several faults of one file, a line each in the terminal."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)
