"""`fp8sim.convert` changes numerics and nothing else: values, parameters, names, hooks, wrappers."""

import copy
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from convertible import GEMMS, TOKENS, Net, gemms, gradients, loss_of
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import fp8sim
from fp8sim import nn, quantizers, recipes
from fp8sim.nn import roles
from fp8sim.optim import parameter_groups

TRACED = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def nets(bias: bool = False, recipe: str = "fp8_naive") -> tuple[Net, Net]:
    """A model, and its copy after conversion."""
    torch.manual_seed(0)
    plain = Net(bias)
    return plain, fp8sim.convert(copy.deepcopy(plain), recipe=recipe)


def pickled(model: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_casts_and_biases_every_bit_is_torchs(dtype: torch.dtype) -> None:
    plain, converted = nets(recipe="fp32")
    plain, converted = plain.to(dtype), converted.to(dtype)
    assert {event.layer for event in gemms(lambda: loss_of(converted).backward())} == set(GEMMS)
    assert torch.equal(loss_of(converted), loss_of(plain))
    for ours, theirs in zip(gradients(converted), gradients(plain), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("quantizer", ["mxfp8", "nvfp4", "fp8_1x128", "fp8_128x128", "fp8_row_torchao"])
def test_no_size_is_a_hindrance_to_blocks(quantizer: str) -> None:
    parsed = quantizers.parse(quantizer)
    model = fp8sim.convert(torch.nn.Linear(37, 5), recipe=recipes.uniform("blocks", parsed, parsed))
    found = gemms(lambda: model(torch.randn(3, 37, requires_grad=True)).sum().backward())
    assert [event.quantizers for event in found] == [(parsed, parsed)] * 3


def test_sums_of_a_tensor_core_are_those_of_the_recipe() -> None:
    recipe = recipes.parse("fp8_naive").adding("sm90.wgmma")
    model, x = fp8sim.convert(torch.nn.Linear(37, 5, bias=False), recipe=recipe), torch.randn(3, 37)
    operands = {"a_format": "e4m3", "b_format": "e4m3"}
    expected = fp8sim.matmul(
        fp8sim.encode(x, "e4m3"), fp8sim.encode(model.weight.T, "e4m3"), plan="sm90.wgmma", **operands
    )
    assert torch.equal(model(x), expected)


def test_a_bias_is_added_to_the_finished_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, converted = (model.double() for model in nets(bias=True, recipe="fp32"))
    ours, there = gradients(converted), loss_of(converted)
    torch.testing.assert_close(there, loss_of(plain), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, gradients(plain), rtol=1e-11, atol=1e-14)
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: linear(x, w) if b is None else linear(x, w) + b)
    assert torch.equal(there, loss_of(plain))


def test_every_gemm_is_quantized_as_the_recipe_says() -> None:
    _, converted = nets()
    recipe = recipes.parse("fp8_naive")
    events = gemms(lambda: loss_of(converted).backward())
    assert sorted((e.layer, e.gemm) for e in events) == sorted(
        (layer, gemm) for layer in GEMMS for gemm in recipes.GEMM_OPERANDS
    )
    for event in events:
        gemm = recipe.gemm(event.gemm)
        assert event.quantizers == (gemm.first, gemm.second)
        for used, given, quantizer in zip(event.used, event.given, event.quantizers, strict=True):
            assert torch.equal(used, fp8sim.cast(given, quantizer.format))


def test_the_model_and_its_modules_and_parameters_stay_the_objects_that_they_are() -> None:
    model = Net()
    model.blocks[1].requires_grad_(False)
    model.blocks[0].eval()
    elsewhere = [model.head]
    before = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    training = {name: module.training for name, module in modules.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    assert fp8sim.convert(model, recipe="fp8_naive") is model
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert dict(model.named_modules()) == modules
    assert {name: module.training for name, module in model.named_modules()} == training
    assert not model.blocks[1].up.weight.requires_grad
    assert model.head.weight is model.embedding.weight
    assert isinstance(elsewhere[0], nn.Linear)
    old = model.head.weight.detach().clone()
    loss_of(model).backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, old)


def test_state_dicts_load_both_ways() -> None:
    plain, converted = nets(bias=True)
    other = Net(bias=True)
    assert list(converted.state_dict()) == list(plain.state_dict())
    other.load_state_dict(converted.state_dict())
    assert torch.equal(loss_of(other), loss_of(plain))
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    converted.load_state_dict(plain.state_dict())
    assert torch.equal(loss_of(converted), loss_of(nets(bias=True)[1]))


def test_hooks_stay_and_can_be_removed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    seen: list[str] = []
    handles = [
        model[0].register_forward_pre_hook(lambda m, i: seen.append("before")),
        model[0].register_forward_hook(lambda m, i, o: seen.append("after")),
        model[0].register_full_backward_hook(lambda m, i, o: seen.append("backward")),
        model[0].register_state_dict_post_hook(lambda m, s, p, local: seen.append("saved")),
    ]
    fp8sim.convert(model, recipe="fp8_naive")
    model(torch.ones(2, 4, requires_grad=True)).sum().backward()
    model.state_dict()
    assert seen == ["before", "after", "backward", "saved"]
    for handle in handles:
        handle.remove()
    model(torch.ones(2, 4)).sum().backward()
    assert len(seen) == 4


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(8, 8), lambda: torch.nn.Sequential(torch.nn.Linear(8, 8))])
def test_a_single_layer_is_converted_in_place(make) -> None:
    model = make()
    x = torch.randn(3, 8)
    before = model(x)
    assert fp8sim.convert(model, recipe="fp8_naive") is model
    assert not torch.equal(model(x), before)
    assert len(gemms(lambda: model(x))) == 1
    assert len(fp8sim.conversion_report(model).converted) == 1


