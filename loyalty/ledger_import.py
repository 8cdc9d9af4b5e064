"""Members from a file: reads a Shopify customer export into the embedded ledger, as a stream.

The file is read once, in batches: checking and sealing happen outside any transaction, then each batch is one
short write transaction, so awards go on meanwhile. A run changes nothing the second time, so an interrupted one
is simply repeated. What cannot be read goes, with its line number and a reason, to a rejects file beside the
input. Memory does not grow with the file.
"""

from __future__ import annotations

import csv
import os
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import date, datetime
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

from sqlalchemy import (
    Connection,
    String,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal,
    null,
    select,
    union_all,
    update,
)

from loyalty.ledger import Kind, keep_latest, new_referral_code
from loyalty.program import MemberStatus, Store
from schemas import email as email_schema
from storage.database import Database
from storage.sealing import Hasher, RandomBytes, Sealer
from storage.tables import EPOCH, MICROSECOND, UtcTime, ledger_entries, ledger_transactions, members

EXCLUDED_TAG = "rivo excluded"

BATCH_ROWS = 1_000
MAX_LINE_CHARACTERS = 1_048_576
MAX_CUSTOMER_ID = 40
MAX_DIGITS = 10
MAX_REJECTED_CHARACTERS = 2_000

# An export has, in this order: Customer ID, First Name, Last Name, Email, Accepts Email Marketing, Default
# Address Company, ... Address1, ... Address2, ... City, ... Province Code, ... Country Code, ... Zip, ...
# Phone, Phone, Accepts SMS Marketing, Total Spent, Total Orders, Note, Tax Exempt, Tags, and then metafields.
# Columns are found by name, because merchants add and remove some.
# https://help.shopify.com/en/manual/customers/import-export-customers
EMAIL = "email"
CUSTOMER_ID = "customer id"
TAGS = "tags"
# Ours, all optional:
STATUS = "loyalty status"
POINTS = "points"
LIFETIME_POINTS = "lifetime points"
DATE_OF_BIRTH = "date of birth"
_READ = (
    EMAIL,
    CUSTOMER_ID,
    TAGS,
    STATUS,
    POINTS,
    LIFETIME_POINTS,
    DATE_OF_BIRTH,
)

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NUMBER = re.compile(r"[0-9]+")
_NEGATIVE = re.compile(r"-[0-9]+")
_UNDECODED = re.compile("[\udc80-\udcff]")


class ImportRefused(Exception):
    """The file cannot be imported at all; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What one run did: `rows` = `created` + `updated` + `unchanged` + `rejected`.

    `opening_points` is the sum of the opening balances booked in this run. `points_left_alone` counts members
    whose points in the file differ from what is booked, or come too late to be booked; their points were not
    touched. `rejects_path` is None when no line was rejected.
    """

    rows: int
    created: int
    updated: int
    unchanged: int
    rejected: int
    points_left_alone: int
    opening_points: int
    rejects_path: Path | None


