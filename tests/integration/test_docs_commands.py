"""Every command that README and docs/ show is run, on tiny studies in the place of the files it names.

A command that is shown and is in no row of `CASES` fails. A new one takes one row: its text (`*` stands for anything),
how it is tested, and for `PARSED` why it is not run here and what runs it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import pytest

from mergesearch.cli import cli
from tests.docs_text import ROOT, USER_PAGES, Shown, blocks, command_blocks, commands, parse
from tests.tiny_studies import TinyStudy, mergesearch

RUN, SLOW, PARSED, NAME = "run", "run in the slow tests", "parsed", "the name of a command"


@dataclass(frozen=True)
class Case:
    """How commands are tested.

    Attributes:
        text: of the command; `*` stands for anything. The first that matches counts.
        how: RUN, SLOW, PARSED or NAME.
        why: of PARSED, what it would need, and what test runs the like of it.
        without: files and folders that are not to be there before.
        makes: files that are to be there afterwards.
        environment: variables.
        prepare: called with the world and pytest's monkeypatch.
    """

    text: str
    how: str
    why: str = ""
    without: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Path, pytest.MonkeyPatch], None] | None = None


def local_mteb(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of these names whose data are here and not on the hub."""
    pytest.importorskip("mteb")
    from tests.tiny_mteb import make_task

    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY
    for name in ("NFCorpus", "SciFact"):
        monkeypatch.setitem(registry, name, make_task(world / "data" / "mine", name))


CLUSTER = "needs a Ray cluster; tests/integration/test_ray_cluster.py runs studies on one"
JOBS = "needs a Ray cluster that takes jobs; tests/integration/test_submit.py submits to one"
HUB = "uploads to the hub; tests of the export do so to an endpoint of their own"
WATCHES = "looks again until the study ends; the tests of the live view watch one"
SERVES = "serves until it is interrupted; tests/integration/test_dashboard.py asks it for pages"
TRAINS = "trains for minutes; the tests of training run the like of it on tiny models"
REFINES = "divides a model of more than two layers; tests/integration/test_refine.py refines one and runs it"
RIVALS = "needs a model that is trained in minutes; tests/integration/test_evaluate.py scores rivals"
TRAINS_TINY = "trains eleven times; tests/integration/test_limited_data.py runs it on tiny models"
CASES = [
    *(Case(f"mergesearch {name}", NAME) for name in sorted({*cli.commands} - {"methods", "studies"})),
    Case("mergesearch validate *", RUN),
    Case("mergesearch plan *", RUN),
    Case("mergesearch run * --address *", PARSED, CLUSTER),
    Case("mergesearch run studies/quarters.yaml", PARSED, REFINES),
    Case("mergesearch refine *", PARSED, REFINES),
    Case("mergesearch run study.yaml --workers ray --count 2", SLOW, without=("study.db",), makes=("study.db",)),
    Case("mergesearch run a.yaml b.yaml c.yaml", RUN, without=("several.db",), makes=("several.db",)),
    Case("mergesearch run *", RUN, without=("study.db",), makes=("study.db",)),
    Case("mergesearch submit *", PARSED, JOBS),
    Case("mergesearch jobs *", PARSED, JOBS),
    Case("mergesearch control *", RUN),
    Case("mergesearch studies", RUN, environment={"MERGESEARCH_STORAGE": "sqlite:///study.db"}),
    Case("mergesearch studies sqlite:///my.db", RUN),
    Case("mergesearch status * --watch*", PARSED, WATCHES),
    Case("mergesearch status --study NAME*", PARSED, "NAME stands for the reader's; the tests of status name one"),
    Case("mergesearch status *", RUN),
    Case("mergesearch best *", RUN),
    Case("mergesearch evaluate merged --mteb *", RUN, makes=("mteb-results/results",), prepare=local_mteb),
    Case("mergesearch evaluate * --rival *=runs/*", PARSED, RIVALS),
    Case("mergesearch evaluate studies/*", SLOW),
    Case("mergesearch evaluate *", RUN),
    Case("mergesearch export * --push-to *", PARSED, HUB),
    Case("mergesearch export study.yaml --out merged", RUN, without=("merged",), makes=("merged/mergesearch.json",)),
    Case("mergesearch export study.yaml --trial 7 --out trial-7", SLOW, makes=("trial-7/mergesearch.json",)),
    Case("mergesearch export study.yaml --out merged --trial 7 --force", SLOW),
    Case("mergesearch merge merged/mergesearch.json --out again", RUN, makes=("again/mergesearch.json",)),
    Case("mergesearch merge --method *", RUN, without=("merged",), makes=("merged/mergesearch.json",)),
    Case("mergesearch merge *", RUN),
    Case("mergesearch report * --out report.html", RUN, makes=("report.html",)),
    Case("mergesearch report *", RUN),
    Case("mergesearch compare *", RUN),
    Case("mergesearch import-mergekit * --out study.yaml*", RUN, without=("study.yaml",), makes=("study.yaml",)),
    Case("mergesearch import-mergekit *", RUN),
    Case("mergesearch dashboard *", PARSED, SERVES),
    Case("mergesearch methods*", RUN),
    Case("mergesearch clean *", RUN),
    Case("mergesearch protocol quality *", PARSED, "an hour; tests/unit/test_quality_protocol.py runs a tiny protocol"),
    Case("mergesearch adapt *", PARSED, TRAINS),
    Case("mergesearch train-expert *", PARSED, TRAINS),
    Case("mergesearch train-reranker *", PARSED, TRAINS),
    Case("mergesearch protocol limited-data", NAME),
    Case("mergesearch protocol limited-data *", PARSED, TRAINS_TINY),
    *(Case(f"mergesearch synthesize {kind}", NAME) for kind in ("negatives", "queries", "prompts")),
    Case("mergesearch synthesize *", PARSED, "needs a language model; its tests ask a server that speaks the protocol"),
]

