"""The configurations offered for the backward pass of attention: that all give the same bits, and that one is chosen.

As in `test_triton_attention_backward`, a model of the instruction computes `tl.dot` in the interpreter.
"""

import itertools

import pytest
import torch
from attention_gradients import random_inputs
from triton_tensors import same_bits

pytest.importorskip("triton")

from test_triton_attention_backward import BF16, CAPABILITIES, E4M3, on_device, tensor_core

from fp8sim.triton_kernels import attention_backward as kernels
from fp8sim.triton_kernels import tuning
from fp8sim.triton_kernels.attention_backward import Config, Tile
from fp8sim.triton_kernels.attention_backward_configs import configs, same_sums

HOPPER, WIDTHS = (9, 0), (64, 128, 256)
needs_hopper = pytest.mark.skipif(HOPPER not in CAPABILITIES, reason="needs compute capability 9.0")


def fills(config, length):
    return not any(length % rows for tile in (config.over_queries, config.over_keys) for rows in (tile.rows, tile.step))


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_offered_for_whole_tiles_loads_by_descriptors(width, fp8):
    *whole, ragged = configs(width, HOPPER, fp8=fp8)
    assert len(set(whole)) == len(whole)
    assert all(config.descriptors and fills(config, 128) for config in whole)
    assert not ragged.descriptors
    assert same_sums(whole, fp8=fp8) == whole
    assert len(configs(width, (8, 0))) == 1


def test_steps_matter_where_each_is_added_by_itself():
    one, other = (Config(Tile(64, step), Tile(64, 64)) for step in (64, 32))
    assert same_sums([one, other], fp8=False) == [one, other]
    assert same_sums([one, other], fp8=True) == [one]


@needs_hopper
@pytest.mark.parametrize(("dtype", "fp8"), [(BF16, False), (E4M3, True)], ids=["bf16", "fp8"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_all_configurations_give_the_same_bits(dtype, fp8, is_causal):
    inputs, _ = random_inputs(dtype, 128, 128, heads=2, groups=1, is_causal=is_causal)
    found = [config for width in WIDTHS for config in configs(width, HOPPER, fp8=fp8)]
    found = same_sums([config for config in found if fills(config, 128)], fp8=fp8)
    assert len(found) > 2
    with tensor_core(HOPPER):
        first, *others = (
            on_device(*inputs, config=config, fp8=fp8, is_causal=is_causal, dtype=torch.float32) for config in found
        )
    for other, config in zip(others, found[1:], strict=True):
        assert all(itertools.starmap(same_bits, zip(other, first, strict=True))), config


@needs_hopper
def test_the_backward_pass_is_launched_as_measured_with_the_same_bits(tmp_path, monkeypatch):
    inputs, _ = random_inputs(BF16, 128, 128, heads=1)
    ran = []
    launch = kernels._Launch.run
    monkeypatch.setattr(kernels._Launch, "run", lambda self, config: (ran.append(config), launch(self, config))[1])

    def seconds(calls):
        for call in calls:
            call()
        return [2.0, 1.0, *[2.0] * (len(calls) - 2)]

    with tensor_core(HOPPER):
        expected = on_device(*inputs)
        for measure in (True, False):
            with tuning.use(tmp_path / "choices.json", measure=measure, timer=seconds) as choices:
                assert all(map(same_bits, on_device(*inputs), expected))
        tried, (chosen, again) = ran[1:-2], ran[-2:]
        assert chosen == again == tried[1] != tried[0]
        (key,) = choices.entries
        assert "attention_backward; q=bfloat16, k=bfloat16, v=bfloat16, fp8=False, causal=False" in key
        ran.clear()
        with tuning.use(tmp_path / "choices.json"):
            on_device(*random_inputs(BF16, 100, 128, heads=1)[0])
        assert [config.descriptors for config in ran] == [False], (
            "one is offered for tiles that do not fill their heads"
        )
