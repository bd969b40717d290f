"""The tokenizer's keys of a GGUF file: byte-level BPE of tokenizer.json, special tokens, chat template.

llama.cpp rebuilds a tokenizer from a list of tokens, a list of merges and the name of a pre-tokenizer, which stands for
a regular expression and for what else it assumes (https://github.com/ggml-org/llama.cpp, `src/llama-vocab.cpp`). The
name is found here by the expression itself; the converter's way, a hash of one text's ids, changes with every token
that a fine-tune adds. What no name stands for is an error: a file with the wrong one loads, and reads wrongly.

One thing is known to differ: llama.cpp's byte-level BPE normalizes nothing. A tokenizer that composes characters first
(NFC, as Qwen's does) makes other ids of decomposed text than llama.cpp; on composed text they are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.gguf.metadata import read_json
from quantkit.model import build_map

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# other spellings of the same, after `_plain`
_CONTRACTIONS = (
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?i:[sdmt]|ll|ve|re)",
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
# expressions that split text one after the other, whether a whole word is looked up before it is merged -> name
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_QWEN35,), False): "qwen35",
    ((_QWEN2.replace("DIGITS", r"\p{N}"),), False): "qwen2",
    ((_QWEN2.replace("DIGITS", r"\p{N}{1,3}"),), True): "llama-bpe",
    ((_GPT2,), False): "gpt-2",
}
# what ends an answer under llama.cpp by its text, whatever the file says
_ENDS_BY_TEXT = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "</s>", "<|end_of_text|>", "<end_of_turn>")
_AGAIN = "copy the file again from the model's page"


def tokenizer_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys `tokenizer.*` of a checkpoint, one token for each row of its embedding.

    Raises QuantkitError naming the file and the part of the tokenizer that llama.cpp does not know, a token without a
    row in the embedding, or a missing chat template.
    """
    folder = checkpoint.path
    file = TokenizerFile.read(folder)
    vocabulary = read_vocabulary(file, build_map(checkpoint.config, str(folder)).vocab_size)
    values = {
        "model": "gpt2",
        "pre": pre_tokenizer(file),
        "tokens": vocabulary.tokens,
        "token_type": vocabulary.kinds,
        "merges": vocabulary.merges,
        **_special_ids(checkpoint, vocabulary),
        **_added_ends(file),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()} | _template_keys(chat_templates(folder))


