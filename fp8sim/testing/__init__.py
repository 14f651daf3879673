"""Tests for other people's casts and GEMMs, by what fp8sim defines bit for bit.

`check_cast` and `check_gemm` put a kernel through everything with one call; the assertions compare arrays;
`fp8sim.testing.strategies` has the Hypothesis strategies, and needs `pip install hypothesis`.
"""

from fp8sim.testing.assertions import assert_bitwise_equal, assert_codes_close
from fp8sim.testing.casts import check_cast
from fp8sim.testing.gemms import check_gemm
from fp8sim.testing.reports import Check, Report
from fp8sim.testing.stochastic import assert_stochastic_counts, assert_stochastic_unbiased

__all__ = [
    "Check",
    "Report",
    "assert_bitwise_equal",
    "assert_codes_close",
    "assert_stochastic_counts",
    "assert_stochastic_unbiased",
    "check_cast",
    "check_gemm",
]
