"""From what two engines observed to groups, items and pictures, without any model."""

import base64
import io
from dataclasses import replace

import pytest
import torch
from chats import chat, image_part, picture, text_part, user, write_rows
from PIL import Image

from quantkit.calibration import Conversation, Sample, load_conversations
from quantkit.verify import summary
from quantkit.verify.report import EngineResult
from quantkit.verify.task import Answer, Observed, Scored, States, Task, TopK
from quantkit.verify.thumbnails import MOST, SIDE, thumbnails

VOCABULARY, HIDDEN, POSITIONS = 40, 8, 6


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    tokenizer = property(lambda self: self)

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(97 + token) for token in tokens)


def row(name: str, *parts: dict, answer: str | None = None, **more: object) -> dict:
    return {"id": name, "messages": chat(*parts, text_part(f"{name}?")), "answer": answer, **more}


@pytest.fixture
def conversations(tmp_path) -> list[Conversation]:
    for number in range(6):
        picture(tmp_path / f"{number}.png", number)
    frames = {"type": "video", "video": [f"{number}.png" for number in range(6)]}
    rows = [
        row("right", answer="abc"),
        row("lost", image_part("0.png"), answer="abc", language="zh"),
        row("half", image_part("1.png"), answer="abcdefghij", metric="anls"),
        row("other", image_part("2.png"), image_part("3.png")),
        row("alike", frames),
    ]
    for one in rows:
        if one["answer"] is None:
            del one["answer"]
    return load_conversations(write_rows(tmp_path / "rows.jsonl", rows))


def said(text: str) -> Answer:
    return Answer(text, [ord(letter) - 97 for letter in text], True)


def make(conversations: list[Conversation]) -> tuple[Task, Observed, Observed]:
    generator = torch.Generator().manual_seed(0)
    empty = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
    modes = ("16x", "4x", "16x", "16x", "16x")
    samples = [
        Sample(c.id, c.modality, c.language, mode, empty, 1, torch.zeros(1, dtype=torch.bool))
        for c, mode in zip(conversations, modes, strict=True)
    ]
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    place = Scored(torch.arange(POSITIONS), targets, torch.arange(POSITIONS) >= 4)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    states = [torch.randn(POSITIONS, HIDDEN, generator=generator) for _ in samples]
    moved = [state + 0.1 * torch.randn(POSITIONS, HIDDEN, generator=generator) for state in states]
    task = Task(conversations, samples, [place] * 5, Letters(), {39}, VOCABULARY, 9)
    answers = [said(text) for text in ("abc", "abc", "abcdefghij", "abcd", "a")]
    reference = Observed([States(state) for state in states], list(answers), head)
    found = [said(text) for text in ("abc", "xbc", "abcdefgxyz", "abxd", "a")]
    return task, reference, Observed([States(state) for state in moved], list(found), head)


@pytest.fixture
def made(conversations) -> tuple[Task, Observed, Observed]:
    return make(conversations)


def groups(result: EngineResult) -> dict[str, object]:
    return {f"{group.by} {group.value}": group for group in result.groups}


def test_groups_hold_the_items_that_they_name(made):
    found = groups(summary.summarize_engine("dequantized", *made, "cpu"))
    assert {name: group.items for name, group in found.items()} == {
        "all all": 5, "modality text": 1, "modality image": 2, "modality images": 1, "modality video": 1,
        "mode 16x": 4, "mode 4x": 1, "language en": 4, "language zh": 1,
    }  # fmt: skip
    everything = found["all all"]
    assert (everything.answer.tokens, everything.prompt.tokens, everything.text.tokens) == (10, 20, 30)
    weighted = (10 * everything.answer.kl_mean.value + 20 * everything.prompt.kl_mean.value) / 30
    assert everything.text.kl_mean.value == pytest.approx(weighted)
    parts = [found[f"modality {m}"].text for m in ("text", "image", "images", "video")]
    mean = sum(part.kl_mean.value * part.tokens for part in parts) / 30
    assert everything.text.kl_mean.value == pytest.approx(mean)


def test_accuracy_by_hand(made):
    found = groups(summary.summarize_engine("dequantized", *made, "cpu"))
    everything = found["all all"].accuracy
    assert (everything.items, everything.metrics) == (3, {"exact": 2, "anls": 1})
    assert everything.reference == 1.0
    assert everything.candidate == pytest.approx((1 + 0 + 0.7) / 3)
    assert everything.difference.value == pytest.approx(-1.3 / 3)
    assert everything.difference.low < -1.3 / 3 < everything.difference.high
    # a score of 0.7 still counts as right
    assert (everything.mcnemar.only_reference, everything.mcnemar.only_candidate) == (1, 0)
    assert everything.mcnemar.p_value == 1.0
    assert found["modality images"].accuracy is None and found["modality video"].accuracy is None
    assert found["language zh"].accuracy.candidate == 0.0
    alike = found["modality text"].accuracy
    assert alike.difference.value == 0 and alike.difference.low < 0 < alike.difference.high, "one item proves little"
    assert found["all all"].generation.same.value == pytest.approx(2 / 5)


