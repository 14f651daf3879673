"""How the tests of fused element work compare: numbers with their bound, other forms with the numbers, bit for bit."""

from typing import Any

import torch
from triton_tensors import DEVICE, SPECIALS, same_bits, with_specials

from fp8sim.simulate.results import result_of

NAMES = ("values", "codes", "transposed", "amax")
STOCHASTIC = {"rounding": "stochastic", "seed": -3, "stream": 9, "offset": 2**64 - 1000, "random_bits": 11}
FORMS: dict[str, dict[str, Any]] = {
    "e4m3, all forms": {"fmt": "e4m3", "amax": True, "transpose": True},
    "e5m2, a factor": {"fmt": "e5m2", "scale": 0.3, "amax": True},
    "e5m2, a factor in a tensor, infinity": {"fmt": "e5m2", "scale": torch.tensor(-7.1), "overflow": "infinity"},
    "e4m3fnuz": {"fmt": "float8_e4m3fnuz", "scale": 2.0, "overflow": "nan", "rounding": "to_odd"},
    "e2m1, stochastic": {"fmt": "e2m1", "amax": True, **STOCHASTIC},
    "e4m3, stochastic, transposed": {"fmt": "e4m3", "transpose": True, **STOCHASTIC},
    "binary8p4se": {"fmt": "binary8p4se"},
    "float16": {"fmt": "float16", "transpose": True},
    "numbers alone": {},
}
"""Options of the result; numbers in float32 come with each."""

HARDWARE = ("e4m3, all forms", "e5m2, a factor", "numbers alone")


def operands(*shape: int, count: int, seed: int = 0, wide: bool = False) -> list[torch.Tensor]:
    """float32 tensors of unit size; with `wide` of every size, special values among them, in different places."""
    generator = torch.Generator().manual_seed(seed)
    if not wide:
        return [torch.randn(shape, generator=generator) for _ in range(count)]
    numel = torch.Size(shape).numel()
    orders = [torch.randperm(numel, generator=generator) for _ in range(count)]
    return [with_specials(*shape, seed=seed + i).flatten()[order].view(shape) for i, order in enumerate(orders)]


def special_pairs(count: int) -> list[torch.Tensor]:
    """Every combination of special values, as `count` tensors [n, m]."""
    few = torch.cat([SPECIALS, torch.tensor([-1.0, 5.5, -5.5, 12.0, -12.0, 90.0, -90.0, 1e20, -1e20])])
    grid = torch.meshgrid(*[few] * count, indexing="ij")
    return [part.reshape(-1, len(few)).contiguous() for part in grid]


def on_device(tensor: Any) -> Any:
    return tensor.to(DEVICE) if isinstance(tensor, torch.Tensor) else tensor


def check_result(
    found: tuple[Any, ...], number: torch.Tensor, bound: torch.Tensor, forms: dict[str, Any], what: str, before: int = 0
) -> None:
    """Numbers lie within the bound of their definition, and the other forms are those of the numbers, bit for bit.

    `before`: random integers drawn before this result's.
    """
    values = found[0].cpu()
    check_numbers(values, number, bound, what)
    if "offset" in forms:
        forms = forms | {"offset": (forms["offset"] + before) % 2**64}
    expected = result_of(values.double(), torch.float32, **forms)
    for name, a, e in zip(NAMES[1:], found[1:], expected[1:], strict=True):
        assert same_bits(a, e), f"{name} of {what}, {forms}"
        assert a is None or a.is_contiguous(), name


def check_numbers(values: torch.Tensor, number: torch.Tensor, bound: torch.Tensor, what: str) -> None:
    """float32 `values` are within `bound` of float64 `number`, NaN where it is, infinite where it overflows.

    Where the bound is infinite, anything goes.
    """
    values, number = values.double().cpu(), number.cpu()
    assert values.shape == number.shape, what
    promised = bound != torch.inf
    assert torch.equal(values.isnan()[promised], number.isnan()[promised]), f"{what}: NaN elsewhere"
    largest = torch.finfo(torch.float32).max
    finite = number.abs() + bound < largest
    wrong = finite & ~((values - number).abs() <= bound)
    assert not wrong.any(), (
        f"{what}: {int(wrong.sum())} of {wrong.numel()} numbers beyond the bound, the first {values[wrong][0]} not "
        f"{number[wrong][0]} within {bound.expand(number.shape)[wrong][0]}"
    )
    beyond = promised & (number.abs() - bound > largest) & ~number.isnan()
    assert torch.equal(values[beyond], number[beyond].float().double()), f"{what}: overflow"
