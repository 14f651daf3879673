"""The Hypothesis strategies: what they draw is valid, and reaches what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from fp8sim import casting
from fp8sim.formats import Nan, parse
from fp8sim.testing import strategies

QUICK = settings(max_examples=25, suppress_health_check=list(HealthCheck))
SHRINK = settings(max_examples=2000, suppress_health_check=list(HealthCheck), database=None)
FIND = settings(SHRINK, phases=[Phase.generate])


@QUICK
@given(strategies.any_formats(max_bits=16))
def test_formats_are_formats(fmt):
    assert 2 <= fmt.bits <= 16
    assert parse(str(fmt)) == fmt


@pytest.mark.parametrize("nan", list(Nan))
@pytest.mark.parametrize("infinity", [True, False])
def test_user_formats_reach_every_kind(nan, infinity):
    if nan is Nan.IEEE and not infinity:
        return
    found = find(strategies.user_formats(), lambda f: f.nan is nan and f.infinity is infinity, settings=FIND)
    assert found.max_code >= 1
    assert find(strategies.user_formats(max_bits=8), lambda f: not f.signed, settings=FIND).bits <= 8


@QUICK
@given(st.data())
def test_codes_are_codes(data):
    fmt = data.draw(strategies.any_formats())
    assert data.draw(strategies.codes(fmt)) in fmt.codes
    assert fmt.is_finite(data.draw(strategies.codes(fmt, finite=True)))
    array = data.draw(strategies.code_arrays(fmt))
    assert array.dtype == casting.code_dtype(fmt)
    casting.decode(array, fmt)


@QUICK
@given(st.data())
def test_values_are_numbers_of_the_dtype(data):
    fmt, dtype = data.draw(strategies.any_formats()), data.draw(strategies.dtypes())
    value = data.draw(strategies.values(fmt, dtype=dtype))
    assert isinstance(value, float)
    same = casting.cast(np.array([value]), dtype, overflow="INFINITY") if dtype != "float64" else np.array([value])
    assert np.array_equal(same, [value], equal_nan=True)
    assert np.isfinite(data.draw(strategies.values(fmt, dtype=dtype, finite=True)))


def is_tie(x):
    ends = [casting.encode(np.array([x]), "e4m3", rounding=mode)[0] for mode in ("TIES_TO_ZERO", "TIES_TO_AWAY")]
    return ends[0] != ends[1]


def is_beside_a_tie(x):
    return np.isfinite(x) and not is_tie(x) and is_tie(float(np.nextafter(np.float32(x), np.float32(0))))


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        ("a tie", is_tie),
        ("a neighbour of a tie", is_beside_a_tie),
        ("a subnormal number", lambda x: 0 < abs(x) < 2.0**-6),
        ("a magnitude below the smallest", lambda x: 0 < abs(x) < 2.0**-10),
        ("the overflow threshold", lambda x: 448 < x <= 480),
        ("an infinity", lambda x: x == -np.inf),
        ("NaN", np.isnan),
        ("a negative zero", lambda x: x == 0 and np.signbit(x)),
    ],
)
def test_values_reach(kind, condition):
    assert condition(find(strategies.values("e4m3"), condition, settings=FIND)), kind


@QUICK
@given(st.data())
def test_arrays_and_tensors_hold_values_in_any_memory(data):
    fmt, dtype = data.draw(strategies.any_formats(max_bits=8)), data.draw(strategies.dtypes())
    array = data.draw(strategies.arrays(fmt, dtype=dtype))
    assert array.dtype.name == dtype
    casting.encode(array, fmt)
    tensor = data.draw(strategies.tensors(fmt, dtype=dtype, finite=True))
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert torch.isfinite(tensor).all()
    casting.encode(tensor, fmt)


@pytest.mark.parametrize(
    "condition",
    [
        lambda layout: layout.shape == (),
        lambda layout: len(layout.shape) == 2 and 0 in layout.shape,
        lambda layout: layout.strides == (2,),
        lambda layout: layout.strides == (-1,),
        lambda layout: len(layout.shape) == 2 and 0 in layout.strides,
        lambda layout: len(layout.shape) == 3 and 1 < layout.strides[0] < layout.strides[1],
        lambda layout: layout.offset == 3,
    ],
    ids=["0-d", "empty", "every second", "reversed", "broadcast", "permuted", "offset"],
)
def test_layouts_reach(condition):
    find(strategies.layouts(), condition, settings=FIND)


def test_a_failure_shrinks_to_the_simplest_example():
    def has_subnormal(x):
        return bool(((np.abs(x) > 0) & (np.abs(x) < 2.0**-6)).any())

    smallest = find(strategies.arrays("e4m3", finite=True), has_subnormal, settings=SHRINK)
    assert smallest.ndim == 0
