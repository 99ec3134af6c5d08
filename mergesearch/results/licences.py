"""Under which licences the sources of a merge are, and whether the merge can say one.

A licence is what the front matter of a model's README.md says by the hub's conventions, or else what its LICENSE file
is, where that is one of a few well-known texts. What a licence allows is for people to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mergesearch.results.folder import RECIPE_FILE

_TEXTS = {
    "apache-2.0": r"Apache License\s+Version 2\.0",
    "mit": r"(?s)\A(?!.*[Mm]odified MIT).*?hereby granted, free of charge, to any person obtaining a copy",
    "gpl-3.0": r"GNU GENERAL PUBLIC LICENSE\s+Version 3",
    "agpl-3.0": r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3",
    "lgpl-3.0": r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3",
    "cc-by-4.0": r"Creative Commons Attribution 4\.0",
    "cc-by-nc-4.0": r"(?:Creative Commons )?Attribution-NonCommercial 4\.0",
    "cc-by-sa-4.0": r"(?:Creative Commons )?Attribution-ShareAlike 4\.0",
}
"""Words that only the text of one licence starts with, by the hub's name for it."""
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
_HEAD_CHARACTERS = 1500
"""A licence names itself at its start; later it may name others."""


@dataclass(frozen=True)
class Licence:
    """What a model says of its licence.

    Attributes:
        id: by the hub's list, such as `apache-2.0`; `other` for one that only `name` or `link` tell.
        name: of a licence that is not on the list.
        link: to its text.
    """

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def known(self) -> bool:
        """Whether it says which licence: two models that say `other` and nothing more may mean different ones."""
        return self.id != "other" or bool(self.name) or "://" in (self.link or "")

    @property
    def described(self) -> str:
        """For people."""
        more = ", ".join(word for word in (self.name, self.link) if word)
        return f"{self.id} ({more})" if more else self.id

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


Licences = Mapping[str, Licence | None]
"""Source to its licence, None where none is known."""


def read_licence(folder: Path) -> Licence | None:
    """The licence of the model in `folder`; None where no file tells."""
    stated = _front_matter(folder / "README.md")
    found = stated.get("license")
    if isinstance(found, list):
        found = " and ".join(sorted(map(str, found)))
    if isinstance(found, str) and found.lower() not in ("", "unknown"):
        return Licence(found.lower(), _text(stated.get("license_name")), _text(stated.get("license_link")))
    if (folder / RECIPE_FILE).is_file():
        return None  # an export says its licence in the card, or has none: the file lay with one of its sources
    for file in sorted(f for f in folder.glob("LICEN[CS]E*") if f.is_file()):
        head = file.read_bytes()[:_HEAD_CHARACTERS].decode("utf-8", errors="replace")
        for known, words in _TEXTS.items():
            if re.search(words, head):
                return Licence(known)
    return None


def _front_matter(card: Path) -> Mapping[str, Any]:
    """The metadata of a model card; nothing where there is no card, or they are broken."""
    try:
        found = _FRONT_MATTER.match(card.read_text(encoding="utf-8-sig"))
        stated = YAML(typ="safe").load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, YAMLError):
        return {}
    return stated if isinstance(stated, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def common(licences: Licences) -> Licence | None:
    """The licence that all sources are under; None where they differ, or one of them is not known."""
    first, *others = licences.values()
    return first if first and first.known and all(licence == first for licence in others) else None


def concerns(licences: Licences) -> list[str]:
    """What whoever hands the merge to others has to settle first; nothing where all sources are under one licence."""
    found = []
    unknown = [source for source, licence in licences.items() if licence is None or not licence.known]
    if unknown:
        found.append(
            f"the licence of {', '.join(unknown)} is not known: neither a README.md with `license:` (`other` needs a "
            "name or an address) nor a LICENSE file of a well-known text lies with it"
        )
    known: dict[Licence, list[str]] = {}
    for source, licence in licences.items():
        if licence is not None and licence.known:
            known.setdefault(licence, []).append(source)
    if len(known) > 1:
        listed = "; ".join(f"{', '.join(sources)}: {licence.described}" for licence, sources in known.items())
        found.append(f"the sources are under different licences ({listed}): a merge has to meet the terms of all")
    if found:
        found.append("so the card sets no `license`")
    return found
