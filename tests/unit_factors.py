"""Factors of activations by numerical integration over a unit normal input: `python tests/unit_factors.py` prints them.

alpha = 1 / std of f(x), beta = 1 / rms of f'(x). tests/test_rules.py holds the constants of the rules against them.
"""

import math
from collections.abc import Callable

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def expectation(f: Function) -> float:
    """The mean of f(x), x ~ N(0, 1): 20-point Gauss-Legendre on intervals of 1/8; zero is an edge, for relu's kink."""
    edges = np.linspace(-12, 12, 193)
    half = (edges[1] - edges[0]) / 2
    x = (edges[:-1, None] + half + half * _NODES).ravel()
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.sum(f(x) * density * np.tile(_WEIGHTS * half, len(edges) - 1)))


def factors(f: Function, derivative: Function) -> tuple[float, float]:
    """(alpha, beta)."""
    mean = expectation(f)
    variance = expectation(lambda x: (f(x) - mean) ** 2)
    return variance**-0.5, expectation(lambda x: derivative(x) ** 2) ** -0.5


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "relu_squared": (lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
}
"""Each function and its derivative."""


if __name__ == "__main__":
    for name, (f, derivative) in ACTIVATIONS.items():
        print(name, *factors(f, derivative))
