"""What the size of a decoder's tensors follows from, held against what was measured.

A prediction takes sizes of other tensors in the same table, as equal within a bucket of positions, and the factors of
the rules; sums are taken as those of independent terms unless a cause says otherwise. That is what tolerances are for.
Each function takes the tables of one style by condition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fp8sim.analysis.scale_table import DISTINCT, MUNIT, SIGNS, TEXT, Sizes, Table
from fp8sim.nn import TransformerConfig

Tables = Mapping[str, Table]

EXPANSION = TransformerConfig.expansion
"""Width of an MLP's inner tensors over that of the stream."""

GELU_GRADIENT = 1.19
"""Size of the gradient that unit-scaled GELU, its factors tied, makes of one of size one, for unit-normal inputs."""


@dataclass(frozen=True)
class Evidence:
    """One prediction, and what was measured.

    Attributes:
        what: the condition, and the tensor that is predicted.
        predicted, measured: sizes by bucket of positions.
        tolerance: how far they may differ, relatively.
        upper: where given, `predicted` is what independent terms give, this is what fully correlated ones give, and
            the measured sizes lie between.
    """

    what: str
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    tolerance: float
    upper: tuple[float, ...] | None = None

    @property
    def holds(self) -> bool:
        """Whether every measured size is where it is predicted to be."""
        low = [value * (1 - self.tolerance) for value in self.predicted]
        high = [value * (1 + self.tolerance) for value in self.upper or self.predicted]
        bounds = zip(low, self.measured, high, strict=True)
        return all(least <= measured <= most for least, measured, most in bounds)


def _compare(what: str, predicted: Sizes, measured: Sizes, tolerance: float, upper: Sizes | None = None) -> Evidence:
    return Evidence(what, _plain(predicted), _plain(measured), tolerance, None if upper is None else _plain(upper))


def _plain(sizes: Sizes) -> tuple[float, ...]:
    return tuple(map(float, sizes))


def averaging(tables: Tables) -> Iterator[Evidence]:
    """Attention's output where what enters is independent between positions."""
    table = tables[SIGNS]
    for block in (0, table.blocks - 1):
        value = table.overall(table.rms("value", block))
        predicted = table.attention_factor * value * np.sqrt(table.gathered(table.probabilities[0]))
        yield _compare(f"{SIGNS}, block {block}", predicted, table.rms("attention output", block), 0.15)


def correlation(tables: Tables) -> Iterator[Evidence]:
    """Attention's output at the last positions, from the share of the values that positions have in common."""
    for condition in (TEXT, DISTINCT):
        table = tables[condition]
        for block in (0, table.blocks - 1):
            value, shared = table.overall(table.rms("value", block)), table.shared("value", block)
            squares = shared + (1 - shared) * table.gathered(table.probabilities[0])
            predicted = table.attention_factor * value * np.sqrt(squares)
            measured = table.rms("attention output", block)
            yield _compare(f"{condition}, block {block}, last positions", predicted[-1:], measured[-1:], 0.15)


def projection(tables: Tables) -> Iterator[Evidence]:
    """The projection's output from attention's."""
    yield from _follows(tables[TEXT], "attention output", "attention projection")


def down(tables: Tables) -> Iterator[Evidence]:
    """The output of down from the activation's."""
    yield from _follows(tables[TEXT], "activation", "down")


def _follows(table: Table, source: str, target: str) -> Iterator[Evidence]:
    """`target` is as large as `source` in the first and the last block."""
    for block in (0, table.blocks - 1):
        what = f"{table.condition}, block {block}"
        yield _compare(what, table.rms(source, block), table.rms(target, block), 0.1)


def stream(tables: Tables) -> Iterator[Evidence]:
    """The stream after each block from what enters the block and from its branches."""
    for condition in (TEXT, SIGNS):
        table = tables[condition]
        for block in range(table.blocks):
            _, after = _streams(table, block)
            yield _compare(f"{condition}, block {block}", after, table.rms("stream", block), 0.1)


def _before(table: Table, block: int) -> tuple[str, int | None]:
    """The tensor that enters a block."""
    return ("stream", block - 1) if block else ("embedding", None)


