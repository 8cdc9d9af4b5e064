"""The plainest loop that brings members from a file into the same tables: `csv`, seals and HMACs, `executemany`.

`python -m bench.baselines.plain_import` reads an order as JSON on standard input: `url` of a migrated SQLite database
with a store, the `path` of the file, and `key` and `email_key` to seal and to find e-mails with. It believes whatever
the file says: nothing is checked, no line is rejected, nobody is looked for twice, and a second run fails.
"""

from __future__ import annotations

import csv
import hmac
import json
import os
import sqlite3
import sys
import time
from base64 import b32encode
from itertools import count, islice

from cryptography.fernet import Fernet

BATCH_ROWS = 1_000
MEMBERS = (
    "INSERT INTO members (id, store_id, email_hmac, email_sealed, status, customer_id, referral_code, balance, "
    "lifetime_points, latest_activity, created_at, updated_at) VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
TRANSACTIONS = (
    "INSERT INTO ledger_transactions (id, store_id, member_id, operation_id, kind, what, points, created_at) "
    "VALUES (?, 1, ?, ?, ?, ?, ?, ?)"
)
ENTRIES = "INSERT INTO ledger_entries (transaction_id, member_id, side, points) VALUES (?, ?, ?, ?)"


def main() -> None:
    """Import the file."""
    order = json.load(sys.stdin)
    fernet, email_key = Fernet(order["key"]), bytes.fromhex(order["email_key"])
    connection = sqlite3.connect(order["url"].removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    ids, transaction_ids = count(1), count(1)
    with open(order["path"], newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        while batch := list(islice(rows, BATCH_ROWS)):
            at = time.time_ns() // 1000
            members, transactions, entries = [], [], []
            for row in batch:
                member_id = next(ids)
                email = row["Email"].strip().lower()
                found_by = hmac.digest(email_key, email.encode(), "sha256")[:16].hex()
                sealed = fernet.encrypt(email.encode()).decode()
                status = "excluded" if "rivo excluded" in row["Tags"].lower() else "member"
                code = b32encode(os.urandom(10)).decode().lower()
                points, lifetime = int(row["Points"]), int(row["Lifetime Points"])
                latest = []
                for kind, what, moved, member_side, program_side in (
                    ("opening", "Opening balance", lifetime, "credit", "debit"),
                    ("opening_spent", "Points spent earlier", lifetime - points, "debit", "credit"),
                ):
                    if moved:
                        number = next(transaction_ids)
                        operation = f"{kind.replace('_', '-')}:{member_id}"
                        signed = moved if member_side == "credit" else -moved
                        latest.append([at, what, signed])
                        transactions.append((number, member_id, operation, kind, what, signed, at))
                        entries += [(number, None, program_side, moved), (number, member_id, member_side, moved)]
                members.append(
                    (
                        member_id,
                        found_by,
                        sealed,
                        status,
                        row["Customer ID"].removeprefix("'"),
                        code,
                        points,
                        lifetime,
                        json.dumps(latest, separators=(",", ":")),
                        at,
                        at,
                    )
                )
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(MEMBERS, members)
            connection.executemany(TRANSACTIONS, transactions)
            connection.executemany(ENTRIES, entries)
            connection.commit()
    connection.close()
    print(json.dumps(next(ids) - 1))


if __name__ == "__main__":
    main()
