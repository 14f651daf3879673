"""`fp8sim.explain`: what gives a kernel's bits, which inputs separate what does, and where planted faults lie."""

import dataclasses
import itertools

import numpy as np
import pytest

import fp8sim
from fp8sim.analysis.explaining import Case, Hypothesis, default_hypotheses, design, pairs_of, parse_hypothesis
from fp8sim.analysis.explaining.outputs import differs, rounded
from fp8sim.analysis.explaining.problem import Problem
from fp8sim.analysis.explaining.trial import group
from fp8sim.mma import PLANS, parse_plan

E4M3 = {"a_format": "e4m3", "b_format": "e4m3"}


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def codes(*shape, fmt="e4m3", seed=0, **policy):
    return np.asarray(fp8sim.encode(normal(*shape, seed=seed), fmt, **policy))


def factors(*shape):
    return np.random.default_rng(shape).uniform(0.5, 2, shape).astype(np.float32)


A, B = codes(48, 256), codes(256, 40)


def only(explanation):
    """The hypotheses of the one class that reproduces everything."""
    assert explanation.verdict == "unique", [str(found.first) for found in explanation.classes]
    (found,) = explanation.classes
    assert (found.compared, found.differing) == (explanation.elements, 0)
    return found.hypotheses


# What reproduces every bit


@pytest.mark.parametrize(
    "plan", ["sm90.wgmma", "triton.sm90.imprecise32", "triton.sm90.add64", "sm89.mma.e4m3.e4m3.f32"]
)
def test_the_plan_is_found(plan):
    out = fp8sim.matmul(A, B, **E4M3, plan=plan)
    explanation = fp8sim.explain(out, A, B, **E4M3)
    assert parse_hypothesis(plan) in explanation.surviving
    assert all(found.differing > 0 for found in explanation.rejected)
    for found in explanation.classes:
        again = fp8sim.matmul(A, B, **E4M3, plan=found.first.plan, output=found.first.output)
        assert np.array_equal(again.view(np.uint32), out.view(np.uint32))


