"""The teacher gives the states and logits that the whole model gives, and says what it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, PreTrainedModel
from transformers.utils import import_utils

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from delta_common.machine.matrix_work import Operations
from delta_common.weights import weights_sha256
from teacher_cache.format.keys import FROZEN_WEIGHTS_KEY
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import HEAD_CHUNK_ELEMENTS, Teacher, position_ids
from tests.helpers.families import family_model, save_family
from tests.helpers.tiny_teacher import LAYERS, PADDED_VOCAB, save_tiny_teacher
from tests.helpers.tokenizers_for_tests import byte_tokenizer

TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(5))


def settings_for(folder: Path, **fields: Any) -> TeacherSettings:
    return TeacherSettings(model=str(folder), **{"dtype": "float32", **fields})


def test_mean_state_is_the_mean_of_the_reported_hidden_states(tiny_teacher: Path) -> None:
    teacher = load_teacher(settings_for(tiny_teacher))
    states = teacher.states(TOKENS, mean=True)
    with torch.no_grad():
        reported = teacher._body(TOKENS, output_hidden_states=True).hidden_states[1:]
    assert len(reported) == LAYERS
    assert states.mean is not None
    expected = torch.stack([state.double() for state in reported]).mean(0)
    assert (states.mean.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_chunked_logits_equal_the_whole_model_on_the_real_vocabulary(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(settings_for(tiny_teacher))
    monkeypatch.setattr("teacher_cache.teacher.model.HEAD_CHUNK_ELEMENTS", 7 * PADDED_VOCAB)
    final = teacher.states(TOKENS, mean=False).final.flatten(0, 1)
    chunks = list(teacher.logits_in_chunks(final))
    assert [len(logits) for _, logits in chunks] == [7] * 8 + [4]
    ours = torch.cat([logits for _, logits in chunks])
    with torch.no_grad():
        whole = teacher._model(TOKENS).logits.flatten(0, 1)
    assert ours.shape == (60, 257)
    assert torch.allclose(ours, whole[:, :257], atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_attention_needs_a_mask_for_packed_rows_alone_recorded_or_not(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    teacher = load_teacher(settings_for(tiny_teacher))
    attention, masked = torch.nn.functional.scaled_dot_product_attention, []

    def seen(*tensors: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        masked.append(attn_mask is not None)
        return attention(*tensors, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    starts = torch.zeros(TOKENS.shape, dtype=torch.bool)
    starts[:, 7] = True
    for recording in (False, True):
        monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda recording=recording: recording)
        teacher.states(TOKENS, mean=False, document_start=starts if packed else None)
    assert masked == [packed] * 2 * LAYERS


def test_position_ids_start_anew_at_each_document() -> None:
    starts = torch.zeros(3, 6, dtype=torch.bool)
    starts[0, [0, 2, 5]] = starts[1, [3]] = True
    assert position_ids(starts).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_a_chunk_does_not_grow_with_the_vocabulary() -> None:
    assert HEAD_CHUNK_ELEMENTS // 151_936 * 151_936 * 4 <= 128 * 2**20


def test_the_cache_carries_tied_weights_once(tiny_teacher: Path, tmp_path: Path) -> None:
    tied = load(load_teacher(settings_for(tiny_teacher)).files()[FROZEN_WEIGHTS_KEY])
    untied_folder = save_tiny_teacher(tmp_path, tie_word_embeddings=False)
    untied = load(load_teacher(settings_for(untied_folder)).files()[FROZEN_WEIGHTS_KEY])
    assert set(tied) == {"embedding.weight"}
    assert set(untied) == {"embedding.weight", "lm_head.weight"}


def test_identity_follows_weights_and_precision(tiny_teacher: Path, tmp_path: Path) -> None:
    identity = load_teacher(settings_for(tiny_teacher)).identity()
    again = load_teacher(settings_for(tiny_teacher)).identity()
    lower = load_teacher(settings_for(tiny_teacher, dtype="bfloat16")).identity()
    other = load_teacher(settings_for(save_tiny_teacher(tmp_path, initializer_range=0.3))).identity()
    assert identity == again
    assert len({identity.weights_sha256, lower.weights_sha256, other.weights_sha256}) == 3
    assert identity.padded_vocab_size == PADDED_VOCAB


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_what_the_model_gives_with_its_soft_cap(tmp_path: Path, dtype: str) -> None:
    """As large as in training, so that the cap shows."""
    save_family("Gemma2", tmp_path)
    teacher = load_teacher(settings_for(tmp_path, attention="eager", dtype=dtype))
    assert teacher.identity().logit_transform == LogitTransform(cap=3.0)
    tokens = torch.arange(2 * 16).view(2, 16)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        expected = model(tokens).logits[..., : teacher.vocab_size].flatten(0, 1)
        chunks = list(teacher.logits_in_chunks(teacher.states(tokens, mean=False).final.flatten(0, 1)))
    found = torch.cat([logits for _, logits in chunks])
    assert found.dtype == expected.dtype
    assert 2.9 < float(found.abs().max()) <= 3
    rounding = 8 * torch.finfo(found.dtype).eps
    assert torch.allclose(found.float(), expected.float(), rtol=rounding, atol=rounding)


def packed_model(**config: Any) -> PreTrainedModel:
    """A model that passes for one with packed weights."""
    model = family_model("Llama")
    model.hf_quantizer, model.config.quantization_config = object(), FineGrainedFP8Config(**config)
    return model


def test_packed_weights_are_part_of_who_the_teacher_is() -> None:
    wanted = settings_for(Path("it"))
    plain = Teacher(family_model("Llama"), byte_tokenizer(), wanted).identity()
    found = [
        Teacher(packed_model(weight_block_size=(size, size)), byte_tokenizer(), wanted).identity() for size in (16, 32)
    ]
    assert [each.quantization for each in (plain, *found)] == [None, "fp8", "fp8"]
    assert len({each.config_sha256 for each in (plain, *found)}) == 3
    assert Teacher(packed_model(), byte_tokenizer(), wanted).operations is None


def test_packed_weights_are_listed_before_the_first_pass_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To list bitsandbytes' after a pass on a CPU spoils them."""
    model, said = packed_model(), []
    whole = type(model).state_dict
    model.register_forward_pre_hook(lambda *_: said.append("pass"))
    monkeypatch.setattr(type(model), "state_dict", lambda self: said.append("list") or whole(self))
    teacher = Teacher(model, byte_tokenizer(), settings_for(Path("it")))
    assert teacher.identity().weights_sha256 == weights_sha256(whole(model))
    assert said[:2] == ["list", "pass"]
    assert said.count("list") == 1


def test_no_student_begins_with_packed_weights() -> None:
    with pytest.raises(UserError, match=r"teacher.carry body: the weights of it are packed \(fp8\).*set it to head"):
        Teacher(packed_model(), byte_tokenizer(), settings_for(Path("it"), carry="body"))


def test_a_tokenizer_larger_than_the_head_is_refused(tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path, vocab_size=200, eos_token_id=None, pad_token_id=None)
    with pytest.raises(UserError, match="tokenizer has 257 tokens but its LM head only 200 rows"):
        load_teacher(settings_for(tmp_path))


def test_its_operations_are_two_per_entry_of_its_matrices(tiny_teacher: Path, tmp_path: Path) -> None:
    teacher = load_teacher(settings_for(tiny_teacher))
    operations = teacher.operations
    assert operations is not None
    layers = sum(weight.numel() for name, weight in teacher._body.state_dict().items() if "proj.weight" in name)
    assert operations == Operations(2 * layers, 2 * PADDED_VOCAB * teacher.hidden_size)
    assert teacher.matrix_work is None, "a CPU has no peak"
    assert load_teacher(settings_for(save_family("Qwen2Moe", tmp_path))).operations is None
