"""Prefix reuse: the same embeddings to the bit with less work, and never states of other weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.evaluation.encoder import Encoder, open_encoder
from mergesearch.evaluation.prefix import PrefixCache, PrefixReuse, open_reuse
from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef
from mergesearch.sources.layout import lowest_layer, read_layout
from tests.tiny_models import KINDS, make_tiny, tiny_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = [f"{'search model ' * (i % 7)}query {i}" for i in range(24)]
N_LAYERS = 4
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tiny_models(tmp_path_factory.mktemp("models"), n_layers=N_LAYERS)


class Weights:
    """An encoder whose layers are overwritten, with plain and reusing evaluations side by side.

    `weights` names the content of every layer; the key below a boundary is that of the layers below it.
    """

    def __init__(self, encoder: Encoder, *, capacity: int = PLENTY, boundaries: tuple[int, ...] = (1, 2, 3)) -> None:
        self.encoder = encoder
        self.plan = encoder.plan(TEXTS, "document", batch_tokens=200)
        self.cache = PrefixCache(encoder.device, capacity)
        self.reuse = PrefixReuse(encoder.layers, boundaries, self.cache)
        self.original = [[p.detach().clone() for p in layer.parameters()] for layer in encoder.layers]

    def write(self, weights: str) -> None:
        for number, (content, layer) in enumerate(zip(weights, self.encoder.layers, strict=True)):
            noise = torch.Generator().manual_seed(100 * ord(content) + number)
            for parameter, original in zip(layer.parameters(), self.original[number], strict=True):
                moved = torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
                parameter.detach().copy_(original + 0.1 * moved)

    def encode(self, weights: str, *, reuse: bool) -> torch.Tensor:
        self.write(weights)
        self.encoder.layer_tokens = 0
        if not reuse:
            self.encoder.reuse = None
            return self.encoder.encode(self.plan)
        self.encoder.reuse = self.reuse
        with self.reuse.trial(lambda boundary: weights[:boundary]):
            return self.encoder.encode(self.plan)

    def layers_run(self) -> float:
        return self.encoder.layer_tokens / self.plan.n_tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_embeddings_are_the_same_to_the_bit(tiny: Callable[[str], Path], kind: str, dtype: str) -> None:
    made = Weights(open_encoder(tiny(kind), dtype=dtype))
    layers = []
    for weights in ["aaaa", "abbb", "aaaa", "bbbb", "aaac"]:
        expected = made.encode(weights, reuse=False)
        assert made.layers_run() == N_LAYERS
        assert torch.equal(made.encode(weights, reuse=True), expected)
        layers.append(made.layers_run())
    assert layers == [4, 3, 1, 4, 1]
    assert not any("forward" in vars(layer) or layer._forward_hooks for layer in made.encoder.layers)


def lowest_of(folder: Path) -> dict[str, float]:
    return {name: lowest_layer(p.place) for name, p in read_layout(folder).parameters.items()}


def test_a_model_that_has_it_is_told_from_one_that_cannot(tiny: Callable[[str], Path]) -> None:
    encoder, lowest = open_encoder(tiny("bert")), lowest_of(tiny("bert"))
    cache = PrefixCache(encoder.device, PLENTY)
    assert open_reuse(encoder, (1, 2, 4), cache, lowest) is not None
    below = encoder.layers[0]
    # The last layer adds what it reads off the first, past all boundaries.
    seen: list[Any] = []
    below.attention.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))

    def reads_below(module: object, inputs: object, output: Any) -> Any:
        return output + seen.pop() if seen else output * 2

    encoder.layers[3].register_forward_hook(reads_below)
    assert open_reuse(encoder, (1, 2), cache, lowest) is None
    assert encoder.reuse is None
    assert cache.n_bytes == (0, 0)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_known_layout_has_it(tiny: Callable[[str], Path], kind: str) -> None:
    encoder = open_encoder(tiny(kind))
    assert open_reuse(encoder, (1, 2, 3), PrefixCache(encoder.device, PLENTY), lowest_of(tiny(kind))) is not None
    assert not any(p.requires_grad for p in encoder.parameters.values())


@pytest.mark.parametrize("part", [{"norm_rel_ebd": "layer_norm"}, {"conv_kernel_size": 3}])
def test_layers_that_use_what_counts_as_above_them_are_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: dict[str, Any]
) -> None:
    """DeBERTa's layers attend through a norm, and its first is followed by a convolution, that stand behind them."""
    bert = KINDS["bert"]
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], **part}
    deberta = replace(bert, model_type="deberta-v2", config={**bert.config, **relative})
    monkeypatch.setitem(KINDS, "deberta-v2", deberta)
    folder = make_tiny("deberta-v2", tmp_path, n_layers=N_LAYERS)
    encoder = open_encoder(folder)
    assert open_reuse(encoder, (2,), PrefixCache(encoder.device, PLENTY), lowest_of(folder)) is None
    assert not any(p.requires_grad for p in encoder.parameters.values())


