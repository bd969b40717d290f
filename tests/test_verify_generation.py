"""The passes over a model against plain transformers; greedy answers compared by hand; layers."""

import math

import pytest
import torch
from chats import write_mixed
from variants import TINY

from quantkit.calibration import PrepareOptions, Sample, load_conversations, load_processor, prepare
from quantkit.verify import forward, layers, load_dequantized
from quantkit.verify.compare import logits
from quantkit.verify.generation import compare, diverged_at, is_loop, same
from quantkit.verify.task import Answer, Task


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    return load_conversations(write_mixed(tmp_path_factory.mktemp("mixed"), 16))


@pytest.fixture(scope="module")
def samples(conversations) -> list[Sample]:
    return prepare(conversations, load_processor(TINY), PrepareOptions(downsample_mode="both"))


@pytest.fixture(scope="module")
def model():
    return load_dequantized(TINY)


def nothing(count: int) -> None:
    pass


# ---- what is scored, and in which batches ----


def hand_made(ids: list[int], prompt: int, vision: list[int]) -> Sample:
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[vision] = True
    return Sample("x", "image", "en", "16x", {"input_ids": torch.tensor([ids])}, prompt, mask)


def test_scored_positions_by_hand():
    #                  0  1   2   3  4  5 | 6  7   8  9    (50: placeholder, 9: stop)
    sample = hand_made([1, 50, 50, 2, 9, 3, 4, 5, 9, 7], prompt=6, vision=[1, 2])
    place = forward.scored(sample, {9})
    assert place.positions.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert place.targets.tolist() == [2, 9, 3, 4, 5, 9, 7]
    assert place.answer.tolist() == [False, False, False, True, True, True, False]
    unanswered = forward.scored(hand_made([1, 2, 9], prompt=3, vision=[]), {9})
    assert not unanswered.answer.any()
    endless = forward.scored(hand_made([9, 2, 3, 4], prompt=2, vision=[]), {9})
    assert endless.answer.tolist() == [False, True, True]


