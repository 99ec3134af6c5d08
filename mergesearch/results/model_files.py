"""The files of an exported model: weights and configuration from memory, everything else from the template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from mergesearch.errors import SourceError
from mergesearch.evaluation.encoder import Encoder
from mergesearch.evaluation.planned import PlannedModel
from mergesearch.evaluation.settings import KINDS, Choices, resolve

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
MAX_SHARD = "5GB"
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".ot", ".gguf"})
_OWN_FILES = frozenset({"config.json", "README.md", "mergesearch.json", "mergekit_config.yml"})
_OF_A_TRAINING = frozenset({"mergesearch_training.json", "trainer_state.json"})
"""They tell how the template was trained, with paths of the machine: no part of the merge."""
_TOKENIZER_FOLDERS = (PurePath("additional_chat_templates"),)


def save_model(model: PlannedModel, template: Path, folder: Path, prompts: Mapping[str, str] | None = None) -> None:
    """Write the model as it is in memory, loadable by sentence-transformers and transformers.

    The template's tokenizer and sentence-transformers files are copied byte for byte. Only where the study pools or
    normalises otherwise than they say, or they say nothing, the modules after the transformer are written anew: the
    folder has to give the embeddings that were scored. Re-rankers have no such modules.

    Args:
        model: weights, configuration and modules.
        template: the folder it was loaded from.
        folder: an empty folder.
        prompts: by name, put beside the template's own, or in their place.

    Raises:
        OSError, SafetensorError: the files cannot be written.
    """
    # Before the copies: a template's own file wins over one that saving makes, other than config and weights.
    model.transformer.save_pretrained(folder, max_shard_size=MAX_SHARD)
    as_stated = states_encoding(model, template)
    for relative in template_files(template, modules=as_stated):
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template / relative, folder / relative)
    if not as_stated and isinstance(model, Encoder):
        _write_modules(model, folder)
    if prompts:
        stated = _stated(folder)
        _write_json(folder / SETTINGS_FILE, {**stated, "prompts": {**stated.get("prompts", {}), **prompts}})


def prompt_names(prompts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a model's files call the prompts of a recipe.

    `query` and `document`, which sentence-transformers takes by itself, where they are those of all collections, and
    `query.COLLECTION` where collections differ.
    """
    found: dict[str, str] = {}
    for kind in KINDS:
        texts = {name: given.get(kind) for name, given in prompts.items()}
        alike = len(set(texts.values())) == 1
        found |= {kind if alike else f"{kind}.{name}": text for name, text in texts.items() if text is not None}
    return found


def states_encoding(model: PlannedModel, template: Path) -> bool:
    """Whether the template's own files say everything about pooling and normalising, and say what was evaluated.

    Re-rankers neither pool nor normalise.
    """
    if not isinstance(model, Encoder):
        return True
    try:
        stated = resolve(template, Choices())
    except SourceError:
        return False
    settings = model.settings
    return (
        stated.files.has_modules
        and (stated.pooling, stated.normalize, stated.similarity)
        == (settings.pooling, settings.normalize, settings.similarity)
    )  # fmt: skip


def template_files(template: Path, *, modules: bool) -> Iterator[PurePath]:
    """The files that an export takes over, relative to the template.

    These are the files beside the weights, and whole module folders, whose weights (a Dense layer after pooling) are
    not merged. Other folders hold other formats of the same weights, or checkpoints of a training.

    Args:
        template: a model folder.
        modules: with `modules.json` and the folders it names.
    """
    folders = [*_TOKENIZER_FOLDERS, *(_module_folders(template) if modules else ())]
    for file in sorted(template.rglob("*")):
        relative = file.relative_to(template)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if len(relative.parts) > 1:
            wanted = any(relative.is_relative_to(f) for f in folders)
        else:
            weights = file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(".index.json")
            wanted = (
                not weights and file.name not in _OWN_FILES | _OF_A_TRAINING and (modules or file.name != MODULES_FILE)
            )
        if wanted:
            yield relative


def _module_folders(template: Path) -> list[PurePath]:
    """Folders of the modules after the transformer, such as 1_Pooling."""
    file = template / MODULES_FILE
    if not file.is_file():
        return []
    return [PurePath(m["path"]) for m in json.loads(file.read_text(encoding="utf-8")) if m["path"]]


def _write_modules(encoder: Encoder, folder: Path) -> None:
    """The loaded modules in the layout that every version of sentence-transformers reads."""
    listing: list[dict[str, Any]] = []
    for index, module in enumerate(encoder.model):
        name = type(module).__name__
        path = "" if index == 0 else f"{index}_{name}"
        if index > 0:
            (folder / path).mkdir()
            module.save(str(folder / path))
        kind = f"sentence_transformers.models.{name}"
        listing.append({"idx": index, "name": str(index), "path": path, "type": kind})
    _write_json(folder / MODULES_FILE, listing)
    _write_json(folder / SETTINGS_FILE, {**_stated(folder), "similarity_fn_name": encoder.settings.similarity})


def _stated(folder: Path) -> dict[str, Any]:
    """What a folder's file says of the model as a whole."""
    file = folder / SETTINGS_FILE
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
