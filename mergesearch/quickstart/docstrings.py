"""Reads docstrings from the source files of installed libraries, without importing a library.

Importing would run the libraries' code and show most objects several times, under every name that re-exports
them. In the syntax tree an object occurs where it is defined, once, and methods that are merely inherited do
not occur at all.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergesearch.errors import CollectionError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_SKIPPED_PARTS = frozenset(
    {"tests", "test", "testing", "conftest.py", "benchmarks", "examples", "sandbox", "deprecated"}
    | {"externals", "_external", "_vendor", "_lib", "f2py", "distutils"}
)
_RULE = re.compile(r"([=\-~^*#])\1{2,}")
# Sections after which a docstring no longer describes: code, citations and pointers to other objects.
_CLOSING_SECTIONS = frozenset(
    {"example", "examples", "reference", "references", "see also", "doctest", "attributes", "methods"}
)
_ABBREVIATIONS = (
    "e.g.",
    "i.e.",
    "etc.",
    "vs.",
    "cf.",
    "resp.",
    "w.r.t.",
    "eq.",
    "fig.",
    "al.",
    "approx.",
    "no.",
)
_ROLE = re.compile(r":[a-z:]+:`~?([^`]*)`")
_TEMPLATE = re.compile(r"%\(\w+\)s|\{\{|(?<![\\^_{}\w$])\{[a-z_]{3,}\}(?!\})")
_SENTENCE_END = re.compile(r"[.!?](?=\s+[\"'`(\[]?[A-Z0-9])")


@dataclass(frozen=True)
class Docstring:
    """One documented public object.

    Attributes:
        name: dotted path of the definition, for example `networkx.algorithms.dag.ancestors`.
        module: dotted path of the file that defines it.
        summary: first sentence, as plain text.
        body: what follows the first sentence, as plain text without examples, references and headings' rules.
    """

    name: str
    module: str
    summary: str
    body: str


def read_library(library: str) -> Iterator[Docstring]:
    """Every public class, function and method of an installed library that has a summary and a body.

    Files are visited in path order and objects in the order of the file, so the sequence depends on the
    installed version and on nothing else.

    Raises:
        CollectionError: when the library is not installed, or has no source files.
    """
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        message = f"library {library!r} is not installed"
        raise CollectionError([Problem(f'{message}; `pip install "mergesearch[quickstart]"` brings it')])
    root = Path(spec.origin).parent
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if any(part in _SKIPPED_PARTS or part.startswith("test_") for part in relative.parts):
            continue
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            continue  # generated tables and parsers are the slowest files to parse
        names = [library, *relative.with_suffix("").parts]
        module = ".".join(names[:-1] if names[-1] == "__init__" else names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's own invalid escapes are not ours to report
            try:
                tree = ast.parse(source)
            except (SyntaxError, ValueError):
                continue  # code templates that libraries ship are named .py and are not Python
        yield from _objects(tree, module, module)


def _objects(node: ast.Module | ast.ClassDef, path: str, module: str) -> Iterator[Docstring]:
    """Public classes and functions directly under `node`, and the members of those classes."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            text = ast.get_docstring(child, clean=True)
            parts = split_docstring(text) if text else None
            if parts:
                yield Docstring(f"{path}.{child.name}", module, *parts)
            if isinstance(child, ast.ClassDef):
                yield from _objects(child, f"{path}.{child.name}", module)
        elif isinstance(node, ast.Module) and isinstance(child, ast.Expr):
            yield from _added_docstring(child.value, path, module)


def _added_docstring(node: ast.expr, path: str, module: str) -> Iterator[Docstring]:
    """Docstrings of compiled functions, which numpy and scipy attach by `add_newdoc(…, name, text)`."""
    if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "add_newdoc"):
        return
    strings = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if len(strings) == len(node.args) >= 2 and not strings[-2].startswith("_"):
        parts = split_docstring(inspect.cleandoc(strings[-1]))
        if parts:
            yield Docstring(f"{path}.{strings[-2]}", module, *parts)


def split_docstring(text: str) -> tuple[str, str] | None:
    """First sentence and the rest of a docstring, both as plain text; None when either is missing.

    A docstring whose text is filled in at run time (`%(name)s`, `{name}`) gives None too: what stands in
    the file is not what a reader sees. Should the rest repeat the first sentence, the repetition is removed.
    """
    if not text.strip() or _TEMPLATE.search(text):
        return None
    paragraphs = [p for p in re.split(r"\n\s*\n", text.strip()) if p.strip()]
    # Compiled functions open with their signature.
    if len(paragraphs) > 1 and re.match(r"[\w.]+\(", paragraphs[0]):
        paragraphs.pop(0)
    if _is_heading(paragraphs[0].splitlines()) or paragraphs[0].lstrip().startswith((">>>", "..")):
        return None
    first = _plain(paragraphs[0])
    end = _first_sentence_end(first)
    summary = first[:end]
    body = " ".join([first[end:].strip(), _plain(_describing_part("\n\n".join(paragraphs[1:])))]).strip()
    body = " ".join(body.replace(summary, " ").split())
    return (summary, body) if summary and body else None


def _first_sentence_end(text: str) -> int:
    for match in _SENTENCE_END.finditer(text):
        if not text[: match.end()].lower().endswith(_ABBREVIATIONS):
            return match.end()
    return len(text)


def _is_heading(lines: list[str]) -> bool:
    return len(lines) > 1 and _RULE.fullmatch(lines[1].strip()) is not None


def _describing_part(text: str) -> str:
    """The text without headings' rules, directives, doctests, and the sections that do not describe."""
    kept: list[str] = []
    lines = text.splitlines()
    skipping = False  # inside a closing section
    quoted = False  # inside a doctest, whose output runs to the next empty line
    for i, line in enumerate(lines):
        stripped = line.strip()
        if _is_heading(lines[i : i + 2]):
            skipping = stripped.lower().rstrip(":") in _CLOSING_SECTIONS
            quoted = False
        if not stripped:
            quoted = False
        elif stripped.startswith(">>>"):
            quoted = True
        if skipping or quoted or stripped.startswith("..") or _RULE.fullmatch(stripped):
            continue
        kept.append(line)
    return "\n".join(kept)


def _plain(text: str) -> str:
    """One line without reStructuredText's marks for code, roles and emphasis."""
    text = _ROLE.sub(r"\1", text)
    text = re.sub(r"\[\d+\]_|\|\w+\|_?", " ", text)
    text = re.sub(r"`+([^`]*)`+_*", r"\1", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"\1", text)
    text = re.sub(r"[=\-~^*#+_]{3,}", " ", text)  # what remains of tables
    return " ".join(text.replace("::", ":").split())
