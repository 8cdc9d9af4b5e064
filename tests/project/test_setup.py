"""The set-up shared by script/server and script/test: done once, repaired when interrupted, plain about
trouble.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from script import bootstrap
from script.bootstrap import ROOT, Trouble, in_words, is_set_up, set_up

NAME = "requirements.txt"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder, with a blank in its name, whose requirement file asks for nothing."""
    folder = tmp_path / "my checkout"
    folder.mkdir()
    (folder / NAME).write_text("# nothing\n")
    return folder


def quietly(_line: str) -> None:
    pass


def start_another(checkout: Path) -> subprocess.Popen[str]:
    """The set-up of `checkout` in a process of its own."""
    code = "import sys, pathlib, script.bootstrap as b; b.set_up([sys.argv[1]], pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, NAME, str(checkout)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_starts_at_once_make_one_environment_and_the_next_start_finds_nothing_to_do(
    checkout: Path,
) -> None:
    both = [start_another(checkout), start_another(checkout)]
    said = [process.communicate(timeout=100)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sum("Making a virtual environment" in text for text in said) == 1
    lines: list[str] = []
    python = set_up([NAME], checkout, lines.append)
    assert lines == []
    assert subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0


def test_an_environment_in_which_a_set_up_was_killed_is_made_anew(checkout: Path) -> None:
    venv = checkout / ".venv"
    venv.mkdir()
    (venv / "unfinished").touch()
    (venv / "left behind").touch()

    lines: list[str] = []
    set_up([NAME], checkout, lines.append)

    assert any("not complete" in line for line in lines)
    assert not (venv / "left behind").exists()
    assert is_set_up(venv, [NAME], checkout)


def wheel(folder: Path, name: str, version: str, *, requires: str = "") -> str:
    """A package with nothing in it, written to `folder`; its line in a requirement file."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: more\n{needs}",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_what_is_pinned_is_installed_although_a_newer_release_of_it_has_come_out(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = wheel(tmp_path, "tallydesk_user", "1.0", requires="tallydesk-used[more]>=1.0")
    used = wheel(tmp_path, "tallydesk_used", "1.0")
    wheel(tmp_path, "tallydesk_used", "1.1")
    (checkout / NAME).write_text(user + used)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    python = set_up([NAME], checkout, quietly)

    shown = subprocess.run([python, "-m", "pip", "show", "tallydesk-used"], check=True, capture_output=True, text=True)
    assert "Version: 1.0\n" in shown.stdout


def made_up_environment(checkout: Path, interpreter: Path) -> Path:
    """What set_up leaves behind, without the minute that it takes."""
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    interpreter.touch()
    (venv / "bin" / "python").symlink_to(interpreter)
    (venv / f"{NAME}.stamp").write_text(bootstrap._fingerprint(venv, checkout / NAME))
    assert is_set_up(venv, [NAME], checkout)
    return venv


def change_a_requirement(checkout: Path) -> None:
    (checkout / NAME).write_text("# something else\n")


def remove_the_interpreter(checkout: Path) -> None:
    (checkout / "python3.11").unlink()


def upgrade_the_interpreter(checkout: Path) -> None:
    (checkout / "python3.13").touch()
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(checkout / "python3.13")


def interrupt_the_next_set_up(checkout: Path) -> None:
    (checkout / ".venv" / "unfinished").touch()


def lose_the_stamp(checkout: Path) -> None:
    (checkout / ".venv" / f"{NAME}.stamp").unlink()


@pytest.mark.parametrize(
    "happens",
    [
        change_a_requirement,
        remove_the_interpreter,
        upgrade_the_interpreter,
        interrupt_the_next_set_up,
        lose_the_stamp,
    ],
)
def test_the_set_up_is_done_again_when(happens: Callable[[Path], None], checkout: Path) -> None:
    venv = made_up_environment(checkout, checkout / "python3.11")
    happens(checkout)
    assert not is_set_up(venv, [NAME], checkout)


def test_a_moved_checkout_is_set_up_again(checkout: Path, tmp_path: Path) -> None:
    made_up_environment(checkout, tmp_path / "python3.11")
    moved = checkout.rename(tmp_path / "elsewhere")
    assert not is_set_up(moved / ".venv", [NAME], moved)


def test_without_a_network_one_sentence_says_so_and_the_environment_stays_usable(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up([NAME], checkout, quietly)
    (checkout / NAME).write_text(f"flask==3.1.3 --hash=sha256:{'0' * 64}\n")
    # Nothing listens on port 1, so this is how an index that cannot be reached looks.
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/")
    monkeypatch.setenv("PIP_RETRIES", "0")

    with pytest.raises(Trouble, match="check the network"):
        set_up([NAME], checkout, quietly)

    assert not is_set_up(checkout / ".venv", [NAME], checkout)
    (checkout / NAME).write_text("# nothing\n")
    lines: list[str] = []
    set_up([NAME], checkout, lines.append)
    assert not any("Making" in line for line in lines)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "make it writable"),
        (errno.EROFS, "make it writable"),
        (errno.ENOSPC, "make room"),
        (errno.EISDIR, "Put that right"),
    ],
)
def test_an_error_of_the_operating_system_becomes_one_sentence(number: int, advice: str) -> None:
    sentence = in_words(OSError(number, os.strerror(number), "var/log"))
    assert advice in sentence
    assert "\n" not in sentence


def test_trouble_reaches_the_terminal_as_one_line_and_not_as_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "def main(arguments):\n    raise PermissionError(13, 'Permission denied', 'var')\n"
    )
    code = "from script.bootstrap import start; start('broken')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == "'var' cannot be written to: make it writable for this user, or clone the project elsewhere.\n"
    )


@pytest.mark.parametrize("name", ["server", "test", "lock", "bootstrap.py"])
def test_an_old_python_can_read_far_enough_to_say_that_it_is_too_old(name: str) -> None:
    ast.parse((ROOT / "script" / name).read_text(), feature_version=(3, 7))


def test_a_python_that_is_too_old_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as stopped:
        bootstrap.start("script.serve")
    assert (
        str(stopped.value)
        == "Tallydesk needs Python 3.11 or newer, and this is 3.9: install it (apt-get install python3)."
    )


@pytest.mark.parametrize(
    "name",
    ["script/server", "script/test", "script/lock", "script/flask", "script/reliability", "script/bench", ".ci/run"],
)
def test_every_command_can_be_run(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)


def test_a_missing_part_of_python_is_named_with_the_command_that_installs_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian keeps ensurepip in a package of its own. Without apt-get on the PATH nothing is installed here."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Trouble, match="run `sudo apt-get install python3-venv`, then this again"):
        set_up([NAME], checkout, quietly)
