"""The set-up that script/server, script/test and script/lock share: Python, environment, dependencies.

Standard library only, and the syntax of Python 3.7: this is read before the version of Python is known.
Everything that can go wrong ends in one plain sentence that says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NoReturn, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
VAR = ROOT / "var"
OLDEST = (3, 11)

# What pip prints when it could not reach its index, in any of the ways a network can be missing.
_NO_NETWORK = (
    "(from versions: none)",  # the end of it when pip did not even say that it tries again
    "NewConnectionError",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
    "ConnectTimeout",
    "ReadTimeout",
    "Read timed out",
    "ProxyError",
    "ProtocolError",
    "SSLError",
)


class Trouble(Exception):
    """Something a person has to put right; its text is the sentence that tells them."""


def say(text: str) -> None:
    """One line for the person at the terminal, at once even when the output is a pipe."""
    print(text, flush=True)


def start(module: str) -> NoReturn:
    """Run `main(arguments)` of `module` under a Python that is new enough, and exit with what it returns.

    What is expected to go wrong exits with 1 and one sentence on standard error; an interruption with 130.
    """
    try:
        if sys.version_info < OLDEST:
            _continue_with_a_newer_python()
        signal.signal(signal.SIGTERM, _interrupt)  # so that a stop also ends what this process started
        sys.exit(importlib.import_module(module).main(sys.argv[1:]))
    except Trouble as trouble:
        sys.exit(str(trouble))
    except OSError as error:
        sys.exit(in_words(error))
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped before the end; the next start puts right what is unfinished.\n")
        sys.exit(130)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _continue_with_a_newer_python() -> NoReturn:
    """Replace this process by the same command under the newest Python on the PATH, or raise Trouble."""
    for minor in range(OLDEST[1] + 9, OLDEST[1] - 1, -1):
        newer = shutil.which("python3.%d" % minor)
        if newer:
            os.execv(newer, [newer, *sys.argv])  # noqa: S606 (no shell is wanted)
    raise Trouble(
        "Tallydesk needs Python %d.%d or newer, and this is %d.%d: install it (apt-get install python3)."
        % (OLDEST + tuple(sys.version_info[:2]))
    )


def in_words(error: OSError) -> str:
    """One sentence about an error of the operating system, with what to do about it."""
    where = "'%s'" % error.filename if error.filename else "The folder %s" % ROOT
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "%s cannot be written to: make it writable for this user, or clone the project elsewhere." % where
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full: make room (the project needs about 1 GB) and run this again."
    return "%s: %s. Put that right and run this again." % (where, error.strerror or error)


def python_of(venv: Path) -> Path:
    """An environment's interpreter. Its modules run with -m: its scripts break in a folder with blanks."""
    return venv / "bin" / "python"


def set_up(requirements: Sequence[str], root: Path = ROOT, tell: Callable[[str], None] = say) -> Path:
    """Make sure that `root`/.venv has every package of the named requirement files; return its interpreter.

    Takes milliseconds when nothing is to be done. May be interrupted at any point and may run twice at once:
    a stamp per file is written last, an environment that was left half-made is made anew, and one process at
    a time works on it. Raises Trouble.
    """
    venv = root / ".venv"
    if is_set_up(venv, requirements, root):
        return python_of(venv)
    log = root / "var" / "log" / "setup.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with _alone(root / "var" / "setup.lock", tell) as lock:
        if not is_set_up(venv, requirements, root):
            log.write_bytes(b"")
            _make(venv, requirements, root, log, lock, tell)
    return python_of(venv)


def is_set_up(venv: Path, requirements: Sequence[str], root: Path) -> bool:
    """Whether every stamp matches its requirement file and the interpreter is still there."""
    if _unfinished(venv).exists() or not python_of(venv).exists():
        return False
    try:
        return all(_stamp(venv, name).read_text() == _fingerprint(venv, root / name) for name in requirements)
    except OSError:
        return False


def _stamp(venv: Path, name: str) -> Path:
    return venv / (name + ".stamp")


def _unfinished(venv: Path) -> Path:
    return venv / "unfinished"


def _fingerprint(venv: Path, requirements: Path) -> str:
    """The pinned packages, the interpreter (its real name has the version), and where it all stands."""
    interpreter = os.path.realpath(str(python_of(venv)))
    return hashlib.sha256(requirements.read_bytes() + ("\0%s\0%s" % (interpreter, venv)).encode()).hexdigest()


