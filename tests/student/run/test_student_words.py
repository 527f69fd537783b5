"""What a student is made of, in words: every preset has its own, and numbers in them are the settings'."""

from student.model.shape import StudentSettings
from student.run.files import Origin, PlannedStage, TrainedCache
from student.run.student_words import beginning_words, cache_names, cache_words, pool_words, stage_words, student_words


def test_every_kind_of_student_has_its_words() -> None:
    assert student_words(StudentSettings()) == student_words(StudentSettings(preset="heuristic"))
    assert "xLSTM" in student_words(StudentSettings())
    assert student_words(StudentSettings(preset="transplant")).endswith("a recurrence in place of attention")
    hybrid = student_words(StudentSettings(preset="hybrid", window=9, sinks=3))
    assert "attention over the last 9 positions and the first 3 beside a recurrence" in hybrid
    assert "the last 9 positions beside" in student_words(StudentSettings(preset="hybrid", window=9, sinks=0))
    attending = StudentSettings(preset="transplant", attention_at=(3, 7))
    assert student_words(attending).endswith("in place of attention; layers 3, 7 keep their attention")


def test_where_weights_came_from_is_told_from_the_first_on() -> None:
    paper, hybrid = StudentSettings(), StudentSettings(preset="hybrid")
    assert beginning_words(paper, ()) == "random weights"
    assert beginning_words(hybrid, ()) == "its teacher's weights"
    chain = [
        Origin(kind="run", path=f"runs/{n}", steps=n, cache_fingerprint="c", settings_sha256="s") for n in (10, 2000)
    ]
    expected = "its teacher's weights, then 10 steps of runs/10, then 2,000 steps of runs/2000"
    assert beginning_words(hybrid, chain) == expected


def test_stages_are_named_in_order() -> None:
    stages = [
        PlannedStage(name="attention transfer", train="mixers", steps=60),
        PlannedStage(name="distillation", train="all", steps=1240),
    ]
    assert stage_words(stages) == "attention transfer of the mixers, 60 steps; distillation of everything, 1,240 steps"
    assert stage_words([]) == ""


def test_a_cache_is_named_with_what_is_read_of_it() -> None:
    cache = TrainedCache(
        path="caches/a", fingerprint="f", teacher="t", rows=51200, share=0.3, passes=2.5, has_states=True
    )
    assert cache_words(cache) == "0.3 of the rows from caches/a: 51,200 rows, 2.50 passes"
    without = cache.model_copy(update={"has_states": False})
    assert cache_words(without).endswith("no averaged hidden states, so trained without the Frobenius term")


def test_caches_have_short_names_where_these_differ() -> None:
    assert cache_names(["caches/a/", "s3://bucket/b"]) == ["a", "b"]
    assert cache_names(["one/a", "two/a"]) == ["one/a", "two/a"]


def test_few_rows_permuted_together_are_said() -> None:
    assert pool_words("caches/large", None, 32) is None
    assert pool_words("caches/large", 64 * 32, 32) is None
    words = pool_words("caches/exact", 512, 32)
    assert words is not None
    assert words.startswith("caches/exact: 512 rows are permuted together, 16 steps' worth; where documents are many")
