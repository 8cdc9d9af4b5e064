"""script/flask: a command beside the demo has the demo's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from script import demo_command
from script.bootstrap import Trouble


def test_without_a_demo_the_command_says_what_to_do_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_command, "VAR", tmp_path)
    with pytest.raises(Trouble, match="run script/server first"):
        demo_command.main(["db-upgrade"])


def test_the_command_never_talks_to_the_real_helpdesk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(demo_command, "VAR", tmp_path)
    monkeypatch.setattr(demo_command, "set_up", lambda _: Path("/python"))
    monkeypatch.setattr("os.execve", lambda _, command, environment: became.update({" ".join(command): environment}))
    (tmp_path / "demo-port").write_text("8123")
    demo_command.main(["keys", "rotate", "connection"])
    ((command, environment),) = became.items()
    assert command.endswith("app.py keys rotate connection")
    assert environment["GORGIAS_URL"] == "http://localhost:8124/{account}"
    assert environment["PUBLIC_URL"] == "http://localhost:8123"
