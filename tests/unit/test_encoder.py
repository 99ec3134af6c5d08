"""The encoder: what it takes from the template's files, what it refuses to guess, and what it survives."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mergesearch.errors import EvaluationError, MemoryFullError, SourceError
from mergesearch.evaluation.encoder import open_encoder
from mergesearch.sources.config import refuse_foreign_modules
from tests.tiny_models import KINDS, make_tiny, make_variant, tiny_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mergesearch.evaluation.encoder import Encoder

TEXTS = [f"{'search model ' * (i % 5)}query {i}" for i in range(40)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tiny_models(tmp_path_factory.mktemp("models"), n_layers=2)


@pytest.fixture
def changed(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny model with some of its files rewritten (None removes one)."""

    def make(kind: str, **files: dict[str, Any] | None) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny(kind), folder)
        for name, content in files.items():
            path = folder / {"pooling": "1_Pooling/config"}.get(name, name)
            path = path.with_name(f"{path.name}.json")
            if content is None:
                path.unlink()
            else:
                old = json.loads(path.read_text()) if path.exists() and name != "pooling" else {}
                path.write_text(json.dumps({**old, **content}))
        return folder

    return make


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_takes_everything_from_the_templates_files(tiny: Callable[[str], Path], kind: str) -> None:
    shape = KINDS[kind]
    settings = open_encoder(tiny(kind)).describe()
    assert settings.pooling == (shape.pooling,)
    assert (settings.normalize, settings.similarity) == (shape.normalize, shape.similarity)
    assert settings.prompts == {"query": "", "document": "", **shape.prompts}
    assert settings.max_length == {"query": 64, "document": 64}
    assert (settings.dimensions, settings.dtype) == (32, "float32")


def test_the_users_word_comes_first(tiny: Callable[[str], Path]) -> None:
    encoder = open_encoder(tiny("bert"), pooling="cls", normalize=False, similarity="dot", max_length=9)
    settings = encoder.describe()
    assert (settings.pooling, settings.normalize, settings.similarity) == (("cls",), False, "dot")
    plan = encoder.plan(TEXTS, "document")
    assert plan.lengths.max() == 9
    embeddings = encoder.encode(plan)
    ids, mask = plan.padded(np.arange(40), pad_id=0, left=False)
    with torch.inference_mode():
        hidden = encoder.model[0].model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    assert torch.allclose(embeddings, hidden[:, 0], atol=1e-5)
    assert encoder.plan(TEXTS, "document", max_length=5).lengths.max() == 5


