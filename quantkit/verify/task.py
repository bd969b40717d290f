"""What every engine is given, and what it gives back.

An engine that holds the model here returns final hidden states: with the output head they are the whole distributions.
An engine behind a socket or in a process of its own returns the largest log-probabilities of each position (`TopK`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from quantkit.calibration import Conversation, Sample
from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError

Tick = Callable[[int], None]  # told how many more units of work are done


@dataclass(frozen=True)
class Scored:
    """The scored positions of one sample, each [P]."""

    positions: Tensor  # int64, the position that predicts
    targets: Tensor  # int64, the token that follows it
    answer: Tensor  # bool: the token belongs to the last answer, its end token included


@dataclass(frozen=True)
class Task:
    """The items, prepared once with the reference's processor; lists run parallel, one entry an item."""

    conversations: list[Conversation]
    samples: list[Sample]
    places: list[Scored]
    processor: Any
    stop_ids: set[int]
    vocab_size: int
    max_new_tokens: int
    generate: bool = True

    def decode(self, tokens: list[int]) -> str:
        """Text of an answer's tokens."""
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


@dataclass(frozen=True)
class States:
    """Final hidden states at one sample's scored positions: [P, hidden]. The head belongs to the whole run."""

    states: Tensor


@dataclass(frozen=True)
class TopK:
    """An engine's largest log-probabilities at some of a sample's scored positions.

    rows: int64 [R], indices into `Scored.positions`; ids: int64 [R, K], token ids, -1 where an engine gave fewer;
    logp: float32 [R, K], natural logarithm, -inf where id is -1; target_logp: float32 [R], of the token that really
    follows, NaN where unknown (it may also stand among `ids`).
    """

    rows: Tensor
    ids: Tensor
    logp: Tensor
    target_logp: Tensor


@dataclass(frozen=True)
class Answer:
    """A greedy answer: token ids without the stop token (None where the engine gives text only)."""

    text: str
    tokens: list[int] | None
    finished: bool  # ended by a stop token, not by the token limit


@dataclass
class Observed:
    """What one engine made of the items; None for an item that it could not run (`left_out` says why)."""

    predictions: list[States | TopK | None]
    answers: list[Answer | None]
    head: Tensor | None = None  # [V, hidden], with `States`
    layers: dict[str, Tensor] = field(default_factory=dict)  # module name -> outputs at the probed positions
    left_out: dict[int, str] = field(default_factory=dict)
    kernel: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """What an engine is to run, and where.

    checkpoint: the candidate's safetensors folder, if it is one. path: its folder or .gguf file as the user gave it.
    url: a running server's address. python: another Python whose environment holds the runtime.
    """

    path: Path
    checkpoint: Checkpoint | None = None
    mmproj: Path | None = None
    url: str | None = None
    python: Path | None = None
    dtype: str = "float32"
    device: str = "cpu"
    served_name: str | None = None
    api_key: str | None = None
    timeout: float = 600.0


class NotRun(QuantkitError):
    """An engine that cannot be had here: reported as "not run" with this message, never as passed."""
