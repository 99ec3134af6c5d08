"""Which files of a model decide, beside its weights, what becomes of a text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mergesearch.sources.locate import model_folder

_NOT_ENCODING = frozenset({"config.json", "mergesearch.json", "requirements.txt"})


def encoding_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that say how a template tokenises, prompts, pools, projects and normalises.

    These are its small files, the whole folders of further sentence-transformers modules with their weights,
    and all Python files where the template names code of its own. The transformer's `config.json` and weights
    are not among them: they are part of a source's content hash.
    """
    modules = _json(folder / "modules.json")
    listed = [m for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    further = [folder / str(m["path"]) for m in listed if m.get("path")]
    whole = {f for f in further if f.resolve() != model_folder(folder).resolve()}
    code = any(not str(m.get("type", "")).startswith("sentence_transformers.") for m in listed) or _names_code(folder)

    def matters(file: Path) -> bool:
        name = file.relative_to(folder).as_posix()
        if name in _NOT_ENCODING or name.startswith(".") or not file.is_file():
            return False
        if not whole.isdisjoint(file.parents) or (code and file.suffix == ".py"):
            return True
        return file.suffix in (".json", ".txt", ".model") and not name.endswith(".index.json")

    return {f.relative_to(folder).as_posix(): _sha256(f) for f in sorted(folder.rglob("*")) if matters(f)}


def _names_code(folder: Path) -> bool:
    """Whether configurations map classes to Python files, which trusted templates are loaded with."""
    configs = [_json(file) for file in {*folder.glob("*config.json"), *model_folder(folder).glob("*config.json")}]
    return any(isinstance(config, dict) and "auto_map" in config for config in configs)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):  # whoever reads it for its content reports it
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
