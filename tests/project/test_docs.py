"""What the pages say is there: links, files, commands, settings, routes. Each page is checked by itself."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pytest
from flask import Flask

import cli
import settings
from app import create_app
from script.bootstrap import ROOT
from services import build_services
from tests.project.pages import anchors, blocks, code_spans, links, named_files, pages

PAGES = [str(page.relative_to(ROOT)) for page in pages()]
SUFFIXES = ("py", "md", "toml", "yml", "yaml", "json", "txt", "in", "css", "html", "svg", "png", "mako", "js", "conf")
# Beside what is kept in the repository: what a running copy makes, and what a person names as they like.
MADE_ELSEWHERE = re.compile(r"(var|\.venv)(/|$)|.*\.(db|csv|env|new)$")
# Addresses of the counterparts and folders of a host, which look like routes of ours.
COUNTERPARTS = r"/(api|merchant_api|oauth/(token|authorize|revoke))/?"
HOST = r"/(app|data|dev|etc|home|mnt|opt|run|srv|tmp|usr|var)\b"


def broken_links(text: str, here: Path) -> list[str]:
    """Links of the page `here` that lead nowhere."""
    broken = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = here if not path else (here.parent / path).resolve()
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def missing_files(text: str, here: Path) -> list[str]:
    """Files and folders in backticks that are not there, or hold nothing of the name behind their colon."""
    made_here = {file.path for file in named_files(text)}
    missing = []
    for span in code_spans(text):
        path, _, symbol = span.partition(": ")
        named = re.fullmatch(rf"(?!/)[\w.\-/]+\.(?:{'|'.join(SUFFIXES)})|[\w\-]+(?:/[\w\-]+)*/", path)
        if not named or MADE_ELSEWHERE.match(path) or path in made_here:
            continue
        # From the root, beside the page, or a module whose room the page has named.
        places = [ROOT / path, here.parent / path, *([] if "/" in path else ROOT.glob(f"*/{path}"))]
        found = [place for place in places if place.exists()]
        if not any(not symbol or re.search(rf"\b{re.escape(symbol)}\b", place.read_text()) for place in found):
            missing.append(span)
    return missing


def wrong_commands(text: str, here: Path) -> list[str]:
    """Commands, in blocks and in sentences, that are not there or do not have their options; each with its fault."""
    made_here = {file.path for file in named_files(text)}
    return [
        f"{command}: {fault}"
        for command in _commands(text)
        if (fault := _fault_of(command, made_here=made_here)) is not None
    ]


def unknown_names(text: str, here: Path) -> list[str]:
    """Settings and constants that are neither settings nor anywhere in the code."""
    new = "\n".join(file.text for file in named_files(text))
    named = {span for span in code_spans(text) if re.fullmatch(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+", span)}
    unknown = named - set(settings._Environment().fields)
    return sorted(unknown - _constants() - set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", new)))


def unknown_metrics(text: str, here: Path) -> list[str]:
    """Metrics that nothing counts."""
    named = {name for span in code_spans(text) for name in re.findall(r"\btallydesk_[a-z_]+", span)}
    return sorted(name for name in named if re.sub(r"_(total|bucket|count|sum)$", "", name) not in _metrics())


def unknown_routes(text: str, here: Path) -> list[str]:
    """Routes that the front door does not have."""
    unknown = []
    for span in code_spans(text):
        found = re.fullmatch(r"(?:(?:GET|POST|OPTIONS) |PUBLIC_URL)?(/[a-z][\w\-/<>{}.*]*)(?:[?#].*)?", span)
        if found is None:
            continue
        asked = re.sub(r"<[^>]+>|\{[^}]+\}", "*", found[1])
        ours = asked in _routes() or f"{asked}/" in _routes()
        if not ours and not re.match(COUNTERPARTS, asked) and not re.match(HOST, asked):
            unknown.append(span)
    return unknown


CHECKS: list[Callable[[str, Path], list[str]]] = [
    broken_links,
    missing_files,
    wrong_commands,
    unknown_names,
    unknown_metrics,
    unknown_routes,
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("check", CHECKS)
def test_what_a_page_names_is_there(page: str, check: Callable[[str, Path], list[str]]) -> None:
    if check is unknown_routes and page.startswith("sandbox/"):
        return  # it tells the routes of Gorgias and Rivo
    assert check((ROOT / page).read_text(encoding="utf-8"), ROOT / page) == []


@pytest.mark.parametrize(
    ("check", "wrong", "right"),
    [
        (
            broken_links,
            "[a](nowhere.md) [b](house.md#no-such-heading)",
            "[a](house.md#a-lookup) [b](https://x.example)",
        ),
        (missing_files, "`loyalty/nowhere.py`, `loyalty/gate.py: no_such`", "`loyalty/gate.py: Gate`, `docs/`"),
        (wrong_commands, "`flask no-such`, `flask members import --no-such`", "`flask members import --connection 1`"),
        (
            wrong_commands,
            "```\nscript/no-such\nscript/reliability --no-such\n```",
            "```\nscript/reliability --table\n```",
        ),
        (unknown_names, "`NO_SUCH_SETTING` `SNAPSHOT_FRESH`", "`DATABASE_URL` `WEB_CONCURRENCY`"),
        (unknown_metrics, "`tallydesk_nothing` `tallydesk_neither`", "`sum(tallydesk_requests_total)`"),
        (unknown_routes, "`/no/such` `GET /widget/nobody?email=`", "`GET /widget/customer?email=` `/connections/<id>`"),
    ],
)
def test_a_fault_would_be_found(check: Callable[[str, Path], list[str]], wrong: str, right: str) -> None:
    here = ROOT / "docs" / "made-up.md"
    assert len(check(f"{wrong}\n", here)) == 2
    assert check(f"{right}\n", here) == []


def _commands(text: str) -> Iterator[str]:
    typed = [block.text.replace("\\\n", " ") for block in blocks(text) if block.language in ("", "sh", "console")]
    shown = [line.strip() for block in typed for line in block.splitlines()]
    for line in [*shown, *code_spans(text)]:
        command = re.sub(r"^(?:\$ )?(?:[A-Z_]+=\S+ +)*", "", line)
        if re.match(r"(?:\.venv/bin/)?(?:flask|gunicorn|script/[\w\-]+|python3? -m)\b", command):
            yield re.sub(r"(?<=\s)#.*", "", command).strip()


def _fault_of(command: str, *, made_here: set[str]) -> str | None:
    words = shlex.split(re.sub(r"[…\[\]]", " ", command))
    program = words[0].removeprefix(".venv/bin/")
    if program in ("flask", "script/flask"):
        return _fault_of_flask(words[1:])
    if program == "gunicorn":
        return None if (ROOT / words[words.index("-c") + 1]).exists() else "no such configuration"
    if program == "script/test":
        paths = [word.partition("::")[0] for word in words[1:] if word.startswith("tests/")]
        missing = [path for path in paths if not (ROOT / path).exists() and not any(path in new for new in made_here)]
        return f"no {missing}" if missing else None
    if program.startswith("script/"):
        if not (ROOT / program).exists():
            return "no such script"
        modules = re.findall(r'bootstrap\.start\("script\.(\w+)"\)', (ROOT / program).read_text())
        return _unknown_options(words[1:], ROOT / "script" / f"{modules[0]}.py") if modules else None
    if words[1:3] == ["-m", "sandbox"]:
        return _unknown_options(words[3:], ROOT / "sandbox" / "__main__.py")
    return None


@cache
def flask_commands() -> click.Group:
    """The commands, as `flask` finds them."""
    app = Flask("pages")
    cli.register(app)
    return app.cli


def _fault_of_flask(words: list[str]) -> str | None:
    found: click.Command = flask_commands()
    rest = list(words)
    while rest and isinstance(found, click.Group):
        inner = found.commands.get(rest[0])
        if inner is None:
            return f"no command {rest[0]}"
        found = inner
        del rest[0]
    if isinstance(found, click.Group):
        return None  # spoken of as a whole
    options = {"--help", *(name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts))}
    unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
    return f"no option {unknown}" if unknown else None


def _unknown_options(words: list[str], module: Path) -> str | None:
    source = module.read_text(encoding="utf-8")
    unknown = [word for word in words if word.startswith("--") and f'"{word.split("=")[0]}"' not in source]
    return f"no option {unknown}" if unknown else None


@cache
def _code() -> str:
    """The code, its tests and its scripts as one text."""
    tops = [path for path in ROOT.iterdir() if not path.name.startswith(".") and path.name != "var"]
    files = [file for top in tops for file in ([top] if top.suffix == ".py" else top.rglob("*.py"))]
    files.remove(Path(__file__))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def _constants() -> set[str]:
    return set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", _code()))


@cache
def _metrics() -> set[str]:
    return set(re.findall(r"\btallydesk_[a-z_]+\b", _code()))


@cache
def _routes() -> list[str]:
    """Every route of the front door, with `*` for its parts in angle brackets."""
    with TemporaryDirectory() as var:
        services = build_services(settings.load({}, var=Path(var)))
        rules = create_app(services).url_map.iter_rules()
        services.database.close()
    return [re.sub(r"<[^>]+>", "*", rule.rule) for rule in rules]
