"""The digest of a model's weights, by which a cache knows its teacher."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from delta_common.files import parse_json, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

WORTH_REMEMBERING = 2**30
"""Bytes of files below which digests are computed anew: that takes a second."""


def weights_sha256(tensors: "Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]") -> str:
    """SHA-256 in hexadecimal over names, types, shapes and bytes of a model's `state_dict()`, in the order of names.

    Pairs that come one by one, for tensors that are not all there at once, must be in that order. One is fetched while
    the one before is digested; the host holds no more than these two.
    """
    import torch

    sha, before = hashlib.sha256(), Future[None]()
    before.set_result(None)

    def add(head: bytes, data: memoryview) -> None:
        sha.update(head)
        sha.update(data)

    with ThreadPoolExecutor(1) as beside:
        for whole_name, whole in sorted(tensors.items()) if isinstance(tensors, Mapping) else tensors:
            for name, tensor in _plain(whole_name, whole):
                head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
                data = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
                before.result()
                before = beside.submit(add, head, data)
        before.result()
    return sha.hexdigest()


def _plain(name: str, tensor: "Tensor") -> "Iterator[tuple[str, Tensor]]":
    """The tensor, or those that a packed one is made of, such as numbers and scales of torchao's."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{part}", getattr(tensor, part))


class FileFacts(NamedTuple):
    """What tells that nobody has written to a file since: path, size, and times of change to the nanosecond."""

    path: str
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: Path) -> Self:
        """Of a file as it is now; a link's are those of what it leads to."""
        found = file.resolve()
        stat = found.stat()
        return cls(str(found), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def remembered_sha256(files: Sequence[FileFacts], how: Mapping[str, str], compute: Callable[[], str]) -> str:
    """The digest of weights read from these files, as `compute` found it when they were last read in the same way.

    It is kept in `$XDG_CACHE_HOME/delta-cache/weights`, for files of `WORTH_REMEMBERING` bytes or more together, whose
    facts must be from before they were read. `how` names what else the digest depends on.
    """
    if sum(file.size for file in files) < WORTH_REMEMBERING:
        return compute()
    key = json.dumps({"files": files, "how": dict(how)}, sort_keys=True)
    place = _folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    kept = _kept(place, key)
    if kept is None:
        kept = compute()
        with contextlib.suppress(OSError):  # the next build digests them again
            write_atomically(place, json.dumps({"key": key, "weights_sha256": kept}).encode())
    return kept


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delta-cache" / "weights"


def _kept(place: Path, key: str) -> str | None:
    """What was kept under the key; None if nothing was, or if it cannot be read."""
    try:
        content = parse_json(place.read_bytes())
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and content.get("key") == key
    digest = content.get("weights_sha256") if known else None
    return digest if isinstance(digest, str) and len(digest) == 64 else None