def test_a_module_at_two_places_is_converted_once() -> None:
    shared = torch.nn.Linear(8, 8, bias=False)
    model = torch.nn.Sequential(shared, torch.nn.Sequential(torch.nn.ReLU(), shared))
    fp8sim.convert(model, recipe="fp8_naive")
    report = fp8sim.conversion_report(model)
    assert report["1.1"].status == report["0"].status == "converted"
    assert report["1.1"].reason == "the same module as 0"
    assert model[0] is model[1][1]
    assert len(gemms(lambda: model(torch.randn(2, 8)))) == 2


def test_conv1d_is_converted() -> None:
    plain = torch.nn.Conv1d(6, 4, 3, 2, padding="valid", dilation=2, groups=2, bias=False)
    model = fp8sim.convert(copy.deepcopy(plain), recipe="fp32")
    x = torch.randn(2, 6, 11)
    torch.testing.assert_close(model(x), plain(x))
    assert isinstance(model, nn.Conv1d)
    padded = fp8sim.convert(torch.nn.Conv1d(6, 4, 3, padding=1), recipe="fp8_naive")
    assert padded(x).shape == (2, 4, 11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_narrow_dtypes_keep_them(dtype: torch.dtype) -> None:
    converted = fp8sim.convert(Net().to(dtype), recipe="fp8_naive")
    assert converted(TOKENS).dtype == dtype
    assert all(gradient.dtype == dtype for gradient in gradients(converted))


def test_copies_and_pickles_are_converted_and_know_it() -> None:
    _, converted = nets()
    expected = loss_of(converted)
    for other in (copy.deepcopy(converted), pickled(converted)):
        assert torch.equal(loss_of(other), expected)
        assert fp8sim.conversion_report(other) == fp8sim.conversion_report(converted)


def test_a_model_on_the_meta_device_is_converted_there() -> None:
    with torch.device("meta"):
        model = Net()
    fp8sim.convert(model, recipe="fp8_naive")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model(TOKENS.to("meta")).shape == (2, 5, 11)
    model.to_empty(device="cpu").load_state_dict(nets()[0].state_dict())
    assert torch.equal(loss_of(model), loss_of(nets()[1]))


@TRACED
def test_the_result_compiles_into_one_graph() -> None:
    _, converted = nets(bias=True)
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled.eval()(TOKENS), converted.eval()(TOKENS))


@TRACED
def test_a_model_that_was_compiled_is_compiled_again() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 8)
    before = compiled(x)
    fp8sim.convert(compiled, recipe="fp8_naive")
    assert fp8sim.conversion_report(compiled)["_orig_mod.0"].status == "converted"
    assert torch.equal(compiled(x), model(x))
    assert not torch.equal(compiled(x), before)


def test_kinds_of_parameters_are_those_that_modules_state() -> None:
    model = fp8sim.convert(Net(bias=True), recipe="u_mup_fp8", reinit=True, roles={"*.down": "ffn_down"})
    kinds = {name: weight.kind for name, (_, weight) in roles.weights(model).items()}
    assert kinds["blocks.0.attention.in_proj_weight"] == kinds["blocks.1.down.weight"] == "hidden"
    assert kinds["blocks.0.attention.in_proj_bias"] == kinds["blocks.0.attention.out_proj.bias"] == "bias"
    assert kinds["embedding.weight"] == "embedding"
    assert kinds["blocks.0.mlp_norm.weight"] == "norm"
    groups = parameter_groups(model, lr=1.0, parametrization="u_mup")
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert kinds == {name: weight.kind for name, (_, weight) in roles.weights(Net(bias=True)).items()}


def trained(model: torch.nn.Module) -> list[torch.Tensor]:
    """Whole parameters after three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def on_one_of_two(rank: int, store: str) -> None:
    """DDP and FSDP2 train a converted model as one process does, each process with the same batch."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name need not resolve
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    net = Net()
    wrapped_before = DistributedDataParallel(copy.deepcopy(net))
    fp8sim.convert(wrapped_before, recipe="fp8_naive")
    fp8sim.convert(net, recipe="fp8_naive")
    replicated = DistributedDataParallel(copy.deepcopy(net))
    sharded, expected = copy.deepcopy(net), trained(net)
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert len(gemms(lambda: loss_of(sharded).backward())) == 3 * len(GEMMS)
    for wrapped in (replicated, wrapped_before, sharded):
        for ours, theirs in zip(trained(wrapped), expected, strict=True):
            assert torch.equal(ours, theirs)
    torch.distributed.destroy_process_group()


def test_ddp_and_fsdp2_train_a_converted_model(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(on_one_of_two, (str(tmp_path / "store"),), nprocs=2)


@pytest.mark.parametrize("quantizer", ["e4m3", "bf16", "mxfp8", "fp8_tensor_te", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_leave_a_storage_that_fsdp2_can_free(quantizer: str, dtype: torch.dtype) -> None:
    weight = torch.randn(4, 64, dtype=dtype)
    fp8sim.quantize(weight, quantizer)
    fp8sim.cast(weight, "e4m3")
    assert weight.untyped_storage().resizable()
    weight.untyped_storage().resize_(0)


def test_converted_layers_follow_autocast():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 16, bias=False), torch.nn.ReLU(), torch.nn.Linear(16, 8, bias=False)
    )
    x, plain = torch.randn(5, 16), copy.deepcopy(model)
    fp8sim.convert(model, recipe="fp8_naive")
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = model(x), plain(x)
    assert output.dtype == expected.dtype == torch.bfloat16
    assert (output - expected).norm() < 0.1 * expected.norm()
