"""The teacher itself, to measure beside its student: the one module here that loads teachers as the builder does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from delta_common.errors import UserError
from delta_common.tokenizer import is_digest_of, tokenizer_digest
from student.inference.load import Writer, is_export, is_ours, read_config
from student.model.causal_lm.student import CausalLMStudent
from student.run.files import read_plain_provenance, read_summary
from student.run.records import JsonObject
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher

DType = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True)
class KnownTeacher:
    """What a student's folder says of its teacher."""

    name: str
    weights_sha256: str
    revision: str | None = None
    dtype: DType | None = None
    """The one the digest was taken in; None where the folder does not say."""
    eager: bool = False
    """Whether its attention has no faster form."""


def known_teacher(path: Path) -> KnownTeacher | None:
    """The teacher of a run or an export; None for a model that learnt from none that it knows of."""
    if not is_export(path):
        return _of_identity(open_cache(read_summary(path).cache).manifest.teacher.model_dump())
    if not is_ours(path):
        said = read_plain_provenance(path)
        return None if said is None else KnownTeacher(said.teacher, said.teacher_weights_sha256)
    found = (read_config(path).provenance or {}).get("teacher")
    return None if found is None else _of_identity(found)


def load_beside(known: KnownTeacher | None, name: str | None, student: Writer) -> Writer | None:
    """The teacher that is known, from where `name` says it lies, if that is given; None where there is neither.

    It runs in the precision it taught in, on a CPU in float32. Raises `UserError` where it cannot be loaded, and for
    other weights than the student's teacher had or another tokenizer.
    """
    if known is None:
        return None if name is None else _as_writer(_loaded(name, None, "bfloat16", eager=False), name, student)
    where, revision = name or known.name, None if name else known.revision
    for dtype in (known.dtype,) if known.dtype else get_args(DType):
        teacher = _loaded(where, revision, dtype, eager=known.eager)
        if teacher.identity().weights_sha256 == known.weights_sha256:
            return _as_writer(teacher, where, student)
    raise UserError(
        f"--teacher {where}: its weights are not those of {known.name}, which the student learnt from; name that one"
    )


def _of_identity(said: JsonObject) -> KnownTeacher:
    eager = said.get("attention") == "eager"
    return KnownTeacher(said["name"], said["weights_sha256"], said["revision"], said["dtype"], eager)


def _loaded(name: str, revision: str | None, dtype: DType, *, eager: bool) -> Teacher:
    attention: Attention = "eager" if eager else "sdpa"
    try:
        return load_teacher(TeacherSettings(model=name, revision=revision, dtype=dtype, attention=attention))
    except UserError as error:
        if not eager and "teacher.attention to eager" in str(error):
            return _loaded(name, revision, dtype, eager=True)
        raise UserError(f"{error} (--teacher FOLDER says where the student's teacher lies)") from error


def _as_writer(teacher: Teacher, name: str, student: Writer) -> Writer:
    if not is_digest_of(student.tokenizer, tokenizer_digest(teacher.tokenizer)):
        raise UserError(f"--teacher {name}: another tokenizer than the student's; name the student's own teacher")
    transform = teacher.identity().logit_transform
    model = teacher.model.float() if teacher.device.type == "cpu" else teacher.model
    inside = CausalLMStudent(model, teacher.vocab_size).eval().requires_grad_(False)
    inside.logit_transform = transform
    return Writer(inside, teacher.tokenizer, teacher.tokenizer.eos_token_id)
