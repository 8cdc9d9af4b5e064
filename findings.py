"""A finding: one thing that was looked at, whether it is well, and what to do about it when it is not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is. An error stops something from working now; a warning will, or makes it weaker."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. `id` is its stable word, such as `database.migrated`; `remedy` is empty when all is well."""

    id: str
    severity: Severity
    sentence: str
    remedy: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing needs to be done."""
        return self.severity is Severity.OK
