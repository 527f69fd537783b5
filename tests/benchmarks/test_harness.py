"""What the benchmarks share: turns, ratios, memory, and what is printed and written."""

import json
import time

import numpy as np
import pytest

from benchmarks.harness import (
    CPU,
    Taken,
    figures_parser,
    in_turns,
    median_seconds,
    median_wall,
    peak_bytes,
    print_figures,
    processor_ratio,
    ratio,
    seconds,
    setup,
    status_bytes,
    wall_ratio,
    write_json,
)

ONES, TWOS = ([Taken(wall, 10 * wall) for wall in walls] for walls in ((1.0, 4.0, 9.0), (1.0, 2.0, 3.0)))


def test_calls_take_turns_and_another_begins_each_round() -> None:
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = in_turns(works, 2)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2, "c": 2}
    order.clear()
    assert len(in_turns(works, 2, warm_up_rounds=0)["a"]) == 2
    assert len(order) == 6


def test_the_warm_up_is_in_no_median() -> None:
    waits = iter([0.2, 0.0, 0.0, 0.0])
    assert median_seconds(lambda: time.sleep(next(waits)), 3) < 0.1
    waits = iter([0.2, 0.0])
    assert in_turns({"only": lambda: time.sleep(next(waits))}, 1)["only"][0].wall < 0.1


def test_a_call_is_timed_by_the_clock() -> None:
    assert seconds(lambda: time.sleep(0.02)) >= 0.02


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert ratio([1, 4, 9], [1, 2, 3]) == 2  # not the ratio of the medians' means
    assert wall_ratio(ONES, TWOS) == processor_ratio(ONES, TWOS) == 2
    assert median_wall(ONES) == 4
    with pytest.raises(ValueError, match="shorter"):
        ratio([1, 2], [1])


def test_peak_memory_is_what_a_call_held() -> None:
    size = 2**28
    held: list[np.ndarray] = []
    before = status_bytes("VmRSS")
    assert peak_bytes(lambda: held.append(np.ones(size, np.uint8))) > 0.9 * size
    assert status_bytes("VmRSS") - before > 0.9 * size


def test_the_setup_names_versions_and_what_is_added() -> None:
    found = setup(CPU, seed=3)
    assert {"python", "torch", "transformers", "device", "threads", "seed"} == found.keys()
    assert found["seed"] == 3
    assert str(found["device"]).startswith("cpu: ")


def test_figures_are_printed_a_line_each_and_written_where_asked(tmp_path, capsys) -> None:
    figures = {"speed": 1234.56, "device": "one", "rounds": [1, 2]}
    print_figures(figures, ",.1f", 8)
    assert capsys.readouterr().out == "speed    1,234.6\ndevice   one\n"
    arguments = figures_parser("What.").parse_args(["--json", str(tmp_path / "figures.json")])
    write_json(figures, arguments.json)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    write_json(figures, figures_parser("What.").parse_args([]).json)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
