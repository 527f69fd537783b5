"""What of the settings decides a run's numbers, and how help lists them."""

from student.model.shape import StudentSettings
from student.settings import TrainSettings


def test_kernels_do_not_count_as_what_decides_a_run() -> None:
    naive = TrainSettings(model=StudentSettings(kernels="naive"))
    assert naive.deciding(world_size=1) == TrainSettings().deciding(world_size=1)
    assert naive.model_dump()["model"]["kernels"] == "naive"
