"""Importing members: what a file may hold, what becomes of it, and what a second run changes."""

from __future__ import annotations

import csv
import stat
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import func, select

from loyalty.ledger import totals, verify
from loyalty.ledger_import import BATCH_ROWS, ImportRefused, ImportReport, import_members
from loyalty.program import Member, MemberStatus, Store
from storage.database import Database
from storage.sealing import RandomBytes, Sealer
from storage.tables import ledger_transactions, members
from tests.databases import Clock
from tests.ledgers import LedgerRoom

HEADER = (
    "Customer ID,First Name,Last Name,Email,Accepts Email Marketing,"
    "Default Address Company,Default Address Address1,Default Address Address2,Default Address City,"
    "Default Address Province Code,Default Address Country Code,Default Address Zip,Default Address Phone,"
    "Phone,Accepts SMS Marketing,Total Spent,Total Orders,Note,Tax Exempt,Tags"
)
EXPORT = f"""{HEADER}
'7210448301122,Ana,Ruiz,Ana@Example.com,yes,,1 Main St,,Elko,NV,US,'89801,,'+17755550154,no,90.44,6,"Likes
tea, and ""news"" daily",no,"newsletter, vip"
'7210448301123,Ben,Ode,ben@example.com,no,,,,,,,,,,no,0.00,0,,no,"VIP,rivo EXCLUDED"
'7210448301124,Zoë,Łuk,  zoë@example.com ,no,,,,,,,,,,no,0.00,0,,no,not rivo excluded
"""

Run = Callable[..., ImportReport]


@pytest.fixture
def room(database: Database, sealer: Sealer, clock: Clock, random_bytes: RandomBytes) -> LedgerRoom:
    return LedgerRoom(database, sealer=sealer, clock=clock, random_bytes=random_bytes)


@pytest.fixture
def run(room: LedgerRoom, tmp_path: Path) -> Run:
    """Import `text` (or bytes) into the store; the books are proven afterwards."""

    def run(
        text: str | bytes, *, store: Store | None = None, progress: Callable[[int], None] = lambda _bytes: None
    ) -> ImportReport:
        path = tmp_path / "customers.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        report = _import(room, path, store=store, progress=progress)
        assert report.rows == report.created + report.updated + report.unchanged + report.rejected
        with room.database.read() as tx:
            assert list(verify(tx)) == []
        return report

    return run


def test_a_shopify_export_becomes_members(room: LedgerRoom, run: Run) -> None:
    report = run(EXPORT)
    assert (report.rows, report.created, report.rejected, report.rejects_path) == (3, 3, 0, None)
    assert _member(room, "ana@example.com").status is MemberStatus.MEMBER
    assert _member(room, "ben@example.com").status is MemberStatus.EXCLUDED
    assert _member(room, "zoë@example.com").status is MemberStatus.MEMBER, "the tag is compared whole"
    with room.database.read() as tx:
        ids = tx.scalars(select(members.c.customer_id).order_by(members.c.customer_id)).all()
    assert ids == ["7210448301122", "7210448301123", "7210448301124"], "without the apostrophe of the export"


