"""What each runtime calls a module of this model, and which modules it can quantize at all.

Read in the runtimes' sources (Transformers 5.23 ``quantizers``, vLLM 0.32 ``models/minicpmv4_6.py``, SGLang ``models/
minicpmv.py`` and ``models/qwen3_5.py`` of November 2026); the rules that use these names are in ``skiplist.py``.

Transformers keeps the checkpoint's names. vLLM renames prefixes, and those of its skip lists as well. SGLang renames
modules, but not its skip lists. Both load some neighbours as one module and ask about that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quantkit.integrity.findings import Severity

# name of the module that a runtime builds from neighbours -> their names in the checkpoint
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
_FUSED_AS = {part: fused for fused, parts in FUSED.items() for part in parts}

_VLLM = (
    ("model.vision_tower.vit_merger.", "vit_merger."),
    ("model.vision_tower.", "vpm."),
    ("model.vpm.", "vpm."),
    ("model.vit_merger.", "vit_merger."),
    ("model.merger.", "merger."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_SGLANG = (
    ("model.vision_tower.", "vpm."),
    ("model.merger.", "resampler."),
    ("model.language_model.", "llm."),
)


@dataclass(frozen=True)
class Runtime:
    """severity: of a disagreement; a warning where nobody has run the runtime on these files yet."""

    name: str
    prefixes: tuple[tuple[str, str], ...]
    fuses: bool
    severity: Severity = "error"

    def rename(self, name: str) -> str:
        """A checkpoint's name, or a prefix of one, in the runtime's own spelling; parts of fused modules stay apart."""
        for old, new in self.prefixes:
            if name.startswith(old):
                name = name.replace(old, new, 1)
        return name

    def module(self, name: str) -> str:
        """The module that holds the linear ``name`` of the checkpoint."""
        head, dot, last = self.rename(name).rpartition(".")
        if self.name == SGLANG.name and last == "out_proj" and head.endswith("self_attn"):
            last = "proj"
        return head + dot + (_FUSED_AS.get(last, last) if self.fuses else last)

    def parts(self, name: str) -> list[str]:
        """The runtime's names of all linears that share a module with ``name``, itself among them."""
        head, dot, last = self.rename(name).rpartition(".")
        fused = _FUSED_AS.get(last) if self.fuses else None
        return [head + dot + part for part in (FUSED[fused] if fused else (last,))]

    def can_quantize(self, name: str) -> bool:
        """Whether the module is of a kind that the runtime ever quantizes."""
        if self.name == VLLM.name:
            # plain torch linears there
            return not (name.startswith("model.merger.") or ".vit_merger.linear_" in name or name == "lm_head")
        return self.name != SGLANG.name or name != "lm_head"


TRANSFORMERS = Runtime("Transformers", (), fuses=False)
VLLM = Runtime("vLLM", _VLLM, fuses=True)
SGLANG = Runtime("SGLang", _SGLANG, fuses=True, severity="warning")
RUNTIMES = (TRANSFORMERS, VLLM, SGLANG)


def fused_neighbours(name: str, known: Iterable[str]) -> list[str]:
    """The linears of ``known`` that vLLM and SGLang load in one module with ``name``, itself among them."""
    head, dot, last = name.rpartition(".")
    parts = FUSED.get(_FUSED_AS.get(last, ""), (last,))
    there = set(known)
    return [head + dot + part for part in parts if head + dot + part in there]
