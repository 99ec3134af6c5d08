"""Exports on the Hugging Face hub, with nothing in them of the machine that made them.

A push is one commit. Into a repository that holds an earlier export it goes as the next commit, so that nothing is
lost; a repository that holds anything else is left alone.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors

from mergesearch.errors import ExportError
from mergesearch.results.folder import RECIPE_FILE
from mergesearch.results.mergekit.writing import CONFIG_FILE
from mergesearch.results.model_card import model_card

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_LOADED_FROM = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
_HUBS_OWN = frozenset({".gitattributes"})
_REFUSED = (401, 403)
_CONNECTION: type[BaseException] = hub_errors.HfHubHTTPError.__bases__[0]
"""What everything is that goes wrong between the hub's client and the hub, in the HTTP library that it brings."""


@dataclass(frozen=True)
class Target:
    """A repository that may be pushed to.

    Attributes:
        api: the hub, with the user's token.
        repository: `OWNER/NAME`.
        held: the files that are there now; None where the repository has yet to be made.
        private: make it private, if it has to be made.
    """

    api: HfApi
    repository: str
    held: frozenset[str] | None
    private: bool


def open_target(repository: str, *, private: bool = False, api: HfApi | None = None) -> Target:
    """Look, before any work is done, whether a push is going to be possible.

    Args:
        repository: `OWNER/NAME` on the hub.
        private: make a new repository private.
        api: the hub; by default as environment and login say (HF_TOKEN, HF_ENDPOINT, `hf auth login`).

    Raises:
        ExportError: there is no token, the hub refuses it or cannot be reached, something other than an export is
            in the repository, or it is public and `private` was asked for.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ExportError(f"{repository!r} is no repository of the hub: expected OWNER/NAME")
    api = api or HfApi()
    with _told(repository):
        api.whoami()
        try:
            found = api.model_info(repository)
        except hub_errors.RepositoryNotFoundError:
            return Target(api, repository, None, private)
    if private and not found.private:
        raise ExportError(
            f"{repository} is there already, for all to see, and a push does not make it private. Do that in its "
            "settings on the hub, or choose another name"
        )
    held = frozenset(f.rfilename for f in found.siblings or []) - _HUBS_OWN
    if held and RECIPE_FILE not in held:
        raise ExportError(
            f"{repository} holds files, but no {RECIPE_FILE}: it is not an export, and nothing was pushed. Choose "
            "another name"
        )
    return Target(api, repository, held, private)


def push(folder: Path, target: Target) -> str:
    """Upload an export in one commit; what an earlier one had and this one has not is deleted in it.

    Returns:
        Where it is.

    Raises:
        ExportError: the hub refuses it or cannot be reached; the folder is as it was.
    """
    public = public_provenance(json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8")))
    own = {RECIPE_FILE: json.dumps(public, indent=2) + "\n", "README.md": model_card(public)}
    own |= {f.name: text for f in folder.glob("*.json") if f.name not in own and (text := _without_paths(f))}
    left_out = set() if public["mergekit"]["file"] else {CONFIG_FILE}
    files = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}
    files = {name: file for name, file in files.items() if name not in left_out and not name.startswith(".")}
    operations = [
        CommitOperationAdd(name, own[name].encode() if name in own else str(file)) for name, file in files.items()
    ]
    deleted = [CommitOperationDelete(name) for name in sorted((target.held or set()) - files.keys())]
    with _told(target.repository):
        if target.held is None:
            target.api.create_repo(target.repository, private=target.private, exist_ok=True)
        message = f"{public.get('study') or 'Merge'}: recipe {public['fingerprint'][:12]}"
        target.api.create_commit(target.repository, [*operations, *deleted], commit_message=message)
    return f"{target.api.endpoint}/{target.repository}"


def _without_paths(file: Path) -> str | None:
    """A settings file without the places that its model and tokenizer were once loaded from; None where it has none.

    Earlier versions of transformers wrote them, and nothing reads them.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not any(_is_path(content.get(key)) for key in _LOADED_FROM):
        return None
    kept = {key: value for key, value in content.items() if key not in _LOADED_FROM or not _is_path(value)}
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"


def _is_path(value: object) -> bool:
    return isinstance(value, str) and (value.startswith((".", "/", "~")) or "\\" in value or value.count("/") > 1)


def public_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without what belongs to a machine: its paths, and the study file with the database in it.

    Sources that are local folders are called by their names. The recipe's fingerprint does not depend on it.
    """
    public = copy.deepcopy(dict(provenance))
    public.pop("study_file", None)
    local = []
    for ref in public["recipe"]["sources"]:
        hub = public["sources"][ref["name"]]["hub"]
        if hub is None and not ref["location"].startswith("package:"):
            local.append(ref["name"])
            ref["location"] = ref["name"]
        elif hub is not None:
            ref["location"] = hub
        if hub is None:
            public["mergekit"] |= {"file": None, "tolerance": None}
    if public["mergekit"]["file"] is None and provenance["mergekit"]["file"] is not None:
        names = ", ".join(local) or "its sources"
        public["mergekit"]["why_not"] = f"{names} cannot be downloaded from the hub"
    return public


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """What the hub answers, as sentences."""
    try:
        yield
    except hub_errors.LocalTokenNotFoundError as error:
        message = "there is no token for the hub: set HF_TOKEN, or log in with `hf auth login`"
        raise ExportError(message) from error
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in _REFUSED:
            message = (
                f"the hub refuses the token for {repository} ({status}): it needs one that may write there (HF_TOKEN, "
                "or `hf auth login`)"
            )
            raise ExportError(message) from error
        raise ExportError(f"pushing to {repository} failed: {_first_line(error)}") from error
    except (hub_errors.OfflineModeIsEnabled, _CONNECTION, OSError, ValueError, RuntimeError) as error:
        raise ExportError(f"pushing to {repository} failed: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
