"""Checkpoints that a test made up, without tensors."""

from pathlib import Path

from student.run.checkpoints import TrainingState


def write(out: Path, step: int, *, finished: bool = True) -> Path:
    folder = out / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "states.safetensors").write_bytes(b"1234")
    state = TrainingState(
        step=step,
        updates=step,
        epoch_updates=step,
        epoch=0,
        batch=step,
        cache_fingerprint="",
        settings={},
        tensors_bytes=4,
        tensors_xxh3_128="0" * 32,
    )
    if finished:
        (folder / "state.json").write_text(state.model_dump_json())
    return folder