def _streams(table: Table, block: int) -> tuple[Sizes, Sizes]:
    """Size of the stream between attention and MLP of a block, and after the block, from what enters it."""
    stream = table.rms(*_before(table, block))
    branches = ("attention norm", "MLP norm") if table.style == MUNIT else ("attention projection", "down")
    sizes = []
    for i, branch in enumerate(branches):
        skip, weight = table.join(2 * block + i)
        stream = np.hypot(skip * stream, weight * table.rms(branch, block))
        sizes.append(stream)
    return sizes[0], sizes[1]


def last_norm(tables: Tables) -> Iterator[Evidence]:
    """The gradient of the last block's output from that of the last norm."""
    for condition in (TEXT, SIGNS):
        table = tables[condition]
        last = table.blocks - 1
        predicted = table.grad("last norm") / table.rms("stream", last)
        yield _compare(condition, predicted, table.grad("stream", last), 0.1)


def stream_gradient(tables: Tables) -> Iterator[Evidence]:
    """The gradient of what enters each block from that of what leaves it, and from its branches."""
    for condition in (TEXT, SIGNS):
        table = tables[condition]
        for block in range(table.blocks):
            name, index = _before(table, block)
            what = f"{condition}, {name}" + ("" if index is None else f" of block {index}")
            yield _compare(what, _entering_gradient(table, block), table.grad(name, index), 0.1)


def _middle_gradient(table: Table, block: int) -> Sizes:
    """Gradient of the stream between attention and MLP of a block."""
    skip, weight = table.join(2 * block + 1)
    if table.style == MUNIT:
        inner = _input_gradient(table, block, "up", width=EXPANSION)
    else:
        inner = weight * table.grad("MLP norm", block) / _streams(table, block)[0]
    return np.hypot(skip * table.grad("stream", block), inner)


def _entering_gradient(table: Table, block: int) -> Sizes:
    """Gradient of the stream that enters a block."""
    skip, weight = table.join(2 * block)
    if table.style == MUNIT:
        inner = _input_gradient(table, block, "query", "key", "value")
    else:
        inner = weight * table.grad("attention norm", block) / table.rms(*_before(table, block))
    return np.hypot(skip * _middle_gradient(table, block), inner)


def _input_gradient(table: Table, block: int, *outputs: str, width: float = 1.0) -> Sizes:
    """Gradient of the input of linear layers with one factor, that of the output.

    Each of the outputs is `width` times as wide as the input.
    """
    return np.sqrt(width * sum(table.grad(output, block) ** 2 for output in outputs))


def value_gradient(tables: Tables) -> Iterator[Evidence]:
    """The gradient of values from that of attention's output."""
    for condition in (SIGNS, TEXT):
        table = tables[condition]
        for block in (0, table.blocks - 1):
            gradient = table.spread(table.grad("attention output", block))
            squares = _over_later(gradient**2 * table.probabilities[0] / table.seen)
            predicted = table.attention_factor * np.sqrt(table.gathered(squares))
            upper = None
            if condition == TEXT:
                sums = _over_later(gradient / table.seen)
                upper = table.attention_factor * np.sqrt(table.gathered(sums**2))
            yield _compare(f"{condition}, block {block}", predicted, table.grad("value", block), 0.2, upper)


def _over_later(terms: Sizes) -> Sizes:
    """For each position the sum over it and all later ones."""
    return np.cumsum(terms[::-1])[::-1]


def query_key_gradient(tables: Tables) -> Iterator[Evidence]:
    """The gradients of queries and keys from that of attention's output."""
    table = tables[SIGNS]
    for block in (0, table.blocks - 1):
        of_query = table.spread(table.grad("attention output", block)) ** 2 * table.probabilities[1]
        of_key = _over_later(of_query / table.seen)
        for name, squares in (("query", of_query), ("key", of_key)):
            predicted = table.attention_factor * table.logit_std * np.sqrt(table.gathered(squares))
            what = f"{SIGNS}, {name} of block {block}, from position 1"
            yield _compare(what, predicted[1:], table.grad(name, block)[1:], 0.2)