@contextlib.contextmanager
def _alone(path: Path, tell: Callable[[str], None]) -> Iterator[int]:
    """Hold a lock on `path`; yields its descriptor for pip, which keeps it if this process is killed."""
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("Another start is setting up this folder; waiting for it …")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


def _make(
    venv: Path, requirements: Sequence[str], root: Path, log: Path, lock: int, tell: Callable[[str], None]
) -> None:
    python = python_of(venv)
    for name in requirements:
        with contextlib.suppress(FileNotFoundError):
            _stamp(venv, name).unlink()
    # Either a process was killed in here, or the Python underneath was upgraded away and pip with it.
    if _unfinished(venv).exists() or run([str(python), "-m", "pip", "--version"], log, lock) != 0:
        if venv.exists():
            tell("Removing a virtual environment that is not complete …")
            shutil.rmtree(str(venv))
        _have_ensurepip(log, tell)
        tell("Making a virtual environment …")
        venv.mkdir()
        _unfinished(venv).touch()
        if run([sys.executable, "-m", "venv", str(venv)], log, lock) != 0:
            raise Trouble(_why_it_failed("Making the virtual environment", log))
    else:
        _unfinished(venv).touch()
    tell("Installing dependencies (the first time takes about a minute) …")
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        # The files name every package there is. Left to look for itself, pip before 23.3 takes the newest release of
        # what a package asks for with an extra, and then refuses it for want of a hash.
        "--no-deps",
        "--require-hashes",
        "--no-input",
        "--disable-pip-version-check",
    ]
    for name in requirements:
        install += ["-r", str(root / name)]
    failed = run(install, log, lock) != 0
    # A pip that could not even download has changed nothing. One that failed later, on a full disk for
    # example, may leave truncated files that the next pip takes for installed.
    if not failed or "Installing collected packages" not in log.read_text(errors="replace"):
        _unfinished(venv).unlink()
    if failed:
        raise Trouble(_why_it_failed("Installing the dependencies", log))
    for name in requirements:
        _stamp(venv, name).write_text(_fingerprint(venv, root / name))


def _have_ensurepip(log: Path, tell: Callable[[str], None]) -> None:
    """Debian keeps the part of Python that makes virtual environments in a package of its own."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return
    install_packages(["python3-venv"], "Python cannot make virtual environments here", log, tell)
    importlib.invalidate_caches()
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise Trouble("%s cannot make virtual environments: install its venv and ensurepip modules." % sys.executable)


def install_packages(packages: List[str], why: str, log: Path, tell: Callable[[str], None] = say) -> None:
    """Install Debian packages when this is root; else raise Trouble with the command to type."""
    names = " ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Trouble("%s: run `sudo apt-get install %s`, then this again." % (why, names))
    tell("Installing %s with apt-get …" % names)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    # The list of packages is absent from a fresh image; a mirror that is down does not matter while the
    # package is known.
    run(["apt-get", "update"], log, environment=environment)
    if run(["apt-get", "install", "-y", "--no-install-recommends", *packages], log, environment=environment) != 0:
        raise Trouble("%s, and `apt-get install %s` failed: %s has the reason." % (why, names, log))


def run(
    command: Sequence[str],
    log: Path,
    keep_open: Optional[int] = None,
    environment: Optional[Dict[str, str]] = None,
) -> int:
    """Run `command`, its output at the end of `log`. Returns its exit code; 127 for an unknown program."""
    with log.open("ab") as output:
        try:
            return subprocess.run(
                list(command),
                cwd=str(ROOT),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=() if keep_open is None else (keep_open,),
                check=False,
            ).returncode
        except FileNotFoundError:
            return 127


def last_lines(log: Path, count: int) -> List[str]:
    """The last `count` lines of a log that say something."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]


def _why_it_failed(what: str, log: Path) -> str:
    """One sentence for what pip or venv wrote into `log`."""
    output = log.read_text(errors="replace")
    if "No space left on device" in output:
        return in_words(OSError(errno.ENOSPC, ""))
    if "DO NOT MATCH THE HASHES" in output:
        return "A downloaded package is not the one that is pinned: run `pip cache purge`, then this again."
    if any(sign in output for sign in _NO_NETWORK):
        return "The dependencies could not be downloaded: check the network (or the proxy) and run this again."
    if "Permission denied" in output or "Read-only file system" in output:
        return in_words(OSError(errno.EACCES, ""))
    return "%s failed: %s. All of it is in %s." % (what, "".join(last_lines(log, 1)).rstrip("."), log)
