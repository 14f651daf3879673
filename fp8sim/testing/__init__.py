"""Tests for other people's casts and GEMMs, by what fp8sim defines bit for bit.

`check_cast` and `check_gemm` put a kernel through everything with one call; the assertions compare arrays;
`fp8sim.testing.strategies` has the Hypothesis strategies, and needs `pip install hypothesis`.
"""

from fp8sim.testing.assertions import assert_bitwise_equal, assert_codes_close

__all__ = ["assert_bitwise_equal", "assert_codes_close"]
