"""The keys of both GGUF files: what the model is, whence it comes, and the sizes that llama.cpp builds it from.

Keys and kinds are those that llama.cpp's converter writes for this model
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md for `general.*`, llama.cpp's `src/models/qwen35.cpp` and
`tools/mtmd/clip.cpp` for the rest). Values come from config.json, generation_config.json, the processor's settings and
the head of README.md, and nowhere else: what these do not say is left out.

Departures from the converter:

* the MTP layer that the published config announces and no tensor holds is not announced (its files want
  `--no-nextn` for that; without it llama.cpp refuses them);
* `general.name` and what follows from it come from the hub id or the folder's name, never from the hash that a hub
  cache's folder is called; `general.size_label` counts the tensors, never trusts a name;
* `general.source.repo_url` where the checkpoint comes from the hub;
* no `general.sampling.*` where generation_config.json switches sampling off (`do_sample: false`);
* what llama.cpp has built in for this model is checked: a config that says otherwise is an error here, not a wrong
  answer later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from quantkit import tensorfile
from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import Value
from quantkit.formats.gguf.types import FILE_TYPES
from quantkit.gguf.names import MODES
from quantkit.model import build_map

QUANTIZATION_VERSION = 2
HUB = "https://huggingface.co/"
POSITIONS = 70  # along an edge of the position table
_MROPE_SECTION = (11, 11, 10)  # Qwen3.5's own, where the config names none
# generation_config.json -> key, kind
_SAMPLING = {
    "top_k": ("top_k", "int32"),
    "top_p": ("top_p", "float32"),
    "min_p": ("min_p", "float32"),
    "temperature": ("temp", "float32"),
    "repetition_penalty": ("penalty_repeat", "float32"),
}


def text_metadata(checkpoint: Checkpoint, file_type: str, parameters: int) -> dict[str, Any]:
    """Keys of the text file, tokenizer's apart. file_type: a key of FILE_TYPES. parameters: elements in the file.

    Raises QuantkitError naming the field of config.json that is missing or that llama.cpp cannot follow.
    """
    return {
        "general.architecture": "qwen35",
        "general.type": "model",
        **_general(checkpoint, file_type, parameters),
        **sampling_metadata(checkpoint.path),
        **{f"qwen35.{key}": value for key, value in _text_sizes(checkpoint).items()},
    }


def vision_metadata(checkpoint: Checkpoint, file_type: str, parameters: int, mode: str = "16x") -> dict[str, Any]:
    """Keys of the mmproj file for a downsample mode, "16x" or "4x"; raises as `text_metadata`."""
    sizes = _vision_sizes(checkpoint, mode)
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        **_general(checkpoint, file_type, parameters),
        "clip.has_vision_encoder": True,
        "clip.projector_type": "minicpmv4_6",
        "clip.use_gelu": True,  # the tower's tanh form; the last merger's exact form is built in
        **{f"clip.vision.{key}": value for key, value in sizes.items()},
    }


def model_name(checkpoint: Checkpoint) -> str:
    """What to call the model in a file's name: the last part of its hub id, or its folder's name."""
    return _model_id(checkpoint).rpartition("/")[2]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file. QuantkitError where it holds something else."""
    if not path.exists():
        return {}
    try:
        value = tensorfile.strict_json(path.read_bytes())
    except ValueError as error:
        raise QuantkitError(f"{path}: no valid JSON ({' '.join(str(error).split())}); copy the file again") from error
    if not isinstance(value, dict):
        raise QuantkitError(f"{path}: holds no JSON object; copy the file again")
    return value


# ---- general --------------------------------------------------------------------------------------------------------


def _general(checkpoint: Checkpoint, file_type: str, parameters: int) -> dict[str, Any]:
    model_id = _model_id(checkpoint)
    values: dict[str, Any] = {
        "name": title(model_id.rpartition("/")[2]),
        **name_parts(model_id.rpartition("/")[2]),
        "size_label": size_label(parameters),
    }
    if "/" in model_id:
        values["source.repo_url"] = HUB + model_id
    values |= _card(checkpoint.path / "README.md")
    values["file_type"] = FILE_TYPES[file_type]
    values["quantization_version"] = QUANTIZATION_VERSION
    return {f"general.{key}": value for key, value in values.items()}


