"""What the tests of privacy look for in a database, and the commands as an operator runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import Result
from sqlalchemy import make_url, select

from app import create_app
from storage.tables import metadata
from tests.house import House


def run(house: House, *arguments: str, typed: str | None = None) -> Result:
    """`flask …` on the database and the clock of the house; `typed` is its standard input."""
    done = create_app(house.services).test_cli_runner().invoke(args=arguments, input=typed)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


def exported(house: House, email: str) -> dict[str, Any]:
    """What `flask privacy export` prints about a person."""
    done = run(house, "privacy", "export", "--email", email)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def opened(house: House) -> Iterator[tuple[str, str]]:
    """Every value of every table as text, sealed ones opened, with the name of its column."""
    sealer = house.services.sealer
    with house.services.database.read() as tx:
        for table in metadata.sorted_tables:
            for row in tx.execute(select(table)).mappings():
                for column, value in row.items():
                    is_sealed = column == "sealed" or column.endswith("_sealed")
                    yield f"{table.name}.{column}", sealer.open(value) if is_sealed and value else str(value)


def places_of(house: House, *texts: str) -> set[str]:
    """The columns in which one of the texts stands somewhere."""
    return {column for column, value in opened(house) if any(text in value for text in texts)}


def sealed_values(house: House, email: str) -> set[str]:
    """The sealed values that hold this address, as they stand in the database."""
    sealer = house.services.sealer
    with house.services.database.read() as tx:
        return {
            value
            for table in metadata.sorted_tables
            for row in tx.execute(select(table)).mappings()
            for column, value in row.items()
            if column.endswith("_sealed") and value and sealer.open(value) == email
        }


def bytes_on_disk(house: House) -> bytes:
    """Everything in the files of a SQLite database, its log included."""
    name = make_url(house.services.database.url).database
    assert name is not None
    return b"".join(path.read_bytes() for path in Path(name).parent.glob(f"{Path(name).name}*"))