@pytest.mark.parametrize("prefix", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_marks_and_line_endings_do_not_matter(run: Run, prefix: str, newline: str) -> None:
    assert run(f"{prefix}Email,Points\nana@example.com,5\n".replace("\n", newline)).created == 1


def test_only_the_email_column_is_needed_and_headers_are_read_leniently(room: LedgerRoom, run: Run) -> None:
    assert run(" EMAIL \nana@example.com").created == 1
    assert run("points, loyalty STATUS ,e-mail,eMail\n5,Guest,x,ben@example.com\n").created == 1
    assert _member(room, "ben@example.com").status is MemberStatus.GUEST


def test_points_are_booked_as_opening_and_what_was_spent(room: LedgerRoom, run: Run) -> None:
    report = run("Email,Points,Lifetime Points\nana@example.com,120,700\nben@example.com,30,\neve@example.com,,9\n")
    assert report.opening_points == 150
    ana, ben, eve = (_member(room, f"{name}@example.com") for name in ("ana", "ben", "eve"))
    assert (ana.points_balance, ana.lifetime_points, ana.vip_tier_name) == (120, 700, "Silver")
    assert [(entry.what, entry.points) for entry in ana.recent_activity] == [
        ("Points spent earlier", -580),
        ("Opening balance", 700),
    ]
    assert (ben.points_balance, ben.lifetime_points) == (30, 30)
    assert (eve.points_balance, eve.lifetime_points) == (0, 9)
    with room.database.read() as tx:
        assert totals(tx) == (1_328, 1_328, 5)
        ana_id = tx.scalars(select(members.c.id).where(members.c.balance == 120)).one()
        booked = tx.execute(
            select(ledger_transactions.c.operation_id, ledger_transactions.c.kind)
            .where(ledger_transactions.c.member_id == ana_id)
            .order_by(ledger_transactions.c.id)
        ).all()
    assert [tuple(row) for row in booked] == [
        (f"opening:{ana_id}", "opening"),
        (f"opening-spent:{ana_id}", "opening_spent"),
    ]


def test_the_date_of_birth_is_kept_sealed(room: LedgerRoom, run: Run) -> None:
    run("Email,Date of Birth\nana@example.com,1990-05-31\nben@example.com,'2000-02-29\n")
    assert _member(room, "ana@example.com").date_of_birth == date(1990, 5, 31)
    assert _member(room, "ben@example.com").date_of_birth == date(2000, 2, 29)
    with room.database.read() as tx:
        for row in tx.execute(select(members)).all():
            assert "1990" not in row.date_of_birth_sealed
            assert "example" not in row.email_sealed


def test_the_second_run_changes_nothing(room: LedgerRoom, run: Run) -> None:
    text = (
        "Email,Customer ID,Points,Lifetime Points,Loyalty Status,Date of Birth,Tags\n"
        "ana@example.com,1,120,700,member,1990-05-31,\n"
        "ben@example.com,2,,,guest,,\n"
        "eve@example.com,3,0,0,,,Rivo Excluded\n"
        "bad,4,,,,,\n"
    )
    first = run(text)
    assert (first.created, first.rejected) == (3, 1)
    before = _everything(room)
    room.advance(3_600)

    second = run(text)

    assert (second.created, second.updated, second.unchanged, second.rejected) == (0, 0, 3, 1)
    assert (second.opening_points, second.points_left_alone) == (0, 0)
    assert _everything(room) == before


def test_what_changed_in_the_file_is_updated_and_what_is_missing_is_kept(room: LedgerRoom, run: Run) -> None:
    run("Email,Customer ID,Loyalty Status,Date of Birth\nana@example.com,1,guest,1990-05-31\n")
    assert run("Email\nana@example.com\n").unchanged == 1
    assert run("Email,Customer ID,Date of Birth\nana@example.com,,\n").unchanged == 1
    assert _member(room, "ana@example.com").status is MemberStatus.GUEST
    assert _member(room, "ana@example.com").date_of_birth == date(1990, 5, 31)

    changed = "Email,Customer ID,Loyalty Status,Date of Birth\nana@example.com,2,member,1991-05-31\n"
    assert run(changed).updated == 1
    assert run(changed).unchanged == 1
    assert _member(room, "ana@example.com").date_of_birth == date(1991, 5, 31)
    assert run("Email,Tags\nana@example.com,rivo excluded\n").updated == 1
    assert _member(room, "ana@example.com").status is MemberStatus.EXCLUDED
    assert run("Email,Tags\nana@example.com,\n").updated == 1
    assert _member(room, "ana@example.com").status is MemberStatus.MEMBER
    with room.database.read() as tx:
        assert tx.scalars(select(members.c.customer_id)).one() == "2"


def test_points_that_are_booked_are_left_alone_and_said(room: LedgerRoom, run: Run) -> None:
    run("Email,Points\nana@example.com,120\n")
    room.award("ana@example.com", 50)
    assert run("Email,Points\nana@example.com,120\n").points_left_alone == 0, "that is what was booked"
    report = run("Email,Points\nana@example.com,999\n")
    assert (report.unchanged, report.points_left_alone, report.opening_points) == (1, 1, 0)
    assert _member(room, "ana@example.com").points_balance == 170


def test_points_that_come_later_are_booked_if_nothing_else_is(room: LedgerRoom, run: Run) -> None:
    run("Email,Points\nana@example.com,\nben@example.com,0\neve@example.com,\n")
    room.award("eve@example.com", 50)
    later = "Email,Points,Lifetime Points\nana@example.com,120,700\nben@example.com,5,5\neve@example.com,7,7\n"

    report = run(later)

    assert (report.updated, report.unchanged) == (2, 1)
    assert (report.opening_points, report.points_left_alone) == (125, 1)
    assert _member(room, "ana@example.com").lifetime_points == 700
    assert _member(room, "eve@example.com").points_balance == 50
    again = run(later)
    assert (again.updated, again.unchanged, again.points_left_alone) == (0, 3, 1)


BAD_LINES = [
    ("", "There is no Email."),
    ("ana", "Email is not an address."),
    ("a" * 250 + "@example.com", "Email is not an address."),
    ("ok@example.com,ten", "Points must be a whole number."),
    ("ok@example.com,1.5", "Points must be a whole number."),
    ("ok@example.com,1_0", "Points must be a whole number."),
    ("ok@example.com,٥", "Points must be a whole number."),
    ("ok@example.com,-5", "Points must not be negative."),
    ("ok@example.com,12345678901", "Points must have at most 10 digits."),
    ("ok@example.com,,x", "Lifetime Points must be a whole number."),
    ("ok@example.com,10,9", "Lifetime Points are fewer than Points."),
    ("ok@example.com,,,gold", "Loyalty Status must be member, guest or excluded."),
    ("ok@example.com,,,,31.05.1990", "Date of Birth must be a past date such as 1990-05-31."),
    ("ok@example.com,,,,19900531", "Date of Birth must be a past date such as 1990-05-31."),
    ("ok@example.com,,,,1990-02-30", "Date of Birth must be a past date such as 1990-05-31."),
    ("ok@example.com,,,,2026-03-15", "Date of Birth must be a past date such as 1990-05-31."),
    ("ok@example.com,,,,," + "1" * 41, "Customer ID must be at most 40 plain characters and no e-mail."),
    (
        "ok@example.com,,,,,ok@example.com",
        "Customer ID must be at most 40 plain characters and no e-mail.",
    ),
    ("ok@example.com,,,,,1\x002", "Customer ID must be at most 40 plain characters and no e-mail."),
    ("first@example.com", "An earlier line of this file has the same Email."),
    ("FIRST@example.com ", "An earlier line of this file has the same Email."),
    ("ok@example.com,,,,,,", "The line has 7 cells, the header has 6."),
]


def test_bad_lines_are_rejected_with_number_and_reason(room: LedgerRoom, run: Run, tmp_path: Path) -> None:
    header = "Email,Points,Lifetime Points,Loyalty Status,Date of Birth,Customer ID"
    lines = [header, "first@example.com,5,,,,", ""]
    for cells, _ in BAD_LINES:
        missing = 5 - cells.count(",")
        lines.append(cells + "," * max(missing, 0))
    lines.append("last@example.com,,,,,")

    report = run("\n".join(lines))

    assert (report.created, report.rejected) == (2, len(BAD_LINES))
    assert report.rejects_path == tmp_path / "customers.csv.rejects.csv"
    assert stat.S_IMODE(report.rejects_path.stat().st_mode) == 0o600
    rejects = _rejects(report)
    assert rejects[0] == ["line", "reason", *header.split(",")]
    assert [row[1] for row in rejects[1:]] == [reason for _, reason in BAD_LINES]
    assert [int(row[0]) for row in rejects[1:]] == list(range(4, 4 + len(BAD_LINES)))
    assert rejects[4][2:] == ["ok@example.com", "ten", "", "", "", ""], "the cells are as they were"


def test_line_numbers_are_physical(run: Run) -> None:
    """A note may span lines; an editor that jumps to the number finds the record."""
    report = run('Email,Note\nana@example.com,"one\ntwo\nthree"\n\nbad,"x\ny"\nben,\n')
    assert [row[0] for row in _rejects(report)[1:]] == ["6", "8"]
    assert report.created == 1


def test_bytes_that_are_not_utf8_cost_only_their_line(room: LedgerRoom, run: Run) -> None:
    report = run(b"Email,First Name\nana@example.com,Zo\xeb\nben@example.com,Ben\n")
    assert (report.created, report.rejected) == (1, 1)
    assert report.rejects_path is not None
    assert report.rejects_path.read_bytes().splitlines()[1] == (b"2,The line is not UTF-8 text.,ana@example.com,Zo\xeb")


@pytest.mark.parametrize(
    "line",
    ['"bad@example.com,7', '"bad@example.com"x,7', "bad@example.com," + "9" * 140_000, "x" * 1_100_000],
    ids=["open quote", "text after a quote", "huge cell", "huge line"],
)
def test_a_line_that_is_not_csv_costs_only_itself(run: Run, line: str) -> None:
    """A stray quote does not swallow the customers that follow."""
    good = "".join(f"user{number}@example.com,{number}\n" for number in range(1_500))
    report = run(f'Email,Points\nana@example.com,5\n{line}\n{good}"last@example.com",8\n')
    assert (report.created, report.rejected) == (1_502, 1)
    number, reason, *cells = _rejects(report)[1]
    assert (number, reason) == ("3", "The line is not CSV: look for a stray quote.")
    assert len(cells) == 1
    assert line.startswith(cells[0])


def test_an_open_quote_in_the_last_line_is_found(run: Run) -> None:
    report = run('Email,Points\nana@example.com,5\n"bad@example.com,7')
    assert (report.created, report.rejected) == (1, 1)


def test_a_bad_first_line_does_not_block_a_good_one_with_the_same_email(room: LedgerRoom, run: Run) -> None:
    report = run("Email,Points\nana@example.com,ten\nana@example.com,10\nana@example.com,11\n")
    assert (report.created, report.rejected) == (1, 2)
    assert _member(room, "ana@example.com").points_balance == 10


def test_a_duplicate_in_a_later_batch_is_found(room: LedgerRoom, run: Run) -> None:
    many = "".join(f"user{number}@example.com,1\n" for number in range(BATCH_ROWS + 5))
    report = run(f"Email,Points\n{many}USER0@example.com,9\n")
    assert (report.created, report.rejected) == (BATCH_ROWS + 5, 1)
    assert _member(room, "user0@example.com").points_balance == 1


def test_mended_rejects_can_be_imported(room: LedgerRoom, run: Run) -> None:
    first = run("Email,Points\nana@example.com,ten\n")
    assert first.rejects_path is not None
    assert run(first.rejects_path.read_text().replace("ten", "10")).created == 1


def test_a_rejects_file_that_someone_may_be_mending_is_kept(run: Run) -> None:
    path = run("Email\nbad\n").rejects_path
    assert path is not None
    path.write_text("mended by hand")
    run("Email\nbad\n")
    assert path.with_suffix(".old.csv").read_text() == "mended by hand"


def test_rejects_of_mended_rejects_do_not_grow_columns(run: Run) -> None:
    first = run("Email,Points\nok@example.com,ten\n").rejects_path
    assert first is not None
    again = _rejects(run(first.read_text()))
    assert again[0] == ["line", "reason", "Email", "Points"]
    assert again[1] == ["2", "Points must be a whole number.", "ok@example.com", "ten"]


def test_rejects_of_an_earlier_run_do_not_stay(run: Run) -> None:
    path = run("Email\nbad\n").rejects_path
    assert path is not None
    assert path.exists()
    assert run("Email\nana@example.com\n").rejects_path is None
    assert not path.exists()


def test_rejects_never_follow_a_link(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / "customers.csv.rejects.csv").symlink_to(elsewhere)
    run("Email\nbad\n")
    assert elsewhere.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"Name;Email\nAna;ana@example.com\n", "has no Email column"),
        (b"Name,Points\nAna,5\n", "has no Email column"),
        (b"Email,email\na@example.com,b@example.com\n", "more than one column called 'email'"),
        (b"PK\x03\x04\x14\x00\x06\x00\xff\xfe", "is not a CSV file in UTF-8"),
        ("Email\nana@example.com".encode("utf-16"), "is not a CSV file in UTF-8"),
        (b"\x00" * 3_000_000, "is not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_export_is_refused(run: Run, tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(ImportRefused, match=sentence):
        run(content)
    assert not (tmp_path / "customers.csv.rejects.csv").exists()


def test_a_missing_file_is_refused(room: LedgerRoom, tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match=r"nothing\.csv cannot be read: No such file"):
        _import(room, tmp_path / "nothing.csv")
    with pytest.raises(ImportRefused, match="cannot be read: Is a directory"):
        _import(room, tmp_path)


def test_rejects_that_cannot_be_written_are_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "customers.csv.rejects.csv").mkdir()
    with pytest.raises(ImportRefused, match=r"rejected lines cannot be written to .* run the import again"):
        run("Email\nbad\n")


