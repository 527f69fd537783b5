"""The parts of a transformers model that a teacher needs: its text configuration, LM head and decoder layers."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from delta_common.errors import UserError

SMALLEST_FLOAT = 2
"""Bytes of the smallest floating-point numbers that matrices are multiplied in without scales of their own."""


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the language model, which a multimodal model keeps inside its own."""
    return model.config.get_text_config(decoder=True)


def decoder(model: PreTrainedModel, name: str) -> nn.Module:
    """The model without its LM head. Raises `UserError` if it has no such part."""
    named = [model.get_decoder() if hasattr(model, "get_decoder") else None, model.base_model]
    inner = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    for part in [*named, *inner]:
        if isinstance(part, nn.Module) and part is not model:
            return part
    raise UserError(f"teacher.model {name}: has no decoder apart from its LM head; not supported")


def output_head(model: PreTrainedModel, name: str) -> nn.Linear:
    """The linear LM head.

    Raises `UserError` if the output layer is something else, or if it or the embedding is quantised.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"teacher.model {name}: its output layer is a {type(head).__name__}, not a linear LM head")
    for part, words in ((model.get_input_embeddings(), "embedding"), (head, "LM head")):
        if _is_packed(part.weight):
            raise UserError(
                f"teacher.model {name}: its {words} is quantised, which students share with it; give a checkpoint "
                f"whose {words} is left in floating point"
            )
    return head


def _is_packed(weight: Tensor) -> bool:
    floats = weight.is_floating_point() and weight.dtype.itemsize >= SMALLEST_FLOAT
    # A tensor made of others may call itself float32 and hold integers, as torchao's do.
    return not floats or (hasattr(weight, "__tensor_flatten__") and not isinstance(weight, DTensor))


def quantization(model: PreTrainedModel) -> str | None:
    """How the weights are packed as they run, such as `bitsandbytes`; None where transformers has unpacked them."""
    if getattr(model, "hf_quantizer", None) is None:
        return None
    method = getattr(model.config.quantization_config, "quant_method", None)
    return str(getattr(method, "value", method))


def decoder_layers(body: nn.Module, count: int, name: str) -> nn.ModuleList:
    """The list of decoder layers, wherever the model keeps it: the outermost list of `count` modules.

    `probes.require_teacher` checks that these are the layers. Raises `UserError` if there is no such list.
    """
    lists = [part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not lists:
        raise UserError(
            f"teacher.model {name}: no list of {count} decoder layers found; only decoder models are supported"
        )
    return lists[0]


def state_of(output: object) -> Tensor:
    """The hidden states (B, T, d) among what a decoder layer gives: itself, or the first of several."""
    state = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(state, Tensor)
    return state


def head_count(config: Any) -> int:
    """The number of attention heads; for models without attention, as many as heads of 64 channels would be."""
    heads = getattr(config, "num_attention_heads", None)
    return heads if isinstance(heads, int) and heads > 0 else max(1, config.hidden_size // 64)


def real_vocab_size(tokenizer: PreTrainedTokenizerBase, head_rows: int, name: str) -> int:
    """The number of tokens that have a row of the LM head. Rows beyond them are padding that was never trained.

    A tokenizer may have added tokens beyond the last row, such as an image token; a corpus that contains one is refused
    when it is read. Raises `UserError` if ordinary tokens have no row.
    """
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    if size <= head_rows:
        return int(size)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if any(number >= head_rows and token not in added for token, number in vocabulary.items()):
        raise UserError(
            f"teacher.model {name}: its tokenizer has {size} tokens but its LM head only {head_rows} rows; "
            "use the tokenizer the model was trained with"
        )
    return head_rows
