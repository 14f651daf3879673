"""A witness for the instructions: the published model MMA-Sim, where it is installed (it compiles at import).

NaN payloads are compared for NVIDIA's fused adders alone: of others the witness's are those of the host.
"""

import importlib.util
import shutil
from typing import Any

import mma_cases
import numpy as np
import pytest
import torch
from mma_cases import CATEGORIES, Array, Case, bits

from fp8sim.mma import MODELS, Adder, MmaModel

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("mmasim") and shutil.which("ninja") and shutil.which("c++")),
    reason="needs mmasim, ninja and a C++ compiler",
)

GENERATIONS = {
    "sm70": "Volta",
    "sm75": "Turing",
    "sm80": "Ampere",
    "sm89": "Ada Lovelace",
    "sm90": "Hopper",
    "sm100": "Blackwell",
    "sm120": "RTX Blackwell",
    "cdna1": "CDNA1",
    "cdna2": "CDNA2",
    "cdna3": "CDNA3",
}
NARROW = ("e3m2", "e2m3", "e2m1")
ROWS = 48


def parts_of(model: MmaModel) -> tuple[str, str, str, str, str]:
    """Architecture, the rest of the instruction's name, and the types of a, b and d."""
    architecture, _, rest = model.instruction.partition(".")
    a, b, d = model.name.removeprefix(f"{model.instruction}.").split(".")
    return architecture, rest, a, b, d


def witness_of(model: MmaModel) -> Any:
    """The witness's operation, or None if it has none."""
    from mmasim import amd, nv_ptx

    architecture, rest, a, b, d = parts_of(model)
    generation, k = GENERATIONS[architecture], model.k
    if rest.startswith("mfma"):
        return amd.MFMA(generation, AMD[architecture, rest, a, b])
    if model.adder is Adder.EMULATED:
        return None
    if rest == "wgmma":
        return nv_ptx.WGMMA(generation, f"m64n8k{k}.{d}.{a}.{b}")
    if model.scale_block:
        kind = rest.split(".")[1]
        types = f"kind::{kind}.block{model.scale_block}.{d}.{a}.{b}"
        scale = f"u{model.scale_format}"
        if architecture == "sm100":
            return nv_ptx.TCGen05MMABlockScale(generation, f"m128n8k{k}.{types}.{scale}")
        return nv_ptx.MMABlockScale(generation, f"m16n8k{k}.{types}.{d}.{scale}")
    if rest == "tcgen05":
        kind = {"f16": "f16", "bf16": "f16", "tf32": "tf32"}.get(a, "f8f6f4")
        return nv_ptx.TCGen05MMA(generation, f"m64n8k{k}.kind::{kind}.{d}.{a}.{b}")
    shape = "m8n8k4" if k == 4 and a in ("f16", "f64") and architecture != "sm90" else f"m16n8k{k}"
    kind = "kind::f8f6f4." if architecture == "sm120" and k == 32 else ""
    return nv_ptx.MMA(generation, f"{shape}.{kind}{d}.{a}.{b}.{d}")


AMD = {
    ("cdna1", "mfma", "f32", "f32"): "f32_16x16x4f32",
    ("cdna1", "mfma", "f16", "f16"): "f32_16x16x16f16",
    ("cdna1", "mfma", "bf16", "bf16"): "f32_16x16x8bf16",
    ("cdna2", "mfma", "f64", "f64"): "f64_16x16x4f64",
    ("cdna2", "mfma", "f32", "f32"): "f32_16x16x4f32",
    ("cdna2", "mfma", "f16", "f16"): "f32_16x16x16f16",
    ("cdna2", "mfma", "bf16", "bf16"): "f32_16x16x8bf16",
    ("cdna2", "mfma.1k", "bf16", "bf16"): "f32_16x16x16bf16_1k",
    ("cdna3", "mfma", "f64", "f64"): "f64_16x16x4_f64",
    ("cdna3", "mfma", "f32", "f32"): "f32_16x16x4_f32",
    ("cdna3", "mfma", "xf32", "xf32"): "f32_16x16x8_xf32",
    ("cdna3", "mfma", "f16", "f16"): "f32_16x16x16_f16",
    ("cdna3", "mfma", "bf16", "bf16"): "f32_16x16x16_bf16",
    **{("cdna3", "mfma", a, b): f"f32_16x16x32_{a}_{b}" for a in ("fp8", "bf8") for b in ("fp8", "bf8")},
}
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "tf32": torch.float32,
    "xf32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "fp8": torch.float8_e4m3fnuz,
    "bf8": torch.float8_e5m2fnuz,
}


def operand(codes: Array, name: str, model: MmaModel) -> torch.Tensor:
    """Codes as the witness takes them: FP4 in the middle of a byte, or two to a byte, the first one high."""
    if name in NARROW:
        if model.k == 64:
            return torch.from_numpy(codes[:, ::2] << 4 | codes[:, 1::2])
        return torch.from_numpy(codes << 2 if name == "e2m1" else codes)
    signed = codes.view(codes.dtype.name.removeprefix("u"))
    return torch.from_numpy(np.ascontiguousarray(signed)).view(DTYPES[name])


def results_of(witness: Any, model: MmaModel, case: Case) -> Array:
    _, _, a, b, _ = parts_of(model)
    operands = [operand(case.a, a, model), operand(case.b, b, model)]
    c = np.zeros(ROWS, model.accumulator) if case.c is None else np.ascontiguousarray(np.diagonal(case.c))
    operands.append(torch.from_numpy(c))
    scale = torch.float8_e8m0fnu if model.scale_format == "e8m0" else torch.float8_e4m3fn
    operands += [torch.from_numpy(codes).view(scale) for codes in case.scales.values()]
    return bits(witness.dpa(*operands).numpy())


def is_nan(codes: Array, accumulator: str) -> Array:
    return np.isnan(codes.view(accumulator))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("instruction", list(dict.fromkeys(model.instruction for model in MODELS.values())))
def test_every_instruction_is_the_witness(instruction: str) -> None:
    for model in MODELS.values():
        witness = witness_of(model) if model.instruction == instruction else None
        if witness is None:
            continue
        for category in CATEGORIES:
            case = mma_cases.case(model, category, ROWS, ROWS, model.k)
            found = np.diagonal(case.run(model)).copy()
            wanted = results_of(witness, model, case)
            differ = found != wanted
            if model.adder.value > Adder.GROUPED.value:
                differ &= ~(is_nan(found, model.accumulator) & is_nan(wanted, model.accumulator))
            if model.adder is Adder.EVEN_ODD:
                differ &= ~np.isnan(found.view(model.accumulator))  # the witness drops a far c even if it is NaN
            first = int(differ.argmax())
            assert not differ.any(), f"{model} {category}: {differ.sum()}, first {found[first]:#x} {wanted[first]:#x}"
