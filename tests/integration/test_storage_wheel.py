"""The tables' migrations travel with the package: a wheel, unpacked somewhere else, makes a study database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.storage_helpers import ROOT

OPEN_A_STUDY = """
import sys
import mergesearch
from mergesearch.storage import StudyRecord, StudyStore
assert mergesearch.__file__.startswith(sys.argv[1]), mergesearch.__file__
StudyStore.open(f"sqlite:///{sys.argv[1]}/study.db", "s", StudyRecord("s", {}), exclusive=True).close()
"""


def test_an_installed_wheel_creates_its_tables(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools", reason="setuptools is needed to build a wheel")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is too old to build a wheel, 77 is needed")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "mergesearch", source / "mergesearch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "installed"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    done = subprocess.run(
        [sys.executable, "-c", OPEN_A_STUDY, str(installed)],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
