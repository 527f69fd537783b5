"""A process that carries out one training.

Usage: python -m experiments.worth.worker FOLDER NAME SEED
"""

import sys
from pathlib import Path

from experiments.worth.plan import WorthFolder
from experiments.worth.students import KINDS
from experiments.worth.training import Training


def main() -> None:
    """Read the plan, train."""
    folder, name, seed = WorthFolder(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    kind = next(kind for kind in KINDS if kind.name == name)
    Training(folder, folder.plan(), kind, seed).carry_out()


if __name__ == "__main__":
    main()
