"""The passes over a model: final hidden states at the scored positions, and greedy answers.

Scored are the positions whose next token is text (placeholders of pictures are never predicted). Samples of like length
run together: padded on the right for teacher forcing, where causality makes padding invisible, and on the left, masked,
for generation. Both models get the same batches, so that identical models give identical bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quantkit.calibration import Sample
from quantkit.verify import layers
from quantkit.verify.task import Answer, Observed, Scored, States, Task, Tick

IMAGE_INPUTS = ("pixel_values", "target_sizes", "pixel_values_videos", "target_sizes_videos")
BATCH_TOKENS = 1024  # padded tokens a batch
BATCH_SAMPLES = 32


def scored(sample: Sample, stop_ids: set[int]) -> Scored:
    """Which positions of a sample are scored; `stop_ids`: the tokens that end an answer."""
    ids = sample.input_ids[0]
    positions = torch.nonzero(~sample.vision_mask[1:])[:, 0]
    end = ids.numel()
    for index in range(ids.numel() - 1, sample.prompt_length - 1, -1):
        if int(ids[index]) in stop_ids:
            end = index + 1
            break
    following = positions + 1
    return Scored(positions, ids[following], (following >= sample.prompt_length) & (following < end))


def batches(samples: Sequence[Sample], lengths: Sequence[int], most: int = BATCH_SAMPLES) -> Iterator[list[int]]:
    """Indices of samples that run together: one mode, like lengths, at most BATCH_TOKENS padded tokens."""
    batch: list[int] = []
    for index in sorted(range(len(samples)), key=lambda i: (samples[i].downsample_mode, lengths[i], i)):
        # sorted, so the newest is the longest
        full = (len(batch) + 1) * lengths[index] > BATCH_TOKENS or len(batch) == most
        if batch and (full or samples[index].downsample_mode != samples[batch[0]].downsample_mode):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def collate(samples: Sequence[Sample], prompts: bool, pad_id: int, device: Any) -> dict[str, Any]:
    """Arguments of `model.forward` for samples of one mode: whole and right-padded, or prompts and left-padded.

    input_ids [B, T]; attention_mask [B, T] with prompts only, as padding on the right needs none.
    """
    rows = [s.input_ids[0, : s.prompt_length] if prompts else s.input_ids[0] for s in samples]
    length = max(row.numel() for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(length - row.numel(), None) if prompts else slice(0, row.numel())
        ids[number, place] = row
        mask[number, place] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "downsample_mode": samples[0].downsample_mode}
    if prompts:
        inputs["attention_mask"] = mask.to(device)
    for name in IMAGE_INPUTS:
        tensors = [sample.inputs[name] for sample in samples if name in sample.inputs]
        if tensors:
            # patches of all pictures lie along the last axis, their sizes along the first
            inputs[name] = torch.cat(tensors, dim=-1 if name.startswith("pixel") else 0).to(device)
    return inputs


def observe(model: Any, task: Task, tick: Tick, trust_teacher: bool) -> Observed:
    """Run a model that is here over every item: states, greedy answers, the probed layers' outputs.

    trust_teacher: take an answer as given where teacher forcing proves it (see `repeats_answer`). Right where one
    token at a time gives the bits of many at once or nearly so; other kernels may serve one token than many.
    """
    states = hidden_states(model, task.samples, task.places, tick)
    answers: list[Answer | None] = [None] * len(task.samples)
    if task.generate:
        answers = _answers(model, task, states, tick, trust_teacher)
    return Observed(
        predictions=[States(state) for state in states],
        answers=answers,
        head=model.get_output_embeddings().weight.detach().cpu(),  # keeps this one tensor of the model
        layers=layers.collect(model, [task.samples[index] for index in layers.probed(task.samples)]),
    )


def _answers(model: Any, task: Task, states: list[Tensor], tick: Tick, trust_teacher: bool) -> list[Answer | None]:
    """What the model answers to each item, generated only where teacher forcing cannot tell."""
    answers: list[Answer | None] = [None] * len(task.samples)
    running = []
    for index, place in enumerate(task.places):
        if trust_teacher and repeats_answer(model, states[index], place, task.stop_ids):
            tokens = place.targets[place.answer].tolist()[:-1]
            whole = len(tokens) < task.max_new_tokens  # the stop token counts as a new token as well
            tokens = tokens[: task.max_new_tokens]
            answers[index] = Answer(task.decode(tokens), tokens, whole)
            tick(1)
        else:
            running.append(index)
    pad = task.processor.tokenizer.pad_token_id
    pad = min(task.stop_ids) if pad is None else pad
    chosen = [task.samples[index] for index in running]
    found = greedy(model, chosen, task.max_new_tokens, task.stop_ids, pad, tick)
    for index, (tokens, finished) in zip(running, found, strict=True):
        answers[index] = Answer(task.decode(tokens), tokens, finished)
    return answers


@torch.inference_mode()
def hidden_states(
    model: Any,
    samples: Sequence[Sample],
    places: Sequence[Scored],
    tick: Tick,
    batch_samples: int = BATCH_SAMPLES,
) -> list[Tensor]:
    """The final hidden state at every scored position of each sample: [P, hidden] in the model's dtype, on the CPU."""
    states: list[Tensor] = [torch.empty(0)] * len(samples)
    for batch in batches(samples, [sample.input_ids.shape[1] for sample in samples], batch_samples):
        inputs = collate([samples[i] for i in batch], prompts=False, pad_id=0, device=model.device)
        output = model.model(**inputs, use_cache=False).last_hidden_state  # [B, T, hidden]
        for row, index in enumerate(batch):
            states[index] = output[row, places[index].positions.to(output.device)].cpu()
        tick(len(batch))
    return states


@torch.inference_mode()
def repeats_answer(model: Any, state: Tensor, place: Scored, stop_ids: set[int]) -> bool:
    """Whether the model's own first choice repeats the given answer, token for token, stop token included.

    Then greedy generation from the prompt meets the same inputs at each step and gives that very answer: no need to
    run it. `state` [P, hidden] are the states at the scored positions.
    """
    targets = place.targets[place.answer]
    ends = [int(token) in stop_ids for token in targets]
    if not ends or not ends[-1] or any(ends[:-1]):  # generation would end at the first
        return False
    logits = model.get_output_embeddings()(state[place.answer].to(model.device))
    return torch.equal(logits.argmax(-1).cpu(), targets)


@torch.inference_mode()
def greedy(
    model: Any, samples: Sequence[Sample], max_new_tokens: int, stop_ids: set[int], pad_id: int, tick: Tick
) -> list[tuple[list[int], bool]]:
    """Greedy answers to the samples' prompts: token ids up to the stop token, and whether one came."""
    answers: list[tuple[list[int], bool]] = [([], False) for _ in samples]
    for batch in batches(samples, [sample.prompt_length + max_new_tokens for sample in samples]):
        inputs = collate([samples[i] for i in batch], prompts=True, pad_id=pad_id, device=model.device)
        output = model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=pad_id,
        )
        for row, index in enumerate(batch):
            new = output[row, inputs["input_ids"].shape[1] :].tolist()
            stop = next((place for place, token in enumerate(new) if token in stop_ids), len(new))
            answers[index] = (new[:stop], stop < len(new))
        tick(len(batch))
    return answers
