"""lm-eval and lmms-eval on our folders: their log-likelihoods and answers are our own, for text and for pictures."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import quantkit
from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.errors import QuantkitError
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.verify import lm_eval_adapter as adapter
from quantkit.verify import lmms_eval_adapter, load_dequantized

TINY = Path(quantkit.__file__).parent / "data" / "tiny"
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'lm-eval[hf]'"
)
needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed: pip install lmms-eval"
)
ROWS = [
    {"question": "What is 2 + 3?", "answer": "5"},
    {"question": "Which of these words is the longest one of all: cat, horse?", "answer": "horse, of course"},
    {"question": "Hello", "answer": "world"},
]
TEXT_TASK = """
task: qk_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: {output}
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
generation_kwargs: {{until: ["zzz"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: {metric}}}]
"""
PICTURE_TASK = """
task: qk_picture
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: generate_until
doc_to_image: [image]
doc_to_text: "<image>{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["zzz"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


LMMS_TASK = """
task: qk_digits
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
LMMS_UTILS = """
def visual(doc):
    return [doc["image"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own for what lm-eval builds of the tasks' tables."""
    if importlib.util.find_spec("datasets") is None:
        yield
        return
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def variant(tmp_path_factory, small_calibration) -> Path:
    out = tmp_path_factory.mktemp("variant") / "tiny-AWQ"
    quantize(QuantizeOptions(model=str(TINY), calib=str(small_calibration), samples=6, group_size=64, out=out))
    return out


def text_tasks(folder: Path) -> Path:
    rows = folder / "rows.json"
    rows.write_text(json.dumps(ROWS))
    for kind, output, metric in (
        ("likelihood", "loglikelihood", "acc"),
        ("answer", "generate_until", "exact_match"),
    ):
        task = TEXT_TASK.format(kind=kind, rows=rows, output=output, metric=metric)
        (folder / f"{kind}.yaml").write_text(task)
    return folder


@torch.inference_mode()
def likelihood(model, tokenizer, row) -> float:
    """Natural log-probability of the answer after the question, one row at a time, by the definition."""
    prompt = tokenizer.encode(row["question"])
    ids = tokenizer.encode(row["question"] + " " + row["answer"])
    assert ids[: len(prompt)] == prompt
    logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logp[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))


@torch.inference_mode()
def answer(model, tokenizer, prompt: str, count: int) -> str:
    ids = torch.tensor([tokenizer.encode(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@needs_lm_eval
def test_text_tasks_by_the_command_line(tmp_path, variant, monkeypatch):
    tasks = text_tasks(tmp_path)
    arguments = ["--model", "quantkit", "--model_args", f"pretrained={variant},engine=dequantized", "--batch_size", "2"]
    arguments += ["--tasks", "qk_likelihood,qk_answer", "--include_path", str(tasks), "--log_samples"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, "--output_path", str(tmp_path / "out")])
    adapter.main()
    found = {}
    for kind in ("likelihood", "answer"):
        (file,) = (tmp_path / "out").rglob(f"samples_qk_{kind}_*.jsonl")
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        found[kind] = [sample["resps"][0][0] for sample in samples]
    model, tokenizer = load_dequantized(variant), load_processor(variant).tokenizer
    reference = load_dequantized(TINY)
    for row, (logp, _), text in zip(ROWS, found["likelihood"], found["answer"], strict=True):
        assert float(logp) == pytest.approx(likelihood(model, tokenizer, row), abs=1e-4)
        assert float(logp) != pytest.approx(likelihood(reference, tokenizer, row), abs=1e-4)
        assert text == answer(model, tokenizer, row["question"], 8)


@pytest.fixture(scope="module")
def asked():
    """Four questions about one picture each, which tiny answers right."""
    return [c for c in load_conversations("heldout") if c.modality == "image"][:4]


@pytest.fixture(scope="module")
def own_answers(asked) -> list[str]:
    """Tiny's greedy answers to the prompts as `prepare` makes them."""
    model, processor = load_dequantized(TINY), load_processor(TINY)
    texts = []
    for sample in prepare(asked, processor, PrepareOptions()):
        prompt = sample.input_ids[:, : sample.prompt_length]
        inputs = {name: value for name, value in sample.inputs.items() if name not in ("input_ids", "attention_mask")}
        inputs |= {"attention_mask": torch.ones_like(prompt)}
        with torch.inference_mode():
            output = model.generate(prompt, max_new_tokens=12, do_sample=False, **inputs)
        texts.append(processor.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip())
    assert sum(text == c.answer for text, c in zip(texts, asked, strict=True)) >= 3
    return texts


def picture_rows(asked, folder: Path) -> Path:
    import datasets

    rows = []
    for conversation in asked:
        image, text = conversation.messages[0]["content"]
        cell = {"bytes": Path(image["image"]).read_bytes(), "path": None}
        rows.append({"image": cell, "question": text["text"], "answer": conversation.answer})
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


@needs_lm_eval
def test_picture_tasks_see_what_our_samples_see(tmp_path, asked, own_answers):
    import lm_eval
    from lm_eval.tasks import TaskManager

    adapter.register()
    (tmp_path / "picture.yaml").write_text(PICTURE_TASK.format(rows=picture_rows(asked, tmp_path)))
    results = lm_eval.simple_evaluate(
        model="quantkit-vlm",
        model_args={"pretrained": "tiny"},
        tasks=["qk_picture"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=True,
        log_samples=True,
        batch_size=2,
    )
    samples = sorted(results["samples"]["qk_picture"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0].strip() for sample in samples] == own_answers


@needs_lmms_eval
def test_lmms_eval_by_its_command_line(tmp_path, asked, own_answers, monkeypatch):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "digits.yaml").write_text(LMMS_TASK.format(rows=picture_rows(asked, tmp_path)))
    (tasks / "utils.py").write_text(LMMS_UTILS)
    arguments = ["--model", "quantkit", "--model_args", "pretrained=tiny", "--tasks", "qk_digits", "--batch_size", "1"]
    arguments += ["--include_path", str(tasks), "--log_samples", "--output_path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["lmms_eval", *arguments])
    lmms_eval_adapter.main()
    (file,) = (tmp_path / "out").rglob("*_samples_qk_digits.jsonl")
    samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"] for sample in samples] == own_answers


def test_answers_for_lmms_eval_are_ours(asked, own_answers):
    model, processor = load_dequantized(TINY), load_processor(TINY)
    for conversation, expected in zip(asked, own_answers, strict=True):
        image, text = conversation.messages[0]["content"]
        chat = [{"role": "user", "content": [{"type": "image", "image": Image.open(image["image"])}, text]}]
        assert lmms_eval_adapter.answer(model, processor, chat, {"max_new_tokens": 12}) == expected
    word = expected.split()[1]
    cut = lmms_eval_adapter.answer(model, processor, chat, {"max_new_tokens": 12, "until": ["zzz", word]})
    assert cut == expected.partition(word)[0].strip()
    chat[0]["content"].append({"type": "video", "video": "x.mp4"})
    with pytest.raises(QuantkitError, match="reads texts and pictures; this task gives a video"):
        lmms_eval_adapter.answer(model, processor, chat, {})


def test_marks_of_pictures_become_parts():
    picture = {"type": "image"}
    assert adapter.parts_of("<image>Which?") == [picture, {"type": "text", "text": "Which?"}]
    assert adapter.parts_of("a<image><image>b") == [
        {"type": "text", "text": "a"}, picture, picture, {"type": "text", "text": "b"},
    ]  # fmt: skip
    assert adapter.parts_of("plain") == [{"type": "text", "text": "plain"}]


@pytest.mark.parametrize(
    ("module", "missing", "advice"),
    [(adapter, "lm_eval.api.registry", "lm-eval[hf]"), (lmms_eval_adapter, "lmms_eval.models", "lmms-eval")],
)
def test_bad_input_is_one_line(monkeypatch, capsys, module, missing, advice):
    with pytest.raises(QuantkitError, match="engine 'vllm' is unknown to the lm-eval adapter; it has dequantized, tra"):
        adapter.load(str(TINY), "vllm", "float32", "cpu")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "argv", ["lm_eval"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "eval is not installed" in error and advice in error and error.count("\n") == 1