def test_outside_of_a_trial_nothing_is_reused(tiny: Callable[[str], Path]) -> None:
    made = Weights(open_encoder(tiny("bert")))
    made.encode("aaaa", reuse=True)
    made.write("bbbb")
    made.encoder.layer_tokens = 0
    found = made.encoder.encode(made.plan)
    assert made.layers_run() == N_LAYERS
    assert torch.equal(found, made.encode("bbbb", reuse=False))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.7])
def test_whatever_is_forgotten_nothing_changes(tiny: Callable[[str], Path], share: float) -> None:
    order = ["aaaa", "aaab", "aaba", "abab", "aaaa", "baab"]
    whole = Weights(open_encoder(tiny("bert")))
    one = whole.plan.n_padded_tokens * 32 * 4
    made = Weights(whole.encoder, capacity=int(share * one))
    run = 0.0
    for weights in order:
        assert torch.equal(made.encode(weights, reuse=True), whole.encode(weights, reuse=False))
        made.encode(weights, reuse=True)
        run += made.layers_run()
        assert made.cache.n_bytes[0] <= share * one
        assert made.cache.n_bytes[1] == 0
    if share == 0:
        assert run == N_LAYERS * len(order)
    else:
        # Even a cache that cannot hold one prefix saves what it holds of it.
        assert run < N_LAYERS * len(order)


def test_room_for_one_prefix_per_boundary_is_enough_for_depth_first_order(tiny: Callable[[str], Path]) -> None:
    one = Weights(open_encoder(tiny("bert"))).plan.n_padded_tokens * 32 * 4
    orders = [f"{a}{b}{c}{d}" for a in "ab" for b in "ab" for c in "ab" for d in "ab"]
    layers = {}
    for prefixes in (3, 100):
        made = Weights(open_encoder(tiny("bert")), capacity=prefixes * one)
        layers[prefixes] = []
        for weights in orders:
            made.encode(weights, reuse=True)
            layers[prefixes].append(made.layers_run())
    assert layers[3] == layers[100] == [4, 1, 2, 1, 3, 1, 2, 1] * 2


def test_the_oldest_prefix_goes_to_the_host_and_then_out() -> None:
    output = torch.zeros(25)
    cache = PrefixCache(torch.device("cpu"), 250, 100)
    batch = ("plan", b"")
    for prefix in "abc":
        cache.use([prefix])
        cache.add(prefix, batch, output + ord(prefix))
    assert cache.n_bytes == (200, 100)  # a is on the host
    for prefix in "abc":
        assert torch.equal(cache.get(prefix, batch), output + ord(prefix))
    cache.use(["b"])
    cache.use(["d"])
    cache.add("d", batch, output)
    assert [cache.holds(p, batch) for p in "abcd"] == [False, True, True, True]  # c has taken the place of a
    cache.use(["a", "b", "c", "d"])
    cache.add("a", batch, output)
    assert [cache.holds(p, batch) for p in "abcd"] == [False, True, True, True]  # what is in use stays
    assert cache.give_way()
    assert cache.n_bytes == (0, 100)
    assert cache.get("c", batch) is not None
    assert not cache.give_way()