def test_batches_hold_every_sample_once(samples):
    lengths = [sample.input_ids.shape[1] * forward.BATCH_TOKENS // 100 for sample in samples]
    found = list(forward.batches(samples, lengths))
    assert sorted(index for batch in found for index in batch) == list(range(len(samples)))
    assert any(len(batch) > 1 for batch in found)
    for batch in found:
        assert len({samples[i].downsample_mode for i in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= forward.BATCH_TOKENS
    assert all(len(batch) == 1 for batch in forward.batches(samples, lengths, most=1))


def test_batched_states_give_the_logits_of_single_plain_passes(model, samples):
    places = [forward.scored(sample, set()) for sample in samples]
    counted = []
    states = forward.hidden_states(model, samples, places, counted.append)
    assert sum(counted) == len(samples)
    for sample, place, state in zip(samples, places, states, strict=True):
        with torch.inference_mode():
            expected = model(**sample.inputs, downsample_mode=sample.downsample_mode).logits[0]
            ours = logits(state, model.lm_head.weight, rows=100)
        torch.testing.assert_close(ours, expected[place.positions], atol=2e-4, rtol=1e-4)


def test_batched_greedy_answers_equal_single_generation(model, samples):
    stop_ids, limit = {model.config.text_config.eos_token_id}, 6
    answers = forward.greedy(model, samples, limit, stop_ids, model.config.pad_token_id, nothing)
    assert {finished for _, finished in answers} == {True, False}, "answers of both kinds"
    for sample, (tokens, finished) in zip(samples[::3], answers[::3], strict=True):
        inputs = {**sample.inputs, "input_ids": sample.input_ids[:, : sample.prompt_length]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        output = model.generate(
            **inputs,
            downsample_mode=sample.downsample_mode,
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=[*stop_ids],
        )[0, sample.prompt_length :].tolist()
        assert tokens == [token for token in output if token not in stop_ids]
        assert finished == (output[-1] in stop_ids)


def test_repeats_answer_asks_for_every_token_and_the_stop(model):
    head = model.lm_head.weight.detach()
    targets = (head / head.norm(dim=1, keepdim=True)) @ head.T
    tokens = [t for t in range(len(head)) if int(targets[t].argmax()) == t][:4]
    state = torch.stack([head[token] / head[token].norm() for token in tokens])
    place = forward.Scored(torch.arange(4), torch.tensor(tokens), torch.tensor([False, True, True, True]))
    assert forward.repeats_answer(model, state, place, {tokens[-1]})
    assert not forward.repeats_answer(model, state, place, {tokens[0]}), "no stop token at the end"
    assert not forward.repeats_answer(model, state[[0, 2, 1, 3]], place, {tokens[-1]})
    assert forward.repeats_answer(model, state[[1, 1, 2, 3]], place, {tokens[-1]}), "only the answer counts"
    assert not forward.repeats_answer(model, state, place, {tokens[1], tokens[-1]}), "it would have stopped before"
    none = forward.Scored(place.positions, place.targets, torch.zeros(4, dtype=torch.bool))
    assert not forward.repeats_answer(model, state, none, {tokens[-1]})


@pytest.mark.parametrize("limit", [3, 4, 5])
def test_the_short_cut_gives_the_answer_that_generation_would_have_cut(model, conversations, monkeypatch, limit):
    """An answer of four tokens and a stop token, as one run says it, under limits around its length."""
    processor = load_processor(TINY)
    sample = prepare(conversations[:1], processor, PrepareOptions())[0]
    ids = sample.input_ids[0]
    place = forward.scored(sample, {int(ids[sample.prompt_length + 4])})
    stops = {int(ids[sample.prompt_length + 4])}
    assert int(place.answer.sum()) == 5
    task = Task(conversations[:1], [sample], [place], processor, stops, 1024, limit)
    monkeypatch.setattr(forward, "repeats_answer", lambda *given: True)
    answer = forward.observe(model, task, nothing, trust_teacher=True).answers[0]
    assert answer is not None
    expected = ids[sample.prompt_length : sample.prompt_length + 4].tolist()[:limit]
    assert (answer.tokens, answer.finished) == (expected, limit == 5)
    assert answer.text == task.decode(expected)


# ---- answers compared ----


def said(*tokens: int, finished: bool = True, text: str | None = None) -> Answer:
    return Answer(text if text is not None else " ".join(map(str, tokens)), list(tokens), finished)


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [((1, 2, 3), (1, 2, 3), None), ((1, 2, 3), (1, 9, 3), 1), ((1, 2), (1, 2, 3), 2), ((1, 2), (), 0), ((), (), None)],
)
def test_divergence_by_hand(first, second, place):
    assert diverged_at(said(*first), said(*second)) == place
    assert diverged_at(said(*second), said(*first)) == place
    assert same(said(*first), said(*second)) == (place is None)


def test_an_engine_without_token_ids_is_compared_by_text():
    words = Answer("1 2", None, True)
    assert same(said(1, 2), words) and same(words, said(7, text="1 2"))
    assert not same(said(1, 3), words)
    assert diverged_at(said(1, 3), words) is None


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [
        ([5] * 12, True),
        ([5] * 11, False),
        ([1, 2] * 6, True),
        ([1, 2] * 5, False),
        ([1, 2, 3, 4, 5] * 3, True),
        ([1, 2, 3, 4, 5] * 2 + [1, 2, 3, 4], False),
        ([9, 8] + [1, 2, 3, 4, 5] * 3, True),
        ([9, 8, 7] + [2, 3, 4, 5, 1] * 2 + [2, 3, 4, 5, 6], False),
        (list(range(16)) * 3, True),
        (list(range(17)) * 3, False),
        ([5] * 12 + [6], False),
        ([], False),
    ],
)
def test_loops_by_hand(tokens, loop):
    assert is_loop(tokens) == loop


def test_generation_figures_by_hand():
    loop = [7, 8] * 8
    pairs = [
        (said(1, 2, 3), said(1, 2, 3)),
        (said(1, 2, 3), said(1, 5, 3)),
        (said(1, 2, 3, 4, 5, 6), said(1, 2, 3, 4, 5, 9, finished=False)),
        (said(1), said(*loop, finished=False)),
        (said(1), said(text=" ")),
    ]
    found = compare(pairs)
    assert found is not None
    assert (found.items, found.same.value) == (5, 0.2)
    assert found.same.low < 0.2 < found.same.high < 0.9
    assert found.diverged_at_median == 0.5  # of 0, 0, 1, 5
    assert found.diverged_at_p10 == 0.0
    assert (found.loops_reference, found.loops_candidate) == (0, 1)
    assert (found.empty_reference, found.empty_candidate) == (0, 1)
    assert (found.unfinished_reference, found.unfinished_candidate) == (0, 2)
    alike = compare(pairs[:1] * 10)
    assert alike is not None and alike.diverged_at_median is None
    assert alike.same.value == 1.0 and 0.7 < alike.same.low < 0.73, "ten of ten is not all of all"
    assert compare([]) is None


# ---- layers ----


def test_relative_error_by_hand_and_with_fitted_channels():
    reference = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    candidate = torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    assert layers.relative_error(reference, candidate) == pytest.approx(0.6)
    assert layers.relative_error(reference, reference) == 0.0
    scaled = reference * torch.tensor([2.0, 0.5])
    assert layers.relative_error(reference, scaled) == pytest.approx(math.sqrt(9 + 4) / 5)
    assert layers.relative_error(reference, scaled, fit_channels=True) < 1e-7
    assert layers.relative_error(reference, -scaled, fit_channels=True) == pytest.approx(1.0), "positive scales only"
    random = torch.randn(9, 5, generator=torch.manual_seed(0)), torch.randn(9, 5, generator=torch.manual_seed(1))
    scale = [max(0.0, float((r @ c) / (c @ c))) for r, c in zip(random[0].T, random[1].T, strict=True)]
    expected = (random[1] * torch.tensor(scale) - random[0]).norm() / random[0].norm()
    assert layers.relative_error(*random, fit_channels=True) == pytest.approx(float(expected), rel=1e-5)
    zero = torch.zeros(2, 2)
    assert layers.relative_error(zero, zero) == 0.0
    assert layers.relative_error(zero, reference) == layers.LARGEST
    assert layers.relative_error(reference, reference * math.inf) == layers.LARGEST


BLOCK = "model.language_model.layers.{}"


def test_layer_rows_say_kind_place_and_growth():
    ones = torch.ones(4, 3)
    reference = {BLOCK.format(n): ones for n in (0, 1, 2, 10)} | {
        BLOCK.format(0) + ".mlp.up_proj": ones,
        BLOCK.format(0) + ".mlp.down_proj": ones,
        "model.merger": ones,
        "model.vision_tower.encoder.layers.4": ones,
        "model.language_model.norm": ones,
        BLOCK.format(11): ones,
    }
    candidate = {name: rows * (1 + 0.1 * place) for place, (name, rows) in enumerate(reference.items())}
    candidate[BLOCK.format(11)] = torch.ones(4, 2)  # of another shape: not compared
    del candidate["model.merger"]
    rows = layers.errors(reference, candidate)
    found = [(row.kind, row.layer, round(row.error, 5), row.growth and round(row.growth, 5)) for row in rows]
    assert found == [
        ("vision", 4, 0.7, None),
        ("block", 0, 0.0, 0.0),
        ("block", 1, 0.1, 0.1),
        ("block", 2, 0.2, 0.1),
        ("block", 10, 0.3, 0.1),
        ("linear", 0, 0.0, None),  # up_proj: a scale a channel is fitted
        ("linear", 0, 0.5, None),
    ]


def test_collected_layers_are_the_model_s_own_outputs(model, samples):
    chosen = [samples[index] for index in layers.probed(samples)]
    assert [sample.modality for sample in chosen] == ["text", "image", "images", "video"]
    found = layers.collect(model, chosen)
    assert not any(module._forward_hooks for module in model.modules())
    kinds = [layers.kind_of(name) for name in found]
    assert {kind[0] for kind in kinds if kind} == {"vision", "merger", "block", "linear"}
    assert sum(kind == ("block", 3) for kind in kinds) == 1
    text = chosen[0]
    with torch.inference_mode():
        expected = model.model(
            **text.inputs, downsample_mode=text.downsample_mode, output_hidden_states=True, use_cache=False
        ).hidden_states[1][0]
    rows = torch.linspace(0, len(expected) - 1, min(layers.ROWS, len(expected))).long()
    torch.testing.assert_close(found[BLOCK.format(0)][: len(rows)], expected[rows])
    assert all(row.error < 1e-12 for row in layers.errors(found, found))