def test_nothing_is_guessed_for_a_bare_checkpoint(tmp_path: Path) -> None:
    bare = make_tiny("bert", tmp_path / "bare", n_layers=1, sentence_transformers=False)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError) as caught:
        open_encoder(bare)
    message = str(caught.value)
    assert len(caught.value.problems) == 4
    for word in ("`pooling`", "`normalize`", "`similarity`", "`max_length`"):
        assert word in message
    encoder = open_encoder(bare, pooling="mean", normalize=True, max_length=16)
    lengths = encoder.encode(encoder.plan(TEXTS, "query")).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(40))


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("bert", {"pooling": {"pooling_mode_mean_tokens": False}}, "how tokens are pooled"),
        ("bert", {"pooling": None}, "names this pooling configuration, but it is missing"),
        ("bert", {"pooling": {"pooling_mode": "median"}}, "unknown pooling mode 'median'"),
        ("distilbert", {"config_sentence_transformers": {"similarity_fn_name": None}}, "give `similarity`"),
        ("bert", {"config_sentence_transformers": {"similarity_fn_name": "euclidean"}}, "not supported"),
    ],
)
def test_gaps_in_the_files_are_named(
    changed: Callable[..., Path], kind: str, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        open_encoder(changed(kind, **files))


def test_prompts_named_after_tasks_are_the_users_choice(changed: Callable[..., Path]) -> None:
    folder = changed("bert", config_sentence_transformers={"prompts": {"web_search": "Find: ", "sts": ""}})
    encoder = open_encoder(folder)
    with pytest.raises(EvaluationError, match="'web_search'"):
        encoder.plan(TEXTS, "query")
    given = encoder.plan(["graph"], "query", prompt="Find: ")
    assert given.n_tokens == encoder.plan(["Find: graph"], "document").n_tokens


def test_a_default_prompt_is_for_every_text(changed: Callable[..., Path]) -> None:
    config = {"prompts": {"search": "search: "}, "default_prompt_name": "search"}
    settings = open_encoder(changed("bert", config_sentence_transformers=config)).describe()
    assert settings.prompts == {"query": "search: ", "document": "search: "}


def test_an_excluded_prompt_is_encoded_but_not_pooled(changed: Callable[..., Path]) -> None:
    pooling = {"word_embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": False}
    encoder = open_encoder(changed("bert", pooling=pooling), normalize=False)
    prompt, text = "search query", "graph node edge"
    plan = encoder.plan([text], "query", prompt=f"{prompt} ")
    ids, mask = plan.padded(np.arange(1), pad_id=0, left=False)
    with torch.inference_mode():
        hidden = encoder.model[0].model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    # [CLS] and two words of the prompt are left out; three words and [SEP] remain.
    assert ids.shape == (1, 7)
    assert torch.allclose(encoder.encode(plan), hidden[:, 3:].mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_last_token_pooling_needs_an_end_token(changed: Callable[..., Path], kind: str) -> None:
    folder = changed(kind)
    whole = open_encoder(folder)
    expected = whole.encode(whole.plan(TEXTS, "document", max_length=12))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    steps = tokenizer["post_processor"]["single"]
    end = steps.pop()
    assert "SpecialToken" in end
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EvaluationError, match="append_eos"):
        open_encoder(folder)
    mended = open_encoder(folder, append_eos=True)
    plan = mended.plan(TEXTS, "document", max_length=12)
    assert plan.lengths.max() == 12
    assert torch.equal(mended.encode(plan), expected)
    without = open_encoder(folder, append_eos=False)
    assert without.plan(TEXTS, "document").n_tokens == whole.plan(TEXTS, "document").n_tokens - len(TEXTS)


def test_a_promised_start_token_is_checked(changed: Callable[..., Path]) -> None:
    folder = changed("mistral", tokenizer_config={"add_bos_token": True})
    open_encoder(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"]["single"].pop(0)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EvaluationError, match="start token"):
        open_encoder(folder)


def test_bidirectional_attention_of_the_config_is_kept(tmp_path: Path) -> None:
    folder = make_tiny("qwen3", tmp_path / "two-way", n_layers=1, config={"is_causal": False})
    encoder = open_encoder(folder, pooling="cls")
    first, second = encoder.encode(encoder.plan(["graph node", "graph tree"], "document"))
    assert not torch.allclose(first, second, atol=1e-3)


def test_bidirectional_attention_that_the_library_ignores_is_an_error(tmp_path: Path) -> None:
    # Gemma 3 reads this setting, Mistral does not.
    folder = make_tiny("mistral", tmp_path / "m", n_layers=1, config={"use_bidirectional_attention": True})
    with pytest.raises(EvaluationError, match="asks for bidirectional attention"):
        open_encoder(folder)


def test_lengths_beyond_the_models_positions_are_refused(tiny: Callable[[str], Path]) -> None:
    # 66 positions; RoBERTa keeps two of them for padding.
    assert open_encoder(tiny("bert"), max_length=66).settings.max_length["query"] == 66
    assert open_encoder(tiny("roberta"), max_length=64).settings.max_length["query"] == 64
    for kind, limit in (("bert", 66), ("roberta", 64)):
        with pytest.raises(EvaluationError, match=f"Give {limit} or less"):
            open_encoder(tiny(kind), max_length=limit + 1)


def test_equal_plans_give_equal_bits(tiny: Callable[[str], Path]) -> None:
    encoder = open_encoder(tiny("modernbert"))
    plan = encoder.plan(TEXTS, "document", batch_tokens=128)
    again = open_encoder(tiny("modernbert"))
    assert torch.equal(encoder.encode(plan), again.encode(again.plan(TEXTS, "document", batch_tokens=128)))
    assert torch.equal(encoder.encode(plan), encoder.encode(plan))


def test_chunks_are_the_rows_of_the_whole(tiny: Callable[[str], Path]) -> None:
    encoder = open_encoder(tiny("bert"))
    plan = encoder.plan(TEXTS, "document", batch_tokens=64)
    whole, seen = encoder.encode(plan), []
    for rows, part in encoder.chunks(plan, 7):
        assert torch.equal(part, whole[torch.from_numpy(rows)])
        seen += list(rows)
    assert sorted(seen) == list(range(40))


def test_parameters_are_live(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    other = open_encoder(make_variant(tiny("t5"), tmp_path / "variant", seed=1))
    encoder = open_encoder(tiny("t5"))
    plan = encoder.plan(TEXTS, "document")
    before = encoder.encode(plan)
    assert not torch.allclose(before, other.encode(plan), atol=1e-3)
    with torch.no_grad():
        for name, parameter in encoder.parameters.items():
            parameter.copy_(other.parameters[name])
    assert torch.equal(encoder.encode(plan), other.encode(plan))


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_bf16_weights_give_fp32_embeddings_close_to_fp32s(tiny: Callable[[str], Path], kind: str) -> None:
    exact, rounded = open_encoder(tiny(kind)), open_encoder(tiny(kind), dtype="bfloat16")
    assert {p.dtype for p in rounded.parameters.values()} == {torch.bfloat16}
    plan = exact.plan(TEXTS, "document")
    embeddings = rounded.encode(plan)
    assert embeddings.dtype == torch.float32
    similarity = torch.cosine_similarity(embeddings, exact.encode(plan))
    assert similarity.min() > 0.99


def fails_beyond(encoder: Encoder, most_texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = encoder.model.forward

    def limited(features: dict[str, Any], **kwargs: Any) -> Any:
        if len(features["input_ids"]) > most_texts:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(features, **kwargs)

    monkeypatch.setattr(encoder.model, "forward", limited)


def test_a_batch_out_of_memory_is_split_and_reported(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = open_encoder(tiny("bert"))
    plan = encoder.plan(["graph node"] * 10 + ["a longer text"] * 3, "document")
    assert [len(batch) for batch in plan.batches] == [3, 10]
    expected = encoder.encode(plan)
    assert (encoder.notes, encoder.out_of_memory) == ([], 0)
    fails_beyond(encoder, 4, monkeypatch)
    assert torch.allclose(encoder.encode(plan), expected, atol=1e-6)
    assert encoder.out_of_memory == 2
    assert [note for note in encoder.notes if note.startswith("memory ran out")] == [
        "memory ran out over a batch of 10 × 4 tokens",
        "memory ran out over a batch of 5 × 4 tokens",
    ]
    fails_beyond(encoder, 0, monkeypatch)
    with pytest.raises(MemoryFullError, match="a single text of 10 tokens"):
        encoder.encode(plan)


def test_what_did_not_fit_once_is_split_at_once_ever_after(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every trial would run into every wall anew."""
    encoder = open_encoder(tiny("bert"))
    plan = encoder.plan(["graph node"] * 32, "document", batch_tokens=64)
    assert [len(batch) for batch in plan.batches] == [16, 16]
    fails_beyond(encoder, 5, monkeypatch)
    first = encoder.encode(plan)
    assert (encoder.most_tokens, encoder.out_of_memory) == (16, 2)
    encoder.notes.clear()
    assert torch.equal(encoder.encode(plan), first)
    assert encoder.out_of_memory == 2
    assert {note.split(":")[0] for note in encoder.notes} == {"a batch was split"}


def test_other_failures_are_not_taken_for_lack_of_memory(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = open_encoder(tiny("bert"))

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(encoder.model, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        encoder.encode(encoder.plan(["a"], "query"))


def test_bad_requests_say_what_to_do(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="float32, bfloat16, float16"):
        open_encoder(tiny("bert"), dtype="int8")
    folder = tmp_path / "half"
    shutil.copytree(tiny("bert"), folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="does not load"):
        open_encoder(folder)


def test_code_of_the_folder_is_not_run_unasked(tmp_path: Path) -> None:
    """Whatever version of sentence-transformers is there: those before 6 would run it."""
    folder = make_tiny("bert", tmp_path / "model", n_layers=1)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[1]["type"] = "evil.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')", encoding="utf-8")
    with pytest.raises(SourceError, match=r"not part of sentence-transformers: evil\.Pooling"):
        refuse_foreign_modules(folder)
    with pytest.raises(SourceError, match=r"evil\.Pooling"):
        open_encoder(folder, pooling="mean", normalize=True)
    assert not (tmp_path / "was-here").exists()
