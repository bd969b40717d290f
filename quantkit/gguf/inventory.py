"""What a GGUF file holds, and what it takes on a device, from its header alone; whoever wrote it.

The memory is what llama.cpp reserves for arch `qwen35` and projector `minicpmv4_6`, with one sequence and its default
batch of 512 tokens (https://github.com/ggml-org/llama.cpp: `src/llama-kv-cache.cpp`, `src/llama-memory-recurrent.cpp`,
`n_embd_r` and `n_embd_s` of `src/llama-hparams.cpp`)::

    KV cache         attention layers x positions x KV heads x (key + value length) x 2, as f16
    recurrent state  linear-attention layers x ((kernel - 1) x channels + state x inner) x 4, as f32
                     channels = inner + 2 x groups x state, the convolution's
    compute, text    4 x batch x (2 x channels + 4 x width) + three layers' states + a mask, 2 x batch x positions
    compute, vision  4 x patches x 8 x width

The last two are estimates, fitted to what llama.cpp of autumn 2026 reports on a CPU, flash attention on: within 6 % of
it for the text of `tiny` and of the published shapes, at 512 to 65,536 positions and batches of 64 to 512.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.blockgrid import GRIDS
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import TensorInfo, Value
from quantkit.formats.gguf.reader import GgufFile
from quantkit.formats.gguf.types import FILE_TYPES, TensorType
from quantkit.integrity.inventory import PROVENANCE, Inventory, Part, Row
from quantkit.tensorfile import strict_json

CONTEXT, BATCH = 4096, 512
_FLOATS = ("F32", "F16", "BF16", "F64")
_KNOWN, _VISION, _PROJECTOR = "qwen35", "clip", "minicpmv4_6"
_MODES = {4: "16x", 2: "4x"}  # merged patches along an edge
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_PLACE = re.compile(r"(?:[a-z]+\.)*blk\.(\d+)\.(.+)")
_NO_LINEAR = re.compile(r"embd|norm|conv|ln\d|_ln\b")
_PARTS = (
    (re.compile(r"token_embd"), "embedding"),
    (re.compile(r"patch_embd|position_embd"), "patch and position embedding"),
)
# rows that llama.cpp's kernels for ARM take together; they want the weights in an order of their own
_TOGETHER = {"Q4_0": 4, "IQ4_NL": 4, "Q8_0": 4, "MXFP4": 4, "Q1_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8}


@dataclass(frozen=True)
class Facts:
    """What a file's keys say of it; None where they do not, or not in a form that llama.cpp reads.

    kind: model, mmproj, imatrix or whatever general.type says. downsample_mode: of projector minicpmv4_6.
    """

    kind: str
    architecture: str | None
    name: str | None
    file_type: str | None
    context_length: int | None
    vocabulary: int | None
    projector: str | None
    downsample_mode: str | None
    files: int


@dataclass
class GgufInventory(Inventory):
    """The same as of a checkpoint; ``layout`` is a linear's type. keys, tensors: the file's."""

    facts: Facts = field(kw_only=True)
    keys: dict[str, Value] = field(kw_only=True, repr=False)
    tensors: dict[str, TensorInfo] = field(kw_only=True, repr=False)

    def singly(self) -> list[Part]:
        """What is in ``rest``, tensor by tensor."""
        shown = {f"{row.name}.weight" for row in self.linears}
        return [_part(name, [info]) for name, info in self.tensors.items() if name not in shown]

    @property
    def bits_per_quantized_weight(self) -> float | None:
        packed = [row for row in self.linears if row.layout not in _FLOATS]
        weights = sum(row.out_features * row.in_features for row in packed)
        return 8 * sum(row.bytes for row in packed) / weights if weights else None


# ---- files ----------------------------------------------------------------------------------------------------------


def gguf_paths(path: Path) -> list[Path]:
    """A file itself; of a folder every .gguf file, a split set by its first."""
    if not path.is_dir():
        return [path]
    found: dict[str, Path] = {}
    for file in sorted(path.glob("*.gguf")):
        split = _SPLIT.fullmatch(file.name)
        found.setdefault(f"{split[1]} of {split[3]}" if split else file.name, file)
    if not found:
        raise QuantkitError(f"{path}: holds no .gguf file")
    return list(found.values())


def take_gguf_inventory(path: Path) -> GgufInventory:
    """Count what a file, or a split set opened by its first file, holds; raises QuantkitError for a damaged one."""
    file = GgufFile(path)
    record = _record(path)
    linears = [info for info in file.tensors.values() if _is_linear(info)]
    packed = [info for info in linears if info.type.name not in _FLOATS]
    shown = packed or linears
    kept = [info.name for info in linears if packed and info.type.name in _FLOATS]
    made = _made(record, path.name)
    rows = [_row(info, made.get(info.name, {})) for info in shown]
    names = {info.name for info in shown}
    rest = [info for info in file.tensors.values() if info.name not in names]
    return GgufInventory(
        name=path.name,
        method="gguf" if packed else None,
        linears=sorted(rows, key=lambda row: (row.layer is None, row.layer or 0)),
        rest=_parts(rest, set(kept)),
        kept=[_module(name) for name in kept],
        bytes=sum(info.nbytes for info in file.tensors.values()),
        file_bytes=sum(part.stat().st_size for part in file.files),
        parameters=sum(math.prod(info.shape) for info in file.tensors.values()),
        provenance=record,
        facts=_facts(file),
        keys=file.metadata,
        tensors=file.tensors,
    )


def _record(path: Path) -> dict[str, Any]:
    """The quantkit.json beside a file that it lists; {} otherwise."""
    beside = path.parent / PROVENANCE
    if not beside.is_file():
        return {}
    try:
        value = strict_json(beside.read_bytes())
    except (OSError, ValueError) as error:
        raise QuantkitError(
            f"{beside}: no valid JSON ({' '.join(str(error).split())}); delete it or mend it"
        ) from error
    files = value.get("files") if isinstance(value, dict) else None
    return value if isinstance(files, dict) and path.name in files else {}


def _made(record: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """What the record says of each tensor of a file."""
    said = record["files"][name] if record else {}
    kind = said.get("type") if isinstance(said, dict) else None
    layers = record.get("layers")
    rows = [row for row in layers if isinstance(row, dict)] if isinstance(layers, list) else []
    return {str(row.get("name")): row for row in rows if kind is not None and row.get("file") == kind}


# ---- tensors --------------------------------------------------------------------------------------------------------


def _is_linear(info: TensorInfo) -> bool:
    return len(info.shape) >= 2 and info.name.endswith(".weight") and not _NO_LINEAR.search(info.name)


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _row(info: TensorInfo, made: dict[str, Any]) -> Row:
    """Experts of one tensor count as rows of one linear."""
    module = _module(info.name)
    place = _PLACE.fullmatch(module)
    layer, kind = (int(place[1]), place[2]) if place else (None, module)
    grid = GRIDS.get(info.type.name)
    error, notes = made.get("error"), made.get("notes")
    return Row(
        module, kind, layer, info.type.name, _bits(info.type), grid.run if grid else None,
        None if grid is None else not grid.has_offset, math.prod(info.shape[:-1]), info.shape[-1], info.nbytes,
        error if isinstance(error, int | float) else None,
        "; ".join(str(one) for one in notes) if isinstance(notes, list) else "",
    )  # fmt: skip


def _bits(kind: TensorType) -> int | None:
    """Bits of a code, scales apart; None where the name does not say."""
    if kind.block == 1:
        return 8 * kind.nbytes
    said = re.match(r"I?Q(\d)_|(?:MX|NV)FP(\d)", kind.name)
    return int(said[1] or said[2]) if said else None


def _parts(infos: Iterable[TensorInfo], kept: set[str]) -> list[Part]:
    groups: dict[str, list[TensorInfo]] = {}
    for info in infos:
        known = next((what for pattern, what in _PARTS if pattern.search(info.name)), None)
        what = "kept linears" if info.name in kept else known or "norms and other small tensors"
        groups.setdefault(what, []).append(info)
    return [_part(what, members, kept) for what, members in groups.items()]


def _part(what: str, infos: list[TensorInfo], kept: Iterable[str] = ()) -> Part:
    types = tuple(dict.fromkeys(info.type.name for info in infos))
    elements, size = sum(math.prod(info.shape) for info in infos), sum(info.nbytes for info in infos)
    return Part(what, len(infos), elements, size, types, tuple(_module(one.name) for one in infos if one.name in kept))


# ---- keys -----------------------------------------------------------------------------------------------------------


def _facts(file: GgufFile) -> Facts:
    keys = file.metadata
    architecture = _text(keys, "general.architecture")
    projector = _text(keys, "clip.projector_type") or _text(keys, "clip.vision.projector_type")
    scale = _count(keys, "clip.vision.projector.scale_factor")
    embedding = file.tensors.get("token_embd.weight")
    tokens = keys.get("tokenizer.ggml.tokens")
    listed = len(tokens.value) if tokens is not None and isinstance(tokens.value, list) else None
    vision = architecture == _VISION
    return Facts(
        kind="mmproj" if vision else _text(keys, "general.type") or "model",
        architecture=architecture,
        name=_text(keys, "general.name"),
        file_type=_file_type(_count(keys, "general.file_type")),
        context_length=_count(keys, f"{architecture}.context_length"),
        vocabulary=embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else listed,
        projector=projector,
        downsample_mode=_MODES.get(scale) if projector == _PROJECTOR and scale is not None else None,
        files=len(file.files),
    )


def _file_type(number: int | None) -> str | None:
    """What llama.cpp calls a file of this general.file_type, or the number where quantkit writes no such file."""
    names = {number: name for name, number in FILE_TYPES.items()}
    return None if number is None else names.get(number, f"general.file_type {number}")


def _text(keys: dict[str, Value], key: str) -> str | None:
    """A text, on one line and not endless: it may come from a hostile file."""
    found = keys.get(key)
    if found is None or not isinstance(found.value, str):
        return None
    text = " ".join(found.value.split())
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if text.isprintable() else ascii(text)


def _count(keys: dict[str, Value], key: str) -> int | None:
    found = keys.get(key)
    whole = found is not None and found.kind.removeprefix("u").startswith("int") and not isinstance(found.value, list)
    return int(found.value) if found is not None and whole and found.value >= 0 else None


# ---- memory ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Memory of one kind; bytes: None where the file does not tell."""

    what: str
    bytes: int | None


