"""The configurations offered for attention: what is offered when, that all give the plan's bits, which one is chosen.

As in `test_triton_attention`, a model of the instruction computes `tl.dot` in the interpreter.
"""

import dataclasses
import itertools
import math

import pytest
import torch
from triton_tensors import DEVICE, poisoned_outputs, same_bits

pytest.importorskip("triton")

from test_triton_attention import (
    BF16,
    CAPABILITIES,
    E4M3,
    E5M2,
    LN2,
    MASKS,
    operands,
    random_operands,
    run,
)

from fp8sim.simulate.attention import attention as simulated
from fp8sim.triton_kernels import attention as kernels
from fp8sim.triton_kernels import tuning
from fp8sim.triton_kernels.attention import plan_of
from fp8sim.triton_kernels.attention_configs import FEW_QUERIES, Config, Kind, checked, configs, offered
from fp8sim.triton_kernels.attention_values import transposed_values

HOPPER, WIDTHS = (9, 0), (64, 128, 256)
KINDS = [
    Kind(size, capability, width, packed)
    for size, capability, width, packed in itertools.product((1, 2), ((8, 0), HOPPER), WIDTHS, (False, True))
]
needs_hopper = pytest.mark.skipif(HOPPER not in CAPABILITIES, reason="needs compute capability 9.0")


def distinct(size):
    """A configuration for each thing that the kernel does differently, of those that narrow heads may have."""
    blocks = {config.block_n for config in configs(Kind(size, HOPPER, 64))}
    found = {}
    for config in (config for width in WIDTHS for config in configs(Kind(size, HOPPER, width))):
        if config.block_n in blocks:
            found.setdefault((config.block_n, config.transposes, config.overlaps), config)
    return list(found.values())


def launches():
    """Of blocks that overlap every mask in both orders, and a few of the others, which other tests are about."""
    for dtype in (E4M3, BF16):
        for index, config in enumerate(distinct(dtype.itemsize)):
            for turn, (mask, descends) in enumerate(itertools.product(MASKS, (False, True))):
                if config.overlaps or (index + turn) % 5 == 0:
                    what = f"{config.block_n}{' transposes' * config.transposes}{' overlaps' * config.overlaps}"
                    order = "descending" if descends else "ascending"
                    yield pytest.param(dtype, config, mask, descends, id=f"{dtype}-{what}-{mask}-{order}"[6:])


@needs_hopper
@pytest.mark.parametrize(("dtype", "config", "mask", "descends"), list(launches()))
def test_every_configuration_gives_the_bits_of_its_plan(dtype, config, mask, descends):
    """Tiles of 64 queries, some of which see no key; those of five heads, three of which start together."""
    q, k, v = operands(170, 150, dtype, heads=5, groups=5, batch=1, seed=3)
    plan = dataclasses.replace(plan_of((dtype,) * 3, HOPPER, 6), block=config.block_n, descending=descends)
    config = dataclasses.replace(config, block_m=64, num_warps=4, heads_at_once=3)
    options = {"plan": plan, "scale": LN2, "value_scale_inv": 0.3, **MASKS[mask]}
    with poisoned_outputs():
        output, lse, _ = run(q, k, v, config=config, **options)
    expected = simulated(q, k, v, **options)
    assert same_bits(output, expected.output)
    torch.testing.assert_close(lse, expected.lse, rtol=2.0**-21, atol=2.0**-21)


@needs_hopper
@pytest.mark.parametrize("dtype", [E4M3, E5M2, BF16], ids=str)
@pytest.mark.parametrize("mask", ["all", "causal", "window"])
def test_all_configurations_give_the_same_bits_on_random_numbers(dtype, mask):
    q, k, v = random_operands(100, 300, dtype, width=32, features=32, heads=2, groups=1)
    base = plan_of((dtype,) * 3, HOPPER, 32)
    found = {}
    for config in distinct(dtype.itemsize):
        plan = dataclasses.replace(base, block=config.block_n)
        output, lse, _ = run(q, k, v, plan=plan, config=config, **MASKS[mask])
        first = found.setdefault(config.block_n, (output, lse))
        assert same_bits(output, first[0]), config
        assert same_bits(lse, first[1]), config
    assert not torch.equal(*(output for output, _ in found.values())), "plans of other blocks have other bits"


@needs_hopper
@pytest.mark.parametrize("lower_right", [False, True])
def test_queries_that_see_no_key_and_values_that_are_not_numbers(lower_right):
    """A program computes a block although none of its queries sees a key of it: nothing of it may come out."""
    q, k, v = operands(200, 40, BF16, heads=1, groups=1, batch=1)
    v[:] = math.nan
    config = next(config for config in distinct(2) if config.overlaps and config.block_n == 128)
    config = dataclasses.replace(config, block_m=64, num_warps=4)
    options = {"window": 10, "lower_right": lower_right, "config": config}
    output, lse, _ = run(q, k, v, plan=plan_of((BF16,) * 3, HOPPER, 6), **options)
    unseen = slice(0, 160) if lower_right else slice(49, 200)
    assert not output[:, :, unseen].any()
    assert bool(lse[:, :, unseen].isposinf().all())
    assert bool(output[:, :, 160 if lower_right else 39].isnan().all())


