"""The files beside the weights: config.json against tensors and source, and every side file byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.integrity.findings import Finding, error, some, warning
from quantkit.integrity.stated import stated
from quantkit.integrity.subject import Linear, Subject
from quantkit.tensorfile import CHECKSUM_FILE, strict_json

CONFIG, FILES, CHECKSUMS = "config", "side files", "checksums"
# fields of config.json that a quantized copy may have otherwise than its source
_FREE = ("quantization_config", "compression_config", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
_NEEDED = {
    "awq": ("bits", "group_size", "zero_point", "version", "modules_to_not_convert"),
    "gptq": ("bits", "group_size", "desc_act", "sym"),
    "compressed-tensors": ("config_groups", "format", "ignore"),
    "bitsandbytes": (),
}
_METHODS = {"awq": "awq", "gptq": "gptq", "compressed-tensors": "compressed-tensors", "bitsandbytes": "bitsandbytes"}
_OLD_NAMES = {"bits": "w_bit", "group_size": "q_group_size", "version": "format"}
# files that tokenizers, processors and generation read: one more or less of them changes what the model is asked
_BEHAVIOUR = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
_MISSING = object()
# what `save_pretrained` of tokenizers and processors writes anew, and nothing reads at inference
_INERT = (*_FREE, "is_local", "local_files_only", "name_or_path", "tokenizer_class", "processor_class", "_commit_hash")


# ---- config.json --------------------------------------------------------------------------------------------------


def check_config(subject: Subject) -> Iterator[Finding]:
    """quantization_config is complete and agrees with the tensors; all other fields are the source's."""
    config = subject.candidate.config
    if "dtype" not in config:
        hint = "; it has torch_dtype" if "torch_dtype" in config else ""
        yield warning(CONFIG, "dtype", f"missing: SGLang wants it in config.json{hint}")
    if subject.reference is not None:
        for path, words in differences(_bare(subject.reference.config), _bare(config)):
            yield error(CONFIG, path, words)
    yield from _quantization(subject)


def _quantization(subject: Subject) -> Iterator[Finding]:
    quantization, layouts = subject.quantization, {linear.layout for linear in subject.packed.values()}
    where = "quantization_config"
    if not quantization and not layouts:
        return
    if not quantization:
        yield error(CONFIG, where, f"missing, though {len(subject.packed)} linears are packed")
        return
    if not layouts:
        yield error(CONFIG, where, f"says {quantization.get('quant_method')!r}, but no linear is packed")
        return
    layout = sorted(layouts)[0]
    method = quantization.get("quant_method")
    if method != _METHODS.get(layout, method):
        yield error(CONFIG, f"{where}.quant_method", f"is {method!r}, the tensors are packed as {layout}")
    for name in _NEEDED.get(layout, ()):
        if name not in quantization and _OLD_NAMES.get(name) not in quantization:
            yield error(CONFIG, f"{where}.{name}", "missing")
    if layout == "awq":
        version = str(quantization.get("version", quantization.get("format", "gemm"))).lower()
        if version != "gemm":
            yield error(CONFIG, f"{where}.version", f"is {version!r}, the tensors are packed as gemm")
    for name in ("bits", "group_size") if layout in ("awq", "gptq") else ():
        value = quantization.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            yield error(CONFIG, f"{where}.{name}", f"is {value!r}, no integer")
    try:
        yield from _grids(subject, quantization, layout)
    except QuantkitError as problem:
        yield error(CONFIG, where, str(problem))


def _grids(subject: Subject, quantization: Mapping[str, Any], layout: str) -> Iterator[Finding]:
    """bits, group_size and symmetry of every linear, as its shapes and tensors tell, against what the config says."""
    wrong: dict[tuple[str, int | bool, int | bool | None], list[str]] = {}
    for name, linear in subject.packed.items():
        said = stated(layout, quantization, [name])
        if said is None or linear.layout != layout:
            continue  # the skip list's business
        for field, found in (("bits", linear.bits), ("group_size", linear.group_size)):
            value = getattr(said, field)
            if value is not None and not _agrees(value, found, linear):
                wrong.setdefault((field, value, found), []).append(name)
        if layout == "compressed-tensors" and said.symmetric is not None:
            symmetric = f"{name}.weight_zero_point" not in linear.tensors
            if symmetric != said.symmetric:
                wrong.setdefault(("symmetric", said.symmetric, symmetric), []).append(name)
    for (field, value, real), names in wrong.items():
        where = "config_groups" if layout == "compressed-tensors" else field
        words = f"{field} is {value!r}, the tensors' is {real} in {some(names)}"
        yield error(CONFIG, f"quantization_config.{where}", words)


