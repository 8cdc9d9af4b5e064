"""The commands, under `flask`. Each ends in a sentence: what was done, or what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import click
from alembic import command
from alembic.util import CommandError
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext
from sqlalchemy.exc import DBAPIError

from loyalty import ledger
from loyalty.ledger_import import ImportRefused, import_members
from loyalty.program import ProgramKind, Store
from services import Services
from storage.database import DatabaseUnavailable, unavailable_sentence
from storage.sealing import CannotOpen, reseal_everything
from widget.placement import PlacementFailed
from widget.sentences import counted


def register(app: Flask) -> None:
    """Add the commands to `app`."""
    app.cli.add_command(db_upgrade)
    app.cli.add_command(run_worker)
    app.cli.add_command(members)
    app.cli.add_command(ledger_commands)
    app.cli.add_command(keys)


def _services() -> Services:
    return cast(Services, current_app.extensions["tallydesk"])


@contextmanager
def _in_sentences() -> Iterator[None]:
    """What may go wrong in any command ends in a sentence and exit code 1, not in a traceback."""
    try:
        yield
    except (CannotOpen, DatabaseUnavailable) as error:
        raise click.ClickException(str(error)) from error
    except DBAPIError as error:
        raise click.ClickException(unavailable_sentence(error)) from error


def _ready_services() -> Services:
    """The services, once the database is known to have this version's schema and to open with our keys."""
    services = _services()
    services.database.require_current()
    services.hasher.email("")
    return services


@click.command("db-upgrade")
@with_appcontext
@_in_sentences()
def db_upgrade() -> None:
    """Bring the database to this version's schema. Safe to repeat and to run twice at once."""
    services = _services()
    database = services.database
    try:
        command.upgrade(database.alembic_config(), "head")
        database.require_current()
        # Makes the root key now, so that no later transaction has to, and finds out whether the keys still fit.
        services.hasher.email("")
    except CommandError as error:
        raise click.ClickException(
            "The database was made by a newer version of Tallydesk. Start that version, "
            "or restore the backup made before the upgrade."
        ) from error
    click.echo("The database is up to date.")


@click.command("worker")
@with_appcontext
@_in_sentences()
def run_worker() -> None:
    """Run the jobs: notes on tickets and what else need not keep an agent waiting. Stops cleanly on SIGTERM."""
    _ready_services().worker.run_forever()


members = AppGroup("members", help="Members of the embedded ledger.")


@members.command("import")
@click.option(
    "--connection", "connection_id", type=int, help="Which connection's store; needed when there are several."
)
@click.argument("file", type=click.Path(path_type=Path))
@_in_sentences()
def import_file(file: Path, connection_id: int | None) -> None:
    """Import members from FILE, a Shopify customer export (CSV). Safe to repeat."""
    services = _ready_services()
    store = _store_for_import(services, connection_id)
    size = file.stat().st_size if file.is_file() else 0
    with click.progressbar(length=max(size, 1), label="Importing", show_pos=False) as bar:
        done = 0

        def progress(position: int) -> None:
            nonlocal done
            bar.update(position - done)
            done = position

        try:
            report = import_members(
                services.database,
                store=store,
                path=file,
                sealer=services.sealer,
                hasher=services.hasher,
                random_bytes=services.random_bytes,
                now=services.now,
                progress=progress,
            )
        except ImportRefused as error:
            raise click.ClickException(str(error)) from error
        except DBAPIError as error:
            raise click.ClickException(f"{unavailable_sentence(error)} Run the import again to go on.") from error
    click.echo(
        f"{counted(report.rows, 'row')}: {counted(report.created, 'member')} created, {report.updated:,} updated, "
        f"{report.unchanged:,} unchanged, {report.rejected:,} rejected."
    )
    if report.opening_points:
        click.echo(f"{report.opening_points:,} points were booked as opening balances.")
    if report.points_left_alone:
        click.echo(
            f"{report.points_left_alone:,} rows have other Points than the ledger: those were left alone, since "
            "opening points are booked once. Award or undo points instead."
        )
    if report.rejects_path is not None:
        click.echo(f"Rejected rows, with the reason for each: {report.rejects_path}")