# What is offered


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_offered_gives_the_same_bits_and_begins_with_the_default(kind):
    for config, length, causal in itertools.product(configs(kind), (1, 100, 16384), (False, True)):
        found = offered(kind, config.block_n, length, causal)
        assert len(set(found)) == len(found)
        assert {other.block_n for other in found} == {config.block_n}
        assert {dataclasses.replace(other, heads_at_once=1) for other in found} <= set(configs(kind))
        assert found[0].heads_at_once == 1
        for other in found:
            assert checked(other, config.block_n, packed=kind.packed) == other
            assert length > FEW_QUERIES or not (other.transposes or other.overlaps)
            assert other.descriptors == (kind.capability == HOPPER)


def test_more_heads_start_together_only_where_queries_see_different_numbers_of_keys():
    counts = [{c.heads_at_once for c in offered(Kind(2, HOPPER, 128), 128, 4096, causal)} for causal in (False, True)]
    assert counts[0] == {1} < counts[1]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, (64, False)), (64, (64, False)), (100, (128, False)), (512, (128, False)), (513, (128, True))],
)
def test_the_default_suits_the_number_of_queries(length, expected):
    config = offered(Kind(1, HOPPER, 128), 128, length, causal=False)[0]
    assert (config.block_m, config.transposes) == expected
    assert offered(Kind(2, (8, 0), 256), 32, 1, causal=False)[0].block_m == 64


def test_a_configuration_that_a_caller_names_is_checked():
    assert checked(Config(64, 128, descriptors=True, overlaps=True), 128, packed=True) == Config(
        64, 128, descriptors=True
    )
    with pytest.raises(ValueError, match="config.block_n=64: the plan's block is 128"):
        checked(Config(64, 64), 128, packed=False)
    with pytest.raises(ValueError, match="overlaps and transposes need descriptors=True"):
        checked(Config(64, 128, overlaps=True), 128, packed=False)


# What is chosen


@needs_hopper
def test_attention_is_launched_as_measured_with_the_same_bits(tmp_path, monkeypatch):
    q, k, v = operands(FEW_QUERIES + 10, 140, E4M3, heads=1, groups=1, batch=1)
    options = {"scale": LN2, "is_causal": True, "plan": plan_of((E4M3,) * 3, HOPPER, 6)}
    expected, _, _ = run(q, k, v, **options)
    ran = []
    launch = kernels._Launch.run
    monkeypatch.setattr(kernels._Launch, "run", lambda self, config: (ran.append(config), launch(self, config))[1])

    def seconds(calls):
        for call in calls:
            call()
        return [3.0, 2.0, 1.0, *[3.0] * (len(calls) - 3)]

    for measure in (True, False):
        with tuning.use(tmp_path / "choices.json", measure=measure, timer=seconds) as choices:
            assert same_bits(run(q, k, v, **options)[0], expected)
    tried, (chosen, again) = ran[:-2], ran[-2:]
    assert chosen == again == tried[2]
    assert [config.block_n for config in tried] == [128] * len(tried)
    (key,) = choices.entries
    assert "attention; q=float8_e4m3fn, k=float8_e4m3fn, v=float8_e4m3fn, block=128, causal=True" in key
    assert key.endswith("packed=False; 1x1024x256x8x8")


# Transposed values


@pytest.mark.parametrize("dtype", [E4M3, BF16], ids=str)
@pytest.mark.parametrize(("keys", "features"), [(1, 1), (15, 40), (16, 16), (33, 100), (300, 256)])
def test_values_are_transposed_with_zeros_beyond_the_end(dtype, keys, features):
    value = torch.randint(1, 100, (2, 3, keys, features)).to(dtype).to(DEVICE)
    places = torch.tensor([16 * (j // 16) + 4 * (j % 8 // 2) + 2 * (j % 16 // 8) + j % 2 for j in range(keys)])
    padded = -(-keys // 16) * 16
    expected = torch.zeros(2, 3, features, padded)
    expected[..., places] = value.mT.float().cpu()
    views = (
        value,
        value.transpose(1, 2).contiguous().transpose(1, 2),
        value.mT.contiguous().mT,
        value[:1].expand(2, -1, -1, -1),
    )
    for view in views[:3]:
        with poisoned_outputs():
            assert torch.equal(transposed_values(view).float().cpu(), expected)
    assert torch.equal(transposed_values(views[3]).float().cpu(), expected[:1].expand(2, -1, -1, -1))
