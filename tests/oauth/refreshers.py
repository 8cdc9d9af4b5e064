"""One process of several that all find the same token expired: `python -m tests.oauth.refreshers`, told by its input.

Reads one line of JSON, prints `ready`, waits for a second line, then asks for the token from `threads` threads at once
and prints a line of JSON: for each the version of the token it got, or the reason why it got none.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from oauth.accounts import Accounts
from oauth.gorgias_api import GorgiasError, TokenEndpoint
from storage.database import Database
from storage.sealing import Sealer
from tests.databases import FIRST_KEY


def main() -> None:
    told = json.loads(sys.stdin.readline())
    now = datetime.fromisoformat(told["now"])
    database = Database(told["database_url"])
    accounts = Accounts(
        database,
        sealer=Sealer((FIRST_KEY,)),
        endpoint=TokenEndpoint(
            base_of=lambda account: told["gorgias_url"].replace("{account}", account),
            client_id=told["client_id"],
            client_secret=told["client_secret"],
            redirect_uri="http://localhost/oauth/callback",
        ),
        now=lambda: now,
        sleep=time.sleep,
        random_bytes=os.urandom,
    )
    line = threading.Barrier(told["threads"])

    def ask(_: int) -> int | str:
        line.wait()
        try:
            return accounts.access_token(told["account_id"]).version
        except GorgiasError as error:
            return error.reason.value

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(told["threads"]) as pool:
        print(json.dumps(list(pool.map(ask, range(told["threads"])))), flush=True)
    database.close()


if __name__ == "__main__":
    main()
