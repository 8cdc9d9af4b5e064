"""The Markdown pages of the project, read as data: headings, links, blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from script.bootstrap import ROOT

_FENCE = re.compile(r"(?ms)^( *)```([a-z]*)\n(.*?)^\1```$")
# A line on its own that names a file in bold: what follows is its text, or a change to it.
_NAMED = re.compile(r"(?m)^\*\*`([^`]+)`\*\*[^\n]*\n\n```([a-z]+)\n((?s:.*?))^```$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: the language after its fence (may be empty), its text, and the line it begins in."""

    language: str
    text: str
    line: int


@dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A block under the bold name of a file. `language` is `diff` for a change to a file that exists."""

    path: str
    language: str
    text: str


def pages() -> list[Path]:
    """Every page of the project, those of its documentation and those beside the code."""
    folders = [ROOT, ROOT / "sandbox", ROOT / "deploy", *sorted(p for p in (ROOT / "docs").rglob("*") if p.is_dir())]
    found = [page for folder in (*folders, ROOT / "docs") if folder.is_dir() for page in sorted(folder.glob("*.md"))]
    return sorted(set(found))


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(language=found[2], text=found[3], line=line)


def prose(text: str) -> str:
    """A page without its fenced blocks and comments."""
    return re.sub(r"(?s)<!--.*?-->", "", _FENCE.sub("", text))


def code_spans(text: str) -> list[str]:
    """What stands in backticks, outside of blocks."""
    return [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def links(text: str) -> list[str]:
    """Where a page leads to within the project: links, pictures, and what HTML in it names."""
    outside = re.sub(r"`[^`\n]*`", "", prose(text))
    targets = [
        *re.findall(r"\]\(([^)\s]+)\)", outside),
        *re.findall(r'(?:src|srcset|href)="([^"]+)"', outside),
        *re.findall(r"(?m)^\[[^\]]+\]: +(\S+)", outside),
    ]
    return [unquote(target) for target in targets if not re.match(r"[a-z]+:", target)]


def named_files(text: str) -> list[NamedFile]:
    """The blocks that stand under the bold name of a file."""
    return [NamedFile(path=path, language=language, text=block) for path, language, block in _NAMED.findall(text)]


def anchors(text: str) -> set[str]:
    """What `#…` may lead to on a page: its headings, as GitHub spells them, and ids that are written out."""
    found: set[str] = set()
    for heading in re.findall(r"(?m)^#{1,6} +(.+?) *$", prose(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower().replace("`", "")).replace(" ", "-")
        number = 0
        while (candidate := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(candidate)
    return found | set(re.findall(r'\bid="([^"]+)"', text))


def apply_change(before: str, change: str) -> str:
    """`before` with a change applied: pieces between `@@` lines, each of which names lines that follow each other.

    Raises ValueError when the lines that a piece expects are not there, or are there more than once.
    """
    after = before
    for piece in re.split(r"(?m)^@@\n", change):
        lines = piece.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -\n")
        new = "".join(line[1:] for line in lines if line[0] in " +\n")
        places = [match.start() for match in re.finditer(f"(?m)^{re.escape(old)}", after)]
        if len(places) != 1:
            raise ValueError(f"found {len(places)} times instead of once:\n{old}")
        after = after[: places[0]] + new + after[places[0] + len(old) :]
    return after
