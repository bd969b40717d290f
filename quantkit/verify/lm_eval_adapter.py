"""lm-eval (EleutherAI's language model evaluation harness) on the folders that quantkit writes.

    pip install 'lm-eval[hf]'
    python -m quantkit.verify.lm_eval_adapter --model quantkit \\
        --model_args pretrained=MiniCPM-V-4.6-AWQ,engine=dequantized --tasks arc_easy,gsm8k

The same command line as `lm_eval`, with two more models: "quantkit" for text tasks, "quantkit-vlm" for those with
pictures. Both take `pretrained` (a folder, "tiny", or a hub id), `engine` ("dequantized": our reading of the file in
the reference model, no kernels needed; "transformers": the file's own kernels), `dtype` ("float32" or "bfloat16"), and
every other argument of lm-eval's own "hf" and "hf-multimodal" models, which they are once the checkpoint is loaded.
In Python, `register()` makes both known to `lm_eval.simple_evaluate(model="quantkit", model_args=...)`.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

import torch

from quantkit.calibration import load_processor
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

ENGINES = ("dequantized", "transformers")
IMAGE_MARK = "<image>"  # where a picture stands in the text of an lm-eval task


def load(pretrained: str, engine: str, dtype: str, device: str) -> tuple[Any, Any]:
    """(model, processor) of a checkpoint by engine name; raises `QuantkitError`."""
    from quantkit.verify import load_dequantized, load_transformers

    if engine not in ENGINES:
        raise QuantkitError(f"engine '{engine}' is unknown to the lm-eval adapter; it has {', '.join(ENGINES)}")
    checkpoint = open_checkpoint(pretrained)
    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("no accelerator here for lm-eval's default device '%s': running on the CPU", device)
        device = "cpu"
    loader = load_dequantized if engine == "dequantized" else load_transformers
    return loader(checkpoint, dtype=dtype, device=device), load_processor(checkpoint.path)


def register() -> None:
    """Make the models "quantkit" and "quantkit-vlm" known to lm-eval; raises `QuantkitError` where it is missing."""
    try:
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise QuantkitError(f"lm-eval is not installed ({error}): pip install 'lm-eval[hf]'") from error
    for name, model_class in zip(("quantkit", "quantkit-vlm"), model_classes(), strict=True):
        register_model(name)(model_class)


@functools.cache
def model_classes() -> tuple[type, type]:
    """The two model classes: made on first use, as their bases come with lm-eval, and once, as it refuses a second."""
    return _text_class(), _vision_class()


def _text_class() -> type:
    from lm_eval.models.huggingface import HFLM

    class QuantkitLM(HFLM):
        """lm-eval's Transformers model around a checkpoint that quantkit has loaded."""

        def __init__(
            self, pretrained: str, engine: str = "dequantized", dtype: str = "float32", device: str = "cpu", **rest: Any
        ) -> None:
            model, processor = load(pretrained, engine, dtype, device)
            # the chat template thinks aloud unless told otherwise; quantkit never lets it
            rest.setdefault("enable_thinking", False)
            super().__init__(pretrained=model, tokenizer=processor.tokenizer, backend="causal", **rest)

    return QuantkitLM


def _vision_class() -> type:
    from lm_eval.models.hf_vlms import HFMultimodalLM

    class QuantkitVLM(HFMultimodalLM):
        """lm-eval's multimodal Transformers model around a checkpoint that quantkit has loaded."""

        def __init__(
            self, pretrained: str, engine: str = "dequantized", dtype: str = "float32", device: str = "cpu", **rest: Any
        ) -> None:
            model, self.processor = load(pretrained, engine, dtype, device)
            rest.setdefault("enable_thinking", False)
            super().__init__(pretrained=model, backend="causal", convert_img_format=True, **rest)

        def _create_tokenizer(self, *_: Any, **__: Any) -> None:
            self.tokenizer = self.processor.tokenizer

        def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
            """The prompt of a chat, each picture's mark a part of its own, thinking off as everywhere in quantkit."""
            self.chat_applied = True
            messages = [{"role": turn["role"], "content": parts_of(turn["content"])} for turn in chat_history]
            return str(
                self.processor.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **self.chat_template_args,
                )
            )

    return QuantkitVLM


def parts_of(text: str) -> list[dict[str, Any]]:
    """A task's text as the parts of a message: texts, and a picture at each mark."""
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def main() -> None:
    """lm-eval's own command line, with quantkit's models."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except QuantkitError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