def test_wgmma_alone_gives_its_bits():
    found = only(fp8sim.explain(fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma"), A, B, **E4M3))
    assert found[0] == Hypothesis("sm90.wgmma")
    assert {hypothesis.plan.instruction.split(".")[1] for hypothesis in found} == {"wgmma"}


def test_an_output_that_all_plans_give_is_ambiguous():
    ones = np.full((8, 64), 0x38, np.uint8)
    explanation = fp8sim.explain(fp8sim.matmul(ones, ones.T, **E4M3), ones, ones.T, **E4M3)
    assert explanation.verdict == "ambiguous"
    assert len(explanation.classes) > 20


@pytest.mark.parametrize("place", ["flush", "epilogue"])
def test_factors_are_found_where_they_are_applied(place):
    given = {"a_scale_inv": factors(48), "b_scale_inv": factors(40)}
    plan = f"sm90.wgmma;flush=64;factors={place};product=first"
    explanation = fp8sim.explain(fp8sim.matmul(A, B, **E4M3, **given, plan=plan), A, B, **E4M3, **given)
    assert parse_hypothesis(plan) in explanation.surviving
    elsewhere = {found.plan.factors.value for found in explanation.surviving if found.plan.flush == 64} - {place}
    assert not elsewhere


def test_c_and_specials_are_compared_bit_for_bit():
    a, c = A.copy(), normal(48, 40)
    a[3, 5], a[7, 1] = 0x7F, 0xFF  # NaN
    out = fp8sim.matmul(a, B, c, **E4M3, accumulate="sm90.wgmma")
    assert np.isnan(out).any()
    explanation = fp8sim.explain(out, a, B, c, **E4M3)
    assert Hypothesis("sm90.wgmma") in explanation.surviving
    assert any("adds to float16" in why for _, why in explanation.inapplicable)


@pytest.mark.parametrize("fmt", ["float16", "bfloat16"])
def test_16_bit_operands(fmt):
    a, b = codes(32, 64, fmt=fmt), codes(64, 32, fmt=fmt)
    given = {"a_format": fmt, "b_format": fmt}
    out = fp8sim.matmul(a, b, **given, accumulate="sm80.mma")
    assert parse_hypothesis("sm80.mma") not in fp8sim.explain(out, a, b, **given).inapplicable
    first = fp8sim.explain(out, a, b, **given).classes[0].first.plan
    assert first.instruction.startswith(("sm80.mma", "sm89.mma"))


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_block_scaled_operands(name):
    instruction = {"mxfp8": "sm100.tcgen05.mxf8f6f4", "nvfp4": "sm100.tcgen05.mxf4nvf4.block16.ue4m3"}[name]
    a, b = fp8sim.quantize(normal(32, 256), name), fp8sim.quantize(normal(24, 256), name)
    explanation = fp8sim.explain(fp8sim.matmul(a, b, accumulate=instruction), a, b)
    assert any(hypothesis.plan.instruction.startswith(instruction) for hypothesis in explanation.surviving)
    assert all(found.first.plan.instruction.startswith("sm") for found in explanation.classes)


def test_torch_tensors():
    import torch

    a, b = (torch.from_numpy(x).view(torch.float8_e4m3fn) for x in (A, B))
    out = fp8sim.matmul(a, b, accumulate="sm90.wgmma", output="bfloat16")
    assert Hypothesis("sm90.wgmma", "bfloat16") in fp8sim.explain(out, a, b).surviving


def test_evidence_is_that_of_the_instruction():
    explanation = fp8sim.explain(fp8sim.matmul(A, B, **E4M3), A, B, **E4M3)
    evidence = explanation.to_dict()["classes"][0]["evidence"]["sm90.wgmma.e4m3.e4m3.f32"]
    assert evidence["normal"].startswith("hardware (H100, H200")
    assert evidence["overflow"] == "reference"


# Casts and epilogues that are hypotheses: a wrong one is an explanation, not a mystery

X, Y = normal(48, 256) * 20, normal(256, 40)
X[0, :4] = 1000, -2000, 500, 460
RULES = {
    "as given": ({}, {}, "e4m3", Hypothesis("sm90.wgmma", a="e4m3", b="e4m3")),
    "overflow": (
        {"overflow": "INFINITY"},
        {"overflow": "INFINITY"},
        "e4m3",
        Hypothesis("sm90.wgmma", a="e4m3:TIES_TO_EVEN:INFINITY", b="e4m3:TIES_TO_EVEN:INFINITY"),
    ),
    "truncation of b": (
        {},
        {"rounding": "TOWARD_ZERO"},
        "e4m3",
        Hypothesis("sm90.wgmma", a="e4m3", b="e4m3:TOWARD_ZERO"),
    ),
    "e5m2 for a": ({}, {}, "e5m2", Hypothesis("sm90.wgmma", a="e5m2", b="e4m3")),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_of_a_cast_is_found(rule):
    a_policy, b_policy, a_format, expected = RULES[rule]
    a, b = np.asarray(fp8sim.encode(X, a_format, **a_policy)), np.asarray(fp8sim.encode(Y, "e4m3", **b_policy))
    out = fp8sim.matmul(a, b, a_format=a_format, b_format="e4m3", accumulate="sm90.wgmma")
    explanation = fp8sim.explain(out, X, Y, a_quantizer="e4m3", b_quantizer="e4m3")
    assert expected in explanation.surviving
    usual = Hypothesis("sm90.wgmma", a="e4m3", b="e4m3")
    assert (usual in explanation.surviving) == (rule == "as given")


def test_a_double_cast_is_found():
    a, b = (np.asarray(fp8sim.encode(fp8sim.cast(x, "bfloat16"), "e4m3")) for x in (X, Y))
    out = fp8sim.matmul(a, b, **E4M3, accumulate="sm90.wgmma")
    found = only(fp8sim.explain(out, X, Y, a_quantizer="e4m3", b_quantizer="e4m3"))
    assert {hypothesis.cast_through for hypothesis in found} == {"bfloat16"}


def test_the_rule_of_scale_factors_is_found():
    a, b = fp8sim.quantize(X, "mxfp8_e4m3_ceil"), fp8sim.quantize(np.ascontiguousarray(Y.T), "mxfp8_e4m3_ceil")
    out = fp8sim.matmul(a, b, accumulate="sm100.tcgen05.mxf8f6f4")
    tried = default_hypotheses(None, None, a="mxfp8", b="mxfp8")
    tried = [found for found in tried if "mxf8f6f4" in found.plan.instruction and found.plan.flush is None]
    rules = {found.casts for found in fp8sim.explain(out, X, Y, hypotheses=tried).surviving}
    assert rules == {("mxfp8_e4m3_ceil", "mxfp8_e4m3_ceil"), ("mxfp8_e4m3_rceil", "mxfp8_e4m3_rceil")}  # alike here
    assert len({found.casts for found in tried}) > 10


@pytest.mark.parametrize("output", ["e4m3", "e5m2", "float16"])
@pytest.mark.parametrize("overflow", ["SATURATE", "INFINITY"])
def test_the_rule_of_the_epilogue_is_found(output, overflow):
    sums = fp8sim.matmul(A, B, **E4M3, c=normal(48, 40) * 30000, accumulate="sm90.wgmma")
    out = np.asarray(fp8sim.encode(sums, output, overflow=overflow))
    explanation = fp8sim.explain(out, A, B, normal(48, 40) * 30000, **E4M3, output=output)
    rules = {hypothesis.limit.name for hypothesis in explanation.surviving} - {"SAT_PROPAGATE"}  # no sum is infinite
    assert rules == {overflow}


def test_two_roundings_of_the_output_are_found():
    sums = fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma")
    out = np.asarray(fp8sim.encode(fp8sim.cast(sums, "bfloat16"), "e4m3"))
    found = only(fp8sim.explain(out, A, B, **E4M3, output="e4m3", hypotheses=near("sm90.wgmma", output="e4m3")))
    assert {hypothesis.through for hypothesis in found} == {"bfloat16"}


def near(instruction, **fields):
    """The default epilogues on one instruction."""
    chosen = default_hypotheses("e4m3", "e4m3", outputs=[fields["output"]])
    return [
        hypothesis for hypothesis in chosen if hypothesis.plan.instruction == instruction and not hypothesis.plan.flush
    ]


def test_numbers_of_a_narrower_format_in_a_wider_dtype():
    out = fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma", output="bfloat16").astype(np.float32)
    assert {hypothesis.output for hypothesis in fp8sim.explain(out, A, B, **E4M3).surviving} == {"bfloat16"}


# Faults that no hypothesis has


def test_a_missing_tail_is_located():
    out = fp8sim.matmul(A[:, :224], B[:224], **E4M3, accumulate="sm90.wgmma", output="bfloat16")
    explanation = fp8sim.explain(out, A, B, **E4M3)
    assert explanation.verdict == "none"
    (fault,) = explanation.closest.faults
    assert (fault.kind, fault.exact, fault.details["k"]) == ("missing_tail", True, [224, 256])
    assert explanation.closest.pattern == "everything"


def test_a_missing_tail_of_tf32_registers_is_located():
    """A tf32 operand is a register of 32 bits, the low ones of which mean nothing."""
    a, b = (np.random.default_rng(seed).standard_normal((16, 64)).astype(np.float32) for seed in (0, 1))
    tf32 = {"a_format": "tf32", "b_format": "tf32"}
    out = fp8sim.matmul(a[:, :48], b[:, :48].T, plan="sm90.wgmma", **tf32)
    (fault,) = fp8sim.explain(out, a, b.T, hypotheses=["sm90.wgmma"], **tf32).closest.faults
    assert (fault.kind, fault.exact, fault.details["k"]) == ("missing_tail", True, [48, 64])


def test_a_wrong_factor_of_one_block_is_located():
    given = {"a_scale_inv": factors(48, 2), "b_scale_inv": factors(2, 40)}
    wrong = {name: x.copy() for name, x in given.items()}
    wrong["a_scale_inv"][16:32, 1] *= 3
    out = fp8sim.matmul(A, B, **E4M3, **wrong, plan="deepgemm.sm90", output="bfloat16")
    closest = fp8sim.explain(out, A, B, **E4M3, **given).closest
    assert (closest.rows, closest.columns, closest.pattern) == ((16, 31), (0, 39), "whole rows")
    (fault,) = closest.faults
    assert (fault.kind, fault.details["k"], fault.details["rows"]) == ("wrong_factor", [128, 256], [16, 31])
    assert fault.details["factor"] == pytest.approx(3, rel=0.01)
    assert "of a" in fault.text


def test_a_changed_tie_rule_is_located():
    plan = dataclasses.replace(parse_plan("sm90.wgmma"), rounding=fp8sim.Rounding.TIES_TO_ZERO)
    out = fp8sim.matmul(A, B, **E4M3, plan=plan, output="bfloat16")
    closest = fp8sim.explain(out, A, B, **E4M3).closest
    assert closest.hypothesis == Hypothesis("sm90.wgmma", "bfloat16")
    assert (closest.ulps, closest.ties, closest.faults[0].kind) == (1, closest.differing, "tie_rule")
    usual = fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma", output="bfloat16")
    assert closest.differing == (usual.view(np.uint16) != out.view(np.uint16)).sum()
    assert closest.rounding_possible


def test_a_cast_that_is_left_out_is_located():
    out = X @ Y
    closest = fp8sim.explain(out, X, Y, a_quantizer="e4m3", b_quantizer="e4m3").closest
    assert [(fault.kind, fault.details["operands"]) for fault in closest.faults] == [("not_cast", ["a", "b"])]
    assert not closest.rounding_possible


def test_a_single_wrong_element_is_located():
    out = fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma")
    out[7, 9] += 1e4
    closest = fp8sim.explain(out, A, B, **E4M3).closest
    assert closest.hypothesis == Hypothesis("sm90.wgmma")
    assert (closest.differing, closest.rows, closest.columns, closest.pattern) == (1, (7, 7), (9, 9), "one element")
    assert closest.beyond_bound == 1
    assert not closest.rounding_possible


def test_a_nan_where_nothing_overflows_is_no_rounding():
    out = fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma")
    out[7, 9] = np.nan
    closest = fp8sim.explain(out, A, B, **E4M3).closest
    assert (closest.differing, closest.beyond_bound, closest.faults) == (1, 1, ())
    large = np.full_like(A, 0x7E), np.full_like(B, 0x7E)
    out = np.full((48, 40), np.inf, np.float32)
    closest = fp8sim.explain(out, *large, **E4M3, hypotheses=["sm89.mma"]).closest
    assert closest.beyond_bound == closest.differing == 48 * 40, "float32 holds the sum"
    closest = fp8sim.explain(out, *large, **E4M3, hypotheses=["sm89.mma output=float16 overflow=SATURATE"]).closest
    assert closest.beyond_bound == 0, "float16 does not"


def test_a_single_wrong_element_has_no_factor():
    out = fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma")
    out[7, 9] += 1e4
    assert fp8sim.explain(out, A, B, **E4M3).closest.faults == ()


BLOCKS = {"a_scale_inv": factors(48, 2), "b_scale_inv": factors(2, 40)}
ONE = {"a_scale_inv": np.float32(0.81), "b_scale_inv": np.float32(0.37)}


@pytest.mark.parametrize(
    ("given", "changed", "text"),
    [
        ({}, {"b_format": "e5m2"}, "codes read as float8_e5m2, not as float8_e4m3fn: b"),
        (ONE, {"a_scale_inv": None}, "factors left out: a"),
        (ONE, {"a_scale_inv": None, "b_scale_inv": None}, "factors left out: a and b"),
        (ONE, {"b_scale_inv": np.float32(1 / 0.37)}, "factors divided by, not multiplied with: b"),
        (ONE, {"a_scale_inv": np.float32(0.81**2)}, "factors applied twice: a"),
        (BLOCKS, {"a_scale_inv": None}, "factors left out: a"),
        (BLOCKS, {"a_scale_inv": np.roll(BLOCKS["a_scale_inv"], 1, 0)}, "factors of the line 1 before: a"),
        (BLOCKS, {"b_scale_inv": np.roll(BLOCKS["b_scale_inv"], -1, 1)}, "factors of the line 1 behind: b"),
        (
            {**BLOCKS, "a_scale_inv": factors(48, 8)},
            {"a_scale_inv": np.roll(factors(48, 8), -1, 1)},
            "factors of the next block along K: a",
        ),
        (
            BLOCKS,
            {"a_scale_inv": BLOCKS["a_scale_inv"].T.reshape(48, 2).copy()},
            "factors read in the wrong order, as a transposed matrix: a",
        ),
        (
            BLOCKS,
            {"b_scale_inv": BLOCKS["b_scale_inv"].T.reshape(2, 40).copy()},
            "factors read in the wrong order, as a transposed matrix: b",
        ),
    ],
)
def test_a_misread_operand_is_named(given, changed, text):
    out = fp8sim.matmul(A, B, **{**E4M3, **given, **changed}, plan="sm90.wgmma;flush=32;factors=flush")
    few = [f"{name};flush=32;factors=flush" for name in ("sm89.mma", "sm90.wgmma")]
    explanation = fp8sim.explain(out, A, B, **E4M3, **given, hypotheses=None if given is ONE else few)
    assert explanation.verdict == "none"
    assert text in [fault.text for fault in explanation.closest.faults]
    assert explanation.closest.deviation > 100 * explanation.closest.usual_deviation


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda out: np.roll(out, 1, axis=0), "every row holds what belongs in the one before it"),
        (lambda out: np.roll(out, -1, axis=1), "every column holds what belongs in the next one"),
        (lambda out: out.T.copy(), "the output is transposed"),
        (lambda out: np.maximum(out, 0), "negative sums became 0, as by a fused ReLU"),
        (lambda out: out + normal(40), "each column has a number of its own added to it, as a bias"),
        (lambda out: out * factors(40)[:, None], "each row has a wrong factor of its own"),
        (lambda out: out / 4, "codes read as float8_e4m3fnuz, not as float8_e4m3fn: a and b"),
        (
            lambda out: np.zeros_like(out),
            "the whole sum in rows 0..39, columns 0..39 count nothing: not added, or not written",
        ),
    ],
)
def test_a_changed_result_is_named(change, text):
    out = change(fp8sim.matmul(A[:40], B, **E4M3, accumulate="sm90.wgmma"))
    faults = fp8sim.explain(out, A[:40], B, **E4M3).closest.faults
    assert faults[0].text == text


