"""From a path or URL to the store behind it."""

from pathlib import Path

from delta_common.errors import UserError
from delta_common.files import expand_home
from teacher_cache.format.errors import CacheFormatError
from teacher_cache.store.base import Store, is_url
from teacher_cache.store.local import LocalStore

SCHEMES = ("s3", "gs", "az")


def open_store(path: str | Path) -> Store:
    """The store at a folder (`~` is the home folder) or at a URL (s3://, gs://, az://).

    Raises `UserError` for a URL of another kind, when obstore is not installed, or when the bucket cannot be reached.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: a path has no null characters; give a folder or a URL")
    if not is_url(path):
        return LocalStore(expand_home(path))
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
        raise UserError(f"{url}: object stores need the package obstore; pip install 'obstore>=0.12'") from None
    store = ObjectStore(url)
    store.exists()  # fail now, before a teacher is loaded, if the store cannot be reached
    return store


def open_existing(path: str | Path) -> Store:
    """The store of a cache to read; raises `CacheFormatError` where there is nothing."""
    store = open_store(path)
    if not store.exists():
        raise CacheFormatError(f"{path}: no such folder; give the path of a cache that teacher-cache build wrote")
    return store
