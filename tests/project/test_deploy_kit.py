"""The files for each platform name the same settings, start the same processes, and bring along what runs.

No engine that would build the image or create the apps is at hand in the tests: what is compared here is what the files
say, and whether the files that go into the image are enough to run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings
from script.bootstrap import ROOT
from tests.cli.command import environment

KNOWN = set(settings._Environment().fields)
WEB = ["gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"]
WORKER, RELEASE = ["flask", "worker"], ["flask", "db-upgrade"]


def required() -> set[str]:
    """The settings without which Tallydesk does not start outside a laptop, as it says itself."""
    with pytest.raises(settings.SettingsError) as refused:
        settings.load({"PUBLIC_URL": "https://loyalty.example.com"}, var=ROOT / "var")
    return {"PUBLIC_URL", *(fault.split(" ")[0] for fault in refused.value.faults)}


def read(name: str) -> Any:
    text = (ROOT / name).read_text()
    return {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}[name.rpartition(".")[2]](text)


def named_in_app_json() -> dict[str, set[str]]:
    app = read("app.json")
    given = {f"{addon['as']}_URL" for addon in app["addons"] if addon["plan"].startswith("heroku-postgresql:")}
    return {"app": set(app["env"]) | given}


def named_in_render() -> dict[str, set[str]]:
    blueprint = read("render.yaml")
    groups = {group["name"]: {entry["key"] for entry in group["envVars"]} for group in blueprint["envVarGroups"]}
    return {
        service["name"]: set().union(
            *({entry["key"]} if "key" in entry else groups[entry["fromGroup"]] for entry in service["envVars"])
        )
        for service in blueprint["services"]
    }


def named_in_fly() -> dict[str, set[str]]:
    text = (ROOT / "fly.toml").read_text()
    (secrets,) = re.findall(r"fly secrets set (.*)", text)
    attached = set(re.findall(r"sets (DATABASE_URL)", text))
    return {"app": {*read("fly.toml")["env"], *re.findall(r"([A-Z_]+)=", secrets), *attached}}


def named_in_compose() -> dict[str, set[str]]:
    services = read("compose.yaml")["services"]
    return {name: set(service["environment"]) for name, service in services.items() if name != "database"}


KITS = {
    "app.json": named_in_app_json,
    "render.yaml": named_in_render,
    "fly.toml": named_in_fly,
    "compose.yaml": named_in_compose,
}


@pytest.mark.parametrize("kit", KITS)
def test_every_kit_names_the_same_settings_for_each_of_its_processes(kit: str) -> None:
    """What must be set, where the data lives, and what keeps /metrics to the operator; all else has a default."""
    expected = required() | {"DATABASE_URL", "METRICS_TOKEN"}
    assert len(expected) == 7
    processes = KITS[kit]()
    assert processes
    for process, named in processes.items():
        assert named - {"PORT"} == expected, f"{kit}, {process}"
        assert named <= KNOWN


@pytest.mark.parametrize("kit", KITS)
def test_no_kit_holds_a_secret(kit: str) -> None:
    text = (ROOT / kit).read_text()
    for name in ("SECRET_KEY", "ENCRYPTION_KEYS", "GORGIAS_CLIENT_SECRET", "METRICS_TOKEN"):
        assert re.findall(rf"{name}\s*[=:]\s*\"?[A-Za-z0-9_-]{{16,}}", text) == []


def test_the_services_of_a_kit_share_their_generated_secrets() -> None:
    """Two processes with keys of their own could not read what the other one sealed."""
    blueprint = read("render.yaml")
    generated = [e["key"] for group in blueprint["envVarGroups"] for e in group["envVars"] if e.get("generateValue")]
    assert set(generated) == {"SECRET_KEY", "ENCRYPTION_KEYS", "METRICS_TOKEN"}
    for service in blueprint["services"]:
        assert not [entry for entry in service["envVars"] if entry.get("generateValue")]
    web, worker = blueprint["services"]
    (database,) = blueprint["databases"]
    for entry in worker["envVars"]:
        if source := entry.get("fromService"):
            assert (source["type"], source["name"], source["envVarKey"]) == ("web", web["name"], entry["key"])
    assert {e["fromDatabase"]["name"] for s in (web, worker) for e in s["envVars"] if "fromDatabase" in e} == {
        database["name"]
    }


def test_what_platforms_generate_is_taken(tmp_path: Path) -> None:
    """Heroku makes 64 hexadecimal digits, Render base64 of 256 bits with + and /, which Fernet does not write."""
    standard = "+/".join(["Zmlyc3Qga2V5IG9mIHRoZSB0ZXN0"] * 2)[:43] + "="
    taken = settings.load(
        {
            "PUBLIC_URL": "https://loyalty.example.com",
            "SECRET_KEY": "0123456789abcdef" * 4,
            "ENCRYPTION_KEYS": standard,
            "GORGIAS_CLIENT_ID": "client",
            "GORGIAS_CLIENT_SECRET": "secret",
            "METRICS_TOKEN": standard,
        },
        var=tmp_path,
    )
    assert taken.encryption_keys == (standard.replace("+", "-").replace("/", "_"),)


def test_every_kit_starts_the_processes_of_the_procfile() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    procfile = {name: shlex.split(command) for name, command in (line.split(": ", 1) for line in lines)}
    assert procfile == {"release": RELEASE, "web": WEB, "worker": WORKER}

    fly = read("fly.toml")
    assert {name: shlex.split(command) for name, command in fly["processes"].items()} == {"web": WEB, "worker": WORKER}
    assert shlex.split(fly["deploy"]["release_command"]) == RELEASE
    assert fly["http_service"]["processes"] == ["web"]
    assert str(fly["http_service"]["internal_port"]) == fly["env"]["PORT"]

    web, worker = read("render.yaml")["services"]
    assert (web["type"], shlex.split(web["startCommand"]), shlex.split(web["preDeployCommand"])) == (
        "web",
        WEB,
        RELEASE,
    )
    assert (worker["type"], shlex.split(worker["startCommand"])) == ("worker", WORKER)

    services = read("compose.yaml")["services"]
    assert set(services) == {"database", "release", "web", "worker"}
    assert (services["release"]["command"], services["worker"]["command"]) == (RELEASE, WORKER)
    assert "command" not in services["web"], "the image's own"
    for name in ("web", "worker"):
        assert services[name]["depends_on"]["release"]["condition"] == "service_completed_successfully"

    assert set(read("app.json")["formation"]) == {"web", "worker"}
    last = (ROOT / "Dockerfile").read_text().strip().splitlines()[-1]
    assert json.loads(last.removeprefix("CMD ")) == WEB, "without a shell, so that SIGTERM arrives"


def test_health_checks_ask_for_routes_that_there_are(tmp_path: Path) -> None:
    assert read("fly.toml")["http_service"]["checks"][0]["path"] == "/readyz"
    assert read("render.yaml")["services"][0]["healthCheckPath"] == "/healthz"
    assert "/healthz'" in (ROOT / "Dockerfile").read_text()
    rules = (ROOT / "app.py").read_text()
    assert '"/healthz"' in rules
    assert '"/readyz"' in rules


def test_everyone_uses_the_python_of_the_project() -> None:
    version = (ROOT / ".python-version").read_text().strip()
    assert f'requires-python = ">={version}"' in (ROOT / "pyproject.toml").read_text()
    bases = re.findall(r"(?m)^FROM (\S+)", (ROOT / "Dockerfile").read_text())
    assert set(bases) == {f"python:{version}-slim-bookworm"}


def test_the_image_runs_as_nobody_special_and_installs_only_what_is_pinned() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.index("\nUSER tallydesk\n") < text.index("\nCMD ")
    assert "\nUSER root" not in text
    assert '"--no-deps", "--require-hashes", "-r", "/tmp/requirements.txt"' in text
    for source in re.findall(r"(?m)^COPY (?!--from)(\S+) ", text):
        assert source == "." or (ROOT / source).exists()


def in_the_image(path: Path) -> bool:
    """Whether `.dockerignore` lets a file through; its patterns are plain, and the last one that fits counts."""
    taken = True
    relative = path.relative_to(ROOT)
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        takes, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        anywhere = pattern.startswith("**/")
        parts = relative.parts if anywhere else relative.parts[:1]
        if any(fnmatch(part, pattern.removeprefix("**/")) for part in parts):
            taken = takes
    return taken


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the image holds, and nothing else."""
    folder = tmp_path_factory.mktemp("image")
    for top in ROOT.iterdir():
        if top.name.startswith(".") or top.name in ("var", "node_modules"):
            assert not in_the_image(top), top
            continue
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and in_the_image(path):
                target = folder / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return folder


def test_the_image_holds_no_tests_no_sandbox_and_nothing_private(image: Path) -> None:
    held = {path.name for path in image.iterdir()}
    assert {"app.py", "gunicorn.conf.py", "requirements.txt", "console", "storage"} <= held
    assert held & {"tests", "sandbox", "script", "docs", "demo", "var", ".env", ".git", ".venv"} == set()


def test_what_is_in_the_image_runs(image: Path, tmp_path: Path) -> None:
    env = environment(
        f"sqlite:///{tmp_path / 'tallydesk.db'}",
        PUBLIC_URL="https://loyalty.example.com",
        GORGIAS_URL="https://{account}.gorgias.com",
        GORGIAS_CLIENT_SECRET="a client secret",
    )
    bin_ = Path(sys.executable).parent
    for command in (RELEASE, ["flask", "ledger", "verify"], [*WEB, "--check-config"]):
        done = subprocess.run(
            [str(bin_ / command[0]), *command[1:]], cwd=image, env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert os.environ.get("PYTHONPATH") is None, "what was imported is what is in the folder"
