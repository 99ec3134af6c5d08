"""Exports that are pushed to a hub, by the hub's own client, to a server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants

from mergesearch import export_merge, merge_recipe
from mergesearch.errors import ExportError
from mergesearch.recipe import MergeRecipe
from mergesearch.results.folder import RECIPE_FILE
from mergesearch.results.mergekit.writing import CONFIG_FILE
from mergesearch.results.push import open_target, public_provenance, push
from tests.hub_server import TOKEN, Hub, hub_server
from tests.integration.test_export import files_of, scored
from tests.tiny_studies import TinyStudy, make_study

# huggingface_hub 2.4 hands files to its HTTP library in a way that this deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPOSITORY = "me/merged"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_server() as running:
        yield running


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """Its sources lie in folders of this machine, and so do its collection and its database."""
    made = make_study(tmp_path_factory.mktemp("a-secret-folder")).change("search", "trials", to=3)
    template = made.folder / "retriever"
    (template / "mergesearch_training.json").write_text(json.dumps({"asked": {"base": str(made.folder)}}))
    settings = json.loads((template / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"name_or_path": str(template), "special_tokens_map_file": str(template / "special_tokens_map.json")}
    (template / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def merged(tiny: TinyStudy) -> Path:
    for name in ("retriever", "domain"):
        tiny.change("sources", name, to=str(tiny.folder / name))
    tiny.change("evaluation", "collections", 0, "folder", to=str(tiny.folder / "collection"))
    with scored(tiny) as (study, store):
        return export_merge(study, store, tiny.folder / "merged", trial=2).folder


def api(hub: Hub, token: str | None = TOKEN) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def test_a_push_is_the_export_without_the_machine(hub: Hub, merged: Path, tiny: TinyStudy) -> None:
    before = {f: (merged / f).read_bytes() for f in files_of(merged)}
    where = push(merged, open_target(REPOSITORY, private=True, api=api(hub)))
    assert where == f"{hub.endpoint}/{REPOSITORY}"
    pushed = hub.repositories[REPOSITORY]
    assert hub.private == {REPOSITORY}
    assert len(hub.commits) == 1
    changed = {RECIPE_FILE, "README.md", "tokenizer_config.json"}
    assert pushed.keys() - {".gitattributes"} == files_of(merged) - {CONFIG_FILE}
    assert all(pushed[f] == content for f, content in before.items() if f not in changed | {CONFIG_FILE})
    assert {f: (merged / f).read_bytes() for f in files_of(merged)} == before

    private = (str(tiny.folder), "a-secret-folder", "sqlite:", "study.yaml", "study.db", "collection/")
    for name, content in pushed.items():
        assert not [text for text in private if text.encode() in content], name
    settings = json.loads(pushed["tokenizer_config.json"])
    assert settings == {k: v for k, v in json.loads(before["tokenizer_config.json"]).items() if settings.get(k) == v}
    assert settings["tokenizer_class"]
    found, recorded = (json.loads(text) for text in (pushed[RECIPE_FILE], before[RECIPE_FILE]))
    recipe = MergeRecipe.from_dict(found["recipe"])
    assert [s.location for s in recipe.sources] == ["retriever", "domain"]
    assert recipe.fingerprint == found["fingerprint"] == recorded["fingerprint"]
    assert found["weights"] == recorded["weights"]
    card = ModelCard(pushed["README.md"].decode())
    assert card.data.tags
    assert "retriever, domain cannot be downloaded from the hub" in card.text


def test_a_second_push_is_the_next_commit(hub: Hub, merged: Path) -> None:
    push(merged, open_target(REPOSITORY, api=api(hub)))
    hub.repositories[REPOSITORY]["an-old-file.json"] = b"{}"
    again = open_target(REPOSITORY, api=api(hub))
    assert "an-old-file.json" in (again.held or ())
    uploads = sum("PUT" in line for line in hub.log)
    push(merged, again)
    assert len(hub.commits) == 2
    assert hub.repositories[REPOSITORY].keys() - {".gitattributes"} == files_of(merged) - {CONFIG_FILE}
    assert sum("PUT" in line for line in hub.log) == uploads  # the weights were there


def test_an_empty_repository_is_taken_and_a_foreign_one_left_alone(hub: Hub, merged: Path) -> None:
    hub.repositories["me/empty"] = {".gitattributes": b""}
    push(merged, open_target("me/empty", api=api(hub)))
    assert RECIPE_FILE in hub.repositories["me/empty"]
    theirs = {"README.md": b"years of work", "model.safetensors": b""}
    hub.repositories["me/thesis"] = dict(theirs)
    with pytest.raises(ExportError, match=r"no mergesearch\.json: it is not an export, and nothing was pushed"):
        open_target("me/thesis", api=api(hub))
    assert hub.repositories["me/thesis"] == theirs


def test_nothing_private_is_pushed_where_all_can_see_it(hub: Hub, merged: Path) -> None:
    hub.repositories[REPOSITORY] = {RECIPE_FILE: b"{}"}
    with pytest.raises(ExportError, match="for all to see"):
        open_target(REPOSITORY, private=True, api=api(hub))
    hub.private.add(REPOSITORY)
    push(merged, open_target(REPOSITORY, private=True, api=api(hub)))
    assert len(hub.commits) == 1


@pytest.mark.parametrize("token", ["hf_a_wrong_one", None])
def test_a_refused_token_is_told_before_any_work(
    hub: Hub, token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "nobody-logged-in"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ExportError, match="HF_TOKEN"):
        open_target(REPOSITORY, api=api(hub, token))
    assert not hub.repositories


def test_what_the_hub_answers_is_told(hub: Hub, merged: Path) -> None:
    target = open_target(REPOSITORY, api=api(hub))
    hub.broken = True
    with pytest.raises(ExportError, match=f"pushing to {REPOSITORY} failed"):
        push(merged, target)
    with pytest.raises(ExportError, match="expected OWNER/NAME"):
        open_target("merged", api=api(hub))


def test_no_hub_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="failed"):
        open_target(REPOSITORY, api=HfApi(endpoint="http://127.0.0.1:1", token=TOKEN))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE"):
        open_target(REPOSITORY, api=api(hub))


def test_hub_sources_keep_their_names(merged: Path) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    for name, source in found["sources"].items():
        source["hub"] = f"org/{name}"
    public = public_provenance(found)
    assert [s["location"] for s in public["recipe"]["sources"]] == ["org/retriever", "org/domain"]
    assert public["mergekit"]["file"] == CONFIG_FILE
    assert "study_file" not in public
    assert found["recipe"]["sources"][0]["location"].startswith("/")  # what was given is as it was


def test_what_was_pushed_is_made_again(merged: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    (tmp_path / "pushed.json").write_text(json.dumps(public_provenance(found)), encoding="utf-8")
    folders = {name: str(tiny.folder / name) for name in ("retriever", "domain")}
    made = merge_recipe(tmp_path / "pushed.json", tmp_path / "again", sources=folders)
    assert (made.weights, made.same) == (found["weights"], True)


@pytest.mark.slow
def test_the_command_pushes_with_the_token_of_the_environment(hub: Hub, tiny: TinyStudy, merged: Path) -> None:
    def export(token: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_DISABLE_XET": "1"}
        out = str(tiny.folder / "by-command")
        arguments = ["export", str(tiny.file), "--out", out, "--push-to", REPOSITORY]
        command = [sys.executable, "-m", "mergesearch", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    refused = export("hf_a_wrong_one")
    assert refused.returncode == 6
    assert "refuses the token" in refused.stderr
    assert not (tiny.folder / "by-command").exists()
    done = export(TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.endpoint}/{REPOSITORY}" in done.stdout
    assert RECIPE_FILE in hub.repositories[REPOSITORY]