@dataclass(frozen=True)
class TokenizerFile:
    """tokenizer.json, parsed. extra: tokens that tokenizer_config.json lists, id -> entry."""

    path: Path
    settings: Mapping[str, Any]
    extra: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFile:
        """QuantkitError where it is missing or no BPE at all."""
        path = folder / "tokenizer.json"
        settings = read_json(path)
        model = settings.get("model")
        if not isinstance(model, dict):
            raise QuantkitError(
                f"{path}: missing, or without a model; make it with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
            raise QuantkitError(f"{path}: model has no vocab or no merges, so it is no BPE; {_AGAIN}")
        return cls(path, settings, read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {})

    @property
    def model(self) -> Mapping[str, Any]:
        model: Mapping[str, Any] = self.settings["model"]
        return model


@dataclass(frozen=True)
class Vocabulary:
    """tokens, kinds: by id. merges: "left right", the first goes first. ids: of every token that there is."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    ids: Mapping[str, int]


def read_vocabulary(file: TokenizerFile, size: int) -> Vocabulary:
    """The tokens of tokenizer.json with all that were added to it; ids up to `size` that no token has are unused."""
    path, model = file.path, file.model
    tokens = {number: token for token, number in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for number, added in _added_tokens(file).items():
        tokens[number] = added["content"]
        kinds[number] = CONTROL if added["special"] or _looks_special(added["content"]) else USER_DEFINED
    last = max(tokens)
    if last >= size:
        raise QuantkitError(
            f"{path}: token {tokens[last]!r} has the id {last}, but the embedding only {size} rows; take the "
            "tokenizer that the model was trained with, or resize the embedding"
        )
    names = [tokens.get(number, f"[PAD{number}]") for number in range(size)]
    ids = {token: number for number, token in enumerate(names)}
    if len(ids) < size or "" in ids:
        twice = next((token for number, token in enumerate(names) if ids[token] != number), "")
        raise QuantkitError(f"{path}: two ids have the token {twice!r}, or it is empty; llama.cpp refuses both")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if not all(len(pair) == 2 and not any(re.search(r"\s", part) for part in pair) for pair in merges):
        raise QuantkitError(f"{path}: its merges hold white space, which byte-level BPE never does; {_AGAIN}")
    return Vocabulary(names, [kinds.get(number, UNUSED) for number in range(size)], [" ".join(m) for m in merges], ids)


def chat_templates(folder: Path) -> dict[str, str]:
    """Name -> template, "default" among them, from where Transformers reads them; QuantkitError where there is none."""
    file = folder / "chat_template.jinja"
    named = read_json(folder / "tokenizer_config.json").get("chat_template")
    if file.exists():
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        found = {path.stem: path.read_text("utf-8") for path in others}
        found["default"] = file.read_text("utf-8")
    elif isinstance(named, list):
        found = {str(entry["name"]): str(entry["template"]) for entry in named}
    else:
        text = read_json(folder / "chat_template.json").get("chat_template") or named
        found = {"default": text} if isinstance(text, str) else {}
    if not found.get("default"):
        raise QuantkitError(
            f"{folder}: has no chat template, without which no runtime can put a prompt together; copy "
            "chat_template.jinja from the model it was made from"
        )
    return found


def stop_ids(checkpoint: Checkpoint) -> list[int]:
    """Ids that end an answer, of generation_config.json or else config.json; [] where neither says."""
    text = checkpoint.config.get("text_config") or {}
    for source in (read_json(checkpoint.path / "generation_config.json"), checkpoint.config, text):
        found = source.get("eos_token_id")
        if found is not None:
            return list(found) if isinstance(found, list) else [found]
    return []


# ---- how text is split ----------------------------------------------------------------------------------------------


def pre_tokenizer(file: TokenizerFile) -> str:
    """llama.cpp's name for how this tokenizer splits text; QuantkitError showing the part that has none."""
    path = file.path
    _check_model(file.model, path)
    _check_normalizer(file.settings.get("normalizer"), path)
    patterns = tuple(_plain(pattern) for pattern in _split_patterns(file.settings.get("pre_tokenizer"), path))
    whole = bool(file.model.get("ignore_merges"))
    name = PRE_TOKENIZERS.get((patterns, whole))
    if name is None and (patterns, not whole) in PRE_TOKENIZERS:
        raise QuantkitError(
            f"{path}: model.ignore_merges is {str(whole).lower()}; llama.cpp's {PRE_TOKENIZERS[patterns, not whole]} "
            f"takes {str(not whole).lower()} for granted"
        )
    if name is None:
        raise QuantkitError(
            f"{path}: llama.cpp has no name for a pre-tokenizer that splits by {' and '.join(patterns)}; known are "
            f"those of {', '.join(PRE_TOKENIZERS.values())}"
        )
    return name


def _check_model(model: Mapping[str, Any], path: Path) -> None:
    """Plain BPE over bytes: nothing that llama.cpp leaves out."""
    if model.get("type") != "BPE":
        raise QuantkitError(f"{path}: model.type is {model.get('type')!r}; only BPE, as this model's, is supported")
    for field in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise QuantkitError(f"{path}: model.{field} is {model[field]!r}; llama.cpp's byte-level BPE knows no such")


def _check_normalizer(normalizer: Any, path: Path) -> None:
    parts = _sequence(normalizer, "normalizers")
    strange = [part.get("type") for part in parts if part.get("type") != "NFC"]
    if strange:
        raise QuantkitError(f"{path}: normalizer {strange[0]} changes text before it is split; llama.cpp does not")


def _split_patterns(settings: Any, path: Path) -> Iterable[str]:
    """The regular expressions that split text in turn; bytes after that."""
    parts = _sequence(settings, "pretokenizers")
    last = parts.pop() if parts else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise QuantkitError(
            f"{path}: its pre_tokenizer does not end in ByteLevel without add_prefix_space, as byte-level BPE does; "
            "llama.cpp would split otherwise"
        )
    for part in parts:
        pattern = part.get("pattern", {}).get("Regex") if part.get("type") == "Split" else None
        whole = (part.get("behavior"), part.get("invert", False)) in (("Isolated", False), ("Removed", True))
        if pattern is None or not whole:
            raise QuantkitError(f"{path}: llama.cpp knows no pre-tokenizer of the form {part}")
        yield pattern
    if last.get("use_regex", True):
        yield _GPT2


def _plain(pattern: str) -> str:
    """One spelling for those that mean the same in the expressions we know."""
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")
    pattern = re.sub(r"([?+*])\+", r"\1", pattern.replace("{1}", ""))  # nothing is ever given back in them
    for spelling in _CONTRACTIONS:
        pattern = pattern.replace(spelling, _CONTRACTION)
    return pattern


def _sequence(settings: Any, field: str) -> list[Mapping[str, Any]]:
    """The parts of a pipeline: none, one, or those of a Sequence."""
    if not settings:
        return []
    return list(settings[field]) if settings.get("type") == "Sequence" else [settings]


# ---- special tokens -------------------------------------------------------------------------------------------------


def _added_tokens(file: TokenizerFile) -> dict[int, Mapping[str, Any]]:
    """Id -> token, with what tokenizer_config.json adds to tokenizer.json."""
    found: dict[int, Mapping[str, Any]] = {
        int(number): {"special": False, **entry} for number, entry in file.extra.items()
    }
    found |= {entry["id"]: entry for entry in file.settings.get("added_tokens") or []}
    for number, entry in found.items():
        for field in ("single_word", "lstrip", "rstrip"):
            if entry.get(field):
                raise QuantkitError(
                    f"{file.path}: added token {entry['content']!r} ({number}) has {field}; llama.cpp cannot follow "
                    "that, set it to false"
                )
    return found


def _looks_special(token: str) -> bool:
    """llama.cpp treats such a token as one that users' text must not hold, whatever it is declared."""
    return token.startswith("<|") and token.endswith("|>")


def _special_ids(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, int]:
    """eos, padding and so on, by tokenizer_config.json's names or else config.json's ids; and further ends."""
    names = read_json(checkpoint.path / "tokenizer_config.json")
    text = checkpoint.config.get("text_config") or {}
    found = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = names.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = checkpoint.config.get(f"{role}_token_id")
        number = text.get(f"{role}_token_id") if number is None else number
        if token is not None and token not in vocabulary.ids:
            raise QuantkitError(
                f"{checkpoint.path / 'tokenizer_config.json'}: {role}_token {token!r} is no token of tokenizer.json"
            )
        number = vocabulary.ids[token] if token is not None else number[0] if isinstance(number, list) else number
        if number is not None:
            found[f"{key}_token_id"] = number
    if "eos_token_id" not in found:
        raise QuantkitError(f"{checkpoint.path}: neither tokenizer_config.json nor config.json names an eos token")
    return found | _further_ends(checkpoint, vocabulary, found["eos_token_id"])


def _further_ends(checkpoint: Checkpoint, vocabulary: Vocabulary, eos: int) -> dict[str, int]:
    """Stop ids that llama.cpp would not find by their text, as end of turn and end of message."""
    keys, ends = ("eot_token_id", "eom_token_id"), dict.fromkeys(stop_ids(checkpoint))
    for number in ends:
        if number not in range(len(vocabulary.tokens)):
            raise QuantkitError(f"{checkpoint.path}: eos_token_id names {number!r}, which is no token")
    further = [number for number in ends if number != eos and vocabulary.tokens[number] not in _ENDS_BY_TEXT]
    if len(further) > len(keys):
        raise QuantkitError(
            f"{checkpoint.path}: eos_token_id names {further}, but a GGUF file has room for {len(keys)} beside its own "
            "end and those llama.cpp knows; shorten the list in generation_config.json"
        )
    return dict(zip(keys, further, strict=False))


def _added_ends(file: TokenizerFile) -> dict[str, bool]:
    """Whether every text gets a special token before it or after it; the post-processor says so."""
    path = file.path
    before, after = False, False
    for part in _sequence(file.settings.get("post_processor"), "processors"):
        if part.get("type") == "TemplateProcessing":
            pieces = ["SpecialToken" in piece for piece in part["single"]]
            before, after = pieces[0], pieces[-1]
            if sum(pieces) != before + after:
                raise QuantkitError(f"{path}: its post_processor puts several tokens around a text; llama.cpp cannot")
        elif part.get("type") != "ByteLevel":
            raise QuantkitError(f"{path}: llama.cpp has no counterpart of the post_processor {part.get('type')}")
    return {"add_bos_token": before, "add_eos_token": after}


def _template_keys(templates: Mapping[str, str]) -> dict[str, Any]:
    others = {name: text for name, text in templates.items() if name != "default"}
    keys: dict[str, Any] = {"tokenizer.chat_template": templates["default"]}
    keys |= {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    return keys | ({"tokenizer.chat_templates": list(others)} if others else {})