def _agrees(said: int, found: int | None, linear: Linear) -> bool:
    if found is None:
        return linear.layout == "compressed-tensors"  # other kinds of it do not tell
    return said == found or (found == -1 and said == linear.in_features)


def _bare(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the fields that may differ, at every depth."""
    return {
        name: _bare(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _FREE
    }


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every place where two parsed JSON values differ: its path, and what is there."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            inner = f"{path}.{name}" if path else str(name)
            yield from differences(before.get(name, _MISSING), after.get(name, _MISSING), inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif before is _MISSING:
        yield path, f"is {_short(after)}, the source has no such field"
    elif after is _MISSING:
        yield path, f"missing; the source has {_short(before)}"
    elif before != after or isinstance(before, bool) != isinstance(after, bool):
        yield path, f"is {_short(after)}, the source's is {_short(before)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- side files ---------------------------------------------------------------------------------------------------


def check_files(subject: Subject) -> Iterator[Finding]:
    """Tokenizer, template, processor and generation config are the source's files, byte for byte."""
    yield from _tokenizer_settings(subject)
    if subject.reference is None:
        return
    here, there = _side_files(subject.candidate.path, subject), _side_files(subject.reference.path, subject, True)
    for name, source in there.items():
        if name not in here:
            if Path(name).name in _BEHAVIOUR:
                yield error(FILES, name, "missing: the source has it")
            else:
                yield warning(FILES, name, "not taken over from the source")
        elif here[name].read_bytes() != source.read_bytes():
            yield _file_difference(name, source, here[name])
    for name in here:
        if name not in there and Path(name).name in _BEHAVIOUR:
            yield warning(FILES, name, "the source has no such file")


def _side_files(root: Path, subject: Subject, reference: bool = False) -> dict[str, Path]:
    checkpoint = subject.reference if reference else subject.candidate
    assert checkpoint is not None
    return {str(path.relative_to(root)): path for path in checkpoint.side_files()}


def _file_difference(name: str, source: Path, found: Path) -> Finding:
    if not name.endswith(".json"):
        return error(FILES, name, f"differs from the source's{_first_line(source, found)}")
    try:
        before, after = (strict_json(path.read_bytes()) for path in (source, found))
    except ValueError as problem:
        return error(FILES, name, f"differs from the source's and is no valid JSON ({problem})")
    first = next(((path, words) for path, words in differences(before, after) if path not in _INERT), None)
    if first is None:
        return warning(FILES, name, "other bytes than the source's, the same content")
    return error(FILES, name, f"differs from the source's: {first[0]} {first[1]}")


def _first_line(source: Path, found: Path) -> str:
    lines = [path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (source, found)]
    for number, (before, after) in enumerate(zip(*lines, strict=False), 1):
        if before != after:
            return f" from line {number} on"
    return f" ({len(lines[1])} lines instead of {len(lines[0])})"


def _tokenizer_settings(subject: Subject) -> Iterator[Finding]:
    """Truncation and padding that calibration left on cut or pad every prompt from then on."""
    settings = _truncation(subject.candidate.path)
    source = _truncation(subject.reference.path) if subject.reference else None
    for field, value in settings.items():
        if value is None or (source is not None and source.get(field) == value):
            continue
        words = f"{field} is on ({_short(value)})"
        if source is None:
            yield warning(FILES, "tokenizer.json", f"{words}: left over from calibration?")
        else:
            yield error(FILES, "tokenizer.json", f"{words}, in the source it is not: left over from calibration")


def _truncation(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    try:
        content = strict_json(path.read_bytes())
    except ValueError:
        return {}
    return {field: content.get(field) for field in ("truncation", "padding")} if isinstance(content, dict) else {}


# ---- checksums ----------------------------------------------------------------------------------------------------


def has_checksums(subject: Subject) -> bool:
    """Whether there is anything to compare with: SHA256SUMS, or the hub cache's own names."""
    path = subject.candidate.path
    return (path / CHECKSUM_FILE).is_file() or (path / "config.json").is_symlink()


def check_checksums(subject: Subject) -> Iterator[Finding]:
    """Files match their checksums."""
    try:
        subject.candidate.verify_checksums()
    except QuantkitError as problem:
        path, _, words = str(problem).partition(": ")
        yield error(CHECKSUMS, Path(path).name, words)