def test_progress_reaches_the_size_of_the_file(run: Run) -> None:
    told: list[int] = []
    text = "Email\n" + "".join(f"user{number}@example.com\n" for number in range(BATCH_ROWS * 2)) + "bad\n" * 10
    run(text, progress=told.append)
    assert told == sorted(told)
    assert len(told) >= 3
    assert told[-1] == len(text)


def test_awards_go_on_while_an_import_runs(room: LedgerRoom, run: Run) -> None:
    """Batches are short transactions: between any two of them an award finds its way."""
    room.enrol(room.store, email="agent.case@example.com")
    balances: list[int] = []
    text = "Email,Points\n" + "".join(f"user{number}@example.com,5\n" for number in range(BATCH_ROWS * 3))
    run(text, progress=lambda _bytes: balances.append(room.award("agent.case@example.com", 10)))
    assert balances == [10, 20, 30, 40]


def test_two_imports_at_once_make_each_member_once(room: LedgerRoom, tmp_path: Path) -> None:
    path = tmp_path / "customers.csv"
    path.write_text("Email,Points\n" + "".join(f"user{number}@example.com,5\n" for number in range(BATCH_ROWS * 2)))
    other = tmp_path / "copy.csv"
    other.write_text(path.read_text())
    reports: list[ImportReport] = []
    threads = [
        threading.Thread(target=lambda file: reports.append(_import(room, file)), args=(file,))
        for file in (path, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.created for report in reports) == BATCH_ROWS * 2
    assert sum(report.unchanged for report in reports) == BATCH_ROWS * 2
    with room.database.read() as tx:
        assert list(verify(tx)) == []
        assert totals(tx)[2] == BATCH_ROWS * 2


def test_stores_are_imported_apart(room: LedgerRoom, run: Run) -> None:
    text = "Email,Points\nana@example.com,5\n"
    assert run(text).created == 1
    assert run(text, store=room.other_store).created == 1
    assert run(text).unchanged == 1
    room.award("ana@example.com", 10)
    other = room.program.member(room.other_store, email="ana@example.com")
    assert other is not None
    assert other.points_balance == 5


def test_a_run_that_was_interrupted_is_finished_by_the_next(room: LedgerRoom, run: Run) -> None:
    text = "Email,Points\n" + "".join(f"user{number}@example.com,5\n" for number in range(BATCH_ROWS * 2))

    def stop(_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(text, progress=stop)
    report = run(text)
    assert (report.created, report.unchanged) == (BATCH_ROWS, BATCH_ROWS)
    assert report.opening_points == 5 * BATCH_ROWS


def test_a_batch_that_fails_leaves_nothing_of_itself(room: LedgerRoom, run: Run) -> None:
    """A member whose operation id is taken makes the batch fail as a whole."""
    run("Email\nana@example.com\n")
    with room.database.read() as tx:
        ana = tx.scalars(select(members.c.id)).one()
    room.enrol(room.store, email="ben@example.com")
    room.award("ben@example.com", 5, operation_id=f"opening:{ana}")
    with pytest.raises(Exception, match=r"(?i)unique"):
        run("Email,Points\nana@example.com,5\nnew@example.com,5\n")
    assert room.program.member(room.store, email="new@example.com") is None
    assert _member(room, "ana@example.com").points_balance == 0


def _import(
    room: LedgerRoom,
    path: Path,
    *,
    store: Store | None = None,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> ImportReport:
    return import_members(
        room.database,
        store=store or room.store,
        path=path,
        sealer=room.sealer,
        hasher=room.hasher,
        random_bytes=room.random_bytes,
        now=room.clock,
        progress=progress,
    )


def _member(room: LedgerRoom, email: str) -> Member:
    member = room.program.member(room.store, email=email, with_date_of_birth=True)
    assert member is not None
    return member


def _rejects(report: ImportReport) -> list[list[str]]:
    assert report.rejects_path is not None
    with report.rejects_path.open(newline="") as file:
        return list(csv.reader(file))


def _everything(room: LedgerRoom) -> list[object]:
    with room.database.read() as tx:
        return [
            tx.execute(select(members).order_by(members.c.id)).all(),
            tx.scalar(select(func.count()).select_from(ledger_transactions)),
        ]
