"""The commands, under `flask`. Each ends in a sentence: what was done, or what to do."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import click
from alembic import command
from alembic.util import CommandError
from flask import Flask, current_app
from flask.cli import AppGroup, FlaskGroup, with_appcontext
from sqlalchemy.exc import DBAPIError

import health
from console.naming import PROGRAMS
from findings import Finding, Severity
from loyalty import ledger
from loyalty.ledger_import import ImportRefused, import_members
from loyalty.program import ProgramKind, Store
from privacy.erase import Erased, erase
from privacy.export import export, is_empty
from privacy.person import Person, person_of
from services import Services
from settings import Settings, SettingsError
from storage.database import DatabaseUnavailable, unavailable_sentence
from storage.sealing import CannotOpen, reseal_everything
from watching.metrics_page import MetricsPage, serve_metrics
from widget.placement import PlacementFailed
from widget.sentences import counted


def register(app: Flask) -> None:
    """Add the commands to `app`."""
    app.cli.add_command(db_upgrade)
    app.cli.add_command(run_worker)
    app.cli.add_command(doctor)
    app.cli.add_command(members)
    app.cli.add_command(ledger_commands)
    app.cli.add_command(keys)
    app.cli.add_command(privacy)


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
    services = _ready_services()
    _show_metrics(services.settings)
    services.worker.run_forever()


def _show_metrics(settings: Settings) -> None:
    """What this worker counts, at a port of its own where one is set: the web server cannot know it."""
    port = settings.worker_metrics_port
    if not port:
        return
    host = "127.0.0.1" if settings.development else "0.0.0.0"  # nosec B104 # noqa: S104 (the scraper is another machine)
    try:
        serve_metrics(MetricsPage(token=settings.metrics_token), host=host, port=port)
    except OSError as error:
        raise click.ClickException(
            f"Port {port} cannot be used ({error.strerror}): stop what uses it, or set WORKER_METRICS_PORT."
        ) from error


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@with_appcontext
def doctor(as_json: bool) -> None:
    """Say what is not well and what to do about it. Changes nothing.

    Exit code: 0 when all is well, 1 when there are warnings, 2 when there are errors.
    """
    known = current_app.extensions
    findings = health.of_start(known[_FAULT]) if _FAULT in known else _services().health.everything()
    worst = max((_GRAVITY.index(finding.severity) for finding in findings), default=0)
    if as_json:
        told = [
            {"id": f.id, "severity": f.severity.value, "sentence": f.sentence, "remedy": f.remedy} for f in findings
        ]
        click.echo(json.dumps({"findings": told}, ensure_ascii=False, indent=2))
    else:
        for line in _doctor_lines(findings):
            click.echo(line)
    sys.exit(worst)


_GRAVITY = (Severity.OK, Severity.WARNING, Severity.ERROR)
_COLOURS = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}


# By the first part of the id, in this order.
_TITLES = {
    **dict.fromkeys(("settings", "secrets", "redirect_uri"), "Settings"),
    **dict.fromkeys(("database", "clock"), "Database"),
    **dict.fromkeys(("worker", "awards", "notes", "queue"), "Work"),
    "": "Helpdesks",
}


def _title(finding: Finding) -> str:
    return _TITLES.get(finding.id.partition(".")[0], _TITLES[""])


def _doctor_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings as a person reads them: by what they are about, remedies below. click drops colours in a pipe."""
    # In a pipe each sentence stays in one line, to be searched.
    width = min(shutil.get_terminal_size().columns, 120) if sys.stdout.isatty() else 10_000
    longest = max((len(finding.id) for finding in findings), default=0)
    margin = " " * (longest + 11)
    title = ""
    for finding in sorted(findings, key=lambda finding: [*_TITLES.values()].index(_title(finding))):
        if _title(finding) != title:
            if title:
                yield ""
            title = _title(finding)
            yield click.style(title, bold=True)
        mark = click.style(f"{finding.severity.value:<7}", fg=_COLOURS[finding.severity], bold=not finding.well)
        sentence = textwrap.fill(
            finding.sentence, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
        )
        yield f"{mark}  {finding.id:<{longest}}  {sentence.lstrip()}"
        if not finding.well:
            # In one line, however long: there may be a command in it, to be copied.
            yield f"{margin}→ {finding.remedy}"
    bad = Counter(finding.severity for finding in findings)
    wrong = [counted(bad[s], s.value) for s in (Severity.ERROR, Severity.WARNING) if bad[s]]
    yield ""
    yield f"{', '.join(wrong)}." if wrong else "All is well."


_FAULT = "tallydesk_fault"


