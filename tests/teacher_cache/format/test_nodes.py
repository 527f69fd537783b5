import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.errors import UserError
from teacher_cache.format.nodes import derivative_weights, interpolation_weights, node_temperatures

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