def _model_id(checkpoint: Checkpoint) -> str:
    """The hub id, also of a folder of the hub's cache (models--OWNER--NAME/snapshots/HASH), or the folder's name."""
    folder = checkpoint.path.absolute()
    repository = re.fullmatch(r"models--(.+?)--(.+)", folder.parent.parent.name)
    if folder.parent.name == "snapshots" and repository:
        return f"{repository[1]}/{repository[2]}"
    return checkpoint.name


def title(name: str) -> str:
    """ "tiny-model-v2" -> "Tiny Model v2": spaces for dashes, words in lower case capitalised."""
    words = name.strip().replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not re.fullmatch(r"v\d+(\.\d+)*|\d.*", word) else word for word in words
    )


def name_parts(name: str) -> dict[str, str]:
    """basename, finetune and version as GGUF's naming convention reads them off "Base-Name-0.8B-Finetune-v1.0".

    {} for a name without a version, a size or a finetune's name: then all of it may be anything.
    """
    parts = [part for part in name.split("-") if part]
    kinds = [_part_kind(part, place) for place, part in enumerate(parts)]
    base = 0
    while base < len(parts) and (kinds[base] == "version" or (kinds[base] == "" and parts[base][0].isalpha())):
        base += 1
    end = base
    while base == len(parts) and end and kinds[end - 1] == "version":  # a version closes the name, or is part of it
        end -= 1
    tail = [(part, kind or "finetune") for part, kind in zip(parts[end:], kinds[end:], strict=True)]
    if not any(kind in ("version", "size", "finetune") for _, kind in tail):
        return {}
    values = {"basename": "-".join(parts[:end])}
    for key in ("finetune", "version"):
        values[key] = "-".join(part for part, kind in tail if kind == key)
    return {key: value for key, value in values.items() if value}


def _part_kind(part: str, place: int) -> str:
    if re.fullmatch(r"(v|iter)?\d+(\.\d+)*", part, re.IGNORECASE):
        return "version"
    if re.fullmatch(r"i?q\d(_\w)*|b?fp?(16|32)", part, re.IGNORECASE):
        return "type"
    if place and re.fullmatch(r"(a|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl", part, re.IGNORECASE):
        return "size"
    return "finetune" if place and part.lower() in ("chat", "instruct", "vision", "lora") else ""


def size_label(parameters: int) -> str:
    """Two digits or more: 3083140 -> "3.1M", 755000000 -> "755M"."""
    units = ((12, "T"), (9, "B"), (6, "M"), (3, "K"))
    power, unit = next(pair for pair in units if parameters > 10 ** pair[0] or pair[1] == "K")
    scaled = parameters * 10.0**-power
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{unit}"


def _card(path: Path) -> dict[str, Any]:
    """What the YAML head of a model card says of licence, languages, tags and the models it was made from."""
    card = _front_matter(path)
    values: dict[str, Any] = {}
    if licence := ",".join(_texts(card.get("license"))):
        values["license"] = licence
    for part in ("name", "link"):
        if text := card.get(f"license_{part}"):
            values[f"license.{part}"] = str(text)
    bases = _texts(card.get("base_model"))
    if bases:
        values["base_model.count"] = len(bases)
    for place, base in enumerate(bases):
        values |= {f"base_model.{place}.{key}": value for key, value in _base_model(base).items()}
    if tags := _texts(card.get("tags")) + _texts(card.get("pipeline_tag")):
        values["tags"] = tags
    if languages := _texts(card.get("languages")) + _texts(card.get("language")):
        values["languages"] = languages
    return values


def _base_model(base: str) -> dict[str, str]:
    owner, _, name = base.removeprefix(HUB).rpartition("/")
    if not re.fullmatch(r"[\w.-]*", owner) or not re.fullmatch(r"[\w.-]+", name):
        return {"repo_url": base} if "://" in base else {"name": base}
    values = {"name": title(name)}
    if version := name_parts(name).get("version"):
        values["version"] = version
    if owner:
        values |= {"organization": title(owner), "repo_url": f"{HUB}{owner}/{name}"}
    return values


