"""The tokenizer gives the tokens that its file says, whatever class it is loaded as."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from delta_common.errors import UserError
from teacher_cache.format.keys import TOKENIZER_FOLDER
from teacher_cache.teacher.tokenizer import TRIED, differs_from_file, load_tokenizer, tokenizer_files
from tests.helpers.families import family_model
from tests.helpers.tokenizers_for_tests import byte_tokenizer

TEXT = "hello world, this is 2023 and 650841823\n\n  indented text"


def save_bpe(folder: Path, tokenizer_class: str, family: str) -> Tokenizer:
    """A byte-level BPE that splits digits by three, as newer models have it, under the name of some class."""
    backend = Tokenizer(models.BPE())
    parts = [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(r"\s?\p{L}+|\s?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    backend.train_from_iterator([TEXT * 20, *TRIED], trainer)
    family_model(family).config.save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "eos_token": "<eos>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return backend


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2Tokenizer"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_tokens_are_those_of_the_file(family: str, tokenizer_class: str, tmp_path: Path) -> None:
    written = save_bpe(tmp_path, tokenizer_class, family)
    tokenizer = load_tokenizer(str(tmp_path), "it")
    expected = written.encode(TEXT, add_special_tokens=False).ids
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == expected

    carried = tmp_path / "carried"
    carried.mkdir()
    for key, data in tokenizer_files(tokenizer).items():
        (carried / key.removeprefix(f"{TOKENIZER_FOLDER}/")).write_bytes(data)
    again = AutoTokenizer.from_pretrained(carried)
    assert again(TEXT, add_special_tokens=False)["input_ids"] == expected


def test_a_class_that_replaces_the_files_own_parts_is_noticed(tmp_path: Path) -> None:
    save_bpe(tmp_path, "Qwen2Tokenizer", "Qwen2")
    assert differs_from_file(AutoTokenizer.from_pretrained(tmp_path), str(tmp_path), "it") in TRIED


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json is not readable"):
        differs_from_file(tokenizer, str(tmp_path), "it")


@pytest.mark.parametrize("offline", [True, False])
def test_the_files_do_not_say_how_they_were_loaded(offline: bool, tmp_path: Path) -> None:
    """transformers notes whether it was offline, which would make two caches of one."""
    byte_tokenizer().save_pretrained(tmp_path)
    plain = tokenizer_files(load_tokenizer(str(tmp_path), "it"))
    noted = tokenizer_files(load_tokenizer(str(tmp_path), "it", local_files_only=offline))
    assert noted == plain
    assert not any(b"local_files_only" in data or b"is_local" in data for data in plain.values())