def is_looking_for_a_command() -> bool:
    """Whether the application is asked for by `flask` to find one of our commands in it, or to list them."""
    context = click.get_current_context(silent=True)
    return context is not None and isinstance(context.command, FlaskGroup)


def doctor_alone(error: SettingsError | DatabaseUnavailable) -> Flask:
    """An application that could not be put together for `error`: it has no command but `doctor`, which tells why."""
    app = Flask("tallydesk", static_folder=None)
    app.extensions[_FAULT] = error
    app.cli = _DoctorAlone(error)
    app.cli.add_command(doctor)
    return app


class _DoctorAlone(AppGroup):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            raise click.ClickException(str(self._error))
        return super().get_command(ctx, cmd_name)


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


@rotate.command("sessions")
@with_appcontext
@_in_sentences()
def rotate_sessions() -> None:
    """Sign sessions of the console with a new key. Nobody is signed out; run it twice to sign everybody out."""
    _ready_services().session_keys.rotate()
    click.echo(
        "New sessions are signed with a new key. Those that run go on until they end by themselves, within 12 hours; "
        "run this again to end them within seconds."
    )


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
            placed = services.placement.rotate_keys(connection.id)
            click.echo(f"Connection {connection.id} ({connection.account_name}): new keys are in place.")
            with suppress(PlacementFailed):
                # It may have put right what is listed as wrong.
                services.probe.see(placed)
        except PlacementFailed as error:
            failed += 1
            click.echo(f"Connection {connection.id} ({connection.account_name}): {error}", err=True)
    if failed:
        raise click.ClickException("The old keys go on working where the new ones are not in place.")


privacy = AppGroup("privacy", help="What is held about one person.")
_email = click.option(
    "--email", "typed", required=True, help="The person's address; `-` reads it from standard input instead."
)


def _person(services: Services, typed: str) -> Person:
    if typed == "-":
        typed = sys.stdin.readline()
    person = person_of(typed, hasher=services.hasher)
    if person is None:
        raise click.ClickException("This is not an e-mail address. Give one, such as --email ana@example.com.")
    return person


@privacy.command("export")
@_email
@_in_sentences()
def export_person(typed: str) -> None:
    """Print everything that is held about a person, as JSON."""
    services = _ready_services()
    person = _person(services, typed)
    exported = export(services.database, person=person, sealer=services.sealer, now=services.now())
    click.echo(json.dumps(exported, ensure_ascii=False, indent=2))
    if is_empty(exported):
        click.echo("Nothing is held about this address.", err=True)


@privacy.command("erase")
@_email
@_in_sentences()
def erase_person(typed: str) -> None:
    """Erase a person everywhere; asks nothing. Points and totals stay, of somebody unknown."""
    services = _ready_services()
    erased = erase(
        services.database,
        person=_person(services, typed),
        eraser=services.eraser,
        now=services.now(),
        double_click_window_s=services.settings.double_click_window_s,
    )
    for line in _erased_lines(erased):
        click.echo(line)
    if erased.total and not services.database.leave_no_trace():
        click.echo("The database's log is in use and may hold old pages for some minutes: run this again then.")
    if erased.open_awards:
        raise click.ClickException(
            f"{counted(erased.open_awards, 'award')} could not be erased yet: still being confirmed, waiting for a "
            "decision under Activity, or made a moment ago. Run this again when that is over."
        )


def _erased_lines(erased: Erased) -> Iterator[str]:
    """What was erased, and what others still have to erase."""
    numbers = (
        (erased.ledger_members, "member", "of the built-in ledger, who is nobody known now"),
        (erased.snapshots, "snapshot", "of programs elsewhere"),
        (erased.awards_received, "award", "received, with reasons and tickets"),
        (erased.awards_made, "award", "made as an agent"),
        (erased.awards_decided, "award", "decided as an admin"),
        (erased.changes, "change", "made in the console"),
        (erased.helpdesks_connected, "helpdesk", "connected: notes are posted in the name of the token's user now"),
    )
    if not erased.total:
        yield "Nothing was erased: nothing is held about this address." if not erased.open_awards else "Nothing yet."
    else:
        yield "Erased:"
        yield from (f"  {counted(number, noun)} {what}" for number, noun, what in numbers if number)
    elsewhere = [
        *(f"{PROGRAMS[ProgramKind(program)]}: the customer and their points events" for program in erased.programs),
        *(f"Gorgias ({name}): the person's tickets, with the notes about awards on them" for name in erased.helpdesks),
    ]
    if elsewhere:
        yield "To be erased elsewhere, or it comes back from there:"
        yield from (f"  {place}" for place in elsewhere)