MAKE = {
    "quickstart": "by hand; the README has what it prints, and tests/unit/test_api_reference.py makes its texts",
    "test": "these tests",
    "test-slow": "the slow tests, this file's among them",
    "chaos": "by hand; docs/reliability.md has the result",
    "bench": "by hand; docs/speed.md has the result",
    "bench-search": "by hand; docs/speed.md has the result",
    "reproduce": "by hand; docs/quality.md has the result",
}
"""Targets of the Makefile that pages name, and who runs them."""

PROGRAMS = {
    "mergesearch": "CASES",
    "make": "MAKE",
    "pip": "its extras are looked up in pyproject.toml",
    "python": "its modules and files are looked up",
    "git": "clones this repository",
    "export": "sets a variable of the shell",
    "install": "makes an empty file",
    "mkdir": "makes a folder",
    "docker": "docs/deploy.md says what was run of it and what was not",
    "kubectl": "docs/deploy.md says what was run of it and what was not",
    "docker/make-secrets.sh": "tests/unit/test_deploy_files.py",
}
"""Programs that pages show commands of, and what tests these."""

SHOWN = commands("mergesearch")


def case_of(shown: Shown) -> Case:
    found = next((c for c in CASES if fnmatchcase(shown.text, c.text)), None)
    assert found is not None, f"{shown.page} shows `{shown.text}`, which is in no row of CASES in {__file__}"
    return found


