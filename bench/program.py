"""A loyalty program that answers as fast, or as slowly, as it is told to: the process of `bench/program_process.py`."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import ROOT
from tests.processes.serving import answers, free_port, wait_for

SECONDS_OF_A_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Program:
    """A running program."""

    port: int

    @property
    def url(self) -> str:
        """What RIVO_URL is set to."""
        return f"http://127.0.0.1:{self.port}"

    def answer_after(self, seconds: float) -> None:
        """From now on every answer comes after so many seconds."""
        self._tell(delay_s=seconds)

    def hang(self) -> None:
        """From now on no answer comes within a day."""
        self._tell(delay_s=SECONDS_OF_A_DAY)

    def calls(self) -> int:
        """How many calls of the program's own came since it was started."""
        return int(self._ask("GET", "/_calls"))

    def _tell(self, *, delay_s: float) -> None:
        self._ask("PUT", f"/_delay/{delay_s}")

    def _ask(self, method: str, path: str) -> bytes:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            client.request(method, path)
            return client.getresponse().read()
        finally:
            client.close()


@contextmanager
def program(folder: Path) -> Iterator[Program]:
    """A program that answers at once until it is told otherwise. What goes wrong in it is in a file in `folder`."""
    with free_port() as found:
        port = found
    log = folder / f"program-{port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen([sys.executable, "-m", "bench.program_process", str(port)], cwd=ROOT, stderr=sink)
    try:
        wait_for(lambda: answers(port), "the program never answered", log=log)
        yield Program(port=port)
    finally:
        process.terminate()
        process.wait(timeout=30)