def import_members(
    database: Database,
    *,
    store: Store,
    path: Path,
    sealer: Sealer,
    hasher: Hasher,
    random_bytes: RandomBytes,
    now: Callable[[], datetime],
    progress: Callable[[int], None],
) -> ImportReport:
    """Create and update the members of `store` from the CSV file at `path`.

    `progress` is told, after each batch, how many bytes of the file are read.

    Rows match by normalised e-mail; of several rows with one e-mail the first good one counts. An empty cell
    or a missing column states nothing and erases nothing, with one exception: where there is a Tags or a
    Loyalty Status column, a row that says nothing else is a member. Points without a value count as 0 beside
    a Lifetime Points value.

    Opening points are booked once for each member: at creation, or on a later run if no transaction at all
    exists for that member by then. Points of anybody else are left alone and counted, because the ledger
    knows better by then.

    Raises ImportRefused (nothing, or nothing more, is imported; repeating the run is safe), CannotOpen, and
    what the database raises.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise ImportRefused(f"The file {path} cannot be read: {error.strerror}.") from error
        # Bytes that are not UTF-8 travel as surrogates, so that only their own line is rejected, unchanged.
        file = TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        records = _Records(stack.enter_context(file))
        header = _read_header(records, path=path)
        columns = _Columns(header, path=path)
        rejects = stack.enter_context(_Rejects(path, header=header))
        seen = stack.enter_context(closing(_Seen()))
        rows = _read_rows(records, columns=columns, rejects=rejects, seen=seen, hasher=hasher, today=now().date())
        writer = _Writer(database, store=store, sealer=sealer, random_bytes=random_bytes, now=now)
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write([row for row in batch if row is not None])
            progress(raw.tell())
        progress(raw.tell())
    return ImportReport(
        rows=writer.created + writer.updated + writer.unchanged + rejects.count,
        created=writer.created,
        updated=writer.updated,
        unchanged=writer.unchanged,
        rejected=rejects.count,
        points_left_alone=writer.points_left_alone,
        opening_points=writer.opening_points,
        rejects_path=rejects.path if rejects.count else None,
    )


class _BadLine(Exception):
    """This line cannot be imported; the text is the reason."""


class _Row(NamedTuple):
    """One good line. None: the file does not say. `lifetime_points` >= `points`; both or neither are there."""

    email: str
    email_hmac: str
    status: MemberStatus | None
    customer_id: str | None
    date_of_birth: str | None
    points: int | None
    lifetime_points: int | None


class _Records:
    """The records of a CSV file, each with the number of its first physical line.

    A stray quote makes the csv module swallow the lines that follow into one cell. When such a record turns
    out to be malformed, only its first line is bad: the others are read again.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._reader = csv.reader(self, strict=True)
        self._next_line = 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """The next physical line, for the csv module."""
        if self._again:
            line = self._again.popleft()
        else:
            line = self._file.readline(MAX_LINE_CHARACTERS)
            if not line:
                raise StopIteration
        self._taken.append(line)
        if len(line) == MAX_LINE_CHARACTERS:
            while self._file.readline(MAX_LINE_CHARACTERS)[-1:] not in ("", "\n", "\r"):
                pass
            raise csv.Error("line too long")
        return line

    def read(self) -> tuple[int, list[str], bool] | None:
        """The next record that is not blank: line, cells and whether it is sound CSV; None at the end.

        The one cell of an unsound record is the text of its line.
        """
        while True:
            line = self._next_line
            try:
                cells = next(self._reader, None)
            except csv.Error:
                first, *others = self._taken
                self._again.extendleft(reversed(others))
                self._taken.clear()
                self._next_line += 1
                return line, [first[:MAX_REJECTED_CHARACTERS].rstrip("\r\n")], False
            self._next_line += len(self._taken)
            self._taken.clear()
            if cells is None:
                return None
            if cells:
                return line, cells, True


