"""Tokenizers of a few hundred tokens that know every letter, of the three kinds that models have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = """
    the of and to in a is for with on as by that from at are be or an this search model merge weight layer
    query document text graph node edge matrix vector value array function return number path tree sort
    cell protein health food cancer risk study diet effect treatment patient blood heart vitamin science
""".split()  # noqa: SIM905 (a list literal would be sixty lines)
"""Whole words that every tiny tokenizer has beside single characters."""

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()[]{}<>-_+*/=%&#@$|\\~^`"


def wordpiece(specials: Sequence[str], words: Sequence[str]) -> Tokenizer:
    lower = [c for c in _CHARACTERS if not c.isupper()]
    pieces = [
        *specials,
        *lower,
        *(f"##{c}" for c in lower),
        *words,
        *(f"##{w}" for w in ("ing", "ed", "s", "tion")),
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    return made


def bpe(specials: Sequence[str], words: Sequence[str], *, bare: Sequence[str] = ()) -> Tokenizer:
    """With `bare` words, which have no space before them, texts do not get one either."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = [*specials, *alphabet], []
    for word in words:
        left = "Ġ"
        for character in word:
            merges.append((left, character))
            left += character
            pieces.append(left)
    for word in bare:
        pieces += [word[:end] for end in range(2, len(word) + 1)]
        merges += [(word[:end], word[end]) for end in range(1, len(word))]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=not bare)
    made.decoder = decoders.ByteLevel()
    return made


def unigram(specials: Sequence[str], words: Sequence[str]) -> Tokenizer:
    scored = [(token, 0.0) for token in specials]
    scored += [(f"▁{word}", -3.0) for word in dict.fromkeys(words) if len(word) > 1]
    scored += [("▁", -4.0), *((c, -8.0) for c in _CHARACTERS)]
    made = Tokenizer(models.Unigram(scored, unk_id=list(specials).index("<unk>"), byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return made
