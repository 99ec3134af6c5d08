"""What README, docs/ and CONTRIBUTING say is what there is; tests/integration/test_docs_commands.py runs it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import mergesearch
from mergesearch.cli import cli
from mergesearch.study_checks import check_file
from mergesearch.study_file import parse_study_text
from tests import docs_pages
from tests.docs_text import ROOT, USER_PAGES, blocks, read

PAGES = [*USER_PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]


@pytest.mark.parametrize("page", PAGES)
def test_no_figure_is_still_to_be_filled_in(page: str) -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|TBD|^[A-Z]{4,}$", read(page), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(page)):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[a-z]+\.md)", read("README.md")))
    assert {page for page in USER_PAGES if page != "README.md"} <= linked


def test_every_command_is_on_a_page() -> None:
    shown = set(re.findall(r"mergesearch ([a-z-]+)", "\n".join(map(read, USER_PAGES)))) | {"quickstart"}
    assert set(cli.commands) <= shown


@pytest.mark.parametrize("page", USER_PAGES)
def test_studies_on_pages_are_valid(page: str) -> None:
    """Whole ones as they are, and parts of one in the place of the same parts of the README's."""
    yaml = YAML(typ="safe")
    (whole,) = blocks("README.md", "yaml")
    for text in blocks(page, "yaml"):
        content = yaml.load(text)
        if "merge_method" in content:  # mergekit's
            continue
        study = content if "study" in content else yaml.load(whole) | content
        base = content.get("merge", {}).get("base")
        study["sources"] |= {base: "org/base"} if base else {}
        check_file(parse_study_text(json.dumps(study), Path(f"{page}.yaml")))


def test_the_study_on_the_page_of_exports_is_what_the_configuration_there_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergesearch.results.mergekit.importing import import_mergekit
    from tests.tiny_models import make_tiny, make_variant

    make_variant(make_tiny("llama", tmp_path / "retriever", n_layers=4), tmp_path / "domain", seed=1)
    monkeypatch.chdir(tmp_path)
    config, study = blocks("docs/export.md", "yaml")
    Path("merge.yml").write_text(config, encoding="utf-8")
    assert import_mergekit(Path("merge.yml"), collection="../data/nfcorpus").text == study
    check_file(parse_study_text(study, Path("study.yaml")))


def test_the_python_in_the_readme_names_what_is_exported() -> None:
    for page in ("README.md", "docs/python.md", "docs/evaluate.md"):
        used = set(re.findall(r"\bms\.([A-Za-z_]+)", "\n".join(blocks(page, "python"))))
        assert used
        assert used <= set(mergesearch.__all__)


def test_the_readme_begins_as_it_promises() -> None:
    (study,) = blocks("README.md", "yaml")
    assert len(study.splitlines()) <= 15
    assert len(re.findall(r"\.\s", read("README.md").split("\n\n")[1] + " ")) == 2


def test_types_know_every_name_that_is_exported() -> None:
    """What `__getattr__` gives is Any to them: each name is imported for them, too."""
    tree = ast.parse((ROOT / "mergesearch" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    imported = {a.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert imported == mergesearch._HOMES
    assert sorted(imported) == mergesearch.__all__


def test_all_that_is_exported_is_on_the_page_and_there() -> None:
    rows = [line.split("|")[1] for line in read("docs/python.md").splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`([A-Za-z_]+)", row)[: row.count("`, `") + 1]) == (
        mergesearch.__all__
    )
    assert all(getattr(mergesearch, name) is not None for name in mergesearch.__all__)


def test_the_python_page_keeps_its_promises() -> None:
    """Ten lines beside imports and blank ones; `make lint` holds the file to mypy --strict."""
    (block,) = blocks("docs/python.md", "python")
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    assert (ROOT / "tests" / "typed_example.py").read_text(encoding="utf-8").partition('"""\n\n')[2] == block
    assert (Path(mergesearch.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", docs_pages.PAGES)
def test_what_is_made_from_the_code_is_current(name: str) -> None:
    assert read(f"docs/{name}") == docs_pages.page(name), "run `python -m tests.docs_pages`"


def said() -> Iterator[str]:
    """Every text in the code, with … for what is put into it."""
    for file in (ROOT / "mergesearch").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)  # type: ignore[misc]


def test_the_messages_that_are_explained_are_ours() -> None:
    headings = re.findall(r"^### (.*)$", read("docs/faq.md"), re.MULTILINE)
    assert len(headings) >= 12
    texts = list(said())
    for heading in headings:
        assert re.fullmatch("`[^`]+`", heading), heading
        assert any(heading.strip("`") in text for text in texts), heading


def test_every_study_shown_exists() -> None:
    named = set(re.findall(r"`(studies/[a-z0-9-]+\.yaml)`", read("docs/examples.md")))
    assert named == {f"studies/{p.name}" for p in (ROOT / "studies").glob("*.yaml")}


def test_the_page_of_methods_is_current() -> None:
    from mergesearch.merging.table import methods_page

    assert read("docs/methods.md") == methods_page(), "run `mergesearch methods --format markdown > docs/methods.md`"


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


@pytest.mark.slow
def test_the_python_page_is_typed_throughout(tmp_path: Path) -> None:
    """No expression in it is Any, so mypy would find a wrong use; it does."""
    from mypy import api

    example = ROOT / "tests" / "typed_example.py"
    wrong = tmp_path / "wrong.py"
    wrong.write_text(example.read_text(encoding="utf-8").replace("choice.describe()", "choice.describe().number"))
    strict = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"), "--strict"]
    found, _, _ = api.run([*strict, "--disallow-any-expr", str(example), str(wrong)])
    errors = [line for line in found.splitlines() if re.match(r"\S*(wrong|typed_example)\.py:\d+: error", line)]
    assert '"str" has no attribute "number"' in errors[0]
    assert all(line.startswith(str(wrong)) for line in errors)
