"""How a query and a document become the tokens of one pair, without tokenising either of them twice.

Some models are given two texts, which their tokenizer joins by special tokens. Others are given one text, a template
with both in it. Either way the ids around the texts are learnt from the tokenizer, and pairs that are put together are
compared with pairs that were tokenised as a whole. Where a tokenizer joins tokens across a seam, all pairs are
tokenised as a whole.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.pairs import Seam, longest_first, one_gives_way
from mergesearch.evaluation.tokens import TokenizedTexts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_PIECE = 1000
"""Texts tokenised at a time."""
WHOLE = "the tokenizer joins tokens across the parts of a pair: pairs are tokenised as a whole"
_QUERY, _DOCUMENT = "{query}", "{document}"


@dataclass(frozen=True)
class TwoTexts:
    """The tokenizer is given two texts, the query first, and cuts the longer one.

    Attributes:
        query: text around `{query}`.
        document: text around `{document}`.
    """

    query: str = _QUERY
    document: str = _DOCUMENT


@dataclass(frozen=True)
class OneText:
    """The tokenizer is given one text. The document is cut, and the query where nothing is left of the document.

    Attributes:
        template: text around `{query}` and `{document}`, each of which it has once.
        starts: whether the tokenizer's special tokens stand before it.
        ends: whether they stand behind it.
        apart: what comes second is tokenised by itself, and nothing follows it.
    """

    template: str
    starts: bool = True
    ends: bool = False
    apart: bool = False


Form = TwoTexts | OneText


class Lengths(NamedTuple):
    """Most tokens of a pair, and of its texts before they are paired; None for no limit of their own."""

    pair: int
    query: int | None = None
    document: int | None = None


def make_joiner(tokenizer: Any, form: Form, lengths: Lengths, takes_types: bool) -> Joiner:
    """What puts pairs of a form together.

    Raises:
        EvaluationError: a template does not hold its texts, or the tokenizer does not put pairs together from texts.
    """
    if isinstance(form, TwoTexts):
        return _TwoTexts(tokenizer, form, lengths, takes_types)
    return _OneText(tokenizer, form, lengths)


class _Parts(NamedTuple):
    """The tokens of a whole pair, and where its texts are in them: `ids[a:b]` is the first, `ids[c:d]` the second."""

    ids: list[int]
    bounds: tuple[int, int, int, int]


class Joiner(ABC):
    """Puts tokens of texts together to those of pairs.

    Attributes:
        order: which text comes first: 0 is the query, 1 the document.
        seam: what stands around the texts.
    """

    order: tuple[int, int] = (0, 1)
    seam: Seam

    def __init__(self, tokenizer: Any, lengths: Lengths) -> None:
        self.tokenizer = tokenizer
        self.lengths = lengths

    @property
    def room(self) -> int:
        """Tokens that are left for both texts.

        Raises:
            EvaluationError: there are none.
        """
        room = self.lengths.pair - len(self.seam)
        if room < 1:
            raise EvaluationError(
                f"a pair of {self.lengths.pair} tokens leaves no room for texts: {len(self.seam)} belong to the "
                "template and special tokens. Give a larger `evaluation.rerank.max_length`."
            )
        return room

    @abstractmethod
    def ids(self, side: int, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts of one side as they stand in pairs, uncut."""

    @abstractmethod
    def whole(self, query: str, document: str) -> _Parts:
        """A pair tokenised at once, uncut; the tokenizer must be a fast one."""

    @abstractmethod
    def whole_ids(self, queries: Sequence[str], documents: Sequence[str]) -> list[list[int]]:
        """Token ids of pairs tokenised at once, uncut."""

    @abstractmethod
    def kept(self, lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
        """How many tokens of both texts are kept, in their order, int64 [P, 2]."""

    def tokenized(self, side: int, texts: Sequence[str], lengths: list[int]) -> Iterator[TokenizedTexts]:
        """Token ids of texts of one side, no more of each than a pair can hold.

        `lengths` gets how many each of them has before it is paired: that decides which one of a pair is cut.
        """
        for start in range(0, len(texts), _PIECE):
            found = [self._limited(side, ids) for ids in self.ids(side, texts[start : start + _PIECE])]
            lengths += map(len, found)
            yield together([self._part(ids, self.room) for ids in found])

    def agrees(self, texts: Sequence[Sequence[str]]) -> bool:
        """Whether pairs that are put together equal pairs that are tokenised at once."""
        first, second = (self.ids(side, texts[side]) for side in self.order)
        seam = self.seam
        made = [[*seam.before, *a, *seam.between, *b, *seam.after] for a, b in zip(first, second, strict=True)]
        return not made or made == self.whole_ids(*texts)

    def cut(self, query: str, document: str) -> tuple[list[int], list[int]]:
        """A pair tokenised at once and cut: ids up to the second text, and from there on.

        Raises:
            EvaluationError: the tokenizer does not say which text a token is from.
        """
        if not self.tokenizer.is_fast:
            raise EvaluationError(
                f"{WHOLE}, and this tokenizer does not say which text a token is from: save it as tokenizer.json."
            )
        ids, (a, b, c, d) = self.whole(query, document)
        first, second = (self._limited(side, part) for side, part in zip(self.order, (ids[a:b], ids[c:d]), strict=True))
        room = max(0, self.lengths.pair - a - (c - b) - (len(ids) - d))
        left, right = self.kept(np.array([[len(first), len(second)]]), room)[0]
        return [*ids[:a], *self._part(first, left), *ids[b:c]], [*self._part(second, right), *ids[d:]]

    def _limited(self, side: int, ids: list[int]) -> list[int]:
        """What is left of a text before it is paired."""
        limit = (self.lengths.query, self.lengths.document)[side]
        return ids if limit is None else self._part(ids, limit)

    def _part(self, ids: list[int], count: int) -> list[int]:
        return ids[max(0, len(ids) - count) :] if self.seam.keeps_end else ids[:count]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []  # a tokenizer fails over none
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return found


class _TwoTexts(Joiner):
    def __init__(self, tokenizer: Any, form: TwoTexts, lengths: Lengths, takes_types: bool) -> None:
        super().__init__(tokenizer, lengths)
        self._around = [_around(form.query, _QUERY), _around(form.document, _DOCUMENT)]
        made = tokenizer("a", "b", return_token_type_ids=takes_types)
        ids, (first, second) = list(made["input_ids"]), self._plain(["a", "b"])
        a, d = _find(ids, first), len(ids) - _find(ids[::-1], second[::-1])
        b, c = a + len(first), d - len(second)
        types: tuple[int, int, int, int, int] | None = None
        if takes_types:
            given = made["token_type_ids"]
            # Where nothing stands at a place, its type is not read.
            start, first_type, middle, second_type, end = ([*given, 0][i] for i in (0, a, b, c, d))
            types = start, first_type, middle, second_type, end
        self.seam = Seam(
            tuple(ids[:a]), tuple(ids[b:c]), tuple(ids[d:]), types, keeps_end=tokenizer.truncation_side == "left"
        )

    def ids(self, side: int, texts: Sequence[str]) -> list[list[int]]:
        return self._plain(self._filled(side, texts))

    def whole(self, query: str, document: str) -> _Parts:
        made = self.tokenizer(self._filled(0, [query]), self._filled(1, [document]), verbose=False)
        of = np.array([-1 if number is None else number for number in made.sequence_ids(0)])
        bounds = []
        for number in (0, 1):
            places = np.flatnonzero(of == number)
            bounds += [int(places[0]), int(places[-1]) + 1] if len(places) else [len(self.seam.before)] * 2
        return _Parts(list(made["input_ids"][0]), (bounds[0], bounds[1], max(bounds[1], bounds[2]), max(bounds[1:])))

    def whole_ids(self, queries: Sequence[str], documents: Sequence[str]) -> list[list[int]]:
        filled = self._filled(0, queries), self._filled(1, documents)
        found: list[list[int]] = self.tokenizer(*filled, verbose=False)["input_ids"]
        return found

    def kept(self, lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
        return longest_first(lengths, room)

    def _filled(self, side: int, texts: Sequence[str]) -> list[str]:
        before, behind = self._around[side]
        return [f"{before}{text}{behind}" for text in texts]


class _OneText(Joiner):
    """Blanks before a text are tokenised with it, and so are line ends behind it: there tokenizers part text."""

    def __init__(self, tokenizer: Any, form: OneText, lengths: Lengths) -> None:
        super().__init__(tokenizer, lengths)
        self._form = form
        self._literals, self.order = _template(form.template)
        start, between, end = self._literals
        start, lead = _leave_blanks(start)
        trail, between = _take_lines(between)
        between, second_lead = _leave_blanks(between)
        second_trail, end = _take_lines(end)
        if form.apart:
            between, second_lead = between + second_lead, ""
        self._around = ((lead, trail), (second_lead, second_trail))
        self._contexts = (_last_line(start), "" if form.apart else _last_line(between))
        plain = self._plain(["a b"])[0]
        made = list(tokenizer("a b")["input_ids"])
        at = _find(made, plain)
        starts, ends = made[:at] if form.starts else [], made[at + len(plain) :] if form.ends else []
        self._starts, self._ends = starts, ends
        self.seam = Seam(
            (*starts, *self._plain([start])[0]),
            tuple(self._behind(f"a{trail}", between)),
            (*self._behind(f"a{second_trail}", end), *ends),
        )

    def ids(self, side: int, texts: Sequence[str]) -> list[list[int]]:
        place = self.order.index(side)
        (lead, trail), context = self._around[place], self._contexts[place]
        skipped = len(self._plain([context])[0])
        return [ids[skipped:] for ids in self._plain([f"{context}{lead}{text}{trail}" for text in texts])]

    def whole(self, query: str, document: str) -> _Parts:
        texts = [(query, document)[side] for side in self.order]
        start, between, end = self._literals
        filled = f"{start}{texts[0]}{between}"
        if self._form.apart:
            second = self._plain([texts[1]])[0]
        else:
            filled += f"{texts[1]}{end}"
        made = self.tokenizer(filled, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(made["input_ids"]), made["offset_mapping"]
        a, b = _tokens_of(offsets, len(start), len(start) + len(texts[0]))
        if self._form.apart:
            c, ids = len(ids), ids + second
            d = len(ids)
        else:
            at = len(start) + len(texts[0]) + len(between)
            c, d = _tokens_of(offsets, at, at + len(texts[1]))
        n = len(self._starts)
        return _Parts([*self._starts, *ids, *self._ends], (n + a, n + b, n + max(b, c), n + max(b, c, d)))

    def whole_ids(self, queries: Sequence[str], documents: Sequence[str]) -> list[list[int]]:
        start, between, end = self._literals
        ordered = [(queries, documents)[side] for side in self.order]
        if self._form.apart:
            contexts = self._plain([f"{start}{text}{between}" for text in ordered[0]])
            ids = [[*context, *own] for context, own in zip(contexts, self._plain(ordered[1]), strict=True)]
        else:
            ids = self._plain([f"{start}{a}{between}{b}{end}" for a, b in zip(*ordered, strict=True)])
        return [[*self._starts, *own, *self._ends] for own in ids]

    def kept(self, lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
        return one_gives_way(lengths, room, self.order.index(1))

    def _behind(self, before: str, text: str) -> list[int]:
        """Token ids of a text where it stands behind another one."""
        alone, both = self._plain([before, before + text])
        return both[len(alone) :]


def _template(template: str) -> tuple[tuple[str, str, str], tuple[int, int]]:
    """The text around both places of a template, and which text comes first."""
    found = re.split(r"(\{query\}|\{document\})", template)
    if len(found) != 5 or found[1] == found[3]:
        raise EvaluationError(
            f"the template {template!r} must hold {{query}} once and {{document}} once: mend "
            "`evaluation.rerank.template`."
        )
    return (found[0], found[2], found[4]), ((0, 1) if found[1] == _QUERY else (1, 0))


def _around(template: str, place: str) -> tuple[str, str]:
    if template.count(place) != 1:
        key = f"{place[1:-1]}_template"
        raise EvaluationError(f"the template {template!r} must hold {place} once: mend `evaluation.rerank.{key}`.")
    before, _, behind = template.partition(place)
    return before, behind


def _leave_blanks(text: str) -> tuple[str, str]:
    """A text without the blanks behind its last line end, and those blanks."""
    left = re.sub(r"[^\S\n]+\Z", "", text)
    return left, text[len(left) :]


def _take_lines(text: str) -> tuple[str, str]:
    """The white space that a text begins with, up to its last line end, and the rest."""
    found = re.match(r"\s*\n", text)
    end = found.end() if found else 0
    return text[:end], text[end:]


def _last_line(text: str) -> str:
    return text[text.rstrip().rfind("\n") + 1 :]


def _tokens_of(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens with characters of `text[start:end]` that do not reach beyond it: what may be cut."""
    first = next((i for i, (_, last) in enumerate(offsets) if last > start), len(offsets))
    behind = next((i for i, (_, last) in enumerate(offsets) if last > end), len(offsets))
    return first, max(first, behind)


def _find(ids: list[int], part: list[int]) -> int:
    """Where a part is in a list of ids.

    Raises:
        EvaluationError: it is not in there.
    """
    for i in range(len(ids) - len(part) + 1):
        if ids[i : i + len(part)] == part:
            return i
    raise EvaluationError("the tokenizer does not put pairs together from the tokens of their texts.")


def together(ids: Sequence[list[int]]) -> TokenizedTexts:
    """Token ids of texts in one array."""
    joined = [np.asarray(own, dtype=np.int32) for own in ids]
    return TokenizedTexts(
        np.concatenate([np.zeros(0, dtype=np.int32), *joined]), np.array([len(own) for own in ids], dtype=np.int64)
    )