def _front_matter(path: Path) -> dict[str, Any]:
    """The head between two lines of `---`, every scalar a text (`no` is a language)."""
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    try:
        card = yaml.load("\n".join(lines[1 : lines.index("---", 1)]), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise QuantkitError(f"{path}: its head is no valid YAML ({reason}); mend or remove it") from error
    return card if isinstance(card, dict) else {}


def _texts(value: Any) -> list[str]:
    """A text or a list of texts; anything else says nothing."""
    found = value if isinstance(value, list) else [value]
    return [item for item in found if isinstance(item, str) and item]


def sampling_metadata(folder: Path) -> dict[str, Any]:
    """The sampler's settings that generation_config.json recommends."""
    path = folder / "generation_config.json"
    settings = read_json(path)
    if settings.get("do_sample") is False:
        return {}
    values = {}
    for field, (key, kind) in _SAMPLING.items():
        value = settings.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise QuantkitError(f"{path}: {field} is {value!r}, not a number; mend or remove it")
        values[f"general.sampling.{key}"] = Value(kind, int(value) if kind == "int32" else float(value))
    return values


# ---- the text model -------------------------------------------------------------------------------------------------


def _text_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    config, where = checkpoint.config, str(checkpoint.path)
    model = build_map(config, where)
    fields = _Fields(config["text_config"], f"{where}: text_config")
    _check_text(fields)
    heads, width = fields.count("linear_num_value_heads"), fields.count("linear_value_head_dim")
    return {
        "block_count": len(model.blocks),
        "context_length": fields.count("max_position_embeddings"),
        "embedding_length": model.hidden_size,
        "feed_forward_length": fields.count("intermediate_size"),
        "attention.head_count": fields.count("num_attention_heads"),
        "attention.head_count_kv": fields.count("num_key_value_heads"),
        "attention.key_length": fields.count("head_dim"),
        "attention.value_length": fields.count("head_dim"),
        "attention.layer_norm_rms_epsilon": fields.number("rms_norm_eps"),
        "attention.recurrent_layers": [block.kind == "linear_attention" for block in model.blocks],
        "full_attention_interval": fields.count("full_attention_interval", 4),
        **_rope(fields),
        "ssm.conv_kernel": fields.count("linear_conv_kernel_dim"),
        "ssm.state_size": fields.count("linear_key_head_dim"),
        "ssm.group_count": fields.count("linear_num_key_heads"),
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * width,
    }


def _rope(text: _Fields) -> dict[str, Any]:
    """Rotary positions: over a part of each head, its pairs shared between time, height and width."""
    settings = text.values.get("rope_parameters") or text.values.get("rope_scaling")
    if not isinstance(settings, Mapping):
        raise QuantkitError(f"{text.where}.rope_parameters is missing in config.json")
    rope = _Fields({**text.values, **settings}, f"{text.where}.rope_parameters")
    sections = [*(settings.get("mrope_section") or _MROPE_SECTION), 0][:4]
    rotated = int(text.count("head_dim") * rope.number("partial_rotary_factor", 0.25))
    if 2 * sum(sections) != rotated:
        raise QuantkitError(
            f"{rope.where}.mrope_section {sections[:3]} splits {sum(sections)} pairs, but {rotated // 2} are rotated"
        )
    return {
        "rope.dimension_sections": sections,
        "rope.dimension_count": rotated,
        "rope.freq_base": rope.number("rope_theta"),
        **_rope_scaling(rope),
    }


def _rope_scaling(rope: _Fields) -> dict[str, Any]:
    """How positions beyond the trained ones are reached; nothing for the default."""
    kind = rope.values.get("rope_type") or rope.values.get("type") or "default"
    if kind == "default":
        return {}
    if kind not in ("linear", "yarn"):
        raise QuantkitError(f"{rope.where}.rope_type is {kind!r}; llama.cpp follows default, linear and yarn here")
    values: dict[str, Any] = {"type": kind, "factor": rope.number("factor")}
    if kind == "yarn":
        values["original_context_length"] = rope.count("original_max_position_embeddings")
        for field, key in (
            ("extrapolation_factor", "yarn_ext_factor"), ("attention_factor", "yarn_attn_factor"),
            ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"),
        ):  # fmt: skip
            if rope.values.get(field) is not None:
                values[key] = rope.number(field)
    return {f"rope.scaling.{key}": value for key, value in values.items()}


def _check_text(text: _Fields) -> None:
    """What arch `qwen35` takes for granted."""
    text.must_be("hidden_act", ("silu",), "silu")
    text.must_be("attn_output_gate", (True,), True)
    width = text.count("linear_key_head_dim")
    text.must_be("linear_value_head_dim", (width,))


# ---- vision ---------------------------------------------------------------------------------------------------------


def _vision_sizes(checkpoint: Checkpoint, mode: str) -> dict[str, Any]:
    if mode not in MODES:
        raise QuantkitError(f"no downsample mode {mode!r}; choose {' or '.join(MODES)}")
    config, where = checkpoint.config, str(checkpoint.path)
    whole = _Fields(config, where)
    vision = _Fields(config.get("vision_config") or {}, f"{where}: vision_config")
    processor = image_processor(checkpoint.path)
    _check_vision(whole, vision)
    layer = whole.count("insert_layer_id", 6, least=0)
    if layer >= vision.count("num_hidden_layers"):
        raise QuantkitError(f"{where}: insert_layer_id {layer} in config.json is beyond the vision tower's layers")
    return {
        "projection_dim": build_map(config, where).hidden_size,
        "image_size": processor.count("scale_resolution", 448),  # the side of a slice, not the position table's
        "patch_size": vision.count("patch_size"),
        "embedding_length": vision.count("hidden_size"),
        "feed_forward_length": vision.count("intermediate_size"),
        "block_count": vision.count("num_hidden_layers"),
        "attention.head_count": vision.count("num_attention_heads"),
        "attention.layer_norm_epsilon": vision.number("layer_norm_eps", 1e-6),
        "image_mean": processor.channels("image_mean"),
        "image_std": processor.channels("image_std"),
        "projector.scale_factor": {"16x": 4, "4x": 2}[mode],  # merged patches along an edge
        "wa_layer_indexes": [layer],  # vit_merger follows this layer
    }


def image_processor(folder: Path) -> _Fields:
    """The image processor's settings: processor_config.json's, else preprocessor_config.json, as Transformers reads."""
    nested = read_json(folder / "processor_config.json").get("image_processor")
    name = "processor_config.json" if isinstance(nested, dict) else "preprocessor_config.json"
    values = nested if isinstance(nested, dict) else read_json(folder / name)
    return _Fields(values, f"{folder / name}: image_processor" if nested else str(folder / name), "")


def _check_vision(whole: _Fields, vision: _Fields) -> None:
    """What projector `minicpmv4_6` takes for granted."""
    whole.must_be("merger_times", (1,), 1)
    whole.must_be("merge_kernel_size", ([2, 2],), [2, 2])
    vision.must_be("window_kernel_size", ([2, 2],), [2, 2])
    vision.must_be("hidden_act", ("gelu_pytorch_tanh",))
    vision.must_be("num_channels", (3,), 3)
    if vision.count("image_size") // vision.count("patch_size") != POSITIONS:
        raise QuantkitError(
            f"{vision.where}.image_size / patch_size in config.json is not {POSITIONS}; llama.cpp knows only a table "
            f"of {POSITIONS} x {POSITIONS} positions"
        )
    if vision.count("intermediate_size") == vision.count("hidden_size"):
        raise QuantkitError(
            f"{vision.where}.intermediate_size equals hidden_size; llama.cpp would then swap the feed-forward's tensors"
        )


class _Fields:
    """Fields of a JSON object, checked as they are read: errors name file and field."""

    def __init__(self, values: Mapping[str, Any], where: str, file: str = " in config.json") -> None:
        self.values, self.where, self.file = values, where, file

    def count(self, field: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise QuantkitError(f"{self._name(field)} is {value!r}, not a whole number of at least {least}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self._get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise QuantkitError(f"{self._name(field)} is {value!r}, not a number")
        return float(value)

    def channels(self, field: str) -> list[float]:
        """One number for red, green and blue."""
        value = self._get(field, None)
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(item, int | float) for item in value):
            raise QuantkitError(f"{self._name(field)} is {value!r}, not three numbers")
        return [float(item) for item in value]

    def must_be(self, field: str, known: Iterable[Any], default: Any = None) -> None:
        """Raise unless the value is one that llama.cpp follows."""
        value, known = self._get(field, default), list(known)
        if value not in known:
            raise QuantkitError(f"{self._name(field)} is {value!r}; llama.cpp runs this model only with {known[0]!r}")

    def _get(self, field: str, default: Any) -> Any:
        value = self.values.get(field)
        return default if value is None else value

    def _name(self, field: str) -> str:
        return f"{self.where}{'.' if ': ' in self.where else ': '}{field}{self.file}"
