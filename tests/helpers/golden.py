"""The golden caches, for tests that need a manifest, a commit record or a whole small cache as it was written."""

import json
from pathlib import Path
from typing import Any

from teacher_cache.format.manifest import Manifest, parse_manifest
from tests.helpers import ROOT

GOLDEN = ROOT / "tests/format/golden"
KINDS = ("sampled", "top", "exact", "v2-sampled")


def golden_cache(kind: str) -> Path:
    """A finished cache of 5 rows of 6 positions in 2 shards of 4 and 1; read it, do not write to it.

    It is of format version 1 unless its name says otherwise.
    """
    return GOLDEN / (kind if kind.startswith("v2-") else f"v1-{kind}")


def golden_attributes(kind: str) -> dict[str, Any]:
    """The attributes of its Zarr group."""
    attributes: dict[str, Any] = json.loads((golden_cache(kind) / "zarr.json").read_text())["attributes"]
    return attributes


def golden_manifest(kind: str) -> Manifest:
    """What those attributes say."""
    return parse_manifest(golden_attributes(kind), kind)


def changed(manifest: Manifest, key: str, **fields: object) -> Manifest:
    """The manifest with other `fields` in the record at `key`."""
    return manifest.model_copy(update={key: getattr(manifest, key).model_copy(update=fields)})