def of_kind(*kinds: str) -> list[Any]:
    """The commands that are tested in one of these ways; those in no row are among all of them."""
    return [
        pytest.param(shown, id=shown.text.removeprefix("mergesearch "), marks=pytest.mark.slow if how == SLOW else ())
        for shown in SHOWN
        for how in [next((c.how for c in CASES if fnmatchcase(shown.text, c.text)), PARSED)]
        if how in kinds
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, grid_study: TinyStudy) -> Path:
    """A folder that holds what the pages speak of: finished studies, models, collections, an export.

    Databases are named relative to it, so that copies of it are independent of each other.
    """
    folder = tmp_path_factory.mktemp("pages") / "world"
    shutil.copytree(grid_study.folder, folder)
    world = TinyStudy(folder).change("storage", to="sqlite:///study.db")
    shutil.copy(world.file, folder / "my.yaml")
    shutil.copy(folder / "study.db", folder / "my.db")
    (folder / "data").mkdir()
    shutil.copytree(folder / "collection", folder / "data" / "mine")
    (folder / "studies").mkdir()
    shutil.copy(ROOT / "studies" / "segment-grid-e5-mistral.yaml", folder / "studies")
    content = world.content()
    for source, path in content["sources"].items():
        content["sources"][source] = f"../{path}"
    content["evaluation"]["collections"][0]["folder"] = "../collection"
    shown = re.findall(r"studies/([\w-]+)\.yaml", " ".join(s.text for s in SHOWN))
    for name in {*shown, "segment-grid"} - {"segment-grid-e5-mistral"}:
        write(folder / "studies" / f"{name}.yaml", content)
    (folder / "mergesearch-quickstart").mkdir()
    write(folder / "mergesearch-quickstart" / "study.yaml", content)
    for name in "abc":
        content = world.content()
        content |= {"study": name, "storage": "sqlite:///several.db", "seed": ord(name)}
        content["search"] = {"strategy": "random", "trials": 2}
        write(folder / f"{name}.yaml", content)
    for name, source in (("retriever", "retriever"), ("domain", "domain"), ("base", "retriever")):
        shutil.copytree(folder / source, folder / "models" / name)
    models = [{"model": str(folder / source), "parameters": {"weight": 0.5}} for source in ("retriever", "domain")]
    config = {"merge_method": "linear", "models": models, "dtype": "float32"}
    for name in ("config.yml", "merge.yml"):
        write(folder / name, config)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for arguments in (("run", "a.yaml", "b.yaml"), ("export", "study.yaml", "--out", "merged")):
            answer = mergesearch(*arguments)
            assert answer.code == 0, answer.err
    finally:
        os.chdir(before)
    shutil.copy(folder / "merged" / "mergesearch.json", folder)
    return folder


