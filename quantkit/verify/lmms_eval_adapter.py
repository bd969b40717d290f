"""lmms-eval (the evaluation suite for multimodal models) on the folders that quantkit writes.

    pip install lmms-eval
    python -m quantkit.verify.lmms_eval_adapter --model quantkit \\
        --model_args pretrained=MiniCPM-V-4.6-AWQ,engine=dequantized --tasks mmmu_val,ocrbench --batch_size 1

The same command line as `lmms_eval`, with one more model, "quantkit": texts and pictures in, greedy answers out. Its
arguments are `pretrained`, `engine`, `dtype` and `device`, as in `lm_eval_adapter`. Video files are not decoded: a
task that gives one stops with a message.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.verify.lm_eval_adapter import load

MAX_NEW_TOKENS = 1024  # where a task states none


def register() -> None:
    """Make the model "quantkit" known to lmms-eval; raises `QuantkitError` where it is missing."""
    try:
        from lmms_eval.models import MODEL_REGISTRY_V2, ModelManifest
    except ImportError as error:
        raise QuantkitError(f"lmms-eval is not installed ({error}): pip install lmms-eval") from error
    # lmms-eval looks the class up by this path, and so meets __getattr__ below
    MODEL_REGISTRY_V2.register_manifest(ModelManifest("quantkit", chat_class_path=f"{__name__}.QuantkitChat"))


def __getattr__(name: str) -> Any:
    """`QuantkitChat`, made on first use: its base comes with lmms-eval."""
    if name == "QuantkitChat":
        return _chat_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _chat_class() -> type:
    from lmms_eval.api.model import lmms
    from lmms_eval.protocol import ChatMessages

    class QuantkitChat(lmms):
        """A checkpoint that quantkit has loaded, answering lmms-eval's chats one at a time."""

        is_simple = False

        def __init__(
            self, pretrained: str, engine: str = "dequantized", dtype: str = "float32", device: str = "cpu", **_: Any
        ) -> None:
            super().__init__()
            self.model, self.processor = load(pretrained, engine, dtype, device)

        def generate_until(self, requests: list[Any]) -> list[str]:
            answers = []
            for request in requests:
                _, to_messages, options, index, task, split = request.args
                chat = ChatMessages(messages=to_messages(self.task_dict[task][split][index])).to_hf_messages()
                answers.append(answer(self.model, self.processor, chat, options))
            return answers

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise QuantkitError("the lmms-eval adapter answers only; for likelihoods of text use the lm-eval adapter")

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise QuantkitError("the lmms-eval adapter answers single rounds only; leave tasks of several rounds out")

    return QuantkitChat


def answer(model: Any, processor: Any, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The model's greedy answer, thinking off, cut at the first of `options["until"]`; pictures are PIL images.

    `options`: lmms-eval's generation arguments; sampling ones do not count. Raises `QuantkitError` for other media.
    """
    import torch

    inputs = processor.apply_chat_template(
        [{**message, "content": [_part(part) for part in message["content"]]} for message in messages],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        enable_thinking=False,
    ).to(model.device)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=int(options.get("max_new_tokens", MAX_NEW_TOKENS)),
        )
    text = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    until = options.get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop else text
    return str(text).strip()


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image", "image": part["image"].convert("RGB")}
    if part["type"] != "text":
        raise QuantkitError(f"the lmms-eval adapter reads texts and pictures; this task gives a {part['type']}")
    return part


def main() -> None:
    """lmms-eval's own command line, with quantkit's model."""
    try:
        register()
        from lmms_eval.__main__ import cli_evaluate

        cli_evaluate()
    except QuantkitError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
