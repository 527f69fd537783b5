"""Keys of a cache's objects: where in the cache each lies."""

import re

FROZEN_WEIGHTS_KEY = "teacher/frozen.safetensors"
BODY_KEY = "teacher/body.safetensors"
TEACHER_CONFIG_KEY = "teacher/config.json"
TOKENIZER_FOLDER = "teacher/tokenizer"
COMMITS_FOLDER = "commits"
CORPUS_FOLDER = "corpus"
CORPUS_ROWS_KEY = f"{CORPUS_FOLDER}/rows.json"
BOOKMARKS_FOLDER = f"{CORPUS_FOLDER}/positions"  # its name in format version 1
LOCKS_FOLDER = ".locks"
GROUP_KEY = "zarr.json"


def metadata_key(array: str) -> str:
    """Key of an array's metadata."""
    return f"{array}/{GROUP_KEY}"


def is_metadata_key(key: str) -> bool:
    """Whether a key names the metadata of an array or a group."""
    return key.rpartition("/")[2] == GROUP_KEY


def is_plain_key(key: str) -> bool:
    """Whether a key is a relative path of plain names, which cannot lead out of the cache."""
    return re.fullmatch(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", key, re.ASCII) is not None
