"""Nothing is left out of the pages: settings, commands, decisions, pictures, and the pages themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

import settings
from script.bootstrap import ROOT
from tests.project.pages import links, pages
from tests.project.test_docs import flask_commands

DOCS = ROOT / "docs"
OPERATOR_GUIDE = DOCS / "running.md"
DECISIONS = DOCS / "decisions"
IMAGES = DOCS / "images"


def test_the_operator_guide_has_a_row_for_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"(?m)^\| `([A-Z_]+)` \| ([^|]*) \|", OPERATOR_GUIDE.read_text(encoding="utf-8")))
    fields = settings._Environment().fields
    assert sorted(rows) == sorted(fields)
    for name, told in rows.items():
        default = fields[name].load_default
        if default != "":
            assert told == f"`{default}`", name


def test_what_a_setting_is_required_for_is_told_as_it_is(tmp_path: Path) -> None:
    """The rows that say **required** are those without which a real deployment does not start."""
    told = re.findall(r"(?m)^\| `([A-Z_]+)` \|[^|]*\| \*\*required\*\*", OPERATOR_GUIDE.read_text(encoding="utf-8"))
    try:
        settings.load({"PUBLIC_URL": "https://loyalty.example.com"}, var=tmp_path)
    except settings.SettingsError as error:
        asked = {fault.split()[0] for fault in error.faults}
    assert set(told) == asked | {"PUBLIC_URL"}


def _leaves(group: click.Group, words: tuple[str, ...] = ("flask",)) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, (*words, name))
        else:
            yield " ".join((*words, name))


def test_the_operator_guide_names_every_command() -> None:
    text = OPERATOR_GUIDE.read_text(encoding="utf-8")
    table = text[text.index("\n## Commands\n") :]
    assert [command for command in _leaves(flask_commands()) if f"`{command}" not in table] == []


def test_the_decisions_are_numbered_without_gaps_and_all_are_in_the_index() -> None:
    files = sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))
    assert [int(name[:4]) for name in files] == list(range(1, len(files) + 1))
    for name in files:
        title = (DECISIONS / name).read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# {int(name[:4])}. "), name
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\d+\. \[[^\]]+\]\(([^)]+)\)", index) == files


def test_every_page_is_reached_from_the_index_of_the_documentation() -> None:
    index = DOCS / "README.md"
    reached = {(DOCS / link.partition("#")[0]).resolve() for link in links(index.read_text(encoding="utf-8"))}
    expected = {path.resolve() for path in DOCS.glob("*.md")} - {index.resolve()} | {DECISIONS / "README.md"}
    assert sorted(str(path.relative_to(ROOT)) for path in expected - reached) == []


def test_every_picture_is_taken_by_a_browser_test_and_shown_on_a_page() -> None:
    """UPDATE_SCREENSHOTS=1 script/test tests/browser takes them all anew."""
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "browser").glob("test_*.py"))
    taken = set(re.findall(r'keep_picture\(\s*"([\w-]+)"', tests))
    shown = set()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        shown |= {name for link in links(text) for name in re.findall(r"images/([\w-]+)\.png$", link)}
    assert sorted(path.stem for path in IMAGES.iterdir()) == sorted(taken)
    assert shown == taken


def test_the_page_of_the_house_names_every_room() -> None:
    """Those that hold Python, without what only tests and sets up."""
    text = (DOCS / "house.md").read_text(encoding="utf-8")
    modules = {path.name for path in ROOT.glob("*.py")} - {"gunicorn.conf.py"}
    rooms = {f"{path.name}/" for path in ROOT.iterdir() if (path / "__init__.py").exists() and path.name != "script"}
    assert sorted(name for name in modules | rooms if not re.search(rf"(?m)(^|\s){re.escape(name)}", text)) == []
