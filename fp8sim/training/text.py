"""Characters of a real text as training data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Text:
    """A text as symbols.

    Attributes:
        name: where it comes from.
        tokens: [N] int64, the index of each character among `symbols`.
        symbols: the distinct characters, sorted.
        sha256: of the text in UTF-8, in hexadecimal.
    """

    name: str
    tokens: torch.Tensor
    symbols: str
    sha256: str


def load(path: Path | None = None) -> Text:
    """The text of a UTF-8 file, or, without a path, Python's own help topics (`pydoc_data.topics`).

    Raises:
        ValueError: a file that cannot be read, is not UTF-8, or is empty.
    """
    if path is None:
        return from_string("topics", _topics())
    try:
        content = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"text {path}: cannot be read ({error.strerror}); give --text a readable file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"text {path}: is not UTF-8 (byte {error.start}); convert it first") from error
    return from_string(path.name, content)


def from_string(name: str, content: str) -> Text:
    """`content` as symbols. ValueError if it has fewer than two distinct characters."""
    symbols = "".join(sorted(set(content)))
    if len(symbols) < 2:
        what = "is empty" if not content else f"has only the character {symbols!r}"
        raise ValueError(f"text {name}: {what}; a model needs at least two distinct characters")
    index = {symbol: i for i, symbol in enumerate(symbols)}
    tokens = torch.tensor([index[c] for c in content], dtype=torch.int64)
    return Text(name, tokens, symbols, hashlib.sha256(content.encode()).hexdigest())


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))


@dataclass(frozen=True)
class Sequences:
    """Batches of contiguous sequences of a text for a decoder, the same for every recipe of a run.

    Attributes:
        text: where they are cut from.
        length: characters per sequence. batch: sequences per batch.
        seed: decides where the sequences lie.

    Raises:
        ValueError: the text is shorter than one sequence and the character after it.
    """

    text: Text
    length: int = 128
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.text.tokens) < self.length + 1:
            raise ValueError(
                f"text {self.text.name}: has {len(self.text.tokens)} characters, needs at least {self.length + 1}"
            )

    @property
    def tokens(self) -> int:
        """Characters to predict per batch."""
        return self.length * self.batch

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens [B, L], targets [B, L]) of step `step`, targets one character ahead; both int64."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(0, len(self.text.tokens) - self.length, (self.batch, 1), generator=generator)
        positions = starts + torch.arange(self.length)
        return self.text.tokens[positions], self.text.tokens[positions + 1]