@dataclass(frozen=True)
class Budget:
    """What a text model, a vision model or both take on a device.

    copies: weights that llama.cpp's kernels for ARM keep a second time, in an order of their own; in no total, as the
    system can drop the file's pages. all_logits: text compute buffers of a program that leaves n_outputs_max at
    llama.h's default, which keeps room for the logits of a whole batch. missing: keys without which something is
    unknown.
    """

    context: int
    needs: tuple[Need, ...]
    copies: int
    all_logits: int | None
    missing: tuple[str, ...]

    @property
    def total(self) -> int | None:
        known = [need.bytes for need in self.needs if need.bytes is not None]
        return sum(known) if len(known) == len(self.needs) else None

    @property
    def total_with_all_logits(self) -> int | None:
        text = next((need.bytes for need in self.needs if need.what == _TEXT_COMPUTE), None)
        if self.total is None or self.all_logits is None or text is None:
            return None
        return self.total - text + self.all_logits


_TEXT_COMPUTE, _VISION_COMPUTE = "compute buffers, text (estimate)", "compute buffers, vision (estimate)"


def memory_budget(text: GgufInventory | None, vision: GgufInventory | None, context: int = CONTEXT) -> Budget | None:
    """What both files, or one, take at so many positions; None where neither is of a model that quantkit knows."""
    if text is not None and text.facts.architecture != _KNOWN:
        return None
    vision = vision if vision is not None and vision.facts.projector == _PROJECTOR else None
    if text is None and vision is None:
        return None
    needs = [Need(f"weights: {found.name}", found.bytes) for found in (text, vision) if found is not None]
    missing: list[str] = []
    all_logits = None
    if text is not None:
        sizes = _TextSizes(text, context)
        needs += sizes.needs()
        all_logits = sizes.all_logits()
        missing += sizes.missing
    if vision is not None:
        compute, absent = _vision_compute(vision)
        needs.append(Need(_VISION_COMPUTE, compute))
        missing += absent
    return Budget(context, tuple(needs), _copies(text), all_logits, tuple(missing))