class _Columns:
    """Where the header says that each cell is, and what a good line must look like."""

    def __init__(self, header: Sequence[str], *, path: Path) -> None:
        names = [name.strip().lower() for name in header]
        if EMAIL not in names:
            raise ImportRefused(
                f"The file {path} has no Email column. Its first line must name the columns, separated by commas, "
                "as a Shopify customer export does."
            )
        for name in _READ:
            if names.count(name) > 1:
                raise ImportRefused(f"The file {path} has more than one column called {name!r}. Keep one of them.")
        self._count = len(names)
        at = {name: names.index(name) for name in _READ if name in names}
        self._email = at[EMAIL]
        self._tags = at.get(TAGS)
        self._status = at.get(STATUS)
        self._customer_id = at.get(CUSTOMER_ID)
        self._born = at.get(DATE_OF_BIRTH)
        self._points = at.get(POINTS)
        self._lifetime_points = at.get(LIFETIME_POINTS)

    def read(self, cells: Sequence[str], *, hasher: Hasher, today: date) -> _Row:
        """The line as a row. Raises _BadLine."""
        if len(cells) != self._count:
            raise _BadLine(f"The line has {len(cells)} cells, the header has {self._count}.")
        text = "".join(cells)
        if not text.isascii() and _UNDECODED.search(text):
            raise _BadLine("The line is not UTF-8 text.")
        written = cells[self._email]
        email = email_schema.normalise(written)
        if email is None:
            raise _BadLine("Email is not an address." if written.strip() else "There is no Email.")
        points, lifetime_points = self._read_points(cells)
        return _Row(
            email,
            hasher.email(email),
            self._read_status(cells),
            self._read_customer_id(cells),
            self._read_date_of_birth(cells, today=today),
            points,
            lifetime_points,
        )

    def _read_points(self, cells: Sequence[str]) -> tuple[int | None, int | None]:
        points = _number("Points", _cell(cells, self._points))
        lifetime_points = _number("Lifetime Points", _cell(cells, self._lifetime_points))
        if lifetime_points is None:
            return points, points
        points = points or 0
        if lifetime_points < points:
            raise _BadLine("Lifetime Points are fewer than Points.")
        return points, lifetime_points

    def _read_status(self, cells: Sequence[str]) -> MemberStatus | None:
        if self._tags is None and self._status is None:
            return None
        status = MemberStatus.MEMBER
        if told := _cell(cells, self._status):
            try:
                status = MemberStatus(told.lower())
            except ValueError:
                raise _BadLine("Loyalty Status must be member, guest or excluded.") from None
        if self._tags is not None and EXCLUDED_TAG in cells[self._tags].lower():
            tags = cells[self._tags].lower().split(",")
            if EXCLUDED_TAG in (tag.strip() for tag in tags):
                return MemberStatus.EXCLUDED
        return status

    def _read_customer_id(self, cells: Sequence[str]) -> str | None:
        told = _cell(cells, self._customer_id)
        if len(told) > MAX_CUSTOMER_ID or not told.isprintable() or "@" in told:
            raise _BadLine(f"Customer ID must be at most {MAX_CUSTOMER_ID} plain characters and no e-mail.")
        return told or None

    def _read_date_of_birth(self, cells: Sequence[str], *, today: date) -> str | None:
        told = _cell(cells, self._born)
        if not told:
            return None
        try:
            # fromisoformat alone would also take weeks and dates without hyphens.
            if not _DATE.fullmatch(told) or date.fromisoformat(told) > today:
                raise ValueError
        except ValueError:
            raise _BadLine("Date of Birth must be a past date such as 1990-05-31.") from None
        return told


def _cell(cells: Sequence[str], at: int | None) -> str:
    """The trimmed cell; empty when there is no such column. Exports put ' before digits, to keep them text."""
    return "" if at is None else cells[at].strip().removeprefix("'")


def _number(name: str, told: str) -> int | None:
    if not told:
        return None
    if _NUMBER.fullmatch(told):
        if len(told) > MAX_DIGITS:
            raise _BadLine(f"{name} must have at most {MAX_DIGITS} digits.")
        return int(told)
    if _NEGATIVE.fullmatch(told):
        raise _BadLine(f"{name} must not be negative.")
    raise _BadLine(f"{name} must be a whole number.")


