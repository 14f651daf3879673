"""The layers of fp8sim: who may import whom, what importing may do, and what no file may mention.

`LAYERS` and `LEAVES` are the table: a module imports from lower ranks, and within a rank from what stands to its left.
The rules read source text with `ast`, so an import hidden in a function, under TYPE_CHECKING or in a string counts too.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FACADE = "fp8sim"
LAYERS = [
    ["code_layout", "formats"],
    [
        "arguments",
        "derivatives",
        "torch_autocast",
        "rounding",
        "codebooks",
        "random_bits",
        "presets",
        "array_memory",
        "casting",
        "ptx",
        "interop",
    ],
    ["granularity", "scaling", "packing"],
    ["quantizers", "mma", "kernel_operands", "kernel_gemm"],
    ["recipe_parts", "recipes", "simulate", "compare"],
    ["cuda", "backends"],
    ["ops"],
    ["unit_scaling"],
    ["nn", "optim"],
    ["analysis"],
    ["training"],
    ["validate", "cli"],
    [FACADE],
    ["testing"],
]
STRANGERS = {"quantizers", "mma"}  # the same rank, and they do not know each other

# leaf: (the highest rank that it imports, the lowest rank that imports it); C++ imports nothing
LEAVES = {"_core": (-1, 1), "_cuda": (-1, 5), "triton_kernels": (3, 5)}

WITHOUT_TORCH = {"code_layout", "formats"}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, whether it is a package's `__init__`, and its syntax tree."""

    name: str
    is_package: bool
    tree: ast.Module = field(repr=False, compare=False)

    @property
    def unit(self) -> str:
        return unit_of(self.name)


def unit_of(name: str) -> str:
    """The row of the table that a dotted name belongs to: `fp8sim.ops.cast` -> `ops`."""
    return name.split(".")[1] if "." in name else FACADE


def rank_of(unit: str) -> int:
    return next(rank for rank, units in enumerate(LAYERS) if unit in units)


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of the package in `root`, by dotted name, triton_kernels/ under the name it is installed as."""
    found = {}
    for folder, package in ((root / "fp8sim", "fp8sim"), (root / "triton_kernels", "fp8sim.triton_kernels")):
        for path in sorted([*folder.rglob("*.py"), *folder.glob("_c*.pyi")]):
            parts = path.relative_to(folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join([package, *(parts[:-1] if is_package else parts)])
            found[name] = Module(name, is_package, ast.parse(path.read_text(), str(path)))
    return found


def imported_names(module: Module) -> Iterator[str]:
    """Dotted names that a module imports anywhere in its text; `from a import b` gives `a.b`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(module, node)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^(fp8sim(?:\.\w+)+)(?::\w+)?$", node.value)


