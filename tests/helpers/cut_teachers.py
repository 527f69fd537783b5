"""Teachers cut over the processes of a launcher beside the same ones uncut: `cut_teachers.py FOLDERS.json OUT`.

The first process writes to OUT, for each folder of the file, how far the two are apart, relative to the largest value,
or why the teacher is refused.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from delta_common.errors import UserError
from teacher_cache.settings import TargetSettings, TeacherSettings
from teacher_cache.teacher.load import group_of, load_teacher, serve
from teacher_cache.teacher.model import Teacher
from teacher_cache.teacher.parallel.group import LeftOut
from tests.helpers import ROOT
from tests.helpers.families import attention_of

TOKENS = torch.randint(0, 256, (3, 21), generator=torch.Generator().manual_seed(5))
POSITIONS = torch.arange(0, 60, 4)  # 15 of them, no multiple of the processes
LAYOUT = TargetSettings(value_dtype="float32", top_k=6, samples=0).layout()


def launch(folders: list[Path], out: Path, processes: int = 2) -> dict[str, dict[str, float] | str]:
    """What `main` finds in so many processes."""
    listed = out.with_suffix(".in")
    listed.write_text(json.dumps([str(folder) for folder in folders]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("LOCAL_RANK", None)
    program = [*command, "tests.helpers.cut_teachers", str(listed), str(out)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float] | str] = json.loads(out.read_text())
    return found


def compare(cut: Teacher, whole: Teacher) -> dict[str, float]:
    """Largest differences, of each field relative to its largest value; 1 where identities differ."""
    apart: dict[str, float] = {}
    starts = torch.zeros(3, 20, dtype=torch.bool)
    starts[:, [0, 7]] = True
    for name, where in (("", None), ("apart ", starts)):
        states = [teacher.states(TOKENS[:, :-1], mean=True, document_start=where) for teacher in (cut, whole)]
        labels, offsets = TOKENS[:, 1:].flatten()[POSITIONS], torch.full((len(POSITIONS),), 0.5, dtype=torch.float64)
        kept = [
            teacher.targets(found.final, POSITIONS, labels, offsets, LAYOUT)
            for teacher, found in zip((cut, whole), states, strict=True)
        ]
        for part in ("final", "mean"):
            apart[name + part] = difference(*(getattr(found, part) for found in states))
        for part in ("values", "label_logits"):
            apart[name + part] = difference(*(getattr(found, part) for found in kept))
        steps = (kept[0].log_mass - kept[1].log_mass).abs().max() / LAYOUT.log_mass_step
        apart[name + "log_mass"] = max(0.0, float(steps) - 1)  # a step where it rounds to the other side
    apart["identity"] = float(cut.identity() != whole.identity())
    apart["files"] = float(cut.files() != whole.files())
    return apart


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def main(listed: str, out: Path) -> None:
    """Each teacher cut, then whole in the first process."""
    torch.set_num_threads(1)
    found = {}
    for folder in json.loads(Path(listed).read_text()):
        settings = TeacherSettings(
            model=folder,
            dtype="float32",
            attention=attention_of(Path(folder).name),
            parallel=int(os.environ["WORLD_SIZE"]),
            carry="body",
        )
        with group_of(settings) as group:
            if not group.leads:
                with contextlib.suppress(LeftOut):
                    serve(group)
                continue
            try:
                cut = load_teacher(settings, group)
            except UserError as error:
                found[folder] = str(error)
                continue
            found[folder] = compare(cut, load_teacher(settings.model_copy(update={"parallel": 1})))
    if found:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
