"""script/flask: a flask command with the settings that script/server was last started with.

Without them a command in a second terminal would take the defaults, and with those the real Gorgias.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from script.bootstrap import ROOT, VAR, Trouble, set_up
from script.serve import demo_environment, port_from, sandbox_client


def main(arguments: Sequence[str]) -> int:
    """Become the command. Raises Trouble when there is no demo yet."""
    kept = VAR / "demo-port"
    if not kept.exists():
        raise Trouble("There is no demo yet: run script/server first.")
    port = port_from({"PORT": kept.read_text()})
    python = set_up(["requirements.txt"])
    environment = demo_environment(port, sandbox_client(VAR / "sandbox-client.json"))
    # Files named on the command line are meant from where the person stands.
    command = [str(python), "-m", "flask", "--app", str(ROOT / "app.py"), *arguments]
    os.execve(str(python), command, environment)  # noqa: S606 (no shell is wanted)
