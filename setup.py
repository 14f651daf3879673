"""Builds `fp8sim._core` (C++) and, where nvcc is found, `fp8sim._cuda`; installs triton_kernels/ inside fp8sim.

Environment:
  FP8SIM_CUDA      auto (default): build `fp8sim._cuda` if nvcc is found; 0: never; 1: fail if nvcc is missing
  FP8SIM_CXXFLAGS  appended to every C++ compilation and to the link, e.g. "-fsanitize=address -g"
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
EXTRA_CXXFLAGS = shlex.split(os.environ.get("FP8SIM_CXXFLAGS", ""))

# No contraction and no fast-math: the compiler may not change a single rounding.
CXXFLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]

# A source file's suffix names the instruction set it is compiled for; the dispatcher sees FP8SIM_HAVE_<SUFFIX>.
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd"]
ISA_FLAGS = {"avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}

# A100, H100/H200 with its architecture-specific instructions, and PTX for every later device.
NVCC_TARGETS = ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90"]
# Probes run on Ada, too, whose FP8 instructions are its own.
NVCC_MORE_TARGETS = {"probe": ["arch=compute_89,code=sm_89"]}
NVCCFLAGS = ["-std=c++17", "-O3", "--fmad=false", "--threads=2", "-cudart=static"]
NVCC_HOST_FLAGS = "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"


def isa_of(source: str) -> str | None:
    """The instruction set a source is compiled for: `cast_avx2.cpp` -> "avx2"; None is the portable baseline."""
    return next((isa for isa in ISA_FLAGS if Path(source).stem.endswith(f"_{isa}")), None)


def pybind11_include() -> str:
    """The folder with pybind11's headers: its own, or where it is not installed the copy that torch carries."""
    if importlib.util.find_spec("pybind11"):
        return str(importlib.import_module("pybind11").get_include())
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise SystemExit("pybind11's headers are not here: pip install pybind11")
    return str(Path(torch.origin).with_name("include"))


def extension(name: str, sources: list[str]) -> Extension:
    headers = sorted(map(str, CSRC.glob("*/*.h*")))
    include_dirs = [str(CSRC), pybind11_include()]
    return Extension(name, sources, include_dirs=include_dirs, depends=[*headers, "setup.py"], language="c++")


def core_extension() -> Extension:
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    sources = sorted(str(path) for path in CSRC.glob("cpu/*.cpp") if on_x86 or isa_of(str(path)) is None)
    core = extension("fp8sim._core", sources)
    core.define_macros = [
        (f"FP8SIM_HAVE_{isa.upper()}", "1") for isa in sorted(filter(None, set(map(isa_of, sources))))
    ]
    return core


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(os.path.join(home, "bin") for home in homes if home)])
    return shutil.which("nvcc", path=path)


def cuda_extension() -> Extension | None:
    """`fp8sim._cuda`, or None where FP8SIM_CUDA or the machine says that it is not built."""
    choice = os.environ.get("FP8SIM_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(
            f"FP8SIM_CUDA={choice!r}: expected auto (build where nvcc is found), 0 (never) or 1 (required)"
        )
    sources = sorted(str(path) for suffix in ("cu", "cpp") for path in CSRC.glob(f"cuda/*.{suffix}"))
    if choice == "0" or not sources:
        return None
    if find_nvcc() is None and choice == "1":
        raise SystemExit(
            "FP8SIM_CUDA=1 but nvcc is not on PATH nor in CUDA_HOME, CUDA_PATH or /usr/local/cuda: install the CUDA "
            "toolkit (12.0 or later), or set FP8SIM_CUDA=0 to build without fp8sim._cuda"
        )
    if find_nvcc() is None:
        return None
    cuda = extension("fp8sim._cuda", sources)
    cuda.depends += sorted(map(str, CSRC.glob("cuda/*.cuh")))
    return cuda


def extensions() -> list[Extension]:
    return [ext for ext in (core_extension(), cuda_extension()) if ext is not None and ext.sources]


def is_newer(target: str, sources: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether a file exists and none of its sources was changed after it."""
    made = Path(target).stat().st_mtime if Path(target).exists() else 0.0
    return all(Path(source).stat().st_mtime <= made for source in sources)


class BuildExt(build_ext):
    """Compiles each source with the flags of its instruction set, several at a time; .cu files go through nvcc."""

    def run(self) -> None:
        headers = sysconfig.get_path("include")
        if not Path(headers, "Python.h").exists():
            raise SystemExit(f"no Python.h in {headers}: install Python's development headers, e.g. python3-dev")
        names = " ".join(ext.name for ext in self.extensions)
        print(f"fp8sim: building {names} (nvcc: {find_nvcc() or 'not found'})")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        if not self.force and is_newer(self.get_ext_fullpath(ext.name), [*ext.sources, *ext.depends]):
            return
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
            ext.extra_objects = list(pool.map(lambda source: self.compile_one(ext, source), ext.sources))
        ext.sources = []
        ext.depends = [*ext.depends, *ext.extra_objects]  # so that a changed source alone is linked again
        ext.extra_link_args = ["-pthread", *EXTRA_CXXFLAGS]
        if ext.name == "fp8sim._cuda":
            self.link_cuda(ext)
        else:
            super().build_extension(ext)

    def compile_one(self, ext: Extension, source: str) -> str:
        """The object of a source. One that is there and newer, of a build that was interrupted, is kept."""
        target = Path(self.build_temp, f"{source}.o")
        if self.force or not is_newer(str(target), [source, *ext.depends]):
            compiled = self.compile_cuda(ext, source) if source.endswith(".cu") else self.compile_cpp(ext, source)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(compiled, target)
        return str(target)

    def compile_cpp(self, ext: Extension, source: str) -> str:
        flags = [*CXXFLAGS, *ISA_FLAGS.get(isa_of(source) or "", []), *EXTRA_CXXFLAGS]
        [compiled] = self.compiler.compile(
            [source],
            output_dir=str(self.unfinished()),
            macros=ext.define_macros,
            include_dirs=ext.include_dirs,
            extra_postargs=flags,
        )
        return str(compiled)

    def compile_cuda(self, ext: Extension, source: str) -> str:
        target = self.unfinished() / f"{source}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        wanted = [*NVCC_TARGETS, *NVCC_MORE_TARGETS.get(Path(source).stem, [])]
        targets = [f"-gencode={pair}" for pair in wanted]
        includes = [f"-I{directory}" for directory in ext.include_dirs]
        self.nvcc([*NVCCFLAGS, NVCC_HOST_FLAGS, *targets, *includes, "-c", source, "-o", str(target)])
        return str(target)

    def unfinished(self) -> Path:
        """Where compilers write, so that what is stopped halfway is not taken for an object."""
        return Path(self.build_temp, "unfinished")

    def link_cuda(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.nvcc(["-shared", "--no-device-link", "-cudart=static", *ext.extra_objects, "-o", str(target)])

    def nvcc(self, arguments: list[str]) -> None:
        command = [str(find_nvcc()), *arguments]
        print(shlex.join(command))
        if subprocess.run(command).returncode != 0:
            raise SystemExit("nvcc failed (its message is above); FP8SIM_CUDA=0 builds without fp8sim._cuda")


setup(
    license="Apache-2.0",  # here, because setuptools before 77 takes no such name from pyproject.toml
    packages=[*find_packages(include=["fp8sim", "fp8sim.*"]), "fp8sim.triton_kernels"],
    package_dir={"fp8sim": "fp8sim", "fp8sim.triton_kernels": "triton_kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
)
