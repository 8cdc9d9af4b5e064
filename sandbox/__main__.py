"""`python -m sandbox`: the sandbox in a terminal. See `--help` and sandbox/README.md."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from sandbox.records import RecordsUnusable
from sandbox.server import PortTaken, Sandbox


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Answers the exit status: 1 with one sentence on stderr when it cannot
    start.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="A stand-in Gorgias helpdesk, and a stand-in Rivo, on this machine, for apps between the two.",
    )
    parser.add_argument("--port", type=int, default=4000, help="where to listen on 127.0.0.1 (4000)")
    parser.add_argument("--data", type=Path, default=Path("var/sandbox"), help="folder that keeps everything")
    parser.add_argument("--accounts", default="acme,globex", help="accounts to serve, with commas between")
    parser.add_argument("--client-id", required=True, help="the app's client id")
    parser.add_argument("--client-secret", required=True, help="the app's client secret")
    parser.add_argument(
        "--app-url",
        default="http://localhost:8000/oauth/install?account={gorgias_account}",
        help="the app's App URL, with {gorgias_account} in it",
    )
    parser.add_argument(
        "--redirect-url",
        action="append",
        dest="redirect_urls",
        help="a Redirect URL of the app; may be given several times (http://localhost:8000/oauth/callback)",
    )
    parser.add_argument("--app-name", default="Tallydesk", help="the app's name on the consent page")
    parser.add_argument("--customers", type=Path, help="a Shopify customer export that fills new accounts")
    parser.add_argument(
        "--rivo-stores", default="northwind", help="stores of a stand-in Rivo, with commas between (northwind)"
    )
    options = parser.parse_args(arguments)
    try:
        sandbox = Sandbox(
            accounts=_names(options.accounts),
            rivo_stores=_names(options.rivo_stores),
            client_id=options.client_id,
            client_secret=options.client_secret,
            redirect_urls=options.redirect_urls or ("http://localhost:8000/oauth/callback",),
            app_url=options.app_url,
            app_name=options.app_name,
            data=options.data,
            demo=True,
            customers=options.customers,
            port=options.port,
        )
    except (PortTaken, RecordsUnusable, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The customers cannot be read from {options.customers} ({error.strerror}).", file=sys.stderr)
        return 1
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with sandbox:
        print(f"The sandbox helpdesk is ready: {sandbox.url}", flush=True)
        stop.wait()
    return 0


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
