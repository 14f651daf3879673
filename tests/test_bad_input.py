"""Every public operation with one argument spoilt: it works, or its error is of a kind that says which argument."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fp8sim import functional, nn
from tests.operation_calls import MODULES, OPERATIONS

CALLS = {**OPERATIONS, **MODULES}


def spoilt(value: Any) -> Iterator[Any]:
    """What may be passed by mistake instead of `value`."""
    if isinstance(value, Tensor):
        yield from ("text", 3, None, value.tolist(), value.float().numpy(), object())
        yield from (value.to(dtype) for dtype in (torch.int32, torch.bool, torch.float64, torch.complex64))
        yield from (value.float().to(torch.float8_e4m3fn), value.float().half(), value[None], value[None, None, None])
        yield from (
            value.reshape(-1)[0],
            value[:0],
            value[..., :0],
            value[..., 1:],
            value[1:],
            value.repeat(2, *[1] * (value.ndim - 1)),
        )
        yield from (value.to("meta"), value.float().to_sparse())
    elif isinstance(value, np.ndarray):
        yield from ("text", 3, None, value.tolist(), value.astype(int), value.astype(complex), value[:0])
    elif isinstance(value, bool):
        yield from ("text", None, 2, 0.5, torch.ones(2))
    elif isinstance(value, (int, float)):
        yield from (
            "text",
            None,
            math.nan,
            math.inf,
            -math.inf,
            -1,
            0,
            0.3,
            1e300,
            10**400,
            1j,
            [1],
            torch.ones(2),
            b"1",
        )
    elif isinstance(value, tuple):
        yield from ("text", None, 3, (), (math.nan,) * len(value), ("1",) * len(value), value * 2)
    elif isinstance(value, torch.dtype):
        yield from ("text", 3, torch.int32, torch.complex64, torch.float8_e5m2)
    else:
        yield from ("nonsense", "", 3, b"e4m3", ["e4m3"], object(), torch.ones(2))


def complaint(function: Callable[..., Any], arguments: dict[str, Any], argument: str) -> str | None:
    """What is wrong with how a call with this argument spoilt fails; None if nothing is.

    Two tensors that do not fit may be named by either. A text that names nothing may stand for itself.
    """
    bad = arguments[argument]
    names = list(arguments) if isinstance(bad, Tensor) or bad is None else [argument]
    try:
        function(**arguments)
    except (ValueError, TypeError, NotImplementedError, IndexError) as error:
        is_named = any(re.search(rf"\b{name}\b", str(error), re.IGNORECASE) for name in names)
        if is_named or (isinstance(bad, str) and repr(bad) in str(error)):
            return None
        return f"{type(error).__name__} without the name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.filterwarnings("ignore::UserWarning")  # what torch says of how it computes
@pytest.mark.parametrize("name", CALLS)
def test_an_error_names_the_argument(name: str) -> None:
    function, good = CALLS[name]
    function(**good)
    wrong = []
    for argument, value in good.items():
        for bad in spoilt(value):
            what = complaint(function, {**good, argument: bad}, argument)
            if what is not None:
                wrong.append(f"{argument}={described(bad)}: {what[:200]}")
    assert not wrong, "\n".join(wrong)


def described(bad: Any) -> str:
    if isinstance(bad, Tensor):
        return f"{bad.dtype} {list(bad.shape)} on {bad.device}, {bad.layout}"
    return repr(bad)[:60]


def test_the_table_has_every_function() -> None:
    tested = {function for function, _ in CALLS.values()}
    named = {getattr(module, name) for module in (functional, nn) for name in module.__all__}
    missing = {x.__name__ for x in named if callable(x) and x not in tested}
    assert missing <= UNTESTED, missing - UNTESTED


UNTESTED = {"relu", "relu_squared", "sigmoid", "tanh", "residual_apply", "batch_parts"} | {
    "GELU", "SiLU", "ReLU", "Sigmoid", "Tanh", "Softmax", "Conversion", "ModuleLine", "KeyValueCache", "ResidualStack",
    "TransformerDecoder", "TransformerLayer", "conversion_report",
}  # fmt: skip
"""Those that share the checks of others, and modules and records that do not check what they are made with."""
