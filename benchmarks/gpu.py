"""Everything that only a GPU can show: python -m benchmarks.gpu [build] [test] [probe] [bench], or `make gpu`.

Pieces fall into parts, each of which fits in ten minutes, runs by itself and leaves `OUT/done/<part>.json` and
`OUT/logs/<part>.log`. A part that was done with the same sources is not run again; one that fails does not keep the
others from running. The exit status is 0 if all parts are done, 1 if one failed, 3 if time was up: run it again.

Nothing is installed: fp8sim is built into `build/gpu` and imported from there. Without a GPU the parts run on a
stand-in, which shows that they run and measures nothing.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import BUILD, PIECES, ROOT, Part, parts

PART_SECONDS = 570
"""A part that takes longer is stopped."""

SHORTEST = 60
"""No part is started with fewer seconds left."""

DONE, FAILED, TIMED_OUT, LEFT, ABSENT = "done", "FAILED", "TIMED OUT", "left", "absent"

LEAST = {"torch": (2, 11), "triton": (3, 6), "setuptools": (68, 0)}
NEEDED = ("numpy", "rich", "typer", "jinja2", "yaml", "pytest", "hypothesis")
"""What the parts do not run without. Of the package's other requirements they do without what is not there."""


def missing() -> str:
    """What this interpreter lacks to run the parts as it is; empty if nothing."""
    found = [f"{name} {'.'.join(map(str, least))} or later" for name, least in LEAST.items() if _version(name) < least]
    found += [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return ", ".join(found)


def _version(name: str) -> tuple[int, ...]:
    try:
        text = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


@dataclass(frozen=True)
class Session:
    """One call of this command.

    Attributes:
        out: where results go.
        stand_in: whether there is no GPU.
        force: run parts that are done, too.
        until: when time is up, on `time.monotonic`.
        part_seconds: when a part is stopped.
    """

    out: Path
    stand_in: bool
    force: bool = False
    until: float = float("inf")
    part_seconds: float = PART_SECONDS

    def record_of(self, part: Part) -> Path:
        return self.out / "done" / f"{part.name}.json"

    def is_done(self, part: Part) -> bool:
        """Whether the part was done here, with the sources as they are."""
        if self.force or part.always:
            return False
        known = _record(self.record_of(part))
        return known["verdict"] == DONE and all(known.get(key) == value for key, value in self.belongs_to().items())

    def belongs_to(self) -> dict[str, Any]:
        """What a record is of; with anything else it says nothing."""
        return {"sources": sources(), "stand_in": self.stand_in} | machine()

    def run(self, part: Part) -> str:
        """Run a part, write its log and its record; the verdict. What it leaves if it is interrupted has no record."""
        log, record = self.out / "logs" / f"{part.name}.log", self.record_of(part)
        for path in (log, record):
            path.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        command, start = part.command(self.out, self.stand_in), time.monotonic()
        left = min(self.part_seconds, self.until - start)
        if missing := part.missing(self.stand_in):
            verdict, code = ABSENT, None
            log.write_text(f"{missing}\n")
        else:
            with log.open("w") as file:
                code = _returned(command, file, environment() | part.variables, left)
            verdict = TIMED_OUT if code is None else DONE if code in part.accepted(self.stand_in) else FAILED
        about: dict[str, Any] = {"part": part.name, "verdict": verdict, "returned": code, "command": command}
        about |= {"seconds": round(time.monotonic() - start, 1)}
        about["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        record.write_text(json.dumps(about | self.belongs_to(), indent=1) + "\n")
        return verdict


def _record(path: Path) -> dict[str, Any]:
    """What a record says; where there is none, or none that can be read, that the part is left."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) and "verdict" in found else {"verdict": LEFT}


def machine() -> dict[str, Any]:
    """Where a part runs."""
    return {
        "device": smi(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "triton")},
    }


def _returned(command: list[str], log: Any, variables: dict[str, str], seconds: float) -> int | None:
    """The exit status of a command, or None if it took too long and was stopped with all that it had started."""
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=ROOT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment() -> dict[str, str]:
    """Of the parts: fp8sim is imported from where it is built, benchmarks from the sources."""
    path = [str(BUILD / "lib"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "passive",
    }


def sources() -> str:
    """A hash of everything that a part's result depends on."""
    digest = hashlib.sha256()
    files = [ROOT / "setup.py", ROOT / "pyproject.toml"]
    for folder in ("fp8sim", "triton_kernels", "csrc", "benchmarks", "tests"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".cpp", ".hpp", ".cu", ".cuh"}]
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def smi() -> str | None:
    """Name and driver of the GPU, as nvidia-smi says them."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip() or None


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_all(session: Session, chosen: Iterable[Part], say: Callable[[str], None]) -> int:
    """Run what is not done; the exit status. Without its build no other part is run."""
    verdicts: dict[str, str] = {}
    for part in chosen:
        if session.is_done(part):
            verdicts[part.name] = DONE
            say(f"{part.name:<28} done before")
            continue
        if session.until - time.monotonic() < min(SHORTEST, session.part_seconds):
            verdicts[part.name] = LEFT
            say(f"{part.name:<28} left: time is up, run it again")
            continue
        start = time.monotonic()
        verdicts[part.name] = session.run(part)
        say(f"{part.name:<28} {verdicts[part.name]:<10} {time.monotonic() - start:>6.0f} s")
        if verdicts[part.name] != DONE:
            say(f"    {session.out / 'logs' / part.name}.log ends: {_last_line(session, part)}")
            if part.piece == "build":
                return 1
    if {FAILED, TIMED_OUT} & set(verdicts.values()):
        return 1
    return 3 if LEFT in verdicts.values() else 0


def _last_line(session: Session, part: Part) -> str:
    lines = (session.out / "logs" / f"{part.name}.log").read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "nothing was printed"


def pack(out: Path) -> Path:
    """All results in one file, to be sent in."""
    packed = out / "fp8sim-gpu.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        for folder in ("done", "logs", "results", "golden", "random"):
            if (out / folder).exists():
                archive.add(out / folder, folder)
    return packed


def chosen_parts(pieces: list[str], names: list[str]) -> list[Part]:
    """The build, and the parts of these pieces (all, if none is named), or of these names."""
    known = list(parts())
    if unknown := set(names) - {part.name for part in known}:
        raise SystemExit(f"no part {', '.join(sorted(unknown))}: there are {', '.join(part.name for part in known)}")
    return [
        part
        for part in known
        if part.piece == "build" or (part.name in names if names else not pieces or part.piece in pieces)
    ]


def seconds(text: str) -> float:
    """ValueError unless it is a number of seconds, 0 or more; argparse names the option."""
    found = float(text)
    if not found >= 0:
        raise ValueError(text)
    return found


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help="build, test, probe or bench; all without one")
    parser.add_argument("--check", action="store_true", help="only: can this interpreter run the parts as it is?")
    parser.add_argument("--list", action="store_true", help="only: the names of the parts")
    parser.add_argument("--part", nargs="+", default=[], metavar="NAME", help="only these parts, after the build")
    parser.add_argument("--out", type=Path, help="folder of the results; out/gpu, or out/stand-in without a GPU")
    parser.add_argument("--force", action="store_true", help="run parts that are done, too")
    parser.add_argument("--stand-in", action="store_true", help="as if there were no GPU")
    parser.add_argument("--limit", type=seconds, default=float("inf"), metavar="SECONDS", help="of the whole call")
    options = parser.parse_args(argv)
    if unknown := set(options.pieces) - set(PIECES):
        parser.error(f"no piece {', '.join(sorted(unknown))}: use one of {', '.join(PIECES)}")
    return options


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if lacking := missing():
        print(f"{sys.executable} cannot run this as it is: it needs {lacking}")
        return 1
    if options.check:
        return 0
    chosen = chosen_parts(options.pieces, options.part)
    if options.list:
        print("\n".join(part.name for part in chosen))
        return 0
    stand_in = options.stand_in or not has_gpu()
    out = (options.out or ROOT / "out" / ("stand-in" if stand_in else "gpu")).resolve()
    if stand_in:
        print("STAND-IN, no GPU: what follows shows that the parts run, and measures nothing")
    for folder in (out, BUILD / "lib"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            print(f"cannot write to {folder} ({error.strerror}): OUT=folder puts the results elsewhere")
            return 1
    session = Session(out, stand_in, options.force, time.monotonic() + options.limit)
    try:
        status = run_all(session, chosen, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print("stopped: what is done stays done; run it again")
        status = 3
    print(f"results: {pack(out)}")
    return status


def stop_on_terminate() -> None:
    """SIGTERM, which `timeout` and batch systems send, stops as Ctrl-C does, with the part that runs."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


if __name__ == "__main__":
    stop_on_terminate()
    sys.exit(main())
