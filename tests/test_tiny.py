"""The bundled checkpoint `tiny`: loads with the real classes, has the real model's structure, and can do something."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_finish
import tinydata
import tinymodel
import tinyoutliers
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6ForConditionalGeneration
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm, Qwen3_5RMSNormGated

ROOT = Path(__file__).parents[1]

TINY = ROOT / "quantkit" / "data" / "tiny"
HELDOUT = ROOT / "quantkit" / "data" / "heldout"


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def heldout() -> list[dict[str, Any]]:
    return tiny_finish.rows_of(HELDOUT)


def test_size_and_keys() -> None:
    """At most 12 MB of BF16, the tied embedding once, no MTP tensors though the config names a layer of them."""
    assert sum(file.stat().st_size for file in TINY.glob("*.safetensors")) <= 12_000_000
    with safe_open(TINY / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {str(file.get_slice(name).get_dtype()) for name in names} == {"BF16"}
    assert not [name for name in names if "lm_head" in name or "mtp" in name]
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    assert config["tie_word_embeddings"] is True


def test_loads_without_missing_or_unexpected_keys() -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(TINY, output_loading_info=True)
    assert type(model) is MiniCPMV4_6ForConditionalGeneration
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_every_kind_of_layer(model: Any) -> None:
    config = AutoConfig.from_pretrained(TINY)
    assert config.text_config.layer_types == ["linear_attention"] * 3 + ["full_attention"]
    assert config.vision_config.image_size // config.vision_config.patch_size == 70
    assert config.vision_config.intermediate_size % 32 == 16  # like the real 4304
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith(("in_proj_a", "in_proj_b")):
            assert module.in_features % 256 == 0, name


def test_norm_weights_are_far_from_neutral(model: Any) -> None:
    """A fold that forgets the 1 of `1 + weight` must show."""
    for name, module in model.named_modules():
        if isinstance(module, Qwen3_5RMSNorm):
            assert module.weight.abs().median() > 0.2, name
        elif isinstance(module, Qwen3_5RMSNormGated | torch.nn.LayerNorm):
            assert (module.weight - 1).abs().median() > 0.2, name


def test_outliers_of_ten_to_fifty(model: Any, processor: Any, heldout: list[dict[str, Any]]) -> None:
    places = list(tinyoutliers.places(model))
    with tinyoutliers.watched(model, [place.watch for place in places]) as sums:
        tiny_finish.logits_of(model, processor, heldout[::12])
    for place in places:
        means = tinyoutliers.channel_means(place, sums[place.watch], model)
        assert 10 <= tinyoutliers.ratio_of(means) <= 60, place.name


def test_rescalings_leave_the_function_alone(processor: Any, heldout: list[dict[str, Any]]) -> None:
    """Rescale once more, in float32: the same logits."""
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32).eval()
    rows = heldout[::60]
    before = tiny_finish.logits_of(model, processor, rows)
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    old = weight.clone()
    tinyoutliers.inject(model, lambda: tiny_finish.logits_of(model, processor, rows[:2]) and None, seed=5)
    assert not torch.equal(old, weight)
    for first, second in zip(before, tiny_finish.logits_of(model, processor, rows), strict=True):
        assert (first - second).abs().max() < 1e-4 * first.abs().max()


def test_answers_heldout_questions(model: Any, processor: Any, heldout: list[dict[str, Any]]) -> None:
    rows = [row for row in heldout if row["modality"] != "text"][::5]
    marks = tiny_finish.score(rows, tiny_finish.answers(model, processor, rows, "16x"))
    right, asked = marks["all"]
    assert asked >= 70
    assert right >= 0.9 * asked, marks


def test_heldout_set_is_large_enough(heldout: list[dict[str, Any]]) -> None:
    assert sum(row["modality"] != "text" for row in heldout) >= 300
    assert {row["modality"] for row in heldout} == {"text", "image", "images", "video"}
    for row in heldout:
        stated = None if row["task"] == "story" else row["messages"][-1]["content"][0]["text"]
        assert row.get("answer") == stated


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("size", [(112, 112), (112, 224), (130, 90)])
def test_fast_training_pass_equals_the_library(model: Any, processor: Any, mode: str, size: tuple[int, int]) -> None:
    """Token rows are the chat template's, and the batched vision pass gives the library's loss."""
    encoder = tinydata.Encoder(processor.tokenizer)
    layouts = (0.4, 0.2, 0.0, 0.2, 0.2) if size == (112, 112) else (1.0, 0, 0, 0, 0)
    for sample in tinydata.draw_samples(
        "validation", tinydata.Plan(4, 2, layouts, 0.5, sizes=(size,)), random.Random(7)
    ):
        row = {"modality": sample.scene.modality, "messages": conversation(sample)}
        inputs = tiny_finish.inputs_of(processor, row, row["messages"], False, mode)
        with torch.no_grad():
            if size == (112, 112):
                tokens = tinymodel.vision(model, None, tinydata.pixels(list(sample.frames)), mode)
                ids, labels = encoder.row(sample, tokens.shape[1])
                tokens = tokens.flatten(0, 1)
            else:
                parts, visual = tinydata.pieces(processor, [sample], mode)
                ids, labels = encoder.row(sample, 0, visual)
                tokens = torch.cat([tinymodel.vision(model, None, part, mode) for part in parts], dim=1).flatten(0, 1)
            assert inputs["input_ids"][0].tolist() == ids
            wanted = model(**inputs, downsample_mode=mode, labels=torch.tensor([labels])).loss
            placeholders = (processor.image_token_id, processor.video_token_id)
            got = tinymodel.answer_loss(model, torch.tensor([ids]), torch.tensor([labels]), tokens, placeholders)
        assert got.item() == pytest.approx(wanted.item(), abs=2e-4)


def conversation(sample: tinydata.Sample) -> list[dict[str, Any]]:
    """A sample as messages for the library's processor."""
    messages: list[dict[str, Any]] = []
    for index, asked in enumerate(sample.turns):
        head: list[dict[str, Any]] = []
        if index == 0 and sample.scene.modality == "video":
            head = [{"type": "video", "video": torch.stack([torch.from_numpy(f) for f in sample.frames]).numpy()}]
        elif index == 0:
            head = [{"type": "image", "image": torch.from_numpy(f).permute(2, 0, 1)} for f in sample.frames]
        messages += [{"role": "user", "content": [*head, {"type": "text", "text": asked.text}]},
                     {"role": "assistant", "content": [{"type": "text", "text": asked.answer}]}]  # fmt: skip
    return messages


