"""What README and CONTRIBUTING show is what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import mergesearch
from mergesearch.cli import cli
from mergesearch.study_checks import check_file
from mergesearch.study_file import parse_study_text

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/search.md",
    "docs/racing.md",
    "docs/speed.md",
    "docs/memory.md",
    "docs/cluster.md",
    "docs/deploy.md",
    "docs/reliability.md",
    "docs/scale.md",
    "docs/report.md",
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_no_figure_is_still_to_be_filled_in(page: str) -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|TBD|^[A-Z]{4,}$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_command_shown_is_a_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^mergesearch ([a-z-]+) ", readme, flags=re.MULTILINE))
    assert {"validate", "plan", "run", "status", "best", "evaluate", "export", "dashboard"} <= shown
    assert shown <= set(cli.commands)


def test_every_call_on_the_page_of_clusters_is_one_that_the_program_takes() -> None:
    calls = [line.partition("#")[0] for block in blocks("docs/cluster.md", "") for line in block.splitlines()]
    calls = [call for call in calls if call.startswith("mergesearch ")]
    assert len(calls) >= 15
    for call in calls:
        command: click.Command = cli
        context = None
        name, *rest = shlex.split(call)
        while isinstance(command, click.Group):
            context = command.make_context(name, rest, parent=context)
            name, resolved, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert resolved is not None, call
            command = resolved
        command.make_context(name, rest, parent=context)


def test_the_study_in_the_readme_is_valid() -> None:
    (text,) = blocks("README.md", "yaml")
    check_file(parse_study_text(text, Path("README.yaml")))


def test_the_python_in_the_readme_names_what_is_exported() -> None:
    used = set(re.findall(r"\bms\.([A-Za-z_]+)", "\n".join(blocks("README.md", "python"))))
    assert used
    assert used <= set(mergesearch.__all__)


def test_every_study_shown_exists() -> None:
    named = set(re.findall(r"`(studies/[a-z0-9-]+\.yaml)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named == {f"studies/{p.name}" for p in (ROOT / "studies").glob("*.yaml")}


def test_the_page_of_methods_is_current() -> None:
    from mergesearch.merging.table import methods_page

    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == methods_page(), "run `mergesearch methods --format markdown > docs/methods.md`"


def test_the_method_in_contributing_merges(tmp_path: Path) -> None:
    import torch

    from mergesearch.merging.registry import METHODS

    (text,) = blocks("CONTRIBUTING.md", "python")
    file = tmp_path / "larger_by_magnitude.py"
    file.write_text(text, encoding="utf-8")
    try:
        # A real module, because annotations are resolved in the module that a kernel comes from.
        import importlib.util
        import sys

        spec = importlib.util.spec_from_file_location("larger_by_magnitude", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["larger_by_magnitude"] = module
        spec.loader.exec_module(module)
        x, y = torch.tensor([1.0, -3.0]), torch.tensor([-2.0, 2.0])
        merged = METHODS["larger"].kernel([x, y], torch.empty(2), scale=2.0)
        assert merged.tolist() == [-4.0, -6.0]
    finally:
        METHODS.pop("larger", None)
        sys.modules.pop("larger_by_magnitude", None)