def absolute_base(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parents = module.name.split(".")
    keep = len(parents) - node.level + module.is_package
    return ".".join([*parents[:keep], *([node.module] if node.module else [])])


def imported_modules(module: Module, modules: dict[str, Module]) -> set[str]:
    """The modules of the package that `module` imports: of each imported name, the longest part that is a module."""
    targets = set()
    for name in imported_names(module):
        while name not in modules and unit_of(name) not in LEAVES and "." in name:
            name = name.rpartition(".")[0]
        if name in modules or name.startswith("fp8sim."):
            targets.add(name)
    return targets - {module.name}


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if {importer, imported} <= STRANGERS:
        return False
    if imported in LEAVES:
        return importer not in LEAVES and rank_of(importer) >= LEAVES[imported][1]
    if importer in LEAVES:
        return rank_of(imported) <= LEAVES[importer][0]
    rank = rank_of(importer)
    if rank == rank_of(imported):
        return LAYERS[rank].index(imported) < LAYERS[rank].index(importer)
    return rank_of(imported) < rank


def unlisted(modules: dict[str, Module]) -> list[str]:
    known = {unit for units in LAYERS for unit in units} | set(LEAVES)
    return [name for name, module in modules.items() if module.unit not in known]


def upward_imports(modules: dict[str, Module]) -> list[str]:
    return [
        f"{name} imports {target}"
        for name, module in modules.items()
        for target in sorted(imported_modules(module, modules))
        if not may_import(module.unit, unit_of(target))
    ]


def import_cycle(modules: dict[str, Module]) -> list[str]:
    """Modules that import each other in a ring: what remains when those that begin or end every path are removed."""
    graph = {name: imported_modules(module, modules) & modules.keys() for name, module in modules.items()}
    while True:
        imported = set().union(*graph.values())
        ring = {name: targets & graph.keys() for name, targets in graph.items() if targets and name in imported}
        if ring == graph:
            return sorted(ring)
        graph = ring


def bound_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What a module's top level binds to functions, classes or imported names: (name, where an import comes from)."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, ""
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def names_of_modules(modules: dict[str, Module]) -> list[str]:
    """Names that hide a module of the package they are bound in, or that a top-level module already has."""
    top_level = {unit_of(name) for name in modules} - {FACADE}
    clashes = []
    for module in modules.values():
        for name, origin in bound_names(module.tree):
            qualified = f"{module.name}.{name}"
            hides = module.is_package and qualified in modules and origin != qualified
            if hides or (not origin and name in top_level):
                clashes.append(qualified)
    return clashes


def misplaced_libraries(modules: dict[str, Module]) -> list[str]:
    """Imports of torch where the table forbids it, and of a top-level `triton_kernels`, which is someone else's."""
    found = []
    for name, module in modules.items():
        libraries = {imported.partition(".")[0] for imported in imported_names(module)}
        forbidden = {"triton_kernels"} | ({"torch", "triton"} if module.unit in WITHOUT_TORCH else set())
        found += [f"{name} imports {library}" for library in sorted(libraries & forbidden)]
    return found


RULES = [unlisted, upward_imports, import_cycle, names_of_modules, misplaced_libraries]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule):
    modules = read_modules(ROOT)
    if rule is not unlisted and (strangers := unlisted(modules)):
        pytest.fail(f"not in the table of layers: {strangers}")
    assert rule(modules) == []


FAULTS = {
    "unlisted module": (unlisted, {"fp8sim/misc.py": ""}),
    "unlisted package": (unlisted, {"fp8sim/misc/__init__.py": ""}),
    "upward import": (upward_imports, {"fp8sim/formats.py": "import fp8sim.casting"}),
    "upward from-import": (upward_imports, {"fp8sim/formats.py": "from fp8sim.casting import decode"}),
    "upward by package": (upward_imports, {"fp8sim/formats.py": "from fp8sim import casting"}),
    "upward relative": (upward_imports, {"fp8sim/simulate/cast.py": "from ..ops.cast import f"}),
    "hidden in a function": (upward_imports, {"fp8sim/formats.py": "def f():\n    from fp8sim import ops"}),
    "hidden under TYPE_CHECKING": (upward_imports, {"fp8sim/mma.py": "if X:\n    import fp8sim.ops.cast"}),
    "hidden in a string": (upward_imports, {"fp8sim/mma.py": "load('fp8sim.ops.cast:matmul')"}),
    "of the facade": (upward_imports, {"fp8sim/cli.py": "from fp8sim import matmul"}),
    "to the right in a rank": (upward_imports, {"fp8sim/rounding.py": "import fp8sim.casting"}),
    "of testing": (upward_imports, {"fp8sim/cli.py": "import fp8sim.testing"}),
    "strangers": (upward_imports, {"fp8sim/mma.py": "import fp8sim.quantizers"}),
    "a leaf too low": (upward_imports, {"fp8sim/casting.py": "from fp8sim import _cuda"}),
    "a kernel's import": (upward_imports, {"triton_kernels/cast.py": "import fp8sim.backends"}),
    "a kernel from below": (upward_imports, {"fp8sim/simulate/cast.py": "from fp8sim.triton_kernels import cast"}),
    "cycle": (
        import_cycle,
        {"fp8sim/ops/a.py": "import fp8sim.ops.b", "fp8sim/ops/b.py": "def f():\n    import fp8sim.ops.a"},
    ),
    "function named as a module": (names_of_modules, {"fp8sim/cli.py": "def formats(): ..."}),
    "re-export that hides a module": (names_of_modules, {"fp8sim/ops/__init__.py": "from fp8sim.ops.cast import cast"}),
    "torch in rank 0": (misplaced_libraries, {"fp8sim/formats.py": "import torch.nn"}),
    "top-level triton_kernels": (misplaced_libraries, {"fp8sim/backends.py": "from triton_kernels import cast"}),
}
SOUND = {
    "fp8sim/__init__.py": "from fp8sim.ops.cast import cast",
    "fp8sim/formats.py": "import enum",
    "fp8sim/rounding.py": "from fp8sim.formats import parse",
    "fp8sim/casting.py": "from fp8sim import _core\nfrom fp8sim.rounding import Mode",
    "fp8sim/quantizers.py": "from .casting import encode",
    "fp8sim/mma.py": "from fp8sim.rounding import Mode",
    "fp8sim/simulate/__init__.py": "",
    "fp8sim/simulate/cast.py": "from fp8sim.casting import encode",
    "fp8sim/backends.py": "import fp8sim.simulate.cast\nTARGETS = ['fp8sim.triton_kernels.cast:launch']",
    "fp8sim/ops/__init__.py": "",
    "fp8sim/ops/cast.py": "from fp8sim.backends import x\ndef cast(): ...",
    "fp8sim/cli.py": "from fp8sim.ops.cast import cast",
    "fp8sim/testing/__init__.py": "from fp8sim import cast",
    "triton_kernels/__init__.py": "",
    "triton_kernels/cast.py": "from fp8sim.rounding import Mode",
}