def budgets(found: list[GgufInventory], path: Path, context: int) -> dict[str, Budget]:
    """By file name, of every text model with its vision; of vision files alone where there is no text model.

    found: what ``path``, a file or a folder, holds. A text model's mmproj is the folder's, that for 16x before others;
    of a file given alone, the only one beside it.
    """
    texts = [one for one in found if one.facts.kind != "mmproj"]
    visions = [one for one in found if one.facts.kind == "mmproj"]
    if texts and not path.is_dir():
        beside = sorted(path.parent.glob("mmproj*.gguf"))
        visions = [take_gguf_inventory(beside[0])] if len(beside) == 1 else []
    vision = min(visions, key=lambda one: (one.facts.downsample_mode != "16x", one.name), default=None)
    known = {one.name: memory_budget(one, vision, context) for one in texts}
    if not any(known.values()):
        known |= {one.name: memory_budget(None, one, context) for one in visions}
    return {name: budget for name, budget in known.items() if budget is not None}


class _TextSizes:
    """The sizes of arch `qwen35`; ``missing``: keys that the file lacks, `need` is unknown then."""

    def __init__(self, found: GgufInventory, context: int) -> None:
        self.keys, self.missing = found.keys, list[str]()
        layers = {name: int(place[1]) for name in found.tensors if (place := _PLACE.fullmatch(name))}
        extra = {layer for name, layer in layers.items() if ".nextn." in name}  # MTP: left out by default
        ends = (("attn_k.weight", "attention"), ("ssm_out.weight", "linear attention"))
        self.counts = {
            what: len({layer for name, layer in layers.items() if name.endswith("." + end)} - extra)
            for end, what in ends
        }
        self.positions = -(-context // 256) * 256  # as llama.cpp rounds it
        self.batch = min(BATCH, self.positions)
        self.vocabulary = found.facts.vocabulary
        self.width, self.heads, self.kv_heads = self._get(
            "embedding_length", "attention.head_count", "attention.head_count_kv"
        )
        head = self.width // self.heads if self.width and self.heads else None
        self.key, self.value = (self._or(f"attention.{part}_length", head) for part in ("key", "value"))
        self.kernel, self.inner, self.groups, self.state = self._get(
            "ssm.conv_kernel", "ssm.inner_size", "ssm.group_count", "ssm.state_size"
        )

    def _or(self, key: str, default: int | None) -> int | None:
        found = _count(self.keys, f"{_KNOWN}.{key}")
        return default if found is None else found

    def _get(self, *keys: str) -> list[int | None]:
        found = [_count(self.keys, f"{_KNOWN}.{key}") for key in keys]
        self.missing += [f"{_KNOWN}.{key}" for key, value in zip(keys, found, strict=True) if value is None]
        return found

    def needs(self) -> list[Need]:
        attention, linear = self.counts["attention"], self.counts["linear attention"]
        return [
            Need(f"KV cache, attention layers: {attention} (f16)", self.cache()),
            Need(f"recurrent state, linear-attention layers: {linear} (f32)", self.recurrent()),
            Need(_TEXT_COMPUTE, self.compute()),
        ]

    def cache(self) -> int | None:
        if self.kv_heads is None or self.key is None or self.value is None:
            return None
        return self.counts["attention"] * self.positions * self.kv_heads * (self.key + self.value) * 2

    def recurrent(self) -> int | None:
        if self.kernel is None or self.inner is None or self.state is None or self.channels is None:
            return None
        kept = max(0, self.kernel - 1) * self.channels + self.state * self.inner
        return self.counts["linear attention"] * kept * 4

    @property
    def channels(self) -> int | None:
        if self.inner is None or self.groups is None or self.state is None:
            return None
        return self.inner + 2 * self.groups * self.state

    def compute(self) -> int | None:
        if self.channels is None or self.width is None or self.state is None or self.inner is None:
            return None
        tokens = 4 * self.batch * (2 * self.channels + 4 * self.width)
        return tokens + 3 * 4 * self.state * self.inner + 2 * self.batch * self.positions

    def all_logits(self) -> int | None:
        """The logits take the place of what the layers needed, beside the mask and the last layer's output."""
        plain = self.compute()
        if plain is None or self.vocabulary is None or self.width is None:
            return None
        logits = 4 * self.batch * (self.vocabulary + self.width) + 2 * self.batch * self.positions
        return max(plain, logits)


def _vision_compute(found: GgufInventory) -> tuple[int | None, list[str]]:
    """Of one picture or slice at the processor's resolution."""
    keys = [f"clip.vision.{key}" for key in ("image_size", "patch_size", "embedding_length")]
    side, patch, width = (_count(found.keys, key) for key in keys)
    if side is None or not patch or width is None:
        return None, [key for key in keys if not _count(found.keys, key)]
    return 4 * (side // patch) ** 2 * 8 * width, []


def _copies(text: GgufInventory | None) -> int:
    """Bytes of the weights that kernels for ARM take several rows at a time, a head that is the embedding included."""
    if text is None:
        return 0
    names = [f"{row.name}.weight" for row in text.linears]
    if "output.weight" not in text.tensors and "token_embd.weight" in text.tensors:
        names.append("token_embd.weight")
    found = [text.tensors[name] for name in names]
    return sum(one.nbytes for one in found if one.shape[-2] % _TOGETHER.get(one.type.name, one.shape[-2] + 1) == 0)
