"""Tuning: what is measured, kept and chosen, with a clock that says which configuration is fast."""

import json

import pytest
import torch

pytest.importorskip("triton")

from fp8sim import quantizers
from fp8sim.triton_kernels import encode_scaled, interpreter, matmul_configs, quantize, requirements, tuning
from fp8sim.triton_kernels import matmul as kernels
from fp8sim.triton_kernels.matmul import Config

DEVICE = "cpu" if interpreter.is_enabled() else "cuda"
CPU = torch.device("cpu")


class Clock:
    """Says that the calls take these seconds, after running them; counts the measurements."""

    def __init__(self, *seconds):
        self.seconds, self.measured = list(seconds), 0

    def __call__(self, calls):
        self.measured += 1
        self.ran = [call() for call in calls]
        return (self.seconds + [9.0] * len(calls))[: len(calls)]


def pick(path, clock, offered=("a", "b", "c"), measure=True, sizes=(100, 1000), options=None):
    with tuning.use(path, measure=measure, timer=clock):
        return tuning.pick("kernel", CPU, options or {"x": torch.bfloat16}, sizes, offered, lambda choice: choice)


def test_without_a_file_the_default_is_launched_and_nothing_is_measured():
    assert tuning.pick("kernel", CPU, {}, (1,), ["a", "b"], pytest.fail) == "a"


def test_the_fastest_is_measured_once_kept_and_chosen_afterwards(tmp_path):
    path, clock = tmp_path / "sub" / "choices.json", Clock(3.0, 1.0, 2.0)
    assert pick(path, clock) == "b"
    assert clock.ran == ["a", "b", "c"]
    assert pick(path, clock, sizes=(65, 1024)) == "b", "sizes between two powers of two share a choice"
    assert pick(path, clock, measure=False) == "b"
    assert clock.measured == 1
    (entry,) = json.loads(path.read_text())["choices"].values()
    assert (entry["choice"], entry["seconds"], entry["default_seconds"], entry["offered"]) == ("b", 1.0, 3.0, 3)


@pytest.mark.parametrize("other", [{"sizes": (129, 1000)}, {"options": {"x": torch.float16}}])
def test_other_sizes_and_options_have_choices_of_their_own(tmp_path, other):
    path, clock = tmp_path / "choices.json", Clock(3.0, 1.0)
    pick(path, clock)
    assert pick(path, clock, measure=False, **other) == "a", "not measured: the default"
    clock.seconds = [3.0, 2.0, 1.0]
    assert pick(path, clock, **other) == "c"
    assert pick(path, clock) == "b"


def test_a_difference_that_is_noise_leaves_the_default(tmp_path):
    assert pick(tmp_path / "choices.json", Clock(1.0, 0.99)) == "a"
    assert pick(tmp_path / "others.json", Clock(1.0, 0.98)) == "b"


def test_a_choice_that_is_not_offered_any_more_is_refused_or_measured_anew(tmp_path):
    path, clock = tmp_path / "choices.json", Clock(3.0, 1.0)
    pick(path, clock)
    with pytest.raises(ValueError, match="'interpreter; kernel; x=bfloat16; 128x1024' chooses b, which is not offered"):
        pick(path, clock, offered=("a", "d"), measure=False)
    assert pick(path, clock, offered=("a", "d")) == "d"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no choices: measure them with"),
        ("{}", "is no file of choices"),
        ("[1", "is no file of choices"),
        ('{"schema": 0, "choices": {}}', "has schema 0, expected 1: measure it anew"),
    ],
)
def test_a_file_that_is_missing_or_no_file_of_choices_is_an_error(tmp_path, content, message):
    path = tmp_path / "choices.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message), tuning.use(path):
        pass


