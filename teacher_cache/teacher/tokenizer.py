"""The teacher's tokenizer: loaded so that it tokenizes as its file says; its files, as a cache carries them."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from delta_common.errors import UserError
from teacher_cache.format.keys import TOKENIZER_FOLDER

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

WHERE_FROM = ("is_local", "local_files_only", "name_or_path")
"""Keys by which transformers notes in a tokenizer's configuration how it was loaded; they change no token."""

TRIED = (
    "Hello world, this is 2023 and 650841823.",
    "  indented\n\n\ttext,  with   spaces \n",
    "don't they'll I'M naïve façade Straße ǅ Ⅷ ½ e\u0301",
    "def f(x): return x**2 != 3.14e-10  # comment",
    "中文字符 日本語テキスト 한국어 עברית العربية 🙂👩\u200d💻",
    "https://example.org/a_b?c=d&e=%20 <tag attr='x'>&amp;</tag>",
    "CamelCaseWord snake_case_word ALLCAPS 1,234,567.89 $5 50%",
)
"""Texts on which pre-tokenizers differ: digits, white space, apostrophes, case, scripts, combining marks, symbols."""


def load_tokenizer(where: str, name: str, **arguments: str | bool) -> PreTrainedTokenizerBase:
    """The tokenizer at a folder or Hub id, which gives the tokens that its tokenizer.json gives.

    transformers may load the class of the model's family, or the one that tokenizer_config.json names, which silently
    replaces the file's normalizer or pre-tokenizer. Then the file is loaded as it is. Raises `UserError` if even that
    gives other tokens. `name` is teacher.model, for messages.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **arguments)
    if differs_from_file(tokenizer, where, name) is not None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(where, **arguments)
        text = differs_from_file(tokenizer, where, name)
        if text is not None:
            raise UserError(
                f"teacher.model {name}: its tokenizer gives other tokens than its {TOKENIZER_FILE} (for {text!r}); "
                "give the tokenizer that the model was trained with"
            )
    return tokenizer


def differs_from_file(tokenizer: PreTrainedTokenizerBase, where: str, name: str) -> str | None:
    """The first text of `TRIED` on which a tokenizer and its tokenizer.json disagree, None if there is none.

    None also where there is no tokenizer.json. Raises `UserError` if it cannot be read.
    """
    file, backend = Path(where) / TOKENIZER_FILE, getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not file.is_file():
        return None
    try:
        written = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"teacher.model {name}: {file} is not readable ({error}); download it again") from error
    written.no_truncation()
    written.no_padding()
    encoded = ((text, backend.encode(text, add_special_tokens=False).ids) for text in TRIED)
    return next((text for text, ids in encoded if ids != written.encode(text, add_special_tokens=False).ids), None)


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The tokenizer's files by their keys in a cache, without the notes of how it was loaded."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {f"{TOKENIZER_FOLDER}/{path.relative_to(folder)}": _stored(path) for path in files}


def _stored(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name != CONFIG_FILE:
        return data
    content: dict[str, Any] = json.loads(data)
    if content.keys().isdisjoint(WHERE_FROM):
        return data
    kept = {key: value for key, value in content.items() if key not in WHERE_FROM}
    return (json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
