"""What an installation holds: versions that fit together, every file, the `rllib` command."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rllib_calql

ROOT = Path(__file__).resolve().parents[1]
# Not tested together with the rest: see constraints.txt.
UNPINNED_EXTRAS = {"d4rl"}


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py says."""
    said: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", said.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return said


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_every_requirement_has_a_tested_version_in_its_range(metadata: dict[str, Any]) -> None:
    extras = metadata["extras_require"]
    groups = [extras[name] for name in extras.keys() - UNPINNED_EXTRAS]
    pins = constraints()
    for text in [*metadata["install_requires"], *(text for group in groups for text in group)]:
        requirement = Requirement(text)
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text}: constraints.txt has {version}"


def test_version_is_one(metadata: dict[str, Any]) -> None:
    assert metadata["version"] == rllib_calql.__version__
    latest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest is not None
    assert latest[1] == rllib_calql.__version__


def test_commands_exist(metadata: dict[str, Any]) -> None:
    scripts = dict(script.split(" = ") for script in metadata["entry_points"]["console_scripts"])
    assert scripts.keys() == {"calql", "rllib"}
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(import_module(module), function))


def test_calql_command_imports_ray_when_it_needs_it() -> None:
    lines = [
        "import sys",
        "sys.argv = ['/somewhere/bin/calql']",
        "import rllib_calql.cli.calql",
        "from rllib_calql.cli import data_check, data_convert, data_info",
        "print(*{'ray', 'torch'} & sys.modules.keys())",
        "rllib_calql.CalQLConfig",
        "from ray.tune.registry import get_trainable_cls",
        "print(get_trainable_cls('CalQL').__name__)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["", "CalQL"], done.stderr


def test_wheel_holds_everything(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("rllib_calql", "tuned_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", tmp_path, source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "rllib_calql").rglob("*.py")}
    assert modules <= held
    data = f"rllib_calql-{rllib_calql.__version__}.data/data/share/rllib_calql/tuned_configs"
    assert {f"{data}/{path.name}" for path in (ROOT / "tuned_configs").glob("*.yaml")} <= held
    assert any(name.endswith("/LICENSE") for name in held)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_test_is_what_ci_runs() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    plan = subprocess.run(
        ["make", "-n", "test", "VENV=elsewhere"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    steps = [
        "python3 -m venv elsewhere",
        f"elsewhere/bin/pip install torch=={constraints()['torch']}",
        "elsewhere/bin/pip install -c constraints.txt -e '.[docs,export,robotics,serve,dev]'",
        "elsewhere/bin/ruff check .",
        "elsewhere/bin/ruff format --check .",
        "elsewhere/bin/mypy",
        "NO_MKDOCS_2_WARNING=1 elsewhere/bin/mkdocs build",
        'elsewhere/bin/pytest -m "not slow"',
    ]
    lines = plan.splitlines()
    assert [line for line in lines if line in steps] == steps, plan