def norm_gradient(tables: Tables) -> Iterator[Evidence]:
    """The gradients of norms' outputs from those of the layers that read them."""
    table = tables[SIGNS]
    for block in (0, table.blocks - 1):
        for norm, outputs in (("attention norm", ("query", "key", "value")), ("MLP norm", ("up", "gate"))):
            predicted = np.sqrt(sum(table.grad(output, block) ** 2 for output in outputs))
            yield _compare(f"{SIGNS}, {norm} of block {block}", predicted, table.grad(norm, block), 0.15)


def branch_gradient(tables: Tables) -> Iterator[Evidence]:
    """Gradients inside a branch, each from that of the operation after it."""
    table = tables[TEXT]
    for block in (0, table.blocks - 1):
        middle = _middle_gradient(table, block)
        chain = [("attention projection", middle), ("attention output", table.grad("attention projection", block))]
        chain += [("down", table.grad("stream", block)), ("activation", table.grad("down", block))]
        chain += [("up", table.grad("activation", block)), ("gate", table.grad("activation", block))]
        for name, predicted in chain:
            yield _compare(f"{TEXT}, {name} of block {block}", predicted, table.grad(name, block), 0.15)


def post_norm_gradient(tables: Tables) -> Iterator[Evidence]:
    """The gradients of a norm's output and input at the end of a branch."""
    table = tables[TEXT]
    for block in (0, table.blocks - 1):
        of_stream = {"attention norm": _middle_gradient(table, block), "MLP norm": table.grad("stream", block)}
        for norm, output in (("attention norm", "attention projection"), ("MLP norm", "down")):
            _, weight = table.join(2 * block)
            gradient = table.grad(norm, block)
            yield _compare(f"{TEXT}, {norm} of block {block}", weight * of_stream[norm], gradient, 0.1)
            predicted = gradient / table.rms(output, block)
            yield _compare(f"{TEXT}, {output} of block {block}", predicted, table.grad(output, block), 0.3)
        projection, attended = table.grad("attention projection", block), table.grad("attention output", block)
        yield _compare(f"{TEXT}, attention output of block {block}", projection, attended, 0.1)


def tied_gradient(tables: Tables) -> Iterator[Evidence]:
    """The gradients inside the MLP of mu-nit scaling."""
    table = tables[TEXT]
    for block in (0, table.blocks - 1):
        activation = table.grad("activation", block)
        lowered = table.grad("down", block) * EXPANSION**-0.5
        yield _compare(f"{TEXT}, activation of block {block}", lowered, activation, 0.1)
        yield _compare(f"{TEXT}, up of block {block}", GELU_GRADIENT * activation, table.grad("up", block), 0.1)


def logits(tables: Tables) -> Iterator[Evidence]:
    """The logits from the width."""
    table = tables[TEXT]
    yield _compare(TEXT, np.full(4, table.width**-0.5), table.rms("logits"), 0.1)


def weight_gradients(tables: Tables) -> Iterator[Evidence]:
    """The gradients of weights from the tensors on both sides of their layers."""
    last = tables[TEXT].blocks - 1
    readout = ("weight of readout", None, "logits", "last norm")
    out = ("weight of attention.out", last, "attention projection", "attention output")
    for condition, (weight, block, output, entering) in (
        (DISTINCT, readout),
        (SIGNS, out),
        (TEXT, out),
        (TEXT, readout),
    ):
        table = tables[condition]
        products = table.spread(table.grad(output, block) * table.rms(entering, block))
        independent = np.sqrt((products**2).mean(keepdims=True))
        upper = math.sqrt(table.tokens) * products.mean(keepdims=True) if condition == TEXT else None
        yield _compare(f"{condition}, {weight}", independent, table.grad(weight, block), 0.3, upper)


def embedding_weight(tables: Tables) -> Iterator[Evidence]:
    """The gradient of the embedding's weight from that of its output."""
    table = tables[DISTINCT]
    predicted = np.array([table.overall(table.grad("embedding"))])
    yield _compare(DISTINCT, predicted, table.grad("weight of embedding"), 0.02)
