"""A run and its export, of the paper's student and of every kind, for the tests of export and generation."""

from pathlib import Path

import pytest

from tests.helpers.made_exports import PRESETS, make_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """Of the paper's student."""
    return make_export(tmp_path_factory.mktemp("export"), tiny_teacher)


@pytest.fixture(scope="module", params=PRESETS)
def made(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of every kind of student."""
    if request.param == "paper":
        return folder
    teacher: Path = request.getfixturevalue("tiny_teacher")
    return make_export(tmp_path_factory.mktemp(request.param), teacher, request.param)
