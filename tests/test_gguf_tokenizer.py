"""The tokenizer's keys: llama.cpp makes the ids that Transformers makes; what it cannot follow is named.

tiny's own 749 merges cross no boundary that pre-tokenizers draw differently: with them any name passes. So a larger
vocabulary is trained here without a pre-tokenizer, on text full of such boundaries.
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import GgufWriter, TensorInfo, plan_files
from quantkit.formats.gguf.types import TYPES
from quantkit.gguf import tokenizer
from quantkit.gguf.metadata import text_metadata
from quantkit.gguf.names import Heads, text_tensors
from quantkit.gguf.tokenizer import PRE_TOKENIZERS, TokenizerFile, chat_templates, pre_tokenizer, tokenizer_metadata
from quantkit.source import Source, tiny_folder
from quantkit.verify.engines.llamacpp import local_server
from quantkit.verify.task import Target

runtime = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs the package xllamacpp (llama.cpp in a wheel)"
)
BOUNDARIES = [*"aAsStTrRvVeEmMlLdD'  \n\r\t12.,!?-/\u0301\u3000é圆", "'s", "'LL", "\r\n", "  ", "12", "ab"]
WORDS = [
    "the", " circle", "don't", "'S", "I'LL", "1234567", " 12 ", "三个圆", "圆形。", "é", "e\u0301", "\r\n", "\n\n",
    "\t", "   ", "🙂", "👨\u200d👩\u200d👧", "🇩🇪", "ไทย", "हिन्दी", "عربي", "한국어", "Ωmega", "_x_", "!?…", "\u00a0",
    "\u3000", "½", "Ⅳ", "٣", "x²", "$5.00", "http://a.b/c?d=e", "\x00", "\ufeff", "ß", "\u2028", "\x85",
]  # fmt: skip
SPECIAL = ["<think>", "</think>", "<|im_end|>", "<|im_start|>", "<image>", "<|im_", "|>"]
MARKS = st.characters(categories=("Mn", "Mc", "Lo", "Ll", "Lu", "Lt", "Lm", "Nd", "No", "Nl", "Zs", "Po", "Sm", "So"))
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(BOUNDARIES), max_size=30).map("".join),
    st.lists(
        st.one_of(st.sampled_from(WORDS + SPECIAL), st.text(max_size=4), st.text(alphabet=MARKS, max_size=6)),
        max_size=12,
    ).map("".join),
)


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file in place."""
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(tiny_folder(), tmp_path / "model")
    return tmp_path / "model"


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(Source(folder.name, folder))


# ---- the same ids ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny's folder with 4000 tokens whose merges cross every boundary that a pre-tokenizer draws."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("crossing") / "model"
    shutil.copytree(tiny_folder(), folder)
    rng = random.Random(0)
    corpus = ["".join(rng.choices(WORDS, k=6)) for _ in range(1000)]
    corpus += ["".join(rng.choices(BOUNDARIES, k=30)) for _ in range(8000)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, max_token_length=12, show_progress=False)
    trained.train_from_iterator([unicodedata.normalize("NFC", text) for text in corpus], trainer)
    model = json.loads(trained.to_str())["model"]
    count = len(model["vocab"])

    def replace(content: dict[str, Any]) -> None:
        content["model"] |= {"vocab": model["vocab"], "merges": model["merges"]}
        for place, token in enumerate(content["added_tokens"]):
            token["id"] = count + place

    change(folder, "tokenizer.json", replace)
    change(folder, "config.json", lambda content: content["text_config"].update(vocab_size=count + 30))
    (folder / "generation_config.json").unlink()
    change(folder, "config.json", lambda content: content.update(eos_token_id=None, pad_token_id=None))
    return folder


def split_by(folder: Path, name: str) -> None:
    """Give tokenizer.json the pre-tokenizer of that name."""
    patterns, whole = next(key for key, found in PRE_TOKENIZERS.items() if found == name)

    def edit(content: dict[str, Any]) -> None:
        content["model"]["ignore_merges"] = whole
        parts = content["pre_tokenizer"]["pretokenizers"]
        if name == "gpt-2":
            content["pre_tokenizer"] = parts[-1] | {"use_regex": True}
        else:
            parts[:-1] = [parts[0] | {"pattern": {"Regex": pattern}} for pattern in patterns]

    change(folder, "tokenizer.json", edit)


