"""docs/adding-a-program.md, followed to the letter in a copy of the house."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from script.bootstrap import ROOT
from tests.project.pages import apply_change, named_files

# Neither of the code nor read by its tests.
LEFT_OUT = (".git", ".venv", "var", "images", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis", ".coverage*")


def test_whoever_follows_the_page_has_a_program_that_keeps_the_contract_and_works_in_the_house(tmp_path: Path) -> None:
    copy = tmp_path / "house"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    files = named_files((ROOT / "docs" / "adding-a-program.md").read_text(encoding="utf-8"))
    for file in files:
        target = copy / file.path
        if file.language == "diff":
            target.write_text(apply_change(target.read_text(encoding="utf-8"), file.text), encoding="utf-8")
            continue
        assert not target.exists(), f"{file.path} exists already"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.text, encoding="utf-8")
    code = sorted({file.path for file in files if file.path.endswith(".py")})
    assert "loyalty/punchcard.py" in code

    run = [sys.executable, "-m"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for name in [name for name in environment if name.startswith(("PYTEST_", "COV_"))]:
        del environment[name]
    for command in (
        [*run, "ruff", "check", "--no-cache", *code],
        [*run, "ruff", "format", "--no-cache", "--diff", *code],
        [*run, "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/punchcard",
         "tests/contract/test_punchcard_contract.py", "tests/project/test_floors.py",
         "tests/project/test_docs_complete.py::test_the_operator_guide_has_a_row_for_every_setting_with_its_default"],
    ):  # fmt: skip
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