def tree_of(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return read_modules(root)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_accepts_a_sound_tree(rule, tmp_path):
    assert rule(tree_of(tmp_path, SOUND)) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_rule_finds_the_fault(fault, tmp_path):
    rule, files = FAULTS[fault]
    assert rule(tree_of(tmp_path, SOUND | files)) != []


def repository_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the list of the repository's files is not known")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# Written with a class of one character, so that this file does not mention what it looks for.
MACHINE_PATHS = re.compile(r"hardware[_]captures|[.]{2}[/]shared|[/](?:work|root|home|opt)[/]\w")


def mentions(text: str) -> list[str]:
    return MACHINE_PATHS.findall(text)


def test_no_file_names_a_machine_or_the_data_folders():
    texts = {path: path.read_bytes().decode(errors="replace") for path in repository_files()}
    guilty = {str(path.relative_to(ROOT)): mentions(text) for path, text in texts.items() if mentions(text)}
    guilty.pop(".ci/run", None)
    assert guilty == {}, "data folders come from FP8SIM_CAPTURES and FP8SIM_DATA; paths of a machine belong nowhere"


def test_mentions_finds_paths():
    assert mentions("see ../" + "shared/data and /" + "opt/pypi")
    assert not mentions("shared memory, benchmarks/results, /usr/local/cuda")


IMPORT_PROBE = """
import os, sys, {preload}

class Watched(type(os.environ)):
    def __getitem__(self, key):
        frame = sys._getframe()
        while frame.f_globals["__name__"] in ("__main__", "os", "collections.abc"):
            if frame.f_back is None:
                return super().__getitem__(key)
            frame = frame.f_back
        if frame.f_globals["__name__"].startswith("fp8sim"):
            sys.exit("reads " + key + " in " + frame.f_globals["__name__"])
        return super().__getitem__(key)

sys.modules["triton"] = None
os.environ.__class__ = Watched
import {target}
torch = sys.modules.get("torch")
assert torch is None or not torch.cuda.is_initialized(), "CUDA is initialised"
"""


def run_import_probe(target: str, preload: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = IMPORT_PROBE.format(target=target, preload=preload)
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


def test_import_has_no_side_effect():
    """`import fp8sim` reads no environment variable, needs no triton and initialises no CUDA."""
    done = run_import_probe("fp8sim", "numpy, torch, ml_dtypes", ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("os.environ.get('HOME')", "reads HOME"),
        ("os.getenv('HOME')", "reads HOME"),
        ("'HOME' in os.environ", "reads HOME"),
        ("import triton", "triton"),
    ],
)
def test_import_probe_finds_the_fault(statement, message, tmp_path):
    (tmp_path / "fp8sim_probe.py").write_text(f"import os\n{statement}\n")
    done = run_import_probe("fp8sim_probe", "numpy", tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
