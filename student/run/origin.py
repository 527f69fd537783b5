"""Where a student's first parameters come from: another run, or an export, that `--init-from` names."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from delta_common.errors import UserError
from delta_common.files import parse_json
from delta_common.logits.transform import LogitTransform
from student.inference.load import CONFIG_FILE, STUDENT_PREFIX, WEIGHTS_FILE, is_export, is_ours, read_config
from student.model.frozen import FROZEN_NAMES
from student.model.shape import StudentSettings
from student.model.student import is_beside
from student.model.transplant.families import Config
from student.run.checkpoints import PARAMETER, TENSORS_FILE, Checkpoint, digest_of, find_checkpoint
from student.run.files import SETTINGS_FILE, TRAINED_FILE, Origin, read_provenance, read_settings, read_summary
from student.run.student import config_of, transform_of
from teacher_cache.read.cache import Cache


@dataclass(frozen=True)
class Beginning:
    """Parameters to begin with, and how they came about."""

    chain: tuple[Origin, ...]
    """Oldest first; the last one is where the parameters lie."""
    parameters: dict[str, Tensor]
    """Of the whole student by name, as they were stored: float32, or from an export in 16 bits."""
    config: Config | None
    """Of a student made of layers of transformers, see `student.run.student.kept_config`."""

    @property
    def path(self) -> str:
        return self.chain[-1].path


def read_beginning(path: Path, wanted: StudentSettings, cache: Cache) -> Beginning:
    """The parameters of a run (its newest checkpoint's, in float32) or of an export.

    Raises `UserError` where there are none, or they are of another preset, teacher or tokenizer.
    """
    if is_export(path) and not is_ours(path):
        raise UserError(f"--init-from {path}: a model of transformers; give it with --model.hf instead")
    if is_export(path):
        return _of_export(path, wanted, cache)
    if not (path / SETTINGS_FILE).is_file():
        raise UserError(f"--init-from {path}: no training run and no export; give the --out folder of either command")
    return _of_run(path, wanted, cache)


def require_same_shapes(beginning: Beginning, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `UserError` naming a parameter that the student has otherwise; `shapes` are the student's by name."""
    found = {name: tuple(tensor.shape) for name, tensor in beginning.parameters.items()}
    for name in sorted(name for name in found.keys() | shapes.keys() if not is_beside(name)):
        if found.get(name) != shapes.get(name):
            theirs, ours = (str(list(s[name])) if name in s else "nothing of it" for s in (found, shapes))
            raise UserError(
                f"--init-from {beginning.path}: {name} is {theirs} there, and {ours} in the student of these settings; "
                "give the model section of that run"
            )


def _of_run(path: Path, wanted: StudentSettings, cache: Cache) -> Beginning:
    settings, provenance, found = read_settings(path), read_provenance(path), find_checkpoint(path)
    if provenance is not None:
        said = _Identity(
            settings.model.kind,
            provenance.teacher_weights_sha256,
            provenance.tokenizer_sha256,
            provenance.embedding_scale,
            provenance.logit_transform,
        )
        _require_same(path, said, wanted, cache)
    elif found is None or found[1].cache_fingerprint != cache.fingerprint:
        raise UserError(
            f"--init-from {path}: it has not finished, and an earlier version did not write down whose student it is; "
            "run its student-train command again"
        )
    steps, parameters = _parameters(path, found)
    origin = Origin(
        kind="run",
        path=str(path.resolve()),
        steps=steps,
        cache_fingerprint=cache.fingerprint if provenance is None else provenance.cache_fingerprint,
        settings_sha256=_digest(parse_json((path / SETTINGS_FILE).read_bytes())),
    )
    chain = () if provenance is None else provenance.begun_from
    return Beginning((*chain, origin), parameters, config_of(path, settings.model))


def _parameters(path: Path, found: Checkpoint | None) -> tuple[int, dict[str, Tensor]]:
    """Steps and parameters of a run: of its newest checkpoint in float32, what that lacks as it was trained last."""
    steps, parameters = 0, {}
    trained = path / TRAINED_FILE
    if trained.is_file():
        steps, parameters = read_summary(path).steps, _loaded(trained)
    if found is not None:
        folder, state = found
        if digest_of(folder / TENSORS_FILE) != state.tensors_xxh3_128:
            raise UserError(f"{folder / TENSORS_FILE}: not as it was written; remove {folder} to begin from another")
        steps = state.step
        with safe_open(folder / TENSORS_FILE, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(f"{PARAMETER}/")]  # noqa: SIM118
            own = [name for name in names if not is_beside(name.removeprefix(f"{PARAMETER}/"))]
            parameters |= {name.removeprefix(f"{PARAMETER}/"): tensors.get_tensor(name) for name in own}
    if not parameters:
        raise UserError(f"--init-from {path}: it has no checkpoint yet; let it train to its first one")
    return steps, parameters


def _of_export(path: Path, wanted: StudentSettings, cache: Cache) -> Beginning:
    config = read_config(path)
    try:
        said = config.provenance or {}
        settings, chain = said["settings"], [Origin.model_validate(link) for link in said.get("begun_from", ())]
        teacher, kind = said["teacher"]["weights_sha256"], f"model.preset {settings['model']['preset']}"
        origin = Origin(
            kind="export",
            path=str(path.resolve()),
            steps=said["steps"],
            cache_fingerprint=said["cache_fingerprint"],
            settings_sha256=_digest(settings),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path / CONFIG_FILE}: its provenance does not say what it is; run student-export again"
        ) from error
    found = _Identity(kind, teacher, config.tokenizer_sha256, config.embedding_scale, config.transform)
    _require_same(path, found, wanted, cache)
    tensors = _loaded(path / WEIGHTS_FILE)
    names = {name: name.removeprefix(STUDENT_PREFIX) for name in tensors}
    parameters = {names[name]: tensor for name, tensor in tensors.items() if names[name] not in FROZEN_NAMES.values()}
    teacher_config = getattr(config, "teacher_config", None)
    return Beginning((*chain, origin), parameters, teacher_config)


def _loaded(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not readable ({error}); begin from another run or export") from error


class _Identity(NamedTuple):
    """What has to be the same of two students for one to begin with the other's parameters."""

    kind: str
    """`StudentSettings.kind`."""
    teacher: str
    tokenizer: str | None
    embedding_scale: float | None
    logit_transform: LogitTransform | None


def _require_same(path: Path, found: _Identity, wanted: StudentSettings, cache: Cache) -> None:
    manifest = cache.manifest
    if found.kind != wanted.kind:
        raise UserError(
            f"--init-from {path}: a student of {found.kind}, and these settings say {wanted.kind}; set {found.kind}"
        )
    own = wanted.hf is not None  # nothing of the student is its teacher's but the tokens
    same = {
        "teacher": own or found.teacher == manifest.teacher.weights_sha256,
        "tokenizer": found.tokenizer == manifest.tokenizer_sha256,
        "scale of the embedding": own or found.embedding_scale == manifest.teacher.embedding_scale,
        "transform of the logits": own or found.logit_transform == transform_of(wanted, cache),
    }
    for name, is_same in same.items():
        if not is_same:
            raise UserError(f"--init-from {path}: another {name} than {cache.path} has; give a cache of the same")


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
