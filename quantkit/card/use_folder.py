"""How to run a checkpoint folder: Transformers, `transformers serve`, vLLM, SGLang; `section` names the sources."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from typing import Any

from quantkit.card.facts import Facts
from quantkit.card.markup import code, fence, table
from quantkit.card.section import CLIP, base, request, source_name, state, title
from quantkit.card.texts import Texts
from quantkit.card.variant import part, read_json
from quantkit.integrity.subject import quantization_of

# what Transformers needs to read each layout
_PACKAGES = {
    "awq": "gptqmodel optimum accelerate", "gptq": "gptqmodel optimum accelerate",
    "compressed-tensors": "compressed-tensors accelerate", "bitsandbytes": "bitsandbytes accelerate",
}  # fmt: skip
_OPTIONS = ("downsample_mode", "max_slice_nums", "max_num_frames", "stack_frames", "use_image_id")
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def folder_sections(facts: Facts, t: Texts) -> list[tuple[str, str]]:
    """Heading and Markdown of each; for GGUF files, what to take instead."""
    of_folders = (("transformers", _transformers), ("transformers-serve", _serve), ("vllm", _vllm), ("sglang", _sglang))
    found = []
    for runtime, write in of_folders:
        parts = [state(facts, runtime, t)]
        parts += [t("is_gguf", base=base(facts)), _make_awq(facts)] if facts.variant.is_gguf else write(facts, t)
        found.append((title(runtime, t), "\n\n".join(parts)))
    return found


def _make_awq(facts: Facts) -> str:
    return fence("bash", shlex.join(["quantkit", "awq", "--model", source_name(facts), "--out", "AWQ"]))


# ---- Transformers -------------------------------------------------------------------------------------------------


def _transformers(facts: Facts, t: Texts) -> list[str]:
    packages = (
        f'pip install "transformers>=5.7" torchvision torchcodec {_PACKAGES.get(facts.variant.method, "accelerate")}'
    )
    picture = '{"type": "image", "url": "page.png"}'
    options = [[code(name), code(default), t(f"does_{name}")] for name, default in processor_defaults(facts).items()]
    return [
        *_transformers_notes(facts, t), t("transformers_install"), fence("bash", packages),
        t("transformers_image"), fence("python", _ASK.format(model=repr(facts.target)) + _call(t("question"), picture)),
        t("transformers_images"),
        fence("python", _call(t("question_two"), *_pictures("before.png", "after.png"), "use_image_id=True")),
        t("transformers_video"),
        fence("python", _call(t("question_video"), _VIDEO, "max_num_frames=64", "stack_frames=1")),
        t("transformers_modes"), fence("python", _call(t("question"), picture, 'mode="4x"', "max_slice_nums=4")),
        t("transformers_options"), table([t("col_option"), t("col_default"), t("col_does")], options, left=3),
    ]  # fmt: skip


_VIDEO = '{"type": "video", "url": "clip.mp4"}'
_ASK = """import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

MODEL = {model}
device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(MODEL, device_map=device)
processor = AutoProcessor.from_pretrained(MODEL)


