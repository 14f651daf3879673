"""What is installed: the package, its kernels inside it, its data files, and nothing under another name."""

import importlib.util
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "fp8sim", "triton_kernels", "csrc"]
NO_BINARIES = shutil.ignore_patterns("*.so", "__pycache__")


def copy_sources(target: Path, *, with_cpp: bool) -> Path:
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=NO_BINARIES)
        else:
            shutil.copy(ROOT / name, target / name)
    if not with_cpp:
        shutil.rmtree(target / "csrc")
    return target


def setup_py(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(command, cwd=directory, env=os.environ | environment, capture_output=True, text=True)


def build_wheel(directory: Path, **environment: str) -> zipfile.ZipFile:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory / "dist")]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    done = subprocess.run(command, cwd=directory, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = (directory / "dist").glob("fp8sim-*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory):
    """Names in a wheel built without compiling anything."""
    return build_wheel(copy_sources(tmp_path_factory.mktemp("wheel"), with_cpp=False)).namelist()


def test_wheel_has_the_kernels_inside_the_package(wheel_files):
    kernels = {f"fp8sim/triton_kernels/{path.name}" for path in (ROOT / "triton_kernels").glob("*.*")}
    assert kernels
    assert kernels <= set(wheel_files)


def test_wheel_has_one_top_level_name(wheel_files):
    tops = {name.partition("/")[0] for name in wheel_files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fp8sim"}


def test_wheel_has_every_python_file_and_its_data(wheel_files):
    wanted = {
        path
        for pattern in ("*.py", "*.pyi", "py.typed", "*.html", "*.j2", "*.json")
        for path in ROOT.glob(f"fp8sim/**/{pattern}")
    }
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= set(wheel_files)


def test_installed_kernels_are_the_top_level_folder():
    code = "import fp8sim.triton_kernels as kernels; print(kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert Path(done.stdout.strip()) == ROOT / "triton_kernels" / "__init__.py", done.stderr


def test_unknown_choice_of_cuda_is_an_error():
    done = setup_py(ROOT, "--version", FP8SIM_CUDA="banana")
    assert done.returncode != 0
    assert "FP8SIM_CUDA='banana': expected auto" in done.stderr


def test_missing_nvcc_is_an_error_only_if_cuda_is_required(tmp_path):
    """A machine without nvcc: PATH holds nothing, and no CUDA home is named or found."""
    copy_sources(tmp_path, with_cpp=False)
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "cast.cu").touch()
    text = (tmp_path / "setup.py").read_text().replace("/usr/local/cuda", str(tmp_path / "nowhere"))
    (tmp_path / "setup.py").write_text(text)
    bare = {"PATH": str(tmp_path), "CUDA_HOME": "", "CUDA_PATH": ""}
    required = setup_py(tmp_path, "--version", FP8SIM_CUDA="1", **bare)
    assert required.returncode != 0
    assert "nvcc is not on PATH" in required.stderr
    for choice in ("auto", "0"):
        assert setup_py(tmp_path, "--version", FP8SIM_CUDA=choice, **bare).stdout.strip() == "0.1.0"


def test_an_interrupted_build_is_taken_up_where_it_was_left(tmp_path, monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    build = runpy.run_path("setup.py")["BuildExt"](setuptools.Distribution())
    monkeypatch.chdir(tmp_path)
    build.build_temp, build.force, compiled = "objects", False, []

    def compile_cpp(ext, source):
        compiled.append(source)
        return shutil.copy(source, "unfinished.o")

    monkeypatch.setattr(build, "compile_cpp", compile_cpp)
    for name in ("one.cpp", "two.cpp", "header.hpp"):
        Path(name).write_text("")
        os.utime(name, (1000, 1000))
    extension = setuptools.Extension("both", ["one.cpp", "two.cpp"], depends=["header.hpp"])

    def build_both():
        return [build.compile_one(extension, source) for source in extension.sources]

    assert build_both() == build_both() == ["objects/one.cpp.o", "objects/two.cpp.o"]
    assert compiled == ["one.cpp", "two.cpp"]
    os.utime("two.cpp")
    os.utime("objects/two.cpp.o", (1000, 1000))
    build_both()
    assert compiled == ["one.cpp", "two.cpp", "two.cpp"]
    os.utime("header.hpp", (2**31 - 1, 2**31 - 1))
    build_both()
    assert compiled[3:] == ["one.cpp", "two.cpp"]


def test_headers_of_pybind11_may_be_those_that_torch_carries(monkeypatch):
    """A machine that only lends a GPU has torch, and nothing can be installed there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    include = runpy.run_path("setup.py")["pybind11_include"]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pybind11" else find_spec(name))
    assert Path(include()).parent.name == "torch"
    assert Path(include(), "pybind11", "pybind11.h").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install pybind11"):
        include()


def test_every_requirement_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    listed = [project["build-system"]["requires"], project["project"]["dependencies"], *extras]
    requirements = [Requirement(text) for texts in listed for text in texts]
    for requirement in requirements:
        if requirement.name != "fp8sim":
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A source tree, its wheel unpacked in site/; the compiler's warnings were errors."""
    sources = copy_sources(tmp_path_factory.mktemp("compiled"), with_cpp=True)
    build_wheel(sources, FP8SIM_CUDA="0", FP8SIM_CXXFLAGS="-Werror").extractall(sources / "site")
    return sources


@pytest.mark.full
def test_wheel_runs_alone(compiled):
    code = "import fp8sim, numpy; print(fp8sim.cast(numpy.float32([1.3, 1e9]), 'e4m3'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=compiled / "site", capture_output=True, text=True)
    assert re.findall(r"[\d.]+", done.stdout) == ["1.25", "448."], done.stderr


@pytest.mark.full
@pytest.mark.skipif(platform.machine() != "x86_64", reason="sources for instruction sets are x86's")
def test_code_for_an_instruction_set_stays_in_its_file(compiled):
    """No weak symbol, which the linker could take for the portable code of that name."""
    objects = sorted(compiled.glob("build/**/*_avx*.o"))
    assert objects
    for path in objects:
        listed = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        assert not re.findall(r" [VWu] .*", listed), path.name
