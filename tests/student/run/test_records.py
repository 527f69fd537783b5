"""Records: whole lines only, full precision, and forgetting."""

from pathlib import Path

from student.run.records import Records


def test_records_keep_floats_and_forget_what_a_resumed_run_takes_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.jsonl")
    assert records.read() == []
    written = [{"step": step, "loss": 1 / (step + 3)} for step in range(5)]
    for record in written:
        records.append(record)
    with records.path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert records.read() == written
    records.drop_after(2)
    assert records.read() == written[:3]
