"""`config.json` of an exported student: its shape, that of the frozen matrices, and where they come from."""

from dataclasses import fields
from typing import Any, ClassVar

from pydantic import ValidationError
from transformers.configuration_utils import PreTrainedConfig

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from student.model.shape import StudentShape
from student.model.transplant.families import FAMILIES
from student.model.transplant.options import MixerShape

Fields = dict[str, Any]
"""Of a configuration, by name."""

OTHER_VERSION = "use the version of delta-cache that wrote this export, or run student-export again"


class StudentConfig(PreTrainedConfig):
    """What the configurations of all students have."""

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    auto_map: ClassVar[dict[str, str]] = {}
    """No code comes with an export. Trainers that load by path ask."""

    vocab_size: int = 256
    """Real tokens: the number of logits."""
    padded_vocab_size: int = 256
    """Rows of the embedding and the LM head, the teacher's."""
    hidden_size: int = 64
    num_hidden_layers: int = 2
    """Blocks of the stack, or the teacher's layers."""
    num_attention_heads: int = 4
    """Heads of every block or layer."""
    tie_word_embeddings: bool = True
    """Whether the embedding is also the LM head."""
    embedding_scale: float | None = None
    """What the first block or layer reads over the embedding, as the teacher's does; None for the embedding."""
    logit_transform: Fields | None = None
    """The numbers of `LogitTransform`: what lies behind the LM head; None for nothing."""
    head_bias: bool = False
    """Whether the LM head has a bias."""
    use_cache: bool = True
    """Whether a forward pass returns the recurrent state."""
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    tokenizer_sha256: str | None = None
    """`delta_common.tokenizer.tokenizer_digest` of the tokenizer the student was trained with."""
    provenance: Fields | None = None
    """Teacher, cache and settings the student comes from."""

    @property
    def transform(self) -> LogitTransform | None:
        """What lies behind the LM head. Raises `UserError` where this version knows no such thing."""
        try:
            return None if self.logit_transform is None else LogitTransform.model_validate(self.logit_transform)
        except ValidationError as error:
            raise UserError(
                f"logit_transform: {self.logit_transform!r} is not known to this version; {OTHER_VERSION}"
            ) from error


class DistilXLSTMConfig(StudentConfig):
    """Configuration of `DistilXLSTMForCausalLM`; the shape's numbers are those of `StudentShape`."""

    model_type = "distil_xlstm"

    slstm_at: list[int] | None = None
    """Blocks that are sLSTM, from 0; None for none."""
    conv_kernel: int = 4
    qkv_block_size: int = 4
    mlstm_proj_factor: float = 2.0
    slstm_ffn_factor: float = 1.7

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


class DistilTransplantConfig(StudentConfig):
    """Configuration of `DistilTransplantForCausalLM`, the student that begins as its teacher."""

    model_type = "distil_transplant"

    teacher_config: Fields | None = None
    """The teacher's configuration as transformers writes it: it gives the layers their shape."""
    mixer: Fields | None = None
    """The numbers of `MixerShape`: what is in attention's place."""

    @property
    def layers(self) -> Fields:
        """The teacher's configuration. Raises `UserError` where this version cannot build layers of its family."""
        found = self.teacher_config if isinstance(self.teacher_config, dict) else {}
        family = found.get("model_type")
        if family not in list(FAMILIES):
            raise UserError(
                f"teacher_config: this version builds no layers of family {family!r}, only those of "
                f"{', '.join(FAMILIES)}; {OTHER_VERSION}"
            )
        return found

    @property
    def shape(self) -> MixerShape:
        """What is in attention's place. Raises `UserError` where this version knows other numbers of it."""
        found, known = {"attention_at": [], **(self.mixer or {})}, {field.name for field in fields(MixerShape)}
        layers = found.pop("attention_at")
        if not isinstance(layers, list | tuple) or not all(isinstance(layer, int) for layer in layers):
            raise UserError(f"mixer: attention_at is {layers!r}, not a list of whole numbers; {OTHER_VERSION}")
        known.remove("attention_at")
        for name in sorted(found.keys() | known):
            if name not in known:
                raise UserError(f"mixer: {name} is not known to this version; {OTHER_VERSION}")
            if not isinstance(found.get(name), int):
                raise UserError(f"mixer: {name} is {found.get(name)!r}, not a whole number; {OTHER_VERSION}")
        return MixerShape(**found, attention_at=tuple(layers))


CONFIGS = (DistilXLSTMConfig, DistilTransplantConfig)
"""Of all kinds of students."""