@pytest.mark.parametrize(("times", "text"), [(0, "left out: c"), (2, "added twice: c")])
def test_a_start_that_is_left_out_or_added_twice_is_named(times, text):
    c = 100 * normal(48, 40)
    out = fp8sim.matmul(A, B, times * c, **E4M3, plan="sm90.wgmma")
    assert [fault.text for fault in fp8sim.explain(out, A, B, c, **E4M3).closest.faults] == [text]


def test_factors_that_the_instruction_takes_are_named():
    x, y = (fp8sim.quantize(normal(32, 128, seed=seed) * factors(32, 1) ** 8, "mxfp8") for seed in (1, 2))
    plain = {"a_format": "e4m3", "b_format": "e4m3"}
    unscaled = fp8sim.matmul(np.asarray(x.codes), np.asarray(y.codes).T.copy(), **plain, plan="sm89.mma")
    faults = fp8sim.explain(unscaled, x, y, hypotheses=["sm100.tcgen05.mxf8f6f4"]).closest.faults
    assert [fault.text for fault in faults] == ["factors left out: a and b"]


def test_a_mistake_is_found_in_a_part_of_a_large_output():
    a, b = codes(1200, 32, seed=1), codes(32, 700, seed=2)
    row, column = factors(1200), factors(700)
    wrong = np.concatenate([row[:650], np.ones(550, np.float32)])
    out = fp8sim.matmul(a, b, **E4M3, a_scale_inv=wrong, b_scale_inv=column, plan="sm90.wgmma")
    hypotheses = ["sm90.wgmma", "sm89.mma"]
    given = {"a_scale_inv": row, "b_scale_inv": column, "hypotheses": hypotheses}
    found = fp8sim.explain(out, a, b, **E4M3, **given).closest
    assert (found.rows, found.faults[0].text) == ((650, 1199), "factors left out: a")


