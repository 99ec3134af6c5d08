"""From pydantic's errors about a YAML file to sentences about its entries, each with its line."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mergesearch.errors import Problem, unknown


def plain(node: Any) -> Any:
    """The annotated containers and scalars of ruamel as plain Python ones."""
    if isinstance(node, Mapping):
        return {str(k): plain(v) for k, v in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [plain(v) for v in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def where(path: Path, tree: Any, keys: Sequence[str | int]) -> str:
    """Such as `studies/mine.yaml:12`, for the entry at `keys`, or for its closest parent."""
    line, node = 0, tree
    for key in keys:
        try:
            position = node.lc.item(key) if isinstance(key, int) else node.lc.key(key)
            line, node = position[0], node[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            continue  # pydantic's path also names union members, which the file does not have
    return f"{path}:{line + 1}"


_EXPECTED = {
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' after a letter or digit",  # of a study's name
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_type": "text",
}


def explain(
    error: ValidationError,
    model: type[BaseModel],
    path: Path,
    tree: Any,
    belongs: Callable[[tuple[str | int, ...]], str] = lambda _: "",
) -> list[Problem]:
    """One problem per entry: what pydantic says of every member of a union is put together.

    Args:
        error: what pydantic found.
        model: the schema.
        path: of the file.
        tree: its content, as ruamel read it.
        belongs: where an unknown key has its place, in words; empty for one that has none.
    """
    by_entry: dict[tuple[str | int, ...], list[Any]] = {}
    for found in error.errors(include_url=False):
        by_entry.setdefault(_entry(found, tree), []).append(found)
    # An entry that is nearly one member of a union has an error further down, which is the one that helps.
    alone = [keys for keys in by_entry if not any(other[: len(keys)] == keys for other in by_entry if other != keys)]
    return [Problem(_sentence(keys, by_entry[keys], model, belongs), where(path, tree, keys)) for keys in alone]


def _entry(found: Any, tree: Any) -> tuple[str | int, ...]:
    """The keys that lead to the entry in the file; pydantic also names union members, which the file has not."""
    keys: list[str | int] = []
    node = tree
    for i, key in enumerate(found["loc"]):
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            if found["type"] != "missing" or i < len(found["loc"]) - 1:
                continue
        keys.append(key)
    return tuple(keys)


def _sentence(
    keys: tuple[str | int, ...],
    errors: Sequence[Any],
    model: type[BaseModel],
    belongs: Callable[[tuple[str | int, ...]], str],
) -> str:
    """What is wrong with the entry at `keys`; several errors are what the members of a union expected."""
    name, first = ".".join(map(str, keys)), errors[0]
    if first["type"] == "extra_forbidden":
        return f"{name}: {belongs(keys) or unknown('key', str(keys[-1]), _fields_at(model, keys[:-1]))}"
    if first["type"] == "missing":
        return f"{name}: is required"
    value = first["input"]
    expected = " or ".join(dict.fromkeys(_expected(e) for e in errors))
    hint = "; put it in quotes" if expected == "text" and isinstance(value, int | float) else ""
    shown = "nothing" if value is None else repr(value) if isinstance(value, str | int | float) else _kind(value)
    return f"{name}: expected {expected}, found {shown}{hint}"


def _expected(error: Any) -> str:
    """What one pydantic error asks for."""
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]]
    message = str(error["msg"])
    for start in ("Value error, ", "Input should be ", "String should "):
        message = message.removeprefix(start)
    number = "a number " if error["type"].startswith(("greater_than", "less_than")) else ""
    return f"{number}{message[:1].lower()}{message[1:]}"


def _kind(value: object) -> str:
    return "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else str(value)


def _fields_at(model: type[BaseModel], keys: Sequence[str | int]) -> list[str]:
    """Field names of the model at `keys` below `model`."""
    for key in keys:
        field = model.model_fields.get(str(key))
        if field is not None:
            model = next(iter(_models_in(field.annotation)), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
