"""What decides the figures, besides the two models and the data: `recipe.MeasureOptions`, engines and gates."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import QuantkitError
from quantkit.recipe import MeasureOptions
from quantkit.verify.engines import ENGINES
from quantkit.verify.gates import Gate


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(MeasureOptions):
    """Options of `verify`."""

    engines: tuple[str, ...] = ("dequantized",)
    generate: bool = True  # greedy answers of both models
    noise: bool = True  # the reference's own noise floor
    gates: tuple[Gate, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for engine in self.engines:
            if engine not in ENGINES:
                raise QuantkitError(f"--engine {engine}: unknown; known are {', '.join(ENGINES)}")
        if not self.engines or len(set(self.engines)) != len(self.engines):
            raise QuantkitError("--engine: name at least one engine, and none twice")
        check_device(self.device)

    def recorded(self) -> dict[str, object]:
        """What `report.json` says of them: no place, no secret."""
        told = {name: value for name, value in self.provenance().items() if name != "gates"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def check_device(name: str) -> None:
    """Raise `QuantkitError` where torch has no such device."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise QuantkitError(f"--device {name}: torch cannot use it here ({str(error).splitlines()[0]})") from error
