"""The list of variants: a name means one thing, and a table compares with one that stands first in it."""

from collections import Counter
from dataclasses import replace

import pytest

from experiments.variants import ALPHA, DELTA, TABLES, all_variants, fall, fixed


def test_a_name_means_one_training() -> None:
    for table in TABLES:
        for variant in table.variants:
            known = all_variants()[variant.name]
            assert replace(variant, words=known.words) == known


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_no_variant_stands_twice_in_a_table(table) -> None:
    assert Counter(variant.name for variant in table.variants).most_common(1)[0][1] == 1
    assert len(table.variants) > 1


def test_a_variant_that_takes_another_s_time_names_one_that_exists() -> None:
    named = [variant.as_long_as for variant in all_variants().values() if variant.as_long_as is not None]
    assert named
    assert set(named) <= all_variants().keys()
    assert DELTA.as_long_as is None


def test_options_say_first_and_last_value() -> None:
    assert fall(ALPHA, 0.8, 0.5) == ("--distillation.alpha_init=0.8", "--distillation.alpha_final=0.5")
    assert fixed(ALPHA, 0.5) == fall(ALPHA, 0.5, 0.5)
