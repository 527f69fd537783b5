"""A process of the experiments: `python -m experiments.worker FOLDER [VARIANT SEED]`.

Trains the variant and writes its results, or without one times the steps.
"""

import argparse
import json
import sys
from pathlib import Path

from delta_common.command import run_command
from delta_common.files import write_atomically
from experiments.plan import Folder
from experiments.variants import all_variants
from student.train.processes import joined_processes, quiet_deepspeed


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("variant", nargs="?")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    arguments = parser.parse_args()
    sys.exit(run_command("experiments", lambda: _run(Folder(arguments.folder), arguments.variant, arguments.seed)))


def _run(folder: Folder, variant: str | None, seed: int) -> None:
    with quiet_deepspeed():
        from experiments.train.timing import time_steps
        from experiments.train.training import VariantJob, train_variant

        with joined_processes() as processes:
            if variant is None:
                write_atomically(folder.timing, json.dumps(time_steps(folder, processes), indent=1).encode())
            else:
                train_variant(VariantJob(folder, folder.plan(), all_variants()[variant], seed), processes)


if __name__ == "__main__":
    main()