def write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")  # which is YAML


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder, with models and data beside it as well."""
    copy = tmp_path / "world"
    shutil.copytree(template, copy)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "domain").symlink_to(copy / "domain")
    for folder in (tmp_path / "data", tmp_path / "shared" / "data"):
        folder.mkdir(parents=True)
        for name in ("nfcorpus", "medquad_qa"):
            (folder / name).symlink_to(copy / "collection")
    monkeypatch.chdir(copy)
    return copy


def test_every_command_is_in_a_row_and_every_row_is_of_use() -> None:
    cases = [case_of(shown) for shown in SHOWN]
    assert not [c.text for c in CASES if c not in cases and c.how != NAME and "*" not in c.text], (
        "rows without a command on any page"
    )
    assert all(c.why for c in CASES if c.how == PARSED)


@pytest.mark.parametrize("shown", of_kind(RUN, SLOW))
def test_it_runs(shown: Shown, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(shown)
    for name in case.without:
        path = world / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    if case.prepare is not None:
        case.prepare(world, monkeypatch)
    command, _, _file = shown.text.partition(" > ")
    answer = mergesearch(*command.split(" ")[1:])
    assert answer.code == 0, answer.err
    assert answer.out
    assert not [name for name in case.makes if not (world / name).exists()]


@pytest.mark.parametrize("shown", of_kind(PARSED))
def test_it_is_taken(shown: Shown, world: Path) -> None:
    case_of(shown)
    parse(shown.text)


@pytest.mark.parametrize("shown", of_kind(NAME))
def test_it_is_a_command(shown: Shown) -> None:
    name, *kind = shown.text.removeprefix("mergesearch ").split()
    command = cli.commands[name]
    choices = {choice for p in command.params for choice in getattr(p.type, "choices", ())}
    choices |= set(getattr(command, "commands", ()))
    assert choices.issuperset(kind)


def test_a_command_that_there_is_not_is_not_taken() -> None:
    for text in ("mergesearch find study.yaml", "mergesearch run study.yaml --fast"):
        with pytest.raises(click.UsageError):
            parse(text)
        with pytest.raises(AssertionError, match="in no row of CASES"):
            case_of(Shown(text.replace("run", "rune"), "README.md"))


@dataclass(frozen=True)
class PythonPage:
    """How the Python of a page is run: what is not to be there before, what is made ready, what stands for what."""

    without: tuple[str, ...] = ()
    prepare: Callable[[Path, pytest.MonkeyPatch], None] | None = None
    instead: dict[str, str] = field(default_factory=dict)


PYTHON = {
    "README.md": PythonPage(without=("merged", "study.db")),
    "docs/python.md": PythonPage(without=("merged", "study.db")),
    "docs/evaluate.md": PythonPage(prepare=local_mteb),
    "docs/pseudo.md": PythonPage(),
    "docs/report.md": PythonPage(),
    "docs/watch.md": PythonPage(instead={"postgresql://me@db/studies": "sqlite:///my.db", "segment-grid": "tiny"}),
}
PYTHON_OF_OTHERS = {"docs/export.md": "sentence_transformers"}
"""Pages whose Python needs what is not installed here (ONNX): its names are looked up in that library."""


def test_every_page_with_python_is_run() -> None:
    assert {page for page in USER_PAGES if blocks(page, "python")} == set(PYTHON) | set(PYTHON_OF_OTHERS)


@pytest.mark.parametrize(("page", "library"), PYTHON_OF_OTHERS.items())
def test_names_of_other_libraries_are_theirs(page: str, library: str) -> None:
    for block in blocks(page, "python"):
        (names,) = re.findall(rf"^from {library} import (.*)$", block, re.MULTILINE)
        found = importlib.import_module(library)
        assert all(hasattr(found, name) for name in names.split(", "))


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = PYTHON[page]
    for name in case.without:
        path = world / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if case.prepare is not None:
        case.prepare(world, monkeypatch)
    for i, block in enumerate(blocks(page, "python")):
        for shown, here in case.instead.items():
            block = block.replace(shown, here)
        exec(compile(block, f"{page}, block {i + 1}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_make_has_the_targets_and_someone_runs_them() -> None:
    named = {shown.text.split(" ")[1] for shown in commands("make")}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert named == set(MAKE)
    assert named <= targets


def test_modules_and_files_of_python_are_there_and_take_the_options() -> None:
    for shown in commands("python"):
        _, *arguments = shown.text.split(" ")
        files = [a for a in arguments if a.endswith(".py")]
        assert all((ROOT / f).is_file() for f in files), shown
        if arguments[0] == "-m" and arguments[1] != "pytest":
            spec = importlib.util.find_spec(arguments[1])
            assert spec is not None, shown
            assert spec.origin is not None
            source = Path(spec.origin).read_text(encoding="utf-8")
            for helper in set(re.findall(r"from tests\.benchmarks\.(\w+)", source)):
                source += (Path(spec.origin).parent / f"{helper}.py").read_text(encoding="utf-8")
            assert not [a for a in arguments if a.startswith("--") and f'"{a}"' not in source], shown


def test_extras_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shown = " ".join(c.text for c in commands("pip"))
    named = {extra for group in re.findall(r"\[([a-z,]+)\]", shown) for extra in group.split(",")}
    assert named
    assert named <= set(project["optional-dependencies"])


def test_every_program_in_a_block_is_known() -> None:
    lines = [line for page in USER_PAGES for text in command_blocks(page) for line in text.splitlines() if line.strip()]
    assert {line.removeprefix("$ ").split(" ")[0] for line in lines} <= set(PROGRAMS)
