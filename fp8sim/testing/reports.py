"""What a check compared, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One property that held.

    Attributes:
        name: what it is called.
        compared: how many elements were compared.
        calls: how often the kernel ran for it; empty arrays count here alone.
    """

    name: str
    compared: int
    calls: int = 1


@dataclass(frozen=True)
class Report:
    """What `check_cast` or `check_gemm` compared, all of it without a difference.

    Attributes:
        subject: what was checked, policy included.
        checks: the properties, in the order they were checked.
        not_checked: what the caller's options left out, and why.
    """

    subject: str
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        """Number of elements compared, over all properties."""
        return sum(check.compared for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.compared} elements compared, no difference"]
        lines += [f"  {check.compared:>8} in {check.calls:>3} calls  {check.name}" for check in self.checks]
        lines += [f"  not checked: {text}" for text in self.not_checked]
        return "\n".join(lines)
