import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.errors import UserError
from teacher_cache.format.nodes import (
    MOST_NODES,
    derivative_weights,
    expected_error,
    interpolation_weights,
    node_temperatures,
    nodes_needed,
)

NODES = node_temperatures(1.0, 2.0, 5)
temperatures = st.floats(1.0, 2.0)


def test_nodes_are_equally_spaced_in_beta_and_hold_both_ends() -> None:
    assert np.allclose(np.diff([1 / t for t in NODES]), 0.125)
    assert (NODES[0], NODES[-1]) == (2.0, 1.0)


@given(st.lists(st.floats(-5, 5), min_size=5, max_size=5), temperatures)
def test_interpolation_is_exact_for_polynomials_of_degree_four_in_beta(coefficients: list[float], t: float) -> None:
    polynomial = np.polynomial.Polynomial(coefficients)
    at_nodes = polynomial(1 / np.array(NODES))
    assert np.isclose(at_nodes @ interpolation_weights(NODES, t), polynomial(1 / t), rtol=1e-9, atol=1e-9)
    assert np.isclose(at_nodes @ derivative_weights(NODES, t), polynomial.deriv()(1 / t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("index", range(5))
def test_at_a_node_the_stored_mass_is_taken_as_it_is(index: int) -> None:
    expected = np.zeros(5)
    expected[index] = 1
    assert np.allclose(interpolation_weights(NODES, NODES[index]), expected, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.9, 2.3, 0.0, -1.0, float("nan")])
def test_a_temperature_outside_the_range_is_refused_by_name(temperature: float) -> None:
    with pytest.raises(UserError, match="outside the cached range 1 to 2"):
        interpolation_weights(NODES, temperature)


@pytest.mark.parametrize(
    ("low", "high", "count"),
    [(1, 2, 5), (1.0, 1.5, 5), (1, 4, MOST_NODES), (0.5, 2, MOST_NODES), (0.9, 1.2, MOST_NODES)],
)
def test_a_wider_range_takes_more_nodes(low: float, high: float, count: int) -> None:
    assert nodes_needed(low, high) == count


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (1.0, 4.0), (1.0, 20.0), (0.5, 2.0), (0.5, 4.0)])
def test_log_z_between_the_nodes_is_as_right_as_is_said(low: float, high: float) -> None:
    """Logits like a language model's, a bulk and a tail of likely tokens above it, of which the largest 8 are kept."""
    random = np.random.default_rng(0)
    logits = np.sort(np.concatenate([random.normal(0, 2, 40_000), random.gumbel(6, 2, 60)]))
    top, rest = logits[-8:] - logits[-1], logits[:-8] - logits[-1]
    nodes = node_temperatures(low, high, nodes_needed(low, high))
    kept = np.array([np.log(np.exp(rest / t).sum()) for t in nodes])
    for t in np.geomspace(low, high, 40):
        found = np.logaddexp(kept @ interpolation_weights(nodes, float(t)), np.log(np.exp(top / t).sum()))
        true = np.logaddexp(np.log(np.exp(rest / t).sum()), np.log(np.exp(top / t).sum()))
        assert abs(found - true) <= expected_error(nodes)


def test_fewer_nodes_are_said_to_be_worse() -> None:
    assert expected_error(node_temperatures(1, 20, 3)) > expected_error(node_temperatures(1, 20, MOST_NODES))
    assert expected_error(node_temperatures(0.1, 2, 9)) > 0.1