def _store_for_import(services: Services, connection_id: int | None) -> Store:
    connections = [c for c in services.connections.all() if c.store.program is ProgramKind.LEDGER]
    if connection_id is not None:
        for connection in services.connections.all():
            if connection.id != connection_id:
                continue
            if connection not in connections:
                raise click.ClickException(
                    f"Connection {connection_id} shows {connection.store.program}, which has its members already. "
                    "Only the built-in ledger takes an import."
                )
            return connection.store
        raise click.ClickException(f"There is no connection {connection_id}. {_list_of(services)}")
    if len(connections) == 1:
        return connections[0].store
    if connections:
        raise click.ClickException(f"There are several connections; add --connection ID. {_list_of(services)}")
    if not services.settings.development:
        raise click.ClickException(
            "No helpdesk shows the built-in ledger yet. Connect one first, then import its members."
        )
    # On a laptop the members may come first; the first account to connect takes them over. After a disconnect they
    # go where the others are.
    with services.database.write() as tx:
        return ledger.only_store(tx) or ledger.open_store(tx, identity=ledger.UNCLAIMED, now=services.now())


def _list_of(services: Services) -> str:
    known = ", ".join(f"{c.id} ({c.account_name}, {c.store.program})" for c in services.connections.all())
    return f"Connections: {known}." if known else "No helpdesk is connected."


ledger_commands = AppGroup("ledger", help="The embedded ledger.")


@ledger_commands.command("verify")
@_in_sentences()
def verify_ledger() -> None:
    """Prove the books: debits equal credits, and every balance is the sum of its entries."""
    services = _ready_services()
    with services.database.read(unhurried=True) as tx:
        faults = 0
        for sentence in ledger.verify(tx):
            faults += 1
            if faults <= 50:
                click.echo(sentence, err=True)
        debits, credits_, transactions = ledger.totals(tx)
    if faults or debits != credits_:
        raise click.ClickException(
            f"The books do not add up: {faults} faults, debits {debits:,}, credits {credits_:,}. "
            "Stop awarding and restore a backup, or have someone look at the entries."
        )
    click.echo(f"The books add up: {transactions:,} transactions, debits {debits:,} = credits {credits_:,}.")


keys = AppGroup("keys", help="Keys and their rotation.")


@keys.group("rotate")
def rotate() -> None:
    """Replace keys without downtime."""


@rotate.command("sealing")
@with_appcontext
@_in_sentences()
def rotate_sealing() -> None:
    """Re-seal everything with the first of ENCRYPTION_KEYS; afterwards the others can be dropped."""
    services = _ready_services()
    count = reseal_everything(services.database, sealer=services.sealer)
    click.echo(f"Re-sealed {count:,} values. Every key but the first can now be removed from ENCRYPTION_KEYS.")


@rotate.command("connection")
@click.argument("connection_id", type=int, required=False)
@with_appcontext
@_in_sentences()
def rotate_connection(connection_id: int | None) -> None:
    """Put new keys for a connection (or for every one) into Gorgias; then the old ones end."""
    services = _ready_services()
    chosen = [c for c in services.connections.all() if connection_id in (None, c.id)]
    if not chosen:
        raise click.ClickException(f"There is no such connection. {_list_of(services)}")
    failed = 0
    for connection in chosen:
        try:
            services.placement.rotate_keys(connection.id)
            click.echo(f"Connection {connection.id} ({connection.account_name}): new keys are in place.")
        except PlacementFailed as error:
            failed += 1
            click.echo(f"Connection {connection.id} ({connection.account_name}): {error}", err=True)
    if failed:
        raise click.ClickException("The old keys go on working where the new ones are not in place.")
