"""What may go wrong with the database under any request, and what to tell the operator about it."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from storage.database import unavailable_sentence
from storage.sealing import CannotOpen

TROUBLE = (DBAPIError, PoolTimeout, CannotOpen)


def trouble_sentence(error: Exception) -> str:
    """What is wrong, for the log. Takes one of TROUBLE; never shows SQL or its values."""
    if isinstance(error, DBAPIError):
        return unavailable_sentence(error)
    if isinstance(error, PoolTimeout):
        return "More requests at once than database connections."
    return str(error)
