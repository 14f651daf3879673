"""What a GPU's tensor cores compute, single instructions on raw bits."""

import dataclasses

import pytest
import torch

pytestmark = pytest.mark.gpu

# The probes: what the device's tensor cores compute, single instructions on raw bits.


@pytest.fixture(scope="module")
def instruments(cuda):
    from fp8sim.analysis.probing import running

    return {instrument.takes.name: instrument for instrument in running.instruments(running.Options())}


def test_every_instruction_is_its_row(instruments):
    from fp8sim.analysis.probing import recognise

    found = {name: recognise(instrument) for name, instrument in instruments.items()}
    wrong = {name: recognition for name, recognition in found.items() if name not in recognition.matches}
    assert not wrong, [(name, r.matches, r.differences, list(map(str, r.changes))) for name, r in wrong.items()]


def test_neither_variants_nor_chains_change_a_bit(instruments):
    from fp8sim.analysis.probing import running

    found = [result for instrument in instruments.values() for result in running._invariances(instrument)]
    assert [result for result in found if result.differing] == []


def test_random_bits_on_the_device(instruments, tmp_path):
    """A million outputs of each; `fp8sim probe --random 100000000` compares more."""
    from fp8sim import mma
    from fp8sim.analysis.probing import stream

    for name, instrument in instruments.items():
        outputs = 1 << (16 if instrument.takes.accumulator == "float64" else 20)
        assert stream(instrument, mma.parse(name), outputs, folder=tmp_path).differing == 0, name


def rows_here(module):
    """Rows of `products` or `converters` that can be asked of this device."""
    from fp8sim.analysis.probing import calls, device

    found = module.rows(device.architecture(device.capability()))
    return [row for row in found if calls.unavailable(row.needs) is None]


@pytest.mark.parametrize("probe", ["P10", "P12", "P13"])
def test_gemms_follow_their_plans(probe):
    """Where one is predicted; `fp8sim probe --only gemms` tells those of torch, too."""
    from fp8sim.analysis.probing import gemms, products

    asked = [row.subject for row in rows_here(products) if row.subject.probe == probe and row.subject.predicted]
    found = [gemms.order_of(subject, 1024) for subject in asked]
    assert [order.surprise for order in found if order.surprise] == []


def test_conversions_follow_their_rules():
    """On 10^7 patterns; `fp8sim probe --only conversions` compares all 2^32."""
    from fp8sim.analysis.probing import conversions, converters

    asked = [dataclasses.replace(row.converter, every=False) for row in rows_here(converters)]
    found = [conversions.examine(converter) for converter in asked if converter.predicted is not None]
    assert [conversion.surprise for conversion in found if conversion.surprise] == []


def test_memory_of_the_host_is_refused_by_a_probe(cuda):
    host, on_device = torch.zeros(4096), torch.zeros(4096, device="cuda")
    addresses = (on_device.data_ptr(), host.data_ptr(), on_device[2048:].data_ptr(), on_device[3072:].data_ptr())
    with pytest.raises(ValueError, match="b is not memory of a CUDA device"):
        cuda.probe("mma.m16n8k16.f32.f16.f16.f32", *addresses, 1)
