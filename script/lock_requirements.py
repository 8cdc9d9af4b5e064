"""Compiles requirements*.in to pinned, hashed files. Arguments go to uv, for example --upgrade."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from script.bootstrap import ROOT, Trouble, say, set_up


def main(arguments: Sequence[str]) -> int:
    """Returns 0. Raises Trouble when the set-up or uv fails."""
    python = set_up(["requirements.txt", "requirements-dev.txt"])
    environment = {**os.environ, **_index_of_this_machine(python)}
    for name in ("requirements", "requirements-dev"):
        say(f"Compiling {name}.in …")
        command = [
            *[
                str(python),
                "-m",
                "uv",
                "pip",
                "compile",
                f"{name}.in",
                "--output-file",
                f"{name}.txt",
                "--quiet",
            ],
            *["--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header"],
            # Where this machine gets its packages from is nobody else's business.
            *["--no-emit-index-url", "--no-emit-find-links", *arguments],
        ]
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            raise Trouble(f"Compiling {name}.in failed, and {name}.txt is as it was: the lines above say why.")
    return 0


def _index_of_this_machine(python: Path) -> dict[str, str]:
    """uv does not read pip's configuration, so a machine with its own package index passes it on here."""
    asked = subprocess.run(
        [str(python), "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {"UV_DEFAULT_INDEX": asked.stdout.strip(), "UV_SYSTEM_CERTS": "1"} if asked.returncode == 0 else {}
