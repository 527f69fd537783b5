import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_common.errors import UserError
from teacher_cache.format import (
    TEMPERATURE_RANGE,
    CacheFormatError,
    chebyshev_temperatures,
    derivative_weights,
    interpolation_weights,
    parse_manifest,
)

NODES = chebyshev_temperatures()
temperatures = st.floats(*TEMPERATURE_RANGE)


def test_nodes_are_those_of_the_design() -> None:
    assert np.allclose(NODES, [0.963, 1.076, 1.327, 1.731, 2.131], atol=5e-4)


@given(st.lists(st.floats(-5, 5), min_size=5, max_size=5), temperatures)
def test_interpolation_is_exact_for_polynomials_of_degree_four_in_beta(coefficients: list[float], t: float) -> None:
    polynomial = np.polynomial.Polynomial(coefficients)
    at_nodes = polynomial(1 / np.array(NODES))
    assert np.isclose(at_nodes @ interpolation_weights(NODES, t), polynomial(1 / t), rtol=1e-9, atol=1e-9)
    assert np.isclose(at_nodes @ derivative_weights(NODES, t), polynomial.deriv()(1 / t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("temperature", [0.9, 2.3, 0.0, -1.0, float("nan")])
def test_a_temperature_outside_the_range_is_refused_by_name(temperature: float) -> None:
    with pytest.raises(UserError, match=r"outside the cached range 0\.95 to 2\.2"):
        interpolation_weights(NODES, temperature)


def test_a_newer_format_names_both_versions() -> None:
    with pytest.raises(CacheFormatError, match="version 99, this package reads 1; update"):
        parse_manifest({"format": "teacher-cache", "format_version": 99}, "here")


def test_another_zarr_group_is_no_cache() -> None:
    with pytest.raises(CacheFormatError, match="no teacher cache"):
        parse_manifest({"something": 1}, "here")
