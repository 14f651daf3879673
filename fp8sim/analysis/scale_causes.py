"""Why tensors of a decoder are not of size one: each cause, and what shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fp8sim.analysis import scale_predictions as predictions
from fp8sim.analysis.scale_predictions import Evidence, Tables
from fp8sim.analysis.scale_table import MUNIT, U_MUP, Table


@dataclass(frozen=True)
class Cause:
    """Why some tensors are not of size one.

    Attributes:
        text: the cause, in a sentence or two.
        tensors: "forward" or "gradient" and the class of each tensor that it explains.
        evidence: predictions from a style's tables by condition.
        styles: of which it holds.
    """

    text: str
    tensors: tuple[tuple[str, str], ...]
    evidence: Callable[[Tables], Iterator[Evidence]]
    styles: tuple[str, ...] = (U_MUP, MUNIT)


def _of(direction: str, *tensors: str) -> tuple[tuple[str, str], ...]:
    return tuple((direction, tensor) for tensor in tensors)


_HIDDEN_WEIGHTS = tuple(
    f"weight of {layer}" for layer in ("attention.qkv", "attention.out", "mlp.up", "mlp.gate", "mlp.down")
)

CAUSES: Mapping[str, Cause] = MappingProxyType(
    {
        "averaging": Cause(
            "Under a causal mask position i averages over i + 1 values, position 0 over one, and attention has "
            "one factor for all positions. Even of independent values the first outputs are larger than one and "
            "the last smaller.",
            _of("forward", "attention output"),
            predictions.averaging,
        ),
        "correlation": Cause(
            "On text, values of one feature correlate across positions: characters repeat, and attention adds "
            "nearly the same mean to neighbouring positions, block after block. What values share is not averaged"
            " away, and the factor that is meant for independent ones multiplies it.",
            _of("forward", "attention output"),
            predictions.correlation,
        ),
        "projection": Cause(
            "The projection's weights are independent of what enters it: its output is as large as attention's.",
            _of("forward", "attention projection"),
            predictions.projection,
        ),
        "stream": Cause(
            "The coefficients of skip and branch are those for branches of size one; attention's is larger.",
            _of("forward", "stream"),
            predictions.stream,
            (U_MUP,),
        ),
        "gelu": Cause(
            "The mean of GELU's output is not zero. Its factor makes the standard deviation one (1.04 for unit-"
            "normal inputs), and the next layer's output is as large as the root mean square.",
            _of("forward", "activation", "down"),
            predictions.down,
            (MUNIT,),
        ),
        "logits": Cause(
            "The readout's factor is 1 / width, not its square root, by design (muP): logits start at width^-1/2.",
            _of("forward", "logits"),
            predictions.logits,
        ),
        "last norm": Cause(
            "The gradient of the logits has size one, and so has that of the last norm's output. A norm divides "
            "the gradient by the size of its input, the stream.",
            _of("gradient", "stream"),
            predictions.last_norm,
        ),
        "entering gradients": Cause(
            "Backward, every branch adds what its norm or its first layer lets through to the gradient of the "
            "stream. Gradients of the values of early positions are large, so the gradients of early positions "
            "grow from block to block.",
            _of("gradient", "stream", "embedding"),
            predictions.stream_gradient,
        ),
        "later queries": Cause(
            "The gradient of a value is a sum over all later queries: it falls from the first position to the "
            "last. On text these gradients correlate, for every position's logits have the gradient of the "
            "characters' frequencies in common. The sum then lies between that of independent terms and that of "
            "equal ones.",
            _of("gradient", "value"),
            predictions.value_gradient,
        ),
        "probabilities": Cause(
            "Queries and keys act through probabilities only, each one over the number of keys seen, and through "
            "the logits' multiplier. Their gradients are small by nature, that of the query at position 0, which "
            "sees one key, is zero, and on text, where values are alike, they are smaller still.",
            _of("gradient", "query", "key"),
            predictions.query_key_gradient,
        ),
        "several readers": Cause(
            "What several layers read has the sum of their gradients: queries, keys and values, or up and gate.",
            _of("gradient", "attention norm", "MLP norm"),
            predictions.norm_gradient,
            (U_MUP,),
        ),
        "inherited": Cause(
            "The branch's coefficient is delayed in backward: inside a branch gradients are as large as that of "
            "the stream where it joins, and every operation inside passes them on at that size.",
            _of("gradient", "attention projection", "attention output", "down", "activation", "up", "gate"),
            predictions.branch_gradient,
            (U_MUP,),
        ),
        "norm at the end": Cause(
            "The norm at the end of a branch sees the stream's gradient times the branch's coefficient, and "
            "divides it by the size of its input. (A quotient's mean square is not that of its parts where sizes "
            "differ between sequences.)",
            _of("gradient", "attention norm", "MLP norm", "attention projection", "attention output", "down"),
            predictions.post_norm_gradient,
            (MUNIT,),
        ),
        "tied factors": Cause(
            "Layers have one factor for output and gradient, that of the output: down, which is narrower than its"
            " input by four, halves the gradient, and GELU, whose own gradient has size 1.19, passes it on.",
            _of("gradient", "activation", "up"),
            predictions.tied_gradient,
            (MUNIT,),
        ),
        "correlated tokens": Cause(
            "A weight's gradient is a sum over tokens times the root of their number, which keeps the size of "
            "independent terms. On text both factors of each term correlate between tokens.",
            _of("gradient", "weight of readout", *_HIDDEN_WEIGHTS),
            predictions.weight_gradients,
        ),
        "frequencies": Cause(
            "The embedding's factor is for symbols that are equally frequent, and gradients that are independent."
            " Where every symbol occurs once its weight's gradient is that of its output.",
            _of("gradient", "weight of embedding"),
            predictions.embedding_weight,
        ),
    }
)
"""By name."""


def causes_of(style: str, direction: str, tensor: str) -> list[str]:
    """Names of the causes that explain a tensor's size."""
    return [name for name, cause in CAUSES.items() if style in cause.styles and (direction, tensor) in cause.tensors]


def sampling_error(width: int) -> float:
    """Standard error, relative, of the size of a tensor whose rows are alike: of N normal features, (2 N)^-1/2."""
    return float((2 * width) ** -0.5)


def is_unit(sizes: list[float | None], width: int) -> bool:
    """Whether all of the sizes that there are lie within three standard errors of one, and need no cause."""
    return all(size is None or abs(size - 1) <= 3 * sampling_error(width) for size in sizes)


def evidence_of(cause: Cause, tables: Mapping[tuple[str, str], Table]) -> Iterator[tuple[str, Evidence]]:
    """(style, evidence) of a cause, from tables by style and condition."""
    for style in cause.styles:
        of_style = {condition: table for (other, condition), table in tables.items() if other == style}
        yield from ((style, evidence) for evidence in cause.evidence(of_style))
