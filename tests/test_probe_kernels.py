"""The probes of csrc/cuda/probe.cu without a GPU: arguments, layouts, machine code, and the way to a launch."""

import ctypes
import dataclasses
import itertools
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fp8sim.analysis.probing import Inputs, Interface, StandIn, device, goldens, invariances, machine_code, running
from fp8sim.analysis.probing.device import DeviceInstrument, Kernel, architecture, row_names
from fp8sim.mma import MODELS, Adder, parse

ROOT = Path(__file__).resolve().parents[1]
SOMEWHERE, ELSEWHERE = 1 << 20, 1 << 24


@pytest.fixture(scope="module")
def kernels(cuda: Any) -> list[Kernel]:
    return device.kernels()


# What there is


def test_every_instruction_of_three_generations_has_a_kernel(kernels: list[Kernel]) -> None:
    """Ampere, Ada and Hopper, whole; of later ones what they share with them."""
    narrow = [kernel for kernel in kernels if kernel.tile[1] == 8]
    named = [name for kernel in narrow for name in row_names(kernel)]
    assert len(named) == len(set(named))
    for name in MODELS:
        if name.startswith(("sm80.", "sm89.", "sm90.")):
            assert name in named
    assert len(narrow) == 38


def test_every_wgmma_is_there_in_four_widths(kernels: list[Kernel]) -> None:
    tiles: dict[str, list[tuple[int, int]]] = {}
    for kernel in kernels:
        for name in row_names(kernel):
            tiles.setdefault(name, []).append(kernel.tile)
            assert f".m{kernel.tile[0]}n{kernel.tile[1]}k{kernel.k}." in kernel.ptx
    wgmma = {name: found for name, found in tiles.items() if ".wgmma." in name}
    assert len(wgmma) == 12
    assert set(map(tuple, wgmma.values())) == {((64, 8), (64, 64), (64, 128), (64, 256))}
    assert len(kernels) == 38 + 3 * 12