def test_what_is_kept_gives_way_before_a_batch_is_split(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Weights(open_encoder(tiny("bert")))
    made.encode("aaaa", reuse=True)
    forward = Encoder._forward

    def full(encoder: Encoder, *args: Any) -> torch.Tensor:
        if made.cache.n_bytes[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(encoder, *args)

    monkeypatch.setattr(Encoder, "_forward", full)
    found = made.encode("aaab", reuse=True)
    assert "hidden states of earlier trials were given up for want of memory" in made.encoder.notes
    assert made.encoder.most_tokens is None
    assert made.encoder.out_of_memory > 0
    monkeypatch.undo()
    assert torch.equal(found, made.encode("aaab", reuse=False))


def test_a_batch_that_failed_leaves_nothing(tiny: Callable[[str], Path]) -> None:
    made = Weights(open_encoder(tiny("bert")))

    def fails(*_: object) -> None:
        raise ValueError("no")

    hook = made.encoder.layers[3].register_forward_hook(fails)
    with pytest.raises(ValueError, match="no"):
        made.encode("aaaa", reuse=True)
    hook.remove()
    assert made.cache.n_bytes == (0, 0)
    assert torch.equal(made.encode("aaaa", reuse=True), made.encode("aaaa", reuse=False))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_states_depend_on_the_places_below_and_on_no_other(tiny: Callable[[str], Path], kind: str) -> None:
    """So a key made of the places below says everything."""
    encoder = open_encoder(tiny(kind))
    layout = read_layout(tiny(kind))
    plan = encoder.plan(TEXTS[:8], "document")
    boundary = 2
    states: list[torch.Tensor] = []

    def watch(module: object, inputs: object, output: Any) -> None:
        states.append(output if isinstance(output, torch.Tensor) else output[0])

    encoder.layers[boundary - 1].register_forward_hook(watch)
    for place in layout.places:
        parameters = [encoder.parameters[name] for name in layout.names(place)]
        before = [p.detach().clone() for p in parameters]
        states.clear()
        encoder.encode(plan)
        for p in parameters:
            p.detach().mul_(1.5)
        encoder.encode(plan)
        for p, old in zip(parameters, before, strict=True):
            p.detach().copy_(old)
        same = all(map(torch.equal, states[: len(states) // 2], states[len(states) // 2 :]))
        assert same == (lowest_layer(place) >= boundary), place


PLACES = ("embeddings", *(f"layer.{i}.{c}" for i in range(4) for c in ("attention", "mlp", "norms")), "final_norm")


@st.composite
def recipes(draw: st.DrawFn) -> MergeRecipe:
    """Any division of the places into groups, with any content."""
    names = draw(st.lists(st.sampled_from("xyz"), min_size=len(PLACES), max_size=len(PLACES)))
    numbers = st.floats(-2, 2, allow_nan=False)
    groups = []
    for name in sorted(set(names)):
        places = tuple(p for p, n in zip(PLACES, names, strict=True) if n == name)
        if draw(st.booleans()):
            groups.append(GroupRecipe(name, places, copy_from=draw(st.sampled_from("ab"))))
        else:
            weight = draw(st.one_of(numbers, st.fixed_dictionaries({"a": numbers, "b": numbers})))
            groups.append(GroupRecipe(name, places, coefficients={"weight": weight}))
    refs = tuple(SourceRef(s, s, draw(st.sampled_from(["one", "two"]))) for s in "ab")
    return MergeRecipe("linear", refs, "a", tuple(groups))


def key(recipe: MergeRecipe, boundary: int) -> str:
    return recipe.prefix_key({p for g in recipe.groups for p in g.places if lowest_layer(p) < boundary})


@given(recipe=recipes(), boundary=st.integers(1, 4), data=st.data())
def test_the_key_changes_with_what_lies_below_and_with_nothing_above(
    recipe: MergeRecipe, boundary: int, data: st.DataObject
) -> None:
    expected = key(recipe, boundary)
    everywhere: list[dict[str, Any]] = [
        {"method": "task_arithmetic"},
        {"template": "b"},
        {"base": "b"},
        {"options": {"arithmetic": "mergekit"}},
        {"dtype": "bfloat16"},
        {"seed": 1},
        {"sources": (recipe.sources[1], recipe.sources[0])},
        {"sources": (replace(recipe.sources[0], content_hash="other"), recipe.sources[1])},
    ]
    for change in everywhere:
        assert key(replace(recipe, **change), boundary) != expected
    moved = tuple(replace(s, location="elsewhere", revision="other") for s in recipe.sources)
    assert key(replace(recipe, sources=moved), boundary) == expected

    place = data.draw(st.sampled_from(PLACES))
    other = data.draw(
        st.sampled_from(
            [
                GroupRecipe("other", (place,), copy_from="c"),
                GroupRecipe("other", (place,), coefficients={"weight": 3.5}),
                GroupRecipe("other", (place,), coefficients={"weight": 0.5, "measured": {"a": 0.1}}),
            ]
        )
    )
    rest = tuple(replace(g, places=tuple(p for p in g.places if p != place)) for g in recipe.groups)
    changed = replace(recipe, groups=(*rest, other))
    assert (key(changed, boundary) == expected) == (lowest_layer(place) >= boundary)


@given(recipe=recipes(), boundary=st.integers(1, 4))
def test_how_places_are_grouped_does_not_matter(recipe: MergeRecipe, boundary: int) -> None:
    apart = tuple(replace(g, name=p, places=(p,)) for g in reversed(recipe.groups) for p in g.places)
    assert key(replace(recipe, groups=apart), boundary) == key(recipe, boundary)


def test_other_batches_and_plans_are_other_entries(tiny: Callable[[str], Path]) -> None:
    """Part of a plan may be encoded, as racing does, and prompts make another plan."""
    made = Weights(open_encoder(tiny("xlm-roberta")))
    encoder = made.encoder
    plans = [encoder.plan(TEXTS, "document", prompt=prompt, batch_tokens=200) for prompt in ("", "query: ")]
    encoder.reuse = made.reuse
    halves = np.array_split(np.arange(len(TEXTS)), 2)
    with made.reuse.trial(lambda boundary: "same"[:boundary]):
        for plan in plans:
            for half in halves:
                encoder.reuse = None
                expected = encoder.encode_batch(plan, half)
                encoder.reuse = made.reuse
                for layers in (4, 1):
                    encoder.layer_tokens = 0
                    assert torch.equal(encoder.encode_batch(plan, half), expected)
                    assert encoder.layer_tokens == layers * plan.lengths[half].sum()