def ask(*content, mode="16x", max_new_tokens=256, **options):
    inputs = processor.apply_chat_template(
        [{{"role": "user", "content": list(content)}}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={{"downsample_mode": mode, **options}},
    ).to(model.device)
    output = model.generate(**inputs, downsample_mode=mode, max_new_tokens=max_new_tokens)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


"""


def _pictures(*names: str) -> list[str]:
    return [f'{{"type": "image", "url": {json.dumps(name)}}}' for name in names]


def _call(question: str, *arguments: str) -> str:
    """One call of the card's own `ask`: content first, then the question, then options."""
    content = [one for one in arguments if one.startswith("{")]
    options = [one for one in arguments if not one.startswith("{")]
    asked = f'{{"type": "text", "text": {json.dumps(question, ensure_ascii=False)}}}'
    lines = ",\n".join(f"    {one}" for one in (*content, asked, *options))
    return f"print(ask(\n{lines},\n))\n"


def processor_defaults(facts: Facts) -> dict[str, Any]:
    """What the folder's files say of the processor's options; "?" where they do not."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        path = facts.variant.path / name
        content = read_json(path) if path.is_file() else {}
        for place in (content, part(content, "image_processor"), part(content, "video_processor")):
            for option in _OPTIONS:
                if isinstance(place, dict) and option in place:
                    found.setdefault(option, place[option])
    return {option: found.get(option, "?") for option in _OPTIONS}


def _transformers_notes(facts: Facts, t: Texts) -> list[str]:
    method, settings = facts.variant.method, _settings(facts)
    if method == "bitsandbytes":
        return [t("note_bnb")]
    if method == "awq" and settings.get("group_size") == -1:
        return [t("note_whole_rows")]
    if method == "compressed-tensors" and not _symmetric(settings):
        return [t("note_asymmetric")]
    return []


def _settings(facts: Facts) -> dict[str, Any]:
    assert facts.variant.checkpoint is not None
    return dict(quantization_of(facts.variant.checkpoint.config))


def _symmetric(settings: dict[str, Any]) -> bool:
    groups = settings.get("config_groups")
    weights = [part(one, "weights") for one in groups.values()] if isinstance(groups, dict) else []
    return all(one.get("symmetric") is not False for one in weights if isinstance(one, dict))


# ---- servers ------------------------------------------------------------------------------------------------------


def _serve(facts: Facts, t: Texts) -> list[str]:
    command = shlex.join(["transformers", "serve", facts.target, "--port", "8000"])
    asked = request(facts.target, t("question"), 8000, max_tokens=256)
    return [
        t("serve_intro"), fence("bash", f'pip install "transformers[serving]"\n{command}'), fence("bash", asked),
        t("serve_note"),
    ]  # fmt: skip


def _vllm(facts: Facts, t: Texts) -> list[str]:
    refused = _vllm_refuses(facts, t)
    if refused:
        return [t("vllm_not_read", why=refused)]
    serve = ["vllm", "serve", facts.target, "--max-model-len", "8192"]
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", "qwen3_coder"]
    options = {"downsample_mode": "4x", "max_slice_nums": 4}
    picture = request(facts.target, t("question"), 8000, max_tokens=256, mm_processor_kwargs=options)
    frames = {"video": {"num_frames": 32}}
    clip = request(facts.target, t("question_video"), 8000, media=CLIP, max_tokens=256, media_io_kwargs=frames)
    start = f'pip install "vllm[video]>=0.22"\n{shlex.join(serve + tools)}'
    return [
        t("vllm_intro"), fence("bash", start), t("vllm_options"), fence("bash", f"{picture}\n{clip}"),
        t("vllm_tools"), fence("python", _tools(facts, 8000)),
    ]  # fmt: skip


def _vllm_refuses(facts: Facts, t: Texts) -> str | None:
    """Why vLLM cannot read the layout, as its sources say."""
    settings = _settings(facts)
    if facts.variant.method != "gptq":
        return None
    if settings.get("bits") not in (4, 8):
        return t("why_gptq_bits")
    return None if settings.get("sym") else t("why_gptq_zeros")


def _tools(facts: Facts, port: int) -> str:
    return f"""from openai import OpenAI

client = OpenAI(base_url="http://localhost:{port}/v1", api_key="none")
tools = [
{_indented(pformat(_TOOL, sort_dicts=False, width=100))}
]
answer = client.chat.completions.create(
    model={facts.target!r},
    messages=[{{"role": "user", "content": "What is the weather in Berlin?"}}],
    tools=tools,
)
print(answer.choices[0].message.tool_calls)
"""


def _indented(content: str) -> str:
    return "\n".join(f"    {line}" for line in content.splitlines())


def _sglang(facts: Facts, t: Texts) -> list[str]:
    words = ["python", "-m", "sglang.launch_server", "--model-path", facts.target, "--port", "30000"]
    words += ["--tool-call-parser", "qwen3_coder"]
    asked = request(facts.target, t("question"), 30000, max_tokens=256)
    return [t("sglang_intro"), fence("bash", f'pip install "sglang[all]"\n{shlex.join(words)}'), fence("bash", asked)]