class _Seen:
    """Which members this run has met, in a private SQLite database that overflows to temporary disk.

    A set of a million digests would take 100 MiB.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode=OFF; CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID; BEGIN"
        )

    def add(self, email_hmac: str) -> bool:
        """Whether this member is met for the first time. Raises ImportRefused."""
        digest = bytes.fromhex(email_hmac)
        try:
            added = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
        except sqlite3.Error as error:
            raise ImportRefused(
                "The folder for temporary files is full. Make room there and run the import again: "
                "what is already imported stays as it is."
            ) from error
        return added.rowcount == 1

    def close(self) -> None:
        self._database.close()


OWN_COLUMNS = ("line", "reason")


class _Rejects:
    """The file of rejected lines, beside the input, made when the first one comes. Only its owner may read it.

    It has the columns of the input after its own two, so it can be mended and imported itself. An earlier one, perhaps
    just being mended, is kept under another name.
    """

    def __init__(self, path: Path, *, header: Sequence[str]) -> None:
        self.path = path.with_name(f"{path.name}.rejects.csv")
        self.count = 0
        # A mended rejects file brings these two along; its new line numbers are its own.
        self._skip = len(OWN_COLUMNS) if tuple(header[: len(OWN_COLUMNS)]) == OWN_COLUMNS else 0
        self._header = header[self._skip :]
        self._file: TextIO | None = None
        self._writer: Any = None

    def add(self, line: int, reason: str, cells: Sequence[str]) -> None:
        """Write one rejected line. Raises ImportRefused."""
        try:
            if self._file is None:
                self._open()
            # The one cell of a line that is no CSV stays as it is.
            own = cells[self._skip :] or cells
            self._writer.writerow([line, reason, *own])
        except OSError as error:
            raise self._refusal(error) from error
        self.count += 1

    def _open(self) -> None:
        self._file = open(  # noqa: SIM115 -- closed by __exit__
            self.path,
            "x",
            encoding="utf-8",
            errors="surrogateescape",
            newline="",
            opener=lambda name, flags: os.open(name, flags, 0o600),
        )
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow([*OWN_COLUMNS, *self._header])

    def _refusal(self, error: OSError) -> ImportRefused:
        return ImportRefused(
            f"The rejected lines cannot be written to {self.path}: {error.strerror}. Make room there, or copy the "
            "input to another folder; then run the import again: what is already imported stays as it is."
        )

    def __enter__(self) -> Self:
        try:
            if self.path.is_file() and not self.path.is_symlink():
                self.path.replace(self.path.with_suffix(".old.csv"))
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._refusal(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as problem:
                raise self._refusal(problem) from problem


def _read_header(records: _Records, *, path: Path) -> list[str]:
    record = records.read()
    if record is None:
        raise ImportRefused(f"The file {path} is empty.")
    _, header, sound = record
    text = "".join(header)
    if not sound or "\0" in text or _UNDECODED.search(text):
        raise ImportRefused(f"The file {path} is not a CSV file in UTF-8. Export the customers as CSV and try again.")
    return header


def _read_rows(
    records: _Records,
    *,
    columns: _Columns,
    rejects: _Rejects,
    seen: _Seen,
    hasher: Hasher,
    today: date,
) -> Iterator[_Row | None]:
    """The rows of the file; None for a line that went to the rejects."""
    while record := records.read():
        line, cells, sound = record
        try:
            if not sound:
                raise _BadLine("The line is not CSV: look for a stray quote.")
            row = columns.read(cells, hasher=hasher, today=today)
            if not seen.add(row.email_hmac):
                raise _BadLine("An earlier line of this file has the same Email.")
        except _BadLine as bad:
            rejects.add(line, str(bad), cells)
            yield None
        else:
            yield row


_IN_BATCH = and_(
    members.c.store_id == bindparam("store_id"),
    members.c.email_hmac.in_(bindparam("email_hmacs", expanding=True)),
)
_KNOWN = select(members.c.email_hmac).where(_IN_BATCH)
_EXISTING = (
    select(
        members.c.id,
        members.c.email_hmac,
        members.c.email_sealed,
        members.c.status,
        members.c.customer_id,
        members.c.date_of_birth_sealed,
        members.c.erased_at,
    )
    .where(_IN_BATCH)
    .order_by(members.c.id)
    .with_for_update()
)


def _booked_as(*kinds: Kind) -> Any:
    return func.sum(case((ledger_transactions.c.kind.in_(kinds), ledger_transactions.c.points), else_=0))


_BOOKED = (
    select(
        ledger_entries.c.member_id,
        _booked_as(Kind.OPENING, Kind.OPENING_SPENT).label("points"),
        _booked_as(Kind.OPENING).label("lifetime_points"),
    )
    .join(ledger_transactions, ledger_transactions.c.id == ledger_entries.c.transaction_id)
    .where(ledger_entries.c.member_id.in_(bindparam("member_ids", expanding=True)))
    .group_by(ledger_entries.c.member_id)
)

_CHANGE = (
    update(members)
    .where(members.c.id == bindparam("member_id"))
    .values(
        status=bindparam("new_status"),
        customer_id=bindparam("new_customer_id"),
        date_of_birth_sealed=bindparam("new_date_of_birth_sealed"),
        email_sealed=bindparam("new_email_sealed"),
        erased_at=None,
        balance=members.c.balance + bindparam("points"),
        lifetime_points=members.c.lifetime_points + bindparam("lifetime"),
        updated_at=bindparam("changed_at"),
    )
)


def _booking(kind: Kind, *, operation: str, what: str, points: Any, sides: tuple[str, str]) -> tuple[Any, Any]:
    """Two statements that book opening points as `ledger.book` does, for a batch: the transactions, the entries.

    The database makes the rows from the members' kept sums, which are the opening points as long as nothing else is
    booked. Sending every row from here was measured: slower by a tenth.
    """
    member_side, program_side = sides
    operation_id = literal(operation) + cast(members.c.id, String)
    transactions = insert(ledger_transactions).from_select(
        ["store_id", "member_id", "operation_id", "kind", "what", "points", "created_at"],
        select(
            members.c.store_id,
            members.c.id,
            operation_id,
            literal(str(kind)),
            literal(what),
            points if member_side == "credit" else -points,
            bindparam("booked_at", type_=UtcTime),
        ).where(_IN_BATCH, points > 0),
    )
    # Not a join: PostgreSQL, without statistics of tables that fill so fast, would read all of them for each batch.
    transaction_id = (
        select(ledger_transactions.c.id)
        .where(
            ledger_transactions.c.store_id == members.c.store_id,
            ledger_transactions.c.operation_id == operation_id,
        )
        .correlate(members)
        .scalar_subquery()
    )
    entries = insert(ledger_entries).from_select(
        ["transaction_id", "member_id", "side", "points"],
        union_all(
            *(
                select(transaction_id, member_id, literal(side), points).where(_IN_BATCH, points > 0)
                for member_id, side in ((null(), program_side), (members.c.id, member_side))
            )
        ),
    )
    return transactions, entries


OPENING, SPENT = "Opening balance", "Points spent earlier"
_BOOKINGS = (
    *_booking(
        Kind.OPENING,
        operation="opening:",
        what=OPENING,
        points=members.c.lifetime_points,
        sides=("credit", "debit"),
    ),
    *_booking(
        Kind.OPENING_SPENT,
        operation="opening-spent:",
        what=SPENT,
        points=members.c.lifetime_points - members.c.balance,
        sides=("debit", "credit"),
    ),
)


class _Writer:
    """Brings batches of rows into one store, and counts."""

    def __init__(
        self,
        database: Database,
        *,
        store: Store,
        sealer: Sealer,
        random_bytes: RandomBytes,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._store = store
        self._sealer = sealer
        self._random_bytes = random_bytes
        self._now = now
        self.created = self.updated = self.unchanged = 0
        self.points_left_alone = self.opening_points = 0

    def write(self, batch: Sequence[_Row]) -> None:
        """Bring the members of the batch to what its rows say, in one transaction. No e-mail is there twice."""
        if not batch:
            return
        find = {
            "store_id": self._store.id,
            "email_hmacs": [row.email_hmac for row in batch],
        }
        with self._database.read() as tx:
            known = set(tx.scalars(_KNOWN, find))
        # Sealing is the slow part, so it is done before the write lock is taken.
        at = self._now()
        prepared = {row.email_hmac: self._new_member(row, at=at) for row in batch if row.email_hmac not in known}
        with self._database.write() as tx:
            # Two imports at once: the second waits here, and then sees the members that the first has made.
            self._database.lock(tx, f"members of store {self._store.id}")
            existing = {row.email_hmac: row for row in tx.execute(_EXISTING, find)}
            booked = _booked(tx, existing.values())
            created: list[dict[str, Any]] = []
            changes: list[dict[str, Any]] = []
            opened: list[_Row] = []
            opened_later: list[int] = []
            for row in batch:
                member = existing.get(row.email_hmac)
                opens = bool(row.lifetime_points)
                if member is None:
                    created.append(prepared.get(row.email_hmac) or self._new_member(row, at=at))
                else:
                    opens = opens and member.id not in booked
                    if opens:
                        opened_later.append(member.id)
                    change = self._change(row, member, opens=opens)
                    if change is not None:
                        changes.append(change)
                    if row.points is not None and not opens:
                        settled = booked.get(member.id, (0, 0))
                        self.points_left_alone += settled != (row.points, row.lifetime_points)
                if opens:
                    opened.append(row)
            if created:
                tx.execute(insert(members), created)
            if changes:
                tx.execute(_CHANGE, changes)
            if opened:
                hmacs = [row.email_hmac for row in opened]
                batch_opened = {"store_id": self._store.id, "email_hmacs": hmacs, "booked_at": at}
                for statement in _BOOKINGS:
                    tx.execute(statement, batch_opened)
            if opened_later:
                keep_latest(tx, members.c.id.in_(opened_later))
        self.created += len(created)
        self.updated += len(changes)
        self.unchanged += len(existing) - len(changes)
        self.opening_points += sum(row.points or 0 for row in opened)

    def _new_member(self, row: _Row, *, at: datetime) -> dict[str, Any]:
        born = row.date_of_birth
        return {
            "store_id": self._store.id,
            "email_hmac": row.email_hmac,
            "email_sealed": self._sealer.seal(row.email),
            "status": row.status or MemberStatus.MEMBER,
            "customer_id": row.customer_id,
            "date_of_birth_sealed": None if born is None else self._sealer.seal(born),
            "referral_code": new_referral_code(self._random_bytes),
            "balance": row.points or 0,
            "lifetime_points": row.lifetime_points or 0,
            "latest_activity": _opening_activity(row, at=at),
            "created_at": at,
            "updated_at": at,
        }

    def _change(self, row: _Row, member: Any, *, opens: bool) -> dict[str, Any] | None:
        status = row.status or member.status
        customer_id = row.customer_id or member.customer_id
        sealed = member.date_of_birth_sealed
        born = row.date_of_birth
        if born is not None and (sealed is None or self._sealer.open(sealed) != born):
            sealed = self._sealer.seal(born)
        same = (member.status, member.customer_id, member.date_of_birth_sealed)
        if not opens and member.erased_at is None and (status, customer_id, sealed) == same:
            return None
        # Erased after a disconnect; here is the address once more.
        email_sealed = member.email_sealed if member.erased_at is None else self._sealer.seal(row.email)
        return {
            "member_id": member.id,
            "new_status": status,
            "new_customer_id": customer_id,
            "new_date_of_birth_sealed": sealed,
            "new_email_sealed": email_sealed,
            "points": row.points if opens else 0,
            "lifetime": row.lifetime_points if opens else 0,
            "changed_at": self._now(),
        }


def _opening_activity(row: _Row, *, at: datetime) -> list[tuple[int, str, int]]:
    """What the bookings of a new member say, as `members.latest_activity` keeps it."""
    lifetime = row.lifetime_points or 0
    moved = ((OPENING, lifetime), (SPENT, (row.points or 0) - lifetime))
    return [((at - EPOCH) // MICROSECOND, what, points) for what, points in moved if points]


def _booked(tx: Connection, existing: Collection[Any]) -> dict[int, tuple[int, int]]:
    """Opening points and opening lifetime points of each of these members who has any transaction at all."""
    if not existing:
        return {}
    rows = tx.execute(_BOOKED, {"member_ids": [member.id for member in existing]})
    return {row.member_id: (int(row.points), int(row.lifetime_points)) for row in rows}
