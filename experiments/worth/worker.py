"""A process that carries out one training, or times some steps of it.

Usage: python -m experiments.worth.worker FOLDER NAME SEED [--timed]
"""

import sys
from pathlib import Path

from experiments.worth.plan import WorthFolder
from experiments.worth.students import KINDS
from experiments.worth.timing import Timing
from experiments.worth.training import Training


def main() -> None:
    """Read the plan, train or time."""
    folder, name, seed = WorthFolder(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    kind = next(kind for kind in KINDS if kind.name == name)
    training = Training(folder, folder.plan(), kind, seed)
    (Timing(training) if "--timed" in sys.argv else training).carry_out()


if __name__ == "__main__":
    main()