def test_a_kernel_takes_what_its_rows_take(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        for name in row_names(kernel):
            assert kernel.takes(name) == Interface.of(parse(name)), kernel.ptx


@pytest.mark.parametrize(
    ("capability", "count"), [(80, 9), (86, 9), (89, 25), (90, 37), (100, 25), (103, 25), (120, 25)]
)
def test_a_device_has_the_instructions_of_its_generation(
    kernels: list[Kernel], monkeypatch: pytest.MonkeyPatch, capability: int, count: int
) -> None:
    monkeypatch.setattr(device, "capability", lambda: capability)
    found = list(device.instruments())
    assert len(found) == count
    assert {x.takes.name.partition(".")[0] for x in found} == {architecture(capability)}
    assert any("wgmma" in x.takes.name for x in found) == (capability == 90)
    for x in found:
        widths = [64, 128, 256] if "wgmma" in x.takes.name else []
        others = device.wider(x)
        assert [other.tile[1] for other in others] == widths
        assert {other.takes for other in others} <= {x.takes}


def test_without_a_device_nothing_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, why in (("13.0", ""), (None, r" \(torch .* is built without CUDA\)")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        with pytest.raises(RuntimeError, match=f"no CUDA device here{why}: --stand-in ARCHITECTURE"):
            running.instruments(running.Options())


# Arguments

GOOD = {
    "instruction": "wgmma.m64n8k32.f32.e4m3.e4m3",
    "a": SOMEWHERE,
    "b": SOMEWHERE + (1 << 16),
    "c": ELSEWHERE,
    "d": ELSEWHERE,
    "cases": 2,
}
BAD = [
    ({"instruction": "wgmma.m64n8k32"}, "instruction='wgmma.m64n8k32': probe_instructions() lists"),
    ({"a": 0}, "a is a null pointer"),
    ({"b": SOMEWHERE + 4}, "b=1048580 is not a multiple of 8"),
    ({"d": 0}, "d is a null pointer"),
    ({"c": ELSEWHERE + 8}, "d overlaps c"),
    ({"a": ELSEWHERE - 8}, "d overlaps a"),
    ({"b": ELSEWHERE + 2 * 64 * 8 * 4 - 8}, "d overlaps b"),
    ({"cases": -1}, "cases=-1: expected 0 to 2^31"),
    ({"cases": 2**31 + 1}, "cases=2147483649: expected 0 to 2^31"),
    ({"steps": 0}, "steps=0: expected 1 to 8"),
    ({"steps": 9}, "steps=9: expected 1 to 8"),
    ({"variant": "global"}, "variant='global': wgmma.m64n8k32.f32.e4m3.e4m3 has shared, registers, negated"),
    ({"d": 2**64 - 8, "c": 0}, "d reaches beyond the address space"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_argument_is_named(cuda: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cuda.probe(**GOOD | change)


WIDE = {"instruction": "wgmma.m64n256k32.f32.e4m3.e4m3", "c": 0, "steps": 8}


def test_a_wide_tile_has_only_one_way_in(cuda: Any) -> None:
    with pytest.raises(ValueError, match="variant='registers': wgmma.m64n256k32.f32.e4m3.e4m3 has shared$"):
        cuda.probe(**GOOD | WIDE | {"variant": "registers"})
    with pytest.raises(ValueError, match="d overlaps b"):
        cuda.probe(**GOOD | WIDE | {"b": ELSEWHERE + 2 * 64 * 256 * 4 - 8})


def test_only_wgmma_does_without_c_and_has_variants(cuda: Any) -> None:
    mma_sync = GOOD | {"instruction": "mma.m16n8k16.f32.f16.f16.f32"}
    with pytest.raises(ValueError, match="c is a null pointer: only wgmma can do without"):
        cuda.probe(**mma_sync | {"c": 0})
    with pytest.raises(ValueError, match="variant='negated': mma.* has shared"):
        cuda.probe(**mma_sync | {"variant": "negated"})


def test_no_cases_need_nothing(cuda: Any) -> None:
    cuda.probe(**GOOD | {"a": 0, "b": 0, "c": 0, "d": 0, "cases": 0})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("change", [{}, {"c": 0}, {"variant": "registers"}, {"steps": 8}, WIDE], ids=str)
def test_a_launch_says_that_no_device_is_here(cuda: Any, change: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="no CUDA device: "):
        cuda.probe(**GOOD | change)


# Fragments: the tables of the PTX ISA ("Matrix fragments for mma.m16n8k..."), in numbers, not words.


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("fragments") / "fragments.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, str(ROOT / "tests/fragments_on_host.cpp"), "-o", str(library)], check=True)
    found = ctypes.CDLL(str(library))
    found.descriptor_of.restype = ctypes.c_uint64
    return found


def place(function: Any, *arguments: int) -> tuple[int, int]:
    pair = (ctypes.c_int * 2)()
    function(*arguments, pair)
    return pair[0], pair[1]


def published_a(lane: int, element: int, bits: int) -> tuple[int, int]:
    """Row and column of a number a_i: 8-bit, 16-bit, TF32 and (m16n8k16) binary64 operands."""
    group, thread = lane >> 2, lane % 4
    if bits == 8:
        row = group if element < 4 or 8 <= element < 12 else group + 8
        return row, thread * 4 + (element & 3) + (16 if element >= 8 else 0)
    if bits == 16:
        row = group if element < 2 or 4 <= element < 6 else group + 8
        return row, thread * 2 + (element & 1) + (8 if element >= 4 else 0)
    return (group if element % 2 == 0 else group + 8), thread + 4 * (element // 2)


def published_b(lane: int, element: int, bits: int) -> tuple[int, int]:
    """Column and row of a number b_i, as b [column, k]."""
    group, thread = lane >> 2, lane % 4
    if bits == 8:
        return group, thread * 4 + (element & 3) + (16 if element >= 4 else 0)
    if bits == 16:
        return group, thread * 2 + (element & 1) + (8 if element >= 2 else 0)
    return group, thread + 4 * element


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_operands_lie_as_published(host: ctypes.CDLL, bits: int) -> None:
    per_word = 1 if bits == 64 else 32 // bits
    registers = 8 if bits == 64 else 4
    for lane, element in itertools.product(range(32), range(registers * per_word)):
        row, word = place(host.place_of_a, lane, element // per_word, 16)
        assert (row, word * per_word + element % per_word) == published_a(lane, element, bits)
    for lane, element in itertools.product(range(32), range(registers // 2 * per_word)):
        row, word = place(host.place_of_b, lane, element // per_word)
        assert (row, word * per_word + element % per_word) == published_b(lane, element, bits)


def test_results_lie_as_published(host: ctypes.CDLL) -> None:
    """Of mma.sync the first four; of wgmma as many as half of its columns, for a warp's 16 rows."""
    for lane, i in itertools.product(range(32), range(128)):
        wanted = (lane >> 2) + (0 if i % 4 < 2 else 8), (lane % 4) * 2 + (i & 1) + 8 * (i // 4)
        assert place(host.place_of_d, lane, i, 0) == wanted
        row, word = place(host.place_of_d, lane, i // 2, 1)
        assert (row, 2 * word + i % 2) == wanted


@pytest.mark.parametrize(("rows", "registers"), [(16, 4), (16, 2), (8, 1), (16, 8)])
def test_registers_hold_every_word_once(host: ctypes.CDLL, rows: int, registers: int) -> None:
    words = registers * 32 // rows
    held = [place(host.place_of_a, lane, i, rows) for lane in range(32) for i in range(registers)]
    assert sorted(held) == [(row, word) for row in range(rows) for word in range(words)]


def test_the_layout_in_shared_memory_is_what_its_descriptor_says(host: ctypes.CDLL) -> None:
    """Canonical K-major layout without swizzle: 8 rows of 16 bytes together, two steps between such groups."""
    descriptor = host.descriptor_of(0x12340)
    start, along_k, along_rows = (descriptor >> shift & 0x3FFF for shift in (0, 16, 32))
    assert start << 4 == 0x12340
    assert descriptor >> 62 == 0  # no swizzle
    assert descriptor >> 49 & 7 == 0  # no base offset
    for row, byte in itertools.product(range(256), range(32)):
        wanted = row // 8 * (along_rows << 4) + byte // 16 * (along_k << 4) + row % 8 * 16 + byte % 16
        assert host.offset_of(row, byte) == wanted
    assert sorted(host.offset_of(row, byte) for row in range(256) for byte in range(32)) == list(range(8192))


# Machine code

ARCHITECTURES = {"sm_80": 80, "sm_89": 89, "sm_90a": 90}
TYPES = {"f16": "", "bf16": ".BF16", "tf32": ".TF32"}


def expected(kernel: Kernel, name: str) -> list[str]:
    """The mnemonics of a kernel on the device whose rows begin as `name` does."""
    kind, shape, d, a, b, *_ = kernel.ptx.split(".")
    m, n, k = map(int, re.findall(r"\d+", shape))
    if a == "f64":
        return ["DMMA.884" if m == 8 else "DMMA.16x8x16"]
    if kind == "wgmma":
        if a in TYPES:
            return [f"HGMMA.64x{n}x{k}.{d.upper()}{TYPES[a]}"]
        return [f"QGMMA.64x{n}x32.{d.upper()}.{a.upper()}.{b.upper()}"]
    if a in TYPES:
        return [f"HMMA.{m}{n}{k}.{d.upper()}{TYPES[a]}"]
    if parse(name).adder is Adder.EMULATED:
        return [f"HMMA.{'16816' if k == 32 else '1688'}.{d.upper()}", "FADD" if d == "f32" else "HADD2"]
    return [f"QMMA.{m}{n}{k}.{d.upper()}.{a.upper()}.{b.upper()}"]


@pytest.fixture(scope="module")
def disassembler(cuda: Any) -> None:
    if machine_code.cuobjdump() is None:
        pytest.skip("cuobjdump, which comes with Triton, is not here")


@pytest.mark.usefixtures("disassembler")
@pytest.mark.parametrize("file_architecture", ARCHITECTURES)
def test_each_kernel_is_the_instruction_that_it_is_named_for(kernels: list[Kernel], file_architecture: str) -> None:
    capability = ARCHITECTURES[file_architecture]
    assert machine_code.architecture_in_file(capability) == file_architecture
    checked = 0
    for kernel in kernels:
        names = [name for name in row_names(kernel) if name.startswith(f"{architecture(capability)}.")]
        if not kernel.runs_on(capability) or not names:
            continue
        for variant in kernel.variants:
            assert machine_code.mnemonics(kernel, file_architecture, variant) == expected(kernel, names[0])
            checked += 1
    assert checked == {"sm_80": 9, "sm_89": 25, "sm_90a": 25 + (3 + 3) * 12}[file_architecture]


@pytest.mark.usefixtures("disassembler")
def test_a_negated_operand_is_negated_by_the_instruction(kernels: list[Kernel]) -> None:
    code = machine_code.functions("sm_90a")
    for kernel in (kernel for kernel in kernels if len(kernel.variants) == 3):
        for variant, number in (("shared", 0), ("registers", 1), ("negated", 2)):
            pattern = rf"\d{kernel.symbol}E.*ProbeVariantE{number}E"
            (text,) = (text for name, text in code.items() if re.search(pattern, name))
            assert ("negA" in text) == (variant == "negated")
            operand = re.search(r"[HQ]GMMA\S+ R\d+, (\w+)", text)
            assert operand is not None
            assert operand[1].startswith("R" if variant == "registers" else "gdesc")


@pytest.mark.usefixtures("disassembler")
def test_where_an_instruction_is_missing_its_kernel_stops(kernels: list[Kernel]) -> None:
    """Machine code for an A100 has no FP8 products in some other arithmetic, but a trap."""
    code = machine_code.functions("sm_80")
    for kernel in (kernel for kernel in kernels if not kernel.runs_on(80)):
        texts = [text for name, text in code.items() if re.search(rf"\d{kernel.symbol}E", name)]
        assert texts
        assert all("BPT.TRAP" in text and "MMA." not in text for text in texts), kernel.ptx


@pytest.mark.usefixtures("disassembler")
def test_no_kernel_spills(cuda: Any) -> None:
    command = [str(machine_code.cuobjdump()), "-res-usage", cuda.__file__]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    probes = [found for found in lines if "_probe_cu_" in found[0]]
    assert len(probes) == 3 * (26 + (3 + 3) * 12)  # for each of three devices
    assert {(stack, local) for _, _, stack, local in probes} == {("0", "0")}
    wide = [found for found in probes if re.search("ELi(64|128|256)E", found[0])]
    assert len(wide) == 3 * 3 * 12
    assert max(int(registers) for _, registers, _, _ in set(probes) - set(wide)) <= 80


# The way to a launch, with memory of the CPU and the simulator in the kernel's place


def memory(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


@pytest.fixture
def launched(cuda: Any, kernels: list[Kernel], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every launch; its result is the simulator's."""
    calls: list[dict[str, Any]] = []
    by_ptx = {kernel.ptx: kernel for kernel in kernels}

    def probe(ptx: str, a: int, b: int, c: int, d: int, cases: int, steps: int, variant: str, stream: int) -> None:
        calls.append({"ptx": ptx, "steps": steps, "cases": cases, "variant": variant, "c": c != 0, "stream": stream})
        kernel = by_ptx[ptx]
        model = next(parse(name) for name in row_names(kernel) if name.startswith("sm90."))
        codes = [f"uint{8 * bytes_of(fmt)}" for fmt in (model.a_format, model.b_format, model.accumulator)]
        (m, n), k = kernel.tile, steps * kernel.k
        left, right = memory(a, (cases, m, k), codes[0]), memory(b, (cases, n, k), codes[1])
        left = left ^ left.dtype.type(1 << (8 * left.itemsize - 1)) if variant == "negated" else left
        start = memory(c, (cases, m, n), codes[2]).copy() if c else np.zeros((cases, m, n), codes[2])
        memory(d, (cases, m, n), codes[2])[...] = StandIn(model).run(Inputs(left, right, start))

    monkeypatch.setattr(cuda, "probe", probe)
    monkeypatch.setattr(
        device, "_to_device", lambda x: torch.from_numpy(np.ascontiguousarray(x).reshape(-1).view(np.uint8).copy())
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(device, "capability", lambda: 90)
    return calls


def bytes_of(fmt: str) -> int:
    return {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}.get(fmt, 1)


def instrument(name: str) -> DeviceInstrument:
    (found,) = (x for x in device.instruments() if x.takes.name == name)
    return found


@pytest.mark.parametrize("name", ["sm90.wgmma.e4m3.e5m2.f16", "sm90.mma.f64.f64.f64", "sm90.mma.k4.tf32.tf32.f32"])
def test_a_chain_runs_eight_at_a_time(launched: list[dict[str, Any]], name: str) -> None:
    subject = instrument(name)
    inputs = goldens.inputs_of(subject.takes, subject.tile, "chain", 1)
    tiled = Inputs(np.tile(inputs.a, 5), np.tile(inputs.b, 5), inputs.c)
    assert np.array_equal(subject.run(tiled), StandIn(parse(name)).run(tiled))
    assert [(call["steps"], call["cases"], call["stream"]) for call in launched] == [(8, 1, 7), (8, 1, 7), (4, 1, 7)]


def test_a_chain_that_ignores_c_ignores_what_was_given_alone(launched: list[dict[str, Any]]) -> None:
    """Not the sum that its first part leaves to the second."""
    subject = dataclasses.replace(instrument("sm90.wgmma.e5m2.e4m3.f32"), replaces_c=True)
    inputs = goldens.inputs_of(subject.takes, subject.tile, "chain", 1)
    tiled = Inputs(np.tile(inputs.a, 3), np.tile(inputs.b, 3), inputs.c)
    zero = dataclasses.replace(tiled, c=np.zeros_like(tiled.c))
    assert np.array_equal(subject.run(tiled), StandIn(parse(subject.name)).run(zero))
    assert [call["c"] for call in launched] == [False, True]


def test_many_cases_run_in_parts(launched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    subject = instrument("sm90.mma.f16.f16.f32")
    inputs = goldens.inputs_of(subject.takes, subject.tile, "normal", 1024)
    monkeypatch.setattr(device, "_BATCH_BYTES", 3 * (16 * 16 * 2 + 8 * 16 * 2 + 2 * 16 * 8 * 4))
    assert np.array_equal(subject.run(inputs), StandIn(parse(subject.takes.name)).run(inputs))
    assert [call["cases"] for call in launched] == [3, 3, 2]


def test_the_variants_reach_the_kernel(launched: list[dict[str, Any]]) -> None:
    found = list(running._invariances(instrument("sm90.wgmma.bf16.bf16.f32")))
    assert [result.differing for result in found] == [0] * 8
    assert {call["variant"] for call in launched} == {"shared", "registers", "negated"}
    assert {call["c"] for call in launched} == {True, False}
    assert {call["ptx"] for call in launched} == {f"wgmma.m64n{n}k16.f32.bf16.bf16" for n in (8, 64, 128, 256)}
    assert len({result.what for result in found}) == len({*map(str, found)}) == 8
    assert all(result.compared >= running._INVARIANT_OUTPUTS for result in found)
    assert isinstance(found[0], invariances.Invariance)


@pytest.mark.usefixtures("launched")
def test_a_whole_run_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an H200, but for the arithmetic's being simulated: measured, compared, captured with its machine code."""
    about = {"device": "NVIDIA H900", "capability": 90, "driver": "1", "cuda": "13", "torch": "2", "triton": "3"}
    monkeypatch.setattr(device, "environment", lambda: about)
    names = ("sm90.wgmma.e4m3.e4m3.f32", "sm90.mma.e4m3.e4m3.f32")
    sections = ("instructions",)
    options = running.Options(sections=sections, instructions=names, random=2000, golden=tmp_path, out=tmp_path)
    advances: list[str] = []
    report = running.run(options, advances.append)
    assert report.surprises == []
    assert len(advances) == running.total_advances(options)
    assert [found.name for found in report.recognitions] == list(reversed(names))
    files = sorted(tmp_path.glob("h900/*.npz"))
    assert [path.stem for path in files] == sorted(names)
    golden = goldens.load(files[1])
    assert about.items() <= golden.about.items()
    assert golden.about["ptx"] == "wgmma.m64n8k32.f32.e4m3.e4m3"
    if machine_code.cuobjdump() is not None:
        assert golden.about["machine_code"] == ["QGMMA.64x8x32.F32.E4M3.E4M3"]
    assert goldens.evidence(tmp_path)[names[0]]["nonzero_c"]["H900"] > 1000