def rendered(processor: Any, messages: list[dict[str, Any]], **more: Any) -> str:
    """The chat template's text."""
    return processor.apply_chat_template(copy.deepcopy(messages), tokenize=False, **more)


def test_template_pictures_and_clips(processor: Any) -> None:
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What?"}]
    text = rendered(processor, [{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\n<|image_pad|><|video_pad|>What?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_template_thinking(processor: Any) -> None:
    question = [{"role": "user", "content": "Hello"}]
    on = rendered(processor, question, add_generation_prompt=True, enable_thinking=True)
    off = rendered(processor, question, add_generation_prompt=True, enable_thinking=False)
    assert on == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert off == on + "\n</think>\n\n"
    answered = [*question, {"role": "assistant", "content": "Hi", "reasoning_content": "A greeting."}]
    assert rendered(processor, answered).endswith("<think>\nA greeting.\n</think>\n\nHi<|im_end|>\n")
    assert "A greeting." not in rendered(processor, answered + question)


def test_template_tools(processor: Any) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": 2}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    text = rendered(processor, messages, tools=[tool])
    assert text.startswith("<|im_start|>system\nBe brief.\n\nTools:\n" + json.dumps(tool) + "\n")
    assert '<tool_call>{"name": "add", "arguments": {"x": 1, "y": 2}}</tool_call><|im_end|>\n' in text
    assert text.endswith("<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n")


def test_a_prompt_is_a_prefix_of_its_answered_conversation(processor: Any, heldout: list[dict[str, Any]]) -> None:
    for row in heldout:
        more = {"tools": row.get("tools")}
        prompt = rendered(processor, row["messages"][:-1], add_generation_prompt=True, **more)
        assert (
            rendered(processor, row["messages"], **more)
            == prompt + row["messages"][-1]["content"][0]["text"] + "<|im_end|>\n"
        )


def test_tokenizer_round_trip(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for text in ("It is a 7.", "数字是7。", "def f(x):\n    return x + 1\n", "naïve — 1234 🙂"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == AutoConfig.from_pretrained(TINY).text_config.vocab_size
    assert tokenizer.convert_ids_to_tokens(tokenizer("12")["input_ids"]) == [
        "1",
        "2",
    ]  # single digits, as the family has it
    assert tokenizer.decode(tokenizer("e\u0301")["input_ids"]) == "é"  # NFC
