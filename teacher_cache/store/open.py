"""A cache's objects: published whole or not at all, and locked while somebody makes them."""

from pathlib import Path

from delta_common.errors import UserError
from teacher_cache.format.errors import CacheFormatError
from teacher_cache.store.base import Store, is_url
from teacher_cache.store.local import LocalStore

SCHEMES = ("s3", "gs", "az")


def open_store(path: str | Path) -> Store:
    """The store at a folder or at a URL (s3://, gs://, az://).

    Raises `UserError` where the URL is of another kind, obstore is not installed, or its bucket cannot be reached.
    """
    if not is_url(path):
        return LocalStore(Path(path))
    url = str(path)
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        raise UserError(f"{url}: {scheme}:// is not known; give a folder, or a URL of {', '.join(SCHEMES)}")
    if not url.startswith(f"{scheme}://"):
        raise UserError(f"{url}: a slash is missing; write {scheme}://BUCKET/PREFIX, in Python as a str")
    try:
        from teacher_cache.store.objects import ObjectStore
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise UserError(f"{url}: object stores need obstore; pip install 'delta-cache[objects]'") from None
    store = ObjectStore(url)
    store.exists()  # what is wrong with the way there shows now, not when a teacher has been loaded
    return store


def open_existing(path: str | Path) -> Store:
    """The store of a cache that is to be read; raises `CacheFormatError` where there is nothing."""
    store = open_store(path)
    if not store.exists():
        raise CacheFormatError(f"{path}: no such folder; give the path of a cache that teacher-cache build wrote")
    return store
