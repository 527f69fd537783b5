"""`config.json` of an exported student: the shapes of the stack and the frozen matrices, and where they come from."""

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from student.model.shape import StudentShape


class DistilXLSTMConfig(PreTrainedConfig):
    """Configuration of `DistilXLSTMForCausalLM`; the shape's numbers are those of `StudentShape`."""

    model_type = "distil_xlstm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    auto_map: ClassVar[dict[str, str]] = {}
    """No code comes with an export. Trainers that load by path ask."""

    vocab_size: int = 256
    """Real tokens: the number of logits."""
    padded_vocab_size: int = 256
    """Rows of the embedding and the LM head, the teacher's."""
    hidden_size: int = 64
    num_hidden_layers: int = 2
    """Blocks of the stack."""
    num_attention_heads: int = 4
    """Heads of every block."""
    slstm_at: list[int] | None = None
    """Blocks that are sLSTM, from 0; None for none."""
    conv_kernel: int = 4
    qkv_block_size: int = 4
    mlstm_proj_factor: float = 2.0
    slstm_ffn_factor: float = 1.7
    tie_word_embeddings: bool = True
    """Whether the embedding is also the LM head."""
    embedding_scale: float | None = None
    """What the first block reads over the embedding, as the teacher's first layer does; None for the embedding."""
    head_bias: bool = False
    """Whether the LM head has a bias."""
    use_cache: bool = True
    """Whether a forward pass returns the recurrent state."""
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    tokenizer_sha256: str | None = None
    """`delta_common.tokenizer.tokenizer_digest` of the tokenizer the student was trained with."""
    provenance: dict[str, Any] | None = None
    """Teacher, cache and settings the student comes from."""

    @property
    def shape(self) -> StudentShape:
        return StudentShape(
            hidden_size=self.hidden_size,
            blocks=self.num_hidden_layers,
            slstm_at=tuple(self.slstm_at or ()),
            heads=self.num_attention_heads,
            conv_kernel=self.conv_kernel,
            qkv_block_size=self.qkv_block_size,
            mlstm_proj_factor=self.mlstm_proj_factor,
            slstm_ffn_factor=self.slstm_ffn_factor,
        )
