"""Collection formats: one file each, found by their decorator; see `registry`."""

from __future__ import annotations

from mergesearch.evaluation.formats.registry import (
    FORMATS,
    CollectionFormat,
    CollectionOptions,
    collection_format,
    discover,
    get_format,
    load_collection,
    write_collection,
)

discover()

__all__ = [
    "FORMATS",
    "CollectionFormat",
    "CollectionOptions",
    "collection_format",
    "get_format",
    "load_collection",
    "write_collection",
]
