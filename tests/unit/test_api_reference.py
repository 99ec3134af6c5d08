"""The collection of docstrings: what becomes a query, what a document, and that splits share nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from mergesearch.errors import CollectionError
from mergesearch.quickstart.api_reference import (
    SPLITS,
    Summary,
    build_api_reference,
    library_versions,
)
from mergesearch.quickstart.docstrings import read_library, split_docstring

BODY = "It takes a graph and walks over every vertex once, which needs linear time and little memory."


def install(folder: Path, name: str, files: dict[str, str], version: str = "1.2.3") -> None:
    """A library as pip would leave it in `folder`, which is on the path."""
    for relative, source in {"__init__.py": "", **files}.items():
        file = folder / name / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text(f"{name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def function(name: str, summary: str, body: str) -> str:
    return f'def {name}():\n    """{summary}\n\n    {body}\n    """\n\n\n'


def read_split(folder: Path, split: str) -> tuple[dict[str, str], dict[str, str], set[tuple[str, str]]]:
    def rows(name: str) -> dict[str, str]:
        lines = (folder / split / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["_id"]: row["text"] for row in map(json.loads, lines)}

    header, *judged = (folder / split / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    qrels = {tuple(line.split("\t")[:2]) for line in judged}
    return rows("corpus"), rows("queries"), qrels  # type: ignore[return-value]


@pytest.fixture(scope="module")
def networkx_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "networkx"
    build_api_reference(out, libraries=("networkx",))
    return out


def test_the_first_sentence_is_the_query_and_does_not_stay_in_the_document() -> None:
    text = """Count the paths, e.g. of a tree. They are directed.

    Parameters
    ----------
    G : graph
        A `Graph`, see :func:`networkx.path`.

    Notes
    -----
    .. versionadded:: 3
    Count the paths, e.g. of a tree. It is quick.

    Examples
    --------
    >>> count(G)
    7

    References
    ----------
    .. [1] A book.
    """
    assert split_docstring(text) == (
        "Count the paths, e.g. of a tree.",
        "They are directed. Parameters G : graph A Graph, see networkx.path. Notes It is quick.",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "Only a summary.",
        "Fit %(model)s.\n\nMore text.",
        "The {klass} object.\n\nMore.",
        ">>> f()\n1\n\nMore.",
    ],
)
def test_docstrings_that_are_no_pair_are_left_out(text: str) -> None:
    assert split_docstring(text) is None


def test_doctests_between_paragraphs_go_and_the_text_after_them_stays() -> None:
    assert split_docstring("Do it well.\n\nBefore.\n\n>>> f(1)\n2\n\nAfter.") == ("Do it well.", "Before. After.")


def test_objects_are_read_where_they_are_defined_and_nothing_is_run(site: Path) -> None:
    core = (
        'raise RuntimeError("imported")\n\n\n'
        'class Shape:\n    """Base of all shapes in the plane.\n\n    Text of Shape.\n    """\n\n'
        '    def area(self):\n        """Area of the shape.\n\n        Text of area.\n        """\n\n'
        '    def _hidden(self):\n        """Hidden thing here.\n\n        Text.\n        """\n\n\n'
        'class Square(Shape):\n    """A shape of four equal sides.\n\n    Text of Square.\n    """\n\n\n'
        'add_newdoc("lib.core", "cos", """\n    cos(x)\n\n    Cosine of the argument.\n\n    Text of cos.\n    """)\n'
    )
    install(
        site,
        "lib_read",
        {
            "core.py": core,
            "api.py": 'from lib_read.core import Shape\n"""x"""\n',
            "tests/test_core.py": function("test_it", "Not an object of the library.", BODY),
            "template.py": "class {{ name }}:\n    '''Not Python.'''\n",
        },
    )
    found = {d.name: (d.summary, d.body) for d in read_library("lib_read")}
    assert found == {
        "lib_read.core.Shape": ("Base of all shapes in the plane.", "Text of Shape."),
        "lib_read.core.Shape.area": ("Area of the shape.", "Text of area."),
        "lib_read.core.Square": ("A shape of four equal sides.", "Text of Square."),
        "lib_read.core.cos": ("Cosine of the argument.", "Text of cos."),
    }


def test_the_same_sentence_or_the_same_rest_makes_several_relevant(site: Path, tmp_path: Path) -> None:
    """A module per word, so that some fall into every split; the five objects of each stay together."""
    words = [f"word{i}" for i in range(20)]
    files = {}
    for word in words:
        rest = [" ".join(f"{word}{n}{i}" for i in range(15)) for n in "abcd"]
        files[f"{word}.py"] = "".join(
            [
                function("first", f"Return the {word} of the list.", rest[0]),
                function("second", f"return the {word} of the list", rest[1]),  # the same but for case and stop
                function("third", f"Remove one {word} from it.", rest[2]),
                function("fourth", f"Remove each {word} from it.", rest[2]),
                function("fourth_again", f"Remove each {word} from it.", rest[2]),
            ]
        )
    install(site, "lib_judged", files)
    summary = build_api_reference(tmp_path / "out", libraries=("lib_judged",))
    assert summary.libraries == {"lib_judged": "1.2.3"}
    seen = 0
    for split in SPLITS:
        corpus, queries, qrels = read_split(tmp_path / "out", split)
        for name in {doc.split(".")[1] for doc in corpus}:
            seen += 1
            assert sum(f".{name}." in doc for doc in corpus) == 3  # the last three share one document
            judged = [queries[q].casefold() for q, _ in qrels if f".{name}." in q]
            assert len([text for text in judged if "list" in text]) == 2
            assert len([text for text in judged if "remove one" in text]) == 1
            assert len([text for text in judged if "remove each" in text]) == 1
    assert seen == len(words)


def test_a_sentence_that_opens_too_many_documents_is_no_query_but_its_documents_stay(
    site: Path, tmp_path: Path
) -> None:
    files = {}
    for module in range(30):
        text = [function(f"f{i}", "Fit the model m%d to data." % module, f"w{module}x{i} " * 15) for i in range(11)]  # noqa: UP031
        text.append(function("other", f"Something quite different number {module}.", f"other{module} " * 15))
        files[f"m{module}.py"] = "".join(text)
    install(site, "lib_generic", files)
    build_api_reference(tmp_path / "out", libraries=("lib_generic",))
    for split in SPLITS:
        corpus, queries, _ = read_split(tmp_path / "out", split)
        assert queries
        assert all(text.startswith("Something") for text in queries.values())
        assert len(corpus) == 12 * len(queries)


def test_near_copies_in_other_modules_are_given_to_one_split(site: Path, tmp_path: Path) -> None:
    """Every module holds one text of its own, and a variant of a text that all modules share."""
    shared = [f"shared{i}" for i in range(40)]
    files = {}
    for module in range(40):
        variant = " ".join([*shared[:20], f"variant{module}", *shared[20:]])
        own = " ".join(f"m{module}w{i}" for i in range(20))
        files[f"m{module}.py"] = function("variant", f"Variant number {module} of it.", variant) + function(
            "own", f"The own text of module {module}.", own
        )
    install(site, "lib_variants", files)
    build_api_reference(tmp_path / "out", libraries=("lib_variants",))
    holding = [s for s in SPLITS if any("shared1" in t for t in read_split(tmp_path / "out", s)[0].values())]
    assert holding == ["test"]
    assert all(any("w1 " in t for t in read_split(tmp_path / "out", s)[0].values()) for s in SPLITS)


def test_splits_of_a_real_library_share_no_module_query_text_or_near_copy(networkx_reference: Path) -> None:
    def words(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.casefold())

    modules, queries, bodies = {}, {}, {}
    defined_in = {d.name: d.module for d in read_library("networkx")}
    for split in SPLITS:
        corpus, asked, qrels = read_split(networkx_reference, split)
        modules[split] = {defined_in[name] for name in corpus}
        queries[split] = {" ".join(words(text)) for text in asked.values()}
        bodies[split] = [set(zip(w, w[1:], w[2:], strict=False)) for w in map(words, corpus.values())]
        assert len(asked) > 40
        assert {q for q, _ in qrels} == set(asked)
        assert {d for _, d in qrels} <= set(corpus)
        assert not set(asked) & set(corpus)
        assert len(set(corpus.values())) == len(corpus)
        for q, d in qrels:
            assert asked[q] not in corpus[d]
    for one, other in (("test", "dev"), ("test", "train"), ("dev", "train")):
        assert not modules[one] & modules[other]
        assert not queries[one] & queries[other]
        assert all(2 * len(a & b) < len(a | b) for a, b in product(bodies[one], bodies[other]))


def test_another_process_writes_the_same_bytes(networkx_reference: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mergesearch.quickstart.api_reference import *;"
        "build_api_reference(Path(sys.argv[1]), libraries=('networkx',))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "again")], check=True, env=environment)
    files = sorted(p.relative_to(networkx_reference) for p in networkx_reference.rglob("*") if p.is_file())
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (networkx_reference / file).read_bytes(), file


def test_the_summary_counts_what_the_files_hold(networkx_reference: Path) -> None:
    summary = Summary.read(networkx_reference)
    assert summary.libraries == library_versions(("networkx",))
    for split in SPLITS:
        corpus, queries, qrels = read_split(networkx_reference, split)
        counts = summary.splits[split]
        assert (counts.documents, counts.queries, counts.judgements) == (len(corpus), len(queries), len(qrels))
    assert len(summary.content_hash) == len(hashlib.sha256().hexdigest())


def test_another_seed_draws_other_modules(networkx_reference: Path, tmp_path: Path) -> None:
    summary = build_api_reference(tmp_path / "other", libraries=("networkx",), seed=1)
    assert summary.content_hash != Summary.read(networkx_reference).content_hash


def test_libraries_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"(?s)no_such_lib.*neither_this") as caught:
        build_api_reference(tmp_path / "out", libraries=("networkx", "no_such_lib", "neither_this"))
    assert "mergesearch[quickstart]" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_too_little_text_is_refused(site: Path, tmp_path: Path) -> None:
    install(site, "lib_small", {"one.py": function("f", "Return the one thing there is.", BODY)})
    with pytest.raises(CollectionError, match="no documents"):
        build_api_reference(tmp_path / "out", libraries=("lib_small",))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(CollectionError, match="not empty"):
        build_api_reference(tmp_path, libraries=("networkx",))


def test_progress_ends_at_the_number_of_libraries(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_api_reference(tmp_path / "out", libraries=("networkx",), progress=lambda *p: seen.append(p))
    assert seen[-1] == (1, 1)
