"""What `convert` did with each module of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

STATUSES = ("converted", "skipped", "container")
"""converted: runs by recipe now. skipped: as it was, and the reason says why. container: a module of modules; its own
forward is as it was."""

_ATTRIBUTE = "_fp8sim_conversion"


@dataclass(frozen=True)
class ModuleLine:
    """One module.

    Attributes:
        name: as in `named_modules`; "" is the model itself.
        module: the name of its class before.
        status: one of `STATUSES`.
        reason: why it was skipped; otherwise what there is to know, or "".
        role: of a linear layer that was converted, else "".
        recipe: the name of what it runs by: the recipe's, or of its form for the role; "" if not converted.
        calls: what the module's own code uses that the recipe concerns and conversion does not reach, by names such as
            "scaled_dot_product_attention", "@" and "+".
    """

    name: str
    module: str
    status: str
    reason: str = ""
    role: str = ""
    recipe: str = ""
    calls: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """The reason, and what the module's own code uses."""
        uses = f"its own code, which stays as it is, uses {', '.join(self.calls)}" if self.calls else ""
        return "; ".join(part for part in (self.reason, uses) if part)

    def __str__(self) -> str:
        details = [part for part in (self.role, self.recipe, self.remark) if part]
        return f"{self.status} {self.name or '(model)'} ({self.module}): {', '.join(details) or 'no details'}"


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: a line for every module of the model, and notes. Printing it gives a table.

    Attributes:
        recipe: the recipe's name.
        lines: in the order of `named_modules`; a module at several places has a line for each.
        notes: what concerns the whole model.
    """

    recipe: str
    lines: tuple[ModuleLine, ...]
    notes: tuple[str, ...] = ()

    @property
    def converted(self) -> tuple[ModuleLine, ...]:
        """The lines of modules that run by recipe."""
        return self._of("converted")

    @property
    def skipped(self) -> tuple[ModuleLine, ...]:
        """The lines of modules that are as they were."""
        return self._of("skipped")

    def _of(self, status: str) -> tuple[ModuleLine, ...]:
        return tuple(line for line in self.lines if line.status == status)

    def __getitem__(self, name: str) -> ModuleLine:
        """The line of the module `name`. KeyError if there is none."""
        for line in self.lines:
            if line.name == name:
                return line
        raise KeyError(f"no module is called {name!r}: the names are {', '.join(line.name for line in self.lines)}")

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self._of(status))} {status}" for status in STATUSES)
        rows = [
            (line.status, line.name or "(model)", line.module, line.role, line.recipe, line.remark)
            for line in self.lines
        ]
        rows = [("status", "name", "module", "role", "recipe", "remark"), *rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([f"recipe {self.recipe}: {counts}", *table, *notes])


def attach(model: torch.nn.Module, conversion: Conversion) -> None:
    """Let `conversion_report(model)` find `conversion`, which copies and pickles of the model keep."""
    vars(model)[_ATTRIBUTE] = conversion


def conversion_report(model: torch.nn.Module) -> Conversion:
    """What `convert` did when it was last called with `model`, or with the first part of it that was converted.

    Raises:
        ValueError: none was.
    """
    for module in model.modules():
        found = vars(module).get(_ATTRIBUTE)
        if isinstance(found, Conversion):
            return found
    raise ValueError(f"{type(model).__name__} was not converted: call fp8sim.convert(model, recipe=...) first")