def test_a_folder_holds_a_file_for_each_device(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "device_name", lambda device: "NVIDIA H200")
    pick(tmp_path, Clock(3.0, 1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia-h200.json"]


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a clock")
def test_without_a_device_nothing_can_be_measured(tmp_path):
    with pytest.raises(RuntimeError, match="no CUDA device, whose clock measures kernels"):
        pick(tmp_path / "choices.json", None)


def operands(m, n, k, dtype):
    """Small integers, whose sums are exact."""
    g = torch.Generator().manual_seed(1)
    return (torch.randint(-4, 5, (rows, k), generator=g).float().to(dtype).to(DEVICE) for rows in (m, n))


@pytest.mark.skipif(DEVICE == "cuda", reason="the capability is pretended")
@pytest.mark.parametrize(
    ("dtype", "capability", "block_k"), [(torch.float8_e4m3fn, (9, 0), 128), (torch.bfloat16, (8, 0), 64)], ids=str
)
@pytest.mark.parametrize("options", [{}, {"split_k": 3}, {"fast_accumulation": False}], ids=str)
def test_a_product_is_launched_as_measured_with_the_same_bits(
    tmp_path, dtype, capability, block_k, options, monkeypatch
):
    a, b = operands(70, 90, 400, dtype)
    monkeypatch.setattr(kernels, "capability_of", lambda x: capability)
    monkeypatch.setattr(kernels, "_INTERPRETED", Config(64, 64, block_k))
    expected = kernels.matmul(a, b, **options)
    ran = []
    run = kernels._Launch.run
    monkeypatch.setattr(kernels._Launch, "run", lambda self: (ran.append((self.config, self.parts)), run(self))[1])
    for measure in (True, False):
        with tuning.use(tmp_path / "choices.json", measure=measure, timer=Clock(5.0, 5.0, 1.0)):
            assert torch.equal(kernels.matmul(a, b, **options), expected)
    tried, (chosen, again) = ran[:-2], ran[-2:]
    assert chosen == again == tried[2]
    assert chosen != tried[0]
    assert len({(config.block_k if parts > 1 else None, parts) for config, parts in ran}) == 1, (
        "another order of additions"
    )


def test_casts_are_launched_as_measured_with_the_same_bits(tmp_path, monkeypatch):
    x = torch.randn(130, 300, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    chosen = quantizers.parse("mxfp8")
    tiles, configs = [], []
    cut = quantize._Cut.of
    monkeypatch.setattr(quantize._Cut, "of", lambda blocks, tile: (tiles.append(tile), cut(blocks, tile))[1])
    for name in ("_launch_flat", "_launch_transposing"):
        launch = getattr(encode_scaled, name)
        monkeypatch.setattr(encode_scaled, name, lambda *a, launch=launch: (configs.append(a[-1]), launch(*a))[1])

    def run():
        flat = encode_scaled.encode_scaled(x, "e4m3", 0.3, amax=True)[0]
        turned = encode_scaled.encode_scaled(x, "e4m3", 0.3, transpose=True)[1]
        return flat, turned, quantize.quantize(x, chosen).codes

    expected = run()
    with tuning.use(tmp_path / "choices.json", measure=True, timer=Clock(5.0, 5.0, 1.0)):
        run()
        tiles.clear(), configs.clear()
        assert all(map(torch.equal, run(), expected))
    assert configs == [encode_scaled._choices(None, x.numel(), transpose)[2] for transpose in (False, True)]
    assert tiles == [quantize._choices((130, 300, 130, 1, 32))[2]]


KINDS = [
    matmul_configs.Kind(element_size, capability, promoted, rounded, blocks, out_size)
    for element_size in (1, 2)
    for capability in ((8, 0), (9, 0))
    for promoted, rounded, blocks in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1))
    for out_size in (1, 2, 4)
    if not promoted or (capability, element_size) == ((9, 0), 1)
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_offered_begins_with_the_defaults_and_fits(kind):
    offered = matmul_configs.offered(kind)
    assert offered[: len(matmul_configs.configs(kind))] == matmul_configs.configs(kind)
    assert len(set(offered)) == len(offered)
    for config in offered:
        matmul_configs.require_config(config, kind, CPU)


A = torch.zeros(64, 256, device=DEVICE).to(torch.float8_e4m3fn)
WRONG = {
    "no power of two": (Config(96, 64, 64), {}, ValueError, "block_m=96: expected a power of two of 16 or more"),
    "few rows": (Config(32, 64, 128), {}, ValueError, "block_m=32: FP8 instructions .* multiplied in float16"),
    "steps of blocks": (
        Config(64, 64, 64),
        {"a_scale_inv": torch.ones(64, 2, device=DEVICE)},
        ValueError,
        "block_k=64: factors of blocks belong to 128 of K",
    ),
    "promotion": (Config(64, 64, 64), {"fast_accumulation": False}, ValueError, "block_k=64: promotion every 128"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_configuration_that_cannot_be_launched_is_refused_before(case, monkeypatch):
    monkeypatch.setattr(kernels, "capability_of", lambda x: (9, 0))
    config, options, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        kernels.matmul(A, A, config=config, **options)


def test_descriptors_need_hopper(monkeypatch):
    monkeypatch.setattr(kernels, "capability_of", lambda x: (8, 9))
    message = r"tensor descriptors: needs compute capability 9.0 or later \(Hopper\), and \S+ has 8.9: choose a config"
    with pytest.raises(RuntimeError, match=message):
        kernels.matmul(A, A, config=Config(64, 64, 128, descriptors=True))


@pytest.mark.parametrize("feature", requirements.REQUIREMENTS)
def test_every_requirement_is_met_from_its_capability_on(feature):
    needed = requirements.REQUIREMENTS[feature]
    major, minor = needed.capability
    for capability in ((major, minor), (major, 9), (major + 1, 0)):
        requirements.require(feature, capability, CPU)
    with pytest.raises(
        RuntimeError, match=rf"{feature}: needs compute capability {major}.{minor} or later .* has 7.5: "
    ):
        requirements.require(feature, (7, 5), CPU)


def test_every_kernel_refuses_a_gpu_that_is_too_old(monkeypatch):
    class Tensor:
        is_cuda, device, dtype, shape, ndim = True, torch.device("cuda:1"), torch.float32, torch.Size([2, 4]), 2

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(RuntimeError, match=r"Triton kernels: needs compute capability 8.0 .* cuda:1 has 7.0: simulate"):
        encode_scaled.require_device("x", Tensor())


@pytest.mark.parametrize(
    ("version", "missing"), [("3.5.1", True), ("3.6.0", False), ("3.10.0+git", False), ("2.1", True)]
)
def test_an_old_triton_is_said_to_be_old(version, missing, monkeypatch):
    monkeypatch.setattr(requirements, "version", lambda name: version)
    said = requirements.triton_missing()
    assert (said is not None) == missing
    assert said is None or f"Triton {version} is too old for the kernels (pip install 'triton>=3.6')" == said
