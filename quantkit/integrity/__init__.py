"""Integrity before quality: does a checkpoint hold what it says, and what its source held? Seconds, no forward pass.

The checks need torch; what only reads headers (``subject``, ``stated``, ``inventory``) does not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantkit.integrity.findings import Finding, Outcome

if TYPE_CHECKING:
    from quantkit.integrity.checks import CHECKS, check

__all__ = ["CHECKS", "Finding", "Outcome", "check"]


def __getattr__(name: str) -> Any:
    if name in ("CHECKS", "check"):
        from quantkit.integrity import checks

        return getattr(checks, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
