"""What parameters are survives everything that replaces them: copies, pickles, meta devices, wrappers and shards."""

import copy
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fp8sim.nn import Embedding, Linear, ResidualStack, RMSNorm, roles
from fp8sim.optim import AdamAtan2, parameter_groups
from fp8sim.unit_scaling.mup import Weight


class Block(torch.nn.Module):
    """x [T, W] -> [T, W]: a plain norm, up with a bias, down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up = Linear(width, 4 * width, bias=True)
        self.down = torch.nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(torch.nn.Module):
    """tokens [T] -> logits [T, V]; modules of torch and of ours, two blocks deep."""

    def __init__(self, symbols: int = 11, width: int = 16) -> None:
        super().__init__()
        self.embedding = Embedding(symbols, width)
        self.blocks = ResidualStack(Block(width), Block(width))
        self.norm = RMSNorm()
        self.readout = Linear(width, symbols, role="readout")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.readout(self.norm(self.blocks(self.embedding(tokens))))


BLOCK = {
    "norm.weight": Weight("norm", 16, 16, depth=2),
    "norm.bias": Weight("bias", 16, 16, depth=2),
    "up.weight": Weight("hidden", 16, 64, depth=2),
    "up.bias": Weight("bias", 64, 64, depth=2),
    "down.weight": Weight("hidden", 64, 16, depth=2),
}
EXPECTED = {
    "embedding.weight": Weight("embedding", 11, 16),
    **{f"blocks.{index}.{name}": weight for index in (0, 1) for name, weight in BLOCK.items()},
    "readout.weight": Weight("readout", 16, 11),
}


def described(model: torch.nn.Module) -> dict[str, Weight]:
    return {name: weight for name, (_, weight) in roles.weights(model).items()}


def pickled(model: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def from_meta(model: torch.nn.Module) -> torch.nn.Module:
    with torch.device("meta"):
        return Net().to_empty(device="cpu")


def cast(model: torch.nn.Module) -> torch.nn.Module:
    return model.to(torch.bfloat16)


def reloaded(model: torch.nn.Module) -> torch.nn.Module:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: torch.nn.Module) -> torch.nn.Module:
    assert isinstance(model, Net)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend="eager")
    return model


def frozen(model: torch.nn.Module) -> torch.nn.Module:
    return model.requires_grad_(False)


TRANSFORMATIONS = [
    copy.deepcopy,
    pickled,
    from_meta,
    cast,
    reloaded,
    compiled,
    compiled_in_place,
    frozen,
    lambda model: torch.compile(copy.deepcopy(pickled(model)), backend="eager"),
]


@pytest.mark.parametrize("transform", TRANSFORMATIONS, ids=lambda f: f.__name__)
def test_kinds_survive(transform: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    model = Net()
    assert described(model) == EXPECTED
    assert described(transform(model)) == EXPECTED
    assert list(described(model)) == [name for name, _ in Net().named_parameters()]


def test_kinds_are_there_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert described(Net()) == EXPECTED


def test_kinds_survive_activation_checkpointing() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Net()
    model.blocks[0] = checkpoint_wrapper(model.blocks[0])
    assert described(model) == EXPECTED


BATCH = torch.arange(12) % 11


def trained(
    model: torch.nn.Module, optimizer: type[torch.optim.Optimizer], like: torch.nn.Module
) -> list[torch.Tensor]:
    """Whole parameters of `model` after three steps."""
    rates = {"lr": 0.125, "weight_decay": 0.25, "parametrization": "u_mup"}
    stepper = optimizer(parameter_groups(model, **rates))  # type: ignore[arg-type]
    assert [len(group["params"]) for group in stepper.param_groups] == [
        len(group["params"]) for group in parameter_groups(like, **rates)
    ]
    for _ in range(3):
        stepper.zero_grad()
        torch.nn.functional.cross_entropy(model(BATCH), BATCH).backward()
        stepper.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def on_one_of_two(rank: int, store: str) -> None:
    """DDP and FSDP2 keep the kinds, and train as one process does: each process has the same batch."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name need not resolve
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for optimizer in (torch.optim.AdamW, AdamAtan2):
        torch.manual_seed(0)
        net = Net()
        alone = copy.deepcopy(net)
        replicated = DistributedDataParallel(copy.deepcopy(net))
        sharded = copy.deepcopy(net)
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        for wrapped in (replicated, sharded, torch.compile(sharded, backend="eager")):
            assert described(wrapped) == EXPECTED
        expected = trained(alone, optimizer, net)
        for wrapped in (replicated, sharded):
            for ours, theirs in zip(trained(wrapped, optimizer, net), expected, strict=True):
                assert torch.equal(ours, theirs)
    torch.distributed.destroy_process_group()