def test_items_tell_what_both_models_said(made):
    items = {item.id: item for item in summary.summarize_engine("dequantized", *made, "cpu").items}
    lost = items["lost"]
    assert (lost.reference_text, lost.candidate_text) == ("abc", "xbc")
    assert (lost.reference_score, lost.candidate_score, lost.metric, lost.answer) == (1.0, 0.0, "exact", "abc")
    assert (lost.diverged_at, lost.diverged_at_char) == (0, 0)
    assert (lost.modality, lost.mode, lost.language, lost.prompt) == ("image", "4x", "zh", "[image] lost?")
    assert (items["other"].diverged_at, items["other"].diverged_at_char) == (2, 2)
    unasked = items["other"]
    assert (unasked.answer, unasked.metric, unasked.reference_score, unasked.candidate_score) == (None,) * 4
    assert items["right"].diverged_at is None and items["right"].diverged_at_char is None
    assert all(item.tokens == 6 and item.kl_max >= item.kl_mean > 0 for item in items.values())
    metrics = summary.compare(made[1], made[2], made[0].places)[0][0]
    assert items["right"].kl_mean == pytest.approx(float(metrics.kl.mean()))
    assert items["right"].kl_answer_mean == pytest.approx(float(metrics.kl[4:].mean()))


def test_the_worst_items_come_with_pictures(made, monkeypatch):
    """A lost answer is worse than a half lost one, that worse than other words, and those worse than a larger KL."""
    shown = {}
    for most in (1, 2, 3):
        monkeypatch.setattr(summary, "WORST", most)
        shown[most] = [i.id for i in summary.summarize_engine("x", *made, "cpu").items if i.pictures]
    assert shown == {1: ["lost"], 2: ["lost", "half"], 3: ["lost", "half", "other"]}


def test_thumbnails_are_small_and_at_most_four(conversations):
    found = {conversation.id: thumbnails(conversation) for conversation in conversations}
    assert {name: len(pictures) for name, pictures in found.items()} == {
        "right": 0, "lost": 1, "half": 1, "other": 2, "alike": 3,
    }  # fmt: skip
    for pictures in found.values():
        for uri in pictures:
            head, _, body = uri.partition(",")
            assert head == "data:image/jpeg;base64"
            with Image.open(io.BytesIO(base64.b64decode(body))) as opened:
                assert opened.format == "JPEG" and max(opened.size) <= SIDE
    many = [image_part(conversations[1].messages[0]["content"][0]["image"])] * 11
    assert len(thumbnails(replace(conversations[1], messages=[user(*many)]))) <= MOST


def test_a_prompt_reads_as_a_dialogue(conversations):
    turns = [{"role": "system", "content": [text_part("Be brief.")]}, *conversations[1].messages]
    assert summary._prompt(replace(conversations[1], messages=turns)) == "system: Be brief.\nuser: [image] lost?"
    long = replace(conversations[0], messages=[user(text_part("word " * 1000))])
    assert len(summary._prompt(long)) == summary.PROMPT_CHARACTERS


# ---- engines that give less ----


def test_an_engine_that_gives_top_k_is_compared_where_it_said_something(made):
    task, reference, candidate = made
    whole = summary.summarize_engine("dequantized", *made, "cpu")
    predictions = []
    for prediction in candidate.predictions:
        logp = (prediction.states @ candidate.head.T).log_softmax(-1)
        values, ids = logp[4:].topk(VOCABULARY)
        predictions.append(TopK(torch.tensor([4, 5]), ids, values, torch.full((2,), torch.nan)))
    answers = [Answer(answer.text, None, True) for answer in candidate.answers]
    found = summary.summarize_engine("vllm", task, reference, Observed(predictions, answers), "cpu")
    first, second = (next(g for g in result.groups if g.by == "all") for result in (whole, found))
    assert whole.exact and not found.exact
    assert second.prompt is None and second.text.tokens == 10
    assert second.answer.kl_mean.value == pytest.approx(first.answer.kl_mean.value, abs=1e-4)
    assert second.answer.top1.value == first.answer.top1.value
    assert second.answer.logit_rms is None and second.answer.coverage == pytest.approx(1.0)
    assert second.generation.same.value == 0.4 and second.generation.diverged_at_median is None
    assert found.layers == []


def test_items_that_an_engine_left_out_are_counted_by_reason(made):
    task, reference, candidate = made
    candidate.predictions[0] = candidate.answers[0] = None
    candidate.predictions[1] = None
    candidate.left_out = {0: "too long", 1: "too long"}
    found = summary.summarize_engine("dequantized", task, reference, candidate, "cpu")
    assert found.left_out == {"too long": 2} and found.exact, "what there is, is whole"
    by_name = groups(found)
    assert by_name["modality text"].text is None and by_name["modality text"].generation is None
    assert by_name["all all"].text.tokens == 18 and by_name["all all"].generation.items == 4
    item = found.items[0]
    assert (item.tokens, item.kl_mean, item.candidate_text, item.reference_score) == (0, None, None, None)
    assert EngineResult.model_validate_json(found.model_dump_json()) == found


def test_no_answers_at_all(made):
    task, reference, candidate = made
    reference.answers = candidate.answers = [None] * 5
    found = summary.summarize_engine("dequantized", task, reference, candidate, "cpu")
    assert all(group.accuracy is None and group.generation is None for group in found.groups)
    assert all(item.reference_text is None and item.diverged_at is None for item in found.items)


def test_a_benchmark_s_own_totals(made, monkeypatch):
    asked = []

    def aggregate(name, scored):
        asked.append((name, [(conversation.id, score) for conversation, score in scored]))
        return {"overall": sum(score for _, score in scored), "rare": 1.0} | ({"odd": 0.0} if len(asked) == 1 else {})

    monkeypatch.setattr(summary, "aggregate", aggregate)
    found = summary.summarize_engine("dequantized", *made, "cpu", benchmark="MMMU").benchmark
    assert asked[0] == ("MMMU", [("right", 1.0), ("lost", 1.0), ("half", 1.0)])
    assert found == {
        "overall": {"reference": 3.0, "candidate": pytest.approx(1.7)},
        "rare": {"reference": 1.0, "candidate": 1.0},
    }
    assert summary.summarize_engine("dequantized", *made, "cpu").benchmark == {}
