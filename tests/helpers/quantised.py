"""Checkpoints whose weights are packed, in formats that transformers unpacks without another package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.families import family_model, save_family
from tests.helpers.tokenizers_for_tests import byte_tokenizer

BLOCK = 16
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The numbers of MXFP4 by their four bits."""
Packed = tuple[dict[str, Tensor], Tensor]
"""Tensors by what is behind the weight's name, and the weight that they mean, in float32."""


def save_fp8(folder: Path) -> dict[str, Tensor]:
    """A Llama as DeepSeek packs one: 8 bits in blocks with scales. Returns the weights that it means."""
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return _save("Llama", folder, "proj.weight", _fp8, config, tie_word_embeddings=False)


def save_mxfp4(folder: Path) -> dict[str, Tensor]:
    """A GPT-OSS as OpenAI packs it: experts in 4 bits, a power of two for 32 of them. Returns the weights it means."""
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    return _save("GptOss", folder, "_proj", _mxfp4, config)


def want(folder: Path, config: dict[str, Any]) -> None:
    """Have config.json say that weights are quantised so."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))


def _save(
    family: str, folder: Path, ending: str, pack: Callable[[Tensor], Packed], config: dict[str, Any], **fields: Any
) -> dict[str, Tensor]:
    file = save_family(family, folder, **fields) / "model.safetensors"
    stored, meant = {}, {}
    for name, weight in load_file(file).items():
        parts, meant[name] = pack(weight) if name.endswith(ending) else ({"": weight}, weight)
        stored |= {name + behind: part for behind, part in parts.items()}
    save_file(stored, file, metadata={"format": "pt"})
    want(folder, config)
    return meant


def _fp8(weight: Tensor) -> Packed:
    rows, columns = weight.shape
    blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    packed = (blocks / scales).to(torch.float8_e4m3fn)
    parts = {"": packed.view(rows, columns), "_scale_inv": scales[:, 0, :, 0].contiguous()}
    return parts, (packed.float() * scales).view(rows, columns)


def _mxfp4(weight: Tensor) -> Packed:
    """Of a weight (experts, inputs, outputs) only the shape is taken: bits and powers are random."""
    experts, inputs, outputs = weight.shape
    random = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=random, dtype=torch.uint8)
    powers = torch.randint(124, 128, packed.shape[:3], generator=random, dtype=torch.uint8)
    numbers = torch.stack([FP4[(packed & 15).long()], FP4[(packed >> 4).long()]], dim=-1).flatten(-2)
    meant = numbers * 2.0 ** (powers[..., None].float() - 127)
    return {"_blocks": packed, "_scales": powers}, meant.flatten(-2).transpose(1, 2).contiguous()


def save_compressed(folder: Path) -> Path:
    """A Llama as compressed-tensors packs one: 8 bits, a scale for each row."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = family_model("Llama", tie_word_embeddings=False)
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = {"config_groups": groups, "ignore": ["lm_head"], "format": "pack-quantized"}
    apply_quantization_config(model, QuantizationConfig(**config, quantization_status="frozen"))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = (module.weight.abs().amax(1, keepdim=True) / 127).to(module.weight_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    compressor.update_config(str(folder))
    byte_tokenizer().save_pretrained(folder)
    return folder