@pytest.mark.parametrize("plan", ["sm89.mma", "sm100.tcgen05", "triton.sm90.imprecise32", "deepgemm.sm90"])
def test_another_order_is_never_called_impossible(plan):
    out = fp8sim.matmul(A, B, **E4M3, accumulate="sm90.wgmma", output="bfloat16")
    closest = fp8sim.explain(out, A, B, **E4M3, hypotheses=[f"{plan} output=bfloat16"]).closest
    assert closest.differing > 0
    assert closest.rounding_possible


# Classes are proofs


SETTINGS = {
    "e4m3, ragged K": ("e4m3", 200, {}),
    "e4m3, one tile": ("e4m3", 96, {}),
    "e5m2, with infinities": ("e5m2", 160, {}),
    "float16": ("float16", 72, {}),
    "bfloat16, AMD's too": ("bfloat16", 48, {}),
    "CDNA3": ("float8_e4m3fnuz", 96, {}),
    "with c": ("e4m3", 160, {"c": normal(3, 4)}),
    "with factors": ("e4m3", 256, {"a_scale_inv": factors(3), "b_scale_inv": factors(4)}),
    "with factors in blocks": ("e4m3", 256, {"a_scale_inv": factors(3, 2), "b_scale_inv": factors(2, 4)}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("numbers", ["bits", "normal"])
def test_members_of_a_class_give_the_same_bits(setting, numbers):
    fmt, k, given = SETTINGS[setting]
    rng = np.random.default_rng(k)
    if numbers == "bits":
        dtype, top = (np.uint16, 1 << 16) if fmt.endswith("float16") else (np.uint8, 1 << 8)
        a, b = (rng.integers(0, top, shape).astype(dtype) for shape in ((3, k), (k, 4)))
    else:
        a, b = codes(3, k, fmt=fmt), codes(k, 4, fmt=fmt)
    problem = Problem(None, a, b, a_format=fmt, b_format=fmt, **given, output="float32")
    hypotheses = default_hypotheses(fmt, fmt, factors=bool(given), outputs=["float32"])
    classes, _ = group(problem, [h for h in hypotheses if h.plan.rounding is fp8sim.Rounding.TIES_TO_EVEN])
    assert any(len(found.hypotheses) > 3 for found in classes)
    for found in classes:
        outputs = []
        for hypothesis in (found.first, *found.hypotheses[1 :: 20 if "a_scale_inv" in given else 1]):
            try:
                outputs.append(rounded(problem.sums(hypothesis), hypothesis, "float32"))
            except ValueError:
                continue
        for other in outputs[1:]:
            assert not differs(outputs[0], other, "float32").any(), list(map(str, found.hypotheses))


def test_any_nan_equals_any_nan():
    x, y = np.array([0x7FC00000, 0x7FC00000, 1], np.uint32), np.array([0xFFFFFFFF, 0x7F800000, 1], np.uint32)
    assert list(differs(x, y, "float32")) == [False, True, False]


# Designed inputs


@pytest.mark.parametrize("k", [None, 32, 96, 128, 200, 512])
@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_every_ordered_pair_of_named_plans_is_separated_or_proven_equal(k, blocks):
    given = {}
    if blocks:
        given = {"a_scale_inv": factors(8, blocks), "b_scale_inv": factors(blocks, 8)}
    case = Case(codes(8, 512), codes(512, 8), **E4M3, **given, output="float32")
    found = design(case, PLANS, k=k)
    assert found.separates
    m, n, _ = found.case.shape
    assert m * n <= 2
    plans = {h: h.plan for members in found.classes for h in members.hypotheses}
    if blocks != 4:
        assert len(plans) == len(set(PLANS.values()))
    inputs = {name: getattr(found.case, name) for name in ("a_format", "b_format", "a_scale_inv", "b_scale_inv")}
    outputs = {h: fp8sim.matmul(found.case.a, found.case.b, **inputs, plan=plan) for h, plan in plans.items()}
    verdicts = pairs_of(found)
    assert set(verdicts) == set(itertools.permutations(plans, 2))
    for (x, y), verdict in verdicts.items():
        equal = np.array_equal(outputs[x], outputs[y], equal_nan=True)
        assert equal == (verdict == "equal"), (str(x), str(y), verdict)


def test_a_design_ends_an_ambiguity():
    a, b = codes(8, 256), codes(256, 8)
    out = fp8sim.matmul(a, b, **E4M3, plan="triton.sm90.imprecise128", output="bfloat16")
    case = Case(a, b, out, **E4M3)
    explanation = case.explain()
    assert explanation.verdict == "ambiguous"
    found = design(case, [members.first for members in explanation.classes])
    assert found.separates
    inputs = found.case
    again = fp8sim.matmul(inputs.a, inputs.b, **E4M3, plan="triton.sm90.imprecise128", output="bfloat16")
    left = dataclasses.replace(inputs, actual=again).explain([members.first for members in explanation.classes])
    assert left.verdict == "unique"


def test_a_design_separates_casts():
    case = Case(X, Y, a_quantizer="e4m3", b_quantizer="e4m3", output="float32")
    texts = ["e4m3", "e4m3:TIES_TO_AWAY", "e4m3:TOWARD_ZERO", "e4m3:TIES_TO_EVEN:INFINITY", "e5m2"]
    wanted = [Hypothesis("sm90.wgmma", a=text, b="e4m3") for text in texts]
    wanted.append(dataclasses.replace(wanted[0], cast_through="bfloat16"))
    found = design(case, wanted)
    assert found.separates
    assert len(found.classes) == len(wanted)
    problem = found.case.problem()
    outputs = [problem.sums(hypothesis) for hypothesis in wanted]
    assert all(not np.array_equal(x, y, equal_nan=True) for x, y in itertools.combinations(outputs, 2))


def test_a_larger_k_separates_what_a_smaller_one_cannot():
    case = Case(codes(8, 32), codes(32, 8), **E4M3, output="float32")
    plans = ["sm90.wgmma", "triton.sm90.add32"]
    assert len(design(case, plans).classes) == 1
    assert len(design(case, plans, k=64).classes) == 2


# Hypotheses as text


@pytest.mark.parametrize(
    "text", ["sm90.wgmma", "deepgemm.sm90 output=bfloat16 overflow=SATURATE", "sm90.wgmma a=mxfp8_e4m3"]
)
def test_hypotheses_as_text(text):
    assert str(parse_hypothesis(text)) == text


def test_every_default_hypothesis_survives_its_text():
    for hypothesis in default_hypotheses("e4m3", "e4m3", a="e4m3", b="mxfp8", outputs=["float16", "e5m2"])[::40]:
        assert parse_hypothesis(str(hypothesis)) == hypothesis


def test_default_hypotheses_do_not_repeat():
    found = default_hypotheses("e4m3", "e4m3", a="e4m3", b="e4m3", outputs=["bfloat16"])
    assert len(found) == len(set(found))


def test_own_hypotheses():
    plan = "sm90.wgmma;flush=96"
    out = fp8sim.matmul(A, B, **E4M3, plan=plan)
    assert fp8sim.explain(out, A, B, **E4M3).verdict == "none"
    assert parse_hypothesis(plan) in only(fp8sim.explain(out, A, B, **E4M3, extra=[plan]))
    assert fp8sim.explain(out, A, B, **E4M3, hypotheses=[plan, "sm90.wgmma"]).verdict == "unique"


# Bad input

OUT = fp8sim.matmul(A, B, **E4M3)
BAD = {
    "shapes differ in K": ((OUT, A, B[:128]), E4M3, "differ in K"),
    "shape of actual": ((OUT[:5], A, B), E4M3, r"actual has shape \[5, 40\]: expected \[M, N\] = \[48, 40\]"),
    "empty": ((OUT[:0], A[:0], B), E4M3, "nothing to explain"),
    "no products": ((OUT, A[:, :0], B[:0]), E4M3, "nothing to explain"),
    "codes without format": ((OUT, A, B), {}, "a_format="),
    "unknown format": ((OUT, A, B), {"a_format": "e9m9", "b_format": "e4m3"}, "e9m9"),
    "codes of an unknown output": ((OUT.view(np.uint32), A, B), E4M3, "output="),
    "off the grid": ((OUT, X, B), E4M3, "not a number of float8_e4m3fn"),
    "batch": ((OUT, A[None], B), E4M3, "one matrix of a batch"),
    "unknown plan": ((OUT, A, B), {**E4M3, "hypotheses": ["sm90.hmma"]}, "no instruction"),
    "unknown field": ((OUT, A, B), {**E4M3, "hypotheses": ["sm90.wgmma flush=3"]}, "is none of output="),
    "no hypothesis": ((OUT, A, B), {**E4M3, "hypotheses": []}, "the list is empty"),
    "none fits": ((OUT, A, B), {**E4M3, "hypotheses": ["sm80.mma"]}, "none fits.*accepts"),
    "factors and a cast": ((OUT, X, B), {"b_format": "e4m3", "a_quantizer": "e4m3", "a_scale_inv": 1.0}, "drop one"),
    "a cast and hypotheses": ((OUT, X, Y), {"a_quantizer": "e4m3", "hypotheses": ["sm90.wgmma"]}, "give them or"),
    "shape of c": ((OUT, A, B, OUT[:3]), E4M3, r"c has shape \[3, 40\]"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input(fault):
    arguments, given, message = BAD[fault]
    with pytest.raises(ValueError, match=message):
        fp8sim.explain(*arguments, **given)


@pytest.mark.parametrize("argument", ["actual", "a", "b"])
def test_no_array(argument):
    arguments = {"actual": OUT, "a": A, "b": B} | {argument: [[1.0]]}
    with pytest.raises(TypeError, match=f"{argument} is a list"):
        fp8sim.explain(**arguments, **E4M3)
