"""From what a study file says about a source to a folder on this machine."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import errors as hub_errors

from mergesearch.errors import SourceError, unknown

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers looks for in a model folder, in its order of preference."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""What PEFT writes beside its config, in its order of preference."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]
_SAFE_WEIGHTS = [
    "*.safetensors",
    "*/pytorch_model.bin",
]  # modules after the transformer may exist as .bin only
_PICKLED_WEIGHTS = ["pytorch_model*.bin", "adapter_model.bin"]
_NOT_OURS = ["onnx/*", "openvino/*", "original/*", "runs/*", "checkpoint-*", "optimizer*", "training_args*"]


def locate(location: str, *, revision: str | None = None, relative_to: Path | None = None) -> Path:
    """The folder that `location` stands for, downloaded first where it names a model or an adapter on the hub.

    Args:
        location: `package:NAME` or `package:NAME/sub/folder` for a model inside an installed package (which
            is not imported); a folder; or a hub id such as `org/name`, unless a folder of that name exists.
        revision: branch, tag or commit of a hub model.
        relative_to: what relative folders start from; the working directory by default.

    Raises:
        SourceError: nothing usable is there; the message says what to do.
    """
    if location.startswith("package:"):
        _refuse_revision(location, revision)
        return _in_package(location.removeprefix("package:"))
    folder = (relative_to or Path()) / Path(location).expanduser()
    if folder.is_dir():
        _refuse_revision(location, revision)
        return _checked(folder.resolve(), location)
    if folder.exists():
        raise SourceError([f"{location!r} is a file; give the folder that holds config.json and the weights."])
    looks_local = location.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(location)
    if looks_local:
        raise SourceError([f"no folder {str(folder.absolute())!r}.{_near(folder)}"])
    return _checked(_from_hub(location, revision, folder), location)


def model_folder(folder: Path) -> Path:
    """Where config and weights lie: `folder`, or the sub-folder that its modules.json names.

    Early sentence-transformers models keep the transformer in `0_Transformer`.
    """
    listing = folder / "modules.json"
    if (folder / "config.json").is_file() or not listing.is_file():
        return folder
    try:
        first = json.loads(listing.read_text(encoding="utf-8"))[0]["path"]
    except (ValueError, LookupError, TypeError):
        return folder
    return folder / first if (folder / first / "config.json").is_file() else folder


def holds_adapter(folder: Path) -> bool:
    """Whether `folder` holds a PEFT adapter; one that holds a whole model, too, counts as the model."""
    return (folder / ADAPTER_CONFIG).is_file() and not _has_model(folder)


def commit_of(folder: Path) -> str | None:
    """The hub commit that a downloaded folder holds; None for folders from elsewhere."""
    return folder.name if folder.parent.name == "snapshots" else None


def hub_id(folder: Path) -> str | None:
    """The name on the hub (`org/name`) of what a folder of the hub's cache holds; None for other folders."""
    cached = folder.parent.parent.name
    known = commit_of(folder) is not None and cached.startswith("models--")
    return cached.removeprefix("models--").replace("--", "/") if known else None


def _has_model(folder: Path) -> bool:
    inside = model_folder(folder)
    return (inside / "config.json").is_file() and any((inside / name).is_file() for name in WEIGHT_FILES)


def _checked(folder: Path, location: str) -> Path:
    if (model_folder(folder) / "config.json").is_file() or holds_adapter(folder):
        return folder
    below = sorted(str(p.parent.relative_to(folder)) for p in folder.glob("*/config.json") if _has_model(p.parent))
    hint = f" Models lie in its sub-folders: {', '.join(below)}." if below else ""
    raise SourceError([f"no config.json in {str(folder)!r} (given as {location!r}).{hint}"])


def _refuse_revision(location: str, revision: str | None) -> None:
    if revision is not None:
        raise SourceError([f"{location!r} is not a hub id, so it has no revision {revision!r}. Leave it out."])


def _near(folder: Path) -> str:
    if not folder.parent.is_dir():
        return f" There is no {str(folder.parent.absolute())!r} either."
    siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()]
    close = difflib.get_close_matches(folder.name, siblings, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _in_package(name: str) -> Path:
    package, *parts = PurePosixPath(name).parts or ("",)
    root = _package_root(package)
    start = root.joinpath(*parts)
    if ".." in parts or not start.is_dir():
        folders = (str(p.relative_to(root)) for p in root.rglob("*") if p.is_dir() and "__pycache__" not in p.parts)
        raise SourceError([unknown(f"folder in package {package!r}:", "/".join(parts), folders)])
    if _has_model(start) or holds_adapter(start):
        return start
    found = [p.parent for p in start.rglob("config.json") if _has_model(p.parent)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise SourceError([f"package {package!r}: no folder in {str(start)!r} has config.json and weights."])
    choices = ", ".join(sorted(f"package:{package}/{p.relative_to(root).as_posix()}" for p in found))
    raise SourceError([f"package {package!r} holds several models. Give one of: {choices}."])


def _package_root(package: str) -> Path:
    """The folder of an installed package, found without importing it, by import name or distribution name."""
    for candidate in (package, re.sub(r"[-.]", "_", package), *_top_level(package)):
        spec = importlib.util.find_spec(candidate) if candidate.isidentifier() else None
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    installed = importlib.metadata.packages_distributions()
    names = [*installed, *(name for names in installed.values() for name in names)]
    close = difflib.get_close_matches(package, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise SourceError([f"no package {package!r} is installed here.{hint} Install it with pip, or give a folder."])


def _top_level(distribution: str) -> list[str]:
    """The import names that a distribution brings, when it is called differently from them."""
    try:
        files = importlib.metadata.files(distribution) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return []
    return sorted({file.parts[0] for file in files if file.name == "__init__.py" and len(file.parts) == 2})


def _from_hub(repo: str, revision: str | None, folder: Path) -> Path:
    """Download config, tokenizer, module files and weights; `.bin` weights only where there are no others."""
    at = f" at revision {revision!r}" if revision else ""
    here = f" There is no folder {str(folder.absolute())!r} either."
    if folder.parent.is_dir():
        here += _near(folder)
    try:
        wanted = [*_SMALL_FILES, *_SAFE_WEIGHTS]
        got = _snapshot(repo, revision, wanted)
        if not _has_model(got):
            got = _snapshot(repo, revision, [*wanted, *_PICKLED_WEIGHTS])
    except hub_errors.GatedRepoError as error:
        message = (
            f"hub model {repo!r} is gated: accept its terms at https://huggingface.co/{repo} and log in with "
            f"`hf auth login`, or set HF_TOKEN."
        )
        raise SourceError([message]) from error
    except hub_errors.RevisionNotFoundError as error:
        raise SourceError([f"hub model {repo!r} has no revision {revision!r}."]) from error
    except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError) as error:
        message = f"no hub model {repo!r}{at} (or it is private: log in with `hf auth login`).{here}"
        raise SourceError([message]) from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        message = (
            f"hub model {repo!r}{at} is not wholly in the local cache and the hub cannot be reached "
            f"(no network, or HF_HUB_OFFLINE is set).{here} Download it where there is a network "
            f"(`hf download {repo}`), or give a folder or `package:NAME`."
        )
        raise SourceError([message]) from error
    except OSError as error:  # an HTTP error of the hub, or a full disk
        raise SourceError([f"hub model {repo!r}{at} could not be downloaded: {error}"]) from error
    return got


def _snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    got = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_OURS)
    return Path(str(got))
