"""Load from a process of its own over keep-alive connections, each of which asks again as soon as it has its answer.

wrk sends it where it is installed; without it, and for what wrk cannot do (a pace, loads shorter than a second), the
client in `bench/client.py`. Both draw the kind of each request by its share, and the names in its text at random.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import fsum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# A request that has no answer by then is an error.
TIMEOUT_S = 10
# `{n}`, or `{k:064x}`; other braces are text, such as those of JSON.
_DRAWN = re.compile(r"\{([a-z]+)(?::0(\d+)x)?\}")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of request. `share` is how often it comes beside the others.

    Path, headers and body may hold `{n}` or `{k:064x}`: names of `draws`, drawn for every request out of their range,
    both ends included; a name has the same value in the whole request.
    """

    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    share: float = 1.0
    draws: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of a load. `errors` counts answers of 400 and above, broken connections and requests without an answer.

    `marked` counts the answers whose body held the marker (our own client only).
    """

    sent: int
    seconds: float
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: int
    marked: int = 0


def has_wrk() -> bool:
    """Whether wrk sends the loads."""
    return shutil.which("wrk") is not None


def send(port: int, shapes: Sequence[Shape], *, connections: int, seconds: float, seed: int, marker: str = "") -> Load:
    """Keep `connections` busy for so many seconds. Raises RuntimeError when the client fails.

    With a `marker` our own client sends: it reads the answers, and waits for the last ones.
    """
    if has_wrk() and seconds >= 1 and not marker:
        return _wrk(port, shapes, connections=connections, seconds=round(seconds), seed=seed)
    return _client(port, shapes, connections=connections, seed=seed, seconds=seconds, marker=marker)


def paced(
    port: int,
    shapes: Sequence[Shape],
    *,
    connections: int,
    per_s: float,
    count: int,
    seed: int = 1,
    marker: str = "",
) -> Load:
    """Send `count` requests, `per_s` of them a second, as long as a connection is free for each; `marked` is counted.

    The time of a request begins when it was due, so that one which waited for a connection does not look fast.
    """
    return _client(port, shapes, connections=connections, seed=seed, per_s=per_s, count=count, marker=marker)


def parts_of(text: str, draws: Mapping[str, tuple[int, int]]) -> list[str | tuple[str, int]]:
    """`text` taken apart: what stands still, and (name, digits of hexadecimal or 0) where a drawn number goes."""
    found: list[str | tuple[str, int]] = []
    end = 0
    for match in _DRAWN.finditer(text):
        if match[1] in draws:
            found += [text[end : match.start()], (match[1], int(match[2] or 0))]
            end = match.end()
    return [part for part in [*found, text[end:]] if part != ""]


def head_of(shape: Shape, port: int) -> str:
    """The request up to the length of its body, which depends on what is drawn."""
    lines = [f"{shape.method} {shape.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in shape.headers.items()), ""])


def _client(port: int, shapes: Sequence[Shape], **asked: Any) -> Load:
    order = {"port": port, "shapes": [asdict(shape) for shape in shapes], **asked}
    done = subprocess.run(
        [sys.executable, "-m", "bench.client"],
        input=json.dumps(order),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the client failed: {done.stderr.strip()}")
    return Load(**json.loads(done.stdout))


def _wrk(port: int, shapes: Sequence[Shape], *, connections: int, seconds: int, seed: int) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_lua(port, shapes, seed=seed))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s"]
        done = subprocess.run(
            [*command, "-s", script.name, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def _lua(port: int, shapes: Sequence[Shape], *, seed: int) -> str:
    """wrk's script: a function for each kind of request that puts its text together."""
    whole = fsum(shape.share for shape in shapes)
    lines = [f"math.randomseed({seed})", "local random, format = math.random, string.format", "local kinds = {"]
    bounds, reached = [], 0.0
    for shape in shapes:
        drawn = "".join(f"local {name} = random({low}, {high}) " for name, (low, high) in shape.draws.items())
        head = _lua_text(head_of(shape, port), shape)
        if shape.body is None:
            lines.append(f'function() {drawn}return {head} .. "\\r\\n" end,')
        else:
            body = f"local body = {_lua_text(shape.body, shape)}"
            lines.append(
                f'function() {drawn}{body} return {head} .. "Content-Length: " .. #body .. "\\r\\n\\r\\n" .. body end,'
            )
        reached += shape.share / whole
        bounds.append(reached)
    lines.append("}")
    choice = " ".join(
        f"if r < {bound!r} then return kinds[{number}]() end" for number, bound in enumerate(bounds[:-1], 1)
    )
    draw = "local r = random() " if choice else ""
    lines.append(f"request = function() {draw}{choice} return kinds[{len(shapes)}]() end")
    lines.append(_DONE)
    return "\n".join(lines)


def _lua_text(text: str, shape: Shape) -> str:
    """An expression of Lua for `text` with what is drawn."""
    terms = []
    for part in parts_of(text, shape.draws):
        if isinstance(part, str):
            # JSON's escapes are Lua's too, as long as all is ASCII.
            assert part.isascii()
            terms.append(json.dumps(part))
        else:
            name, digits = part
            terms.append(f'format("%0{digits}x", {name})' if digits else name)
    return " .. ".join(terms) or '""'


_DONE = """
done = function(summary, latency)
  local e, seconds = summary.errors, summary.duration / 1e6
  print(string.format(
    '{"sent": %d, "seconds": %f, "per_s": %f, "p50_ms": %f, "p99_ms": %f, "max_ms": %f, "errors": %d}',
    summary.requests, seconds, summary.requests / seconds, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""
