"""Integrity before quality: does a checkpoint hold what it says, and what its source held? Seconds, no forward pass."""

from quantkit.integrity.checks import CHECKS, check
from quantkit.integrity.findings import Finding, Outcome

__all__ = ["CHECKS", "Finding", "Outcome", "check"]