def test_kinds_survive_ddp_and_fsdp2_in_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(on_one_of_two, (str(tmp_path / "store"),), nprocs=2)


def test_the_innermost_depth_counts() -> None:
    inner = torch.nn.Linear(4, 4)
    last = torch.nn.LayerNorm(4)
    last.residual_depth = None  # type: ignore[assignment]
    outer = ResidualStack(inner, ResidualStack(inner, torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), last)
    depths = {name: weight.depth for name, weight in described(outer).items() if name.endswith("weight")}
    assert depths == {"0.weight": 3, "1.1.weight": 3, "1.2.weight": 3, "2.weight": None}
    del outer[1]
    assert described(outer)["0.weight"].depth == 2


def test_a_slice_of_a_stack_has_the_depth_of_the_whole() -> None:
    stack = ResidualStack(*(Block(4) for _ in range(4)))
    part = stack[1:3]
    assert [name for name, _ in part.named_children()] == ["1", "2"]
    assert part[0] is stack[1]
    assert {weight.depth for weight in described(copy.deepcopy(part)).values()} == {4}
    assert {weight.depth for weight in described(ResidualStack(*part)).values()} == {2}


def test_an_attribute_on_any_module_says_the_depth() -> None:
    blocks = torch.nn.ModuleList(Block(4) for _ in range(3))
    blocks.residual_depth = 12  # type: ignore[assignment]
    assert {weight.depth for weight in described(copy.deepcopy(blocks)).values()} == {12}


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        (torch.nn.Linear(4, 4), {"weight": "hidden", "bias": "bias"}),
        (torch.nn.Conv1d(4, 4, 3), {"weight": "hidden", "bias": "bias"}),
        (torch.nn.Conv2d(4, 4, 3), {"weight": "hidden", "bias": "bias"}),
        (torch.nn.Embedding(4, 4), {"weight": "embedding"}),
        (torch.nn.LayerNorm(4), {"weight": "norm", "bias": "bias"}),
        (torch.nn.RMSNorm(4), {"weight": "norm"}),
        (torch.nn.GroupNorm(2, 4), {"weight": "norm", "bias": "bias"}),
        (
            torch.nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
            {
                "q_proj_weight": "hidden",
                "k_proj_weight": "hidden",
                "v_proj_weight": "hidden",
                "in_proj_bias": "bias",
                "out_proj.weight": "hidden",
                "out_proj.bias": "bias",
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_of_torch_have_kinds(module: torch.nn.Module, kinds: dict[str, str]) -> None:
    assert {name: weight.kind for name, weight in described(module).items()} == kinds


class Experts(torch.nn.Module):
    """Weights [E, I, O], whose sizes do not follow from the shape, and a scalar gain that it does not mention."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, 16, 32))
        self.gain = torch.nn.Parameter(torch.zeros(()))

    def parametrization_roles(self) -> dict[str, Weight]:
        return {"weight": Weight("hidden", 16, 32)}


def test_a_module_may_say_its_sizes() -> None:
    found = roles.weights(ResidualStack(Experts()), {"*.gain": "norm"})
    assert found["0.weight"][1] == Weight("hidden", 16, 32, depth=1)
    assert found["0.gain"][1] == Weight("norm", 1, 1, depth=1)


def test_names_override_what_modules_say() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 8))
    found = roles.weights(model, {"1.weight": "readout", "*.weight": "input"})
    assert [weight.kind for _, weight in found.values()] == ["input", "bias", "readout", "bias"]


def test_a_child_called_module_is_no_wrapper() -> None:
    model = torch.nn.Module()
    model.module = torch.nn.Linear(4, 4)
    assert list(described(model)) == ["module.weight", "module.bias"]


def test_a_parameter_without_a_kind_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Experts(), torch.nn.PReLU())
    message = r"what these parameters are: 1.gain of Experts, 2.weight of PReLU.*roles=\{'1.gain': 'hidden'\}"
    with pytest.raises(ValueError, match=message):
        roles.weights(model)
    assert roles.weights(model, untagged="norm")["2.weight"][1].kind == "norm"


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"roles=\['head.\*'\]: no parameter has such a name; the names are weight, bias"
    ):
        roles.weights(torch.nn.Linear(4, 4), {"head.*": "readout"})


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='head': use one of"):
        roles.weights(torch.nn.Linear(4, 4), {"weight": "head"})