@contextmanager
def running(folder: Path, path: Path) -> Iterator[Callable[[str], list[int]]]:
    """llama.cpp's tokenizer of a file made of this folder; the embedding's rows repeat up to the vocabulary's size."""
    checkpoint, weights = opened(folder), open_checkpoint("tiny")
    size, heads = checkpoint.config["text_config"]["vocab_size"], Heads.of(checkpoint.config)
    rows = text_tensors(weights)
    infos = [
        TensorInfo(row.name, (size, 256) if row.name == "token_embd.weight" else row.shape, TYPES["F32"])
        for row in rows
    ]
    metadata = {**text_metadata(checkpoint, "F32", 1), **tokenizer_metadata(checkpoint)}
    with GgufWriter(path.parent, plan_files(path.name, metadata, infos)) as writer:
        for row, info in zip(rows, infos, strict=True):
            tensor = row.transform(weights.load(row.source, torch.float32), heads)
            if tensor.shape != info.shape:
                tensor = tensor.repeat(size // len(tensor) + 1, 1)[:size]
            writer.add(row.name, tensor.contiguous().view(torch.uint8).reshape(-1))
        writer.finish()
    with local_server(path, None, 64, Target(path, timeout=60)) as (link, _):
        yield link.tokenize


def differing(folder: Path, path: Path, examples: int) -> list[str]:
    """Composed texts of which llama.cpp makes other ids than Transformers."""
    from transformers import AutoTokenizer

    reference, found = AutoTokenizer.from_pretrained(folder), []
    with running(folder, path) as tokenize:

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(TEXTS)
        def compare(text: str) -> None:
            # a long s is an s to Transformers' contractions, not to llama.cpp's
            text = unicodedata.normalize("NFC", text).replace("\u017f", "s")
            if reference(text, add_special_tokens=False)["input_ids"] != tokenize(text):
                found.append(text)

        compare()
    return found


@runtime
@pytest.mark.parametrize("name", PRE_TOKENIZERS.values())
def test_llamacpp_makes_the_same_ids(name: str, crossing: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(crossing, folder)
    split_by(folder, name)
    assert pre_tokenizer(TokenizerFile.read(folder)) == name
    assert differing(folder, tmp_path / "text.gguf", 300) == []


@runtime
def test_another_name_shows(crossing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "pre_tokenizer", lambda file: "llama-bpe")
    assert differing(crossing, tmp_path / "text.gguf", 300)


@runtime
def test_tinys_own_tokens_and_decomposed_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert differing(tiny_folder(), tmp_path / "a.gguf", 300) == []
    reference = AutoTokenizer.from_pretrained(tiny_folder())
    with running(tiny_folder(), tmp_path / "b.gguf") as tokenize:
        ids = reference("e\u0301")["input_ids"]
        assert tokenize("\u00e9") == ids and tokenize("e\u0301") != ids  # known: llama.cpp composes nothing


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_tinys_keys() -> None:
    found = tokenizer_metadata(open_checkpoint("tiny"))
    template = (tiny_folder() / "chat_template.jinja").read_text()
    lists = {key: found.pop(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")}
    # as llama.cpp's converter wrote them
    assert found == {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen35", "tokenizer.ggml.eos_token_id": 1007,
        "tokenizer.ggml.padding_token_id": 1005, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False, "tokenizer.chat_template": template,
    }  # fmt: skip
    assert len(lists["tokens"]) == len(lists["token_type"]) == 1024 and len(lists["merges"]) == 749
    assert lists["tokens"][:3] == ["!", '"', "#"] and lists["merges"][0] == "Ġ i"
    assert lists["tokens"][1017:1019] == ["</image_id>", "<think>"] and lists["token_type"][1017:1019] == [3, 4]
    assert set(lists["token_type"][:1005]) == {1}


def test_an_extended_tokenizer(folder: Path) -> None:
    """Tokens that a fine-tune adds, where Transformers puts them; the embedding padded beyond them."""
    from transformers import AutoTokenizer

    extended = AutoTokenizer.from_pretrained(folder)
    extended.add_tokens(["<box>", "a token"])
    extended.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    extended.save_pretrained(folder)
    change(folder, "config.json", lambda content: content["text_config"].update(vocab_size=1040))
    found = tokenizer_metadata(opened(folder))
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    expected = {number: token for token, number in extended.get_vocab().items()}
    assert tokens == [expected.get(number, f"[PAD{number}]") for number in range(1040)]
    assert kinds[1024:] == [4, 4, 3, *[5] * 13]
    change(folder, "config.json", lambda content: content["text_config"].update(vocab_size=1025))
    with pytest.raises(QuantkitError, match=r"token '<\|extra\|>' has the id 1026, but the embedding only 1025 rows"):
        tokenizer_metadata(opened(folder))


def test_tokens_of_the_settings_alone_count(folder: Path) -> None:
    entry = {"content": "<new>", "lstrip": False, "rstrip": False, "single_word": False, "special": True}
    change(folder, "tokenizer_config.json", lambda content: content.update(added_tokens_decoder={"1024": entry}))
    change(folder, "config.json", lambda content: content["text_config"].update(vocab_size=1025))
    found = tokenizer_metadata(opened(folder))
    assert found["tokenizer.ggml.tokens"][1024] == "<new>" and found["tokenizer.ggml.token_type"][1024] == 3


def test_what_looks_special_is_kept_out_of_users_texts(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        next(token for token in content["added_tokens"] if token["id"] == 1018).update(content="<|fim_pad|>")

    change(folder, "tokenizer.json", edit)
    assert tokenizer_metadata(opened(folder))["tokenizer.ggml.token_type"][1018] == 3


def test_further_ends_that_llamacpp_would_not_know(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [1007, 1005, 1019, 1021]}')
    found = tokenizer_metadata(opened(folder))
    ends = {key: found[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")}
    assert ends == {"eos": 1007, "eot": 1019, "eom": 1021}
    (folder / "generation_config.json").write_text('{"eos_token_id": [1007, 1017, 1019, 1021]}')
    with pytest.raises(QuantkitError, match=r"eos_token_id names \[1017, 1019, 1021\], but a GGUF file has room for 2"):
        tokenizer_metadata(opened(folder))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1007, 1024]}')
    with pytest.raises(QuantkitError, match="eos_token_id names 1024, which is no token"):
        tokenizer_metadata(opened(folder))


def test_a_token_before_every_text(folder: Path) -> None:
    pieces = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    change(
        folder, "tokenizer.json",
        lambda content: content.update(post_processor={"type": "TemplateProcessing", "single": pieces}),
    )  # fmt: skip
    change(folder, "tokenizer_config.json", lambda content: content.update(bos_token="<|endoftext|>"))
    found = tokenizer_metadata(opened(folder))
    assert found["tokenizer.ggml.add_bos_token"] and not found["tokenizer.ggml.add_eos_token"]
    assert found["tokenizer.ggml.bos_token_id"] == 1005


# ---- patterns -------------------------------------------------------------------------------------------------------

QWEN2 = next(key for key, name in PRE_TOKENIZERS.items() if name == "qwen2")[0][0]


@pytest.mark.parametrize(
    "spelling",
    [
        QWEN2,
        QWEN2.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)"),
        QWEN2.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"),
        QWEN2.replace("]?", "]?+").replace(r"\p{N}]+", r"\p{N}]++"),
        QWEN2.replace(r"|\p{N}|", r"|\p{N}{1}|"),
        QWEN2.replace(r"\r", "\r").replace(r"\n", "\n"),
    ],
)
def test_other_spellings_of_the_same(spelling: str, folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = spelling

    change(folder, "tokenizer.json", edit)
    assert pre_tokenizer(TokenizerFile.read(folder)) == "qwen2"


def edit_at(*place: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set one place of a nested JSON value."""

    def edit(content: dict[str, Any]) -> None:
        for step in place[:-1]:
            content = content[step]
        content[place[-1]] = value

    return edit


SPLIT = ("pre_tokenizer", "pretokenizers", 0)


@pytest.mark.parametrize(
    ("match", "edit"),
    [
        (r"no name for a pre-tokenizer that splits by \\w\+; known are those of qwen35",
         edit_at(*SPLIT, "pattern", value={"Regex": r"\w+"})),
        ("knows no pre-tokenizer of the form .*MergedWithNext", edit_at(*SPLIT, "behavior", value="MergedWithNext")),
        ("knows no pre-tokenizer of the form .*String", edit_at(*SPLIT, "pattern", value={"String": " "})),
        ("does not end in ByteLevel", edit_at("pre_tokenizer", value=None)),
        ("does not end in ByteLevel without add_prefix_space",
         edit_at("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", value=True)),
        ("model.ignore_merges is true; llama.cpp's qwen35 takes false", edit_at("model", "ignore_merges", value=True)),
        ("model.byte_fallback is True", edit_at("model", "byte_fallback", value=True)),
        ("model.type is 'Unigram'", edit_at("model", "type", value="Unigram")),
        ("normalizer Lowercase changes text",
         edit_at("normalizer", value={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]})),
        ("no counterpart of the post_processor Bert", edit_at("post_processor", value={"type": "BertProcessing"})),
        (r"added token '<\|endoftext\|>' \(1005\) has lstrip", edit_at("added_tokens", 0, "lstrip", value=True)),
        ("two ids have the token '!'", edit_at("added_tokens", 0, "content", value="!")),
        ("its merges hold white space", edit_at("model", "merges", 0, value=["a b", "c"])),
        ("no vocab or no merges", edit_at("model", "merges", value=None)),
        ("missing, or without a model", edit_at("model", value=None)),
    ],
)  # fmt: skip
def test_what_llamacpp_cannot_follow_is_named(match: str, edit: Callable[[dict[str, Any]], None], folder: Path) -> None:
    change(folder, "tokenizer.json", edit)
    with pytest.raises(QuantkitError, match=rf"tokenizer\.json: .*{match}"):
        tokenizer_metadata(opened(folder))


def test_a_split_that_drops_nothing_is_the_same(folder: Path) -> None:
    change(folder, "tokenizer.json", edit_at(*SPLIT, "behavior", value="Removed"))
    change(folder, "tokenizer.json", edit_at(*SPLIT, "invert", value=True))
    change(folder, "tokenizer.json", edit_at("normalizer", value=None))
    assert pre_tokenizer(TokenizerFile.read(folder)) == "qwen35"


# ---- special ids and templates --------------------------------------------------------------------------------------


def test_ends_by_either_file(folder: Path) -> None:
    change(folder, "tokenizer_config.json", lambda content: content.pop("eos_token"))
    assert tokenizer_metadata(opened(folder))["tokenizer.ggml.eos_token_id"] == 1007  # config.json's first
    change(folder, "config.json", lambda content: content.pop("eos_token_id"))
    change(folder, "config.json", lambda content: content["text_config"].pop("eos_token_id"))
    with pytest.raises(QuantkitError, match=r"neither tokenizer_config\.json nor config\.json names an eos token"):
        tokenizer_metadata(opened(folder))
    change(folder, "tokenizer_config.json", lambda content: content.update(eos_token={"content": "<end>"}))
    with pytest.raises(QuantkitError, match=r"tokenizer_config\.json: eos_token '<end>' is no token"):
        tokenizer_metadata(opened(folder))


def test_where_a_chat_template_lies(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    change(folder, "tokenizer_config.json", lambda content: content.update(chat_template="older"))
    assert chat_templates(folder) == {"default": file.read_text()}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("with tools")
    found = tokenizer_metadata(opened(folder))
    assert found["tokenizer.chat_template.tools"] == "with tools" and found["tokenizer.chat_templates"] == ["tools"]
    file.unlink()
    assert chat_templates(folder) == {"default": "older"}
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    change(folder, "tokenizer_config.json", lambda content: content.update(chat_template=named))
    assert chat_templates(folder) == {"default": "a", "rag": "b"}
    change(folder, "tokenizer_config.json", lambda content: content.pop("chat_template"))
    (folder / "chat_template.json").write_text('{"chat_template": "processor"}')
    assert chat_templates(folder) == {"default": "processor"}
    (folder / "chat_template.json").unlink()
    with pytest.raises(QuantkitError, match=r"has no chat template.*copy chat_template\.jinja from the model"):
        chat_templates(folder)
