"""The reference pass and its cache: the same figures from disk, a key that covers everything, no entry half made."""

import gc
import json
import logging
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chats import write_mixed
from safetensors import SafetensorError
from safetensors.torch import load_file
from variants import TINY, variant

from quantkit.calibration import load_conversations
from quantkit.checkpoint import open_checkpoint
from quantkit.cli.shared import default_cache
from quantkit.errors import QuantkitError
from quantkit.verify import VerifyOptions, load_dequantized, reference
from quantkit.verify.compare import logits
from quantkit.verify.run import make_task
from quantkit.verify.task import States

TINY_CHECKPOINT = open_checkpoint(TINY)


def nothing(count: int) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"), 8)


@pytest.fixture(scope="module")
def task(data):
    return make_task(load_conversations(data), TINY_CHECKPOINT, VerifyOptions(max_new_tokens=4))


def run(task, folder, noise=False, dtype="float32", tick=nothing):
    return reference.reference_pass(TINY_CHECKPOINT, task, dtype, "cpu", folder, noise, tick)


class Watched:
    """Loads models; `together`: for each load, how many of the earlier ones were still alive."""

    def __init__(self) -> None:
        self.models, self.together = [], []

    def __call__(self, *given):
        gc.collect()
        self.together.append(sum(model() is not None for model in self.models))
        model = load_dequantized(*given)
        self.models.append(weakref.ref(model))
        return model


@pytest.fixture(scope="module")
def first_run(task, tmp_path_factory):
    """A pass with its noise floor, the folder that holds it, how the models were loaded and the ticks."""
    folder, watched, ticks = tmp_path_factory.mktemp("cache"), Watched(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "load_dequantized", watched)
        made = run(task, folder, noise=True, tick=ticks.append)
    return made, folder, watched, ticks


@pytest.fixture(scope="module")
def kept(first_run):
    """The pass and its folder."""
    return first_run[:2]


@pytest.fixture
def folder(kept, tmp_path) -> Path:
    """A copy of that folder."""
    shutil.copytree(kept[1], tmp_path / "cache")
    return tmp_path / "cache"


def entry_of(folder: Path) -> Path:
    (entry,) = (folder / "reference").iterdir()
    return entry


def no_model(*arguments):
    raise AssertionError("a model was loaded")


def assert_equal(first, second):
    a, b = first.observed, second.observed
    for one, other in zip(a.predictions, b.predictions, strict=True):
        assert torch.equal(one.states, other.states) and one.states.dtype == other.states.dtype
    assert torch.equal(a.head, b.head)
    assert a.answers == b.answers
    assert list(a.layers) == list(b.layers), "the model's order, in which growth is counted"
    assert all(torch.equal(rows, b.layers[name]) for name, rows in a.layers.items())
    assert first.noise == second.noise


# ---- a hit ----


def test_a_hit_gives_the_same_bits_and_runs_no_model(task, kept, folder, monkeypatch):
    monkeypatch.setattr(reference, "load_dequantized", no_model)
    counted = []
    found = run(task, folder, noise=True, tick=counted.append)
    assert_equal(kept[0], found)
    assert sum(counted) == reference.units(task, True) == 8 * 2 + 8
    assert found.cache is not None and found.cache.hit
    assert kept[0].cache is not None and not kept[0].cache.hit
    assert found.cache.key == kept[0].cache.key == entry_of(folder).name
    assert found.cache.bytes == sum(file.stat().st_size for file in entry_of(folder).iterdir())
    assert found.cache.kl_error_bound == 0.0
    positions = sum(place.positions.numel() for place in task.places)
    assert found.cache.positions == positions
    assert found.cache.bytes_per_position == pytest.approx(found.cache.bytes / positions)
    states = load_file(entry_of(folder) / "pass.safetensors")["states"]
    assert tuple(states.shape) == (positions, 256) and found.seconds == kept[0].seconds


def test_every_tick_of_a_run_is_counted(task, first_run):
    assert sum(first_run[3]) == reference.units(task, True)


def test_the_head_is_the_one_of_the_model(tmp_path):
    """Tied, untied but stored, and stored although tied."""
    stored = torch.randn(1024, 256, generator=torch.manual_seed(0)).bfloat16()
    for tied in (True, False):
        folder = variant(tmp_path / str(tied), lambda t: t.update({"lm_head.weight": stored}))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
        head = reference.head_of(open_checkpoint(folder), "float32")
        assert torch.equal(head, stored.float()) != tied
    plain = reference.head_of(TINY_CHECKPOINT, "bfloat16")
    assert plain.dtype == torch.bfloat16
    assert torch.equal(plain, load_dequantized(TINY, "bfloat16").lm_head.weight)


# ---- the key ----


def key(task, checkpoint=TINY_CHECKPOINT, dtype="float32", device="cpu", noise=True) -> str:
    return reference.cache_key(checkpoint, task, dtype, device, noise)


def test_the_key_covers_every_ingredient(task, data, tmp_path, monkeypatch):
    first = key(task)
    assert key(task) == first and len(first) == 32
    other = make_task(load_conversations(data), TINY_CHECKPOINT, VerifyOptions(max_new_tokens=4))
    assert key(other) == first, "the same inputs prepared again"

    def step(tensors):
        tensors["model.language_model.norm.weight"].view(torch.int16)[0] += 1

    def prepared(**options):
        return make_task(load_conversations(data), TINY_CHECKPOINT, VerifyOptions(max_new_tokens=4, **options))

    sample = task.samples[0]
    moved = replace(sample, inputs=sample.inputs | {"input_ids": sample.input_ids.flip(-1)})
    changed = {
        "model": key(task, open_checkpoint(variant(tmp_path / "m", step))),
        "config": key(task, open_checkpoint(variant(tmp_path / "c", None, {"extra": 1}))),
        "data": key(replace(task, samples=[moved, *task.samples[1:]])),
        "fewer": key(prepared(samples=4)),
        "mode": key(prepared(downsample_mode="4x")),
        "slices": key(prepared(max_slice_nums=1)),
        "stop": key(replace(task, stop_ids={1, 2, 3})),
        "max_new_tokens": key(replace(task, max_new_tokens=5)),
        "generate": key(replace(task, generate=False)),
        "dtype": key(task, dtype="bfloat16"),
        "device": key(task, device="cuda:0"),
        "noise": key(task, noise=False),
    }
    monkeypatch.setattr(reference, "version", lambda package: "9.9" if package == "torch" else "1")
    changed["versions"] = key(task)
    monkeypatch.undo()
    for number, file in enumerate(reference.CODE):
        edited = tmp_path / f"{number}.py"
        edited.write_text(Path(file).read_text(encoding="utf-8") + "# edited\n")
        monkeypatch.setattr(reference, "CODE", (*reference.CODE[:number], str(edited), *reference.CODE[number + 1 :]))
        changed[f"code {Path(file).name}"] = key(task)
        monkeypatch.undo()
    del changed["slices"]  # tiny's pictures have one slice as it is
    assert first not in changed.values()
    assert len(set(changed.values())) == len(changed), changed
    assert key(task, device="cuda:1") == changed["device"], "which of several accelerators is no matter"


def test_the_code_of_every_step_is_in_the_key():
    names = {Path(file).name for file in reference.CODE}
    assert names >= {"forward.py", "layers.py", "reference.py", "local.py", "compare.py", "metrics.py"}


# ---- damage ----


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))


def edit(**fields):
    def change(file: Path) -> None:
        content = json.loads(file.read_text())
        content.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del content[name]
        file.write_text(json.dumps(content))

    return change


DAMAGE = {
    "bit flipped": ("pass.safetensors", flip),
    "cut short": ("pass.safetensors", cut),
    "no states": ("pass.safetensors", Path.unlink),
    "no json": ("pass.json", Path.unlink),
    "json cut": ("pass.json", cut),
    "json empty": ("pass.json", lambda file: file.write_text("[]")),
    "not text": ("pass.json", lambda file: file.write_bytes(b"\xff\xfe\xfd")),
    "field gone": ("pass.json", edit(seconds=None)),
    "answers gone": ("pass.json", edit(answers=[])),
    "noise wrong": ("pass.json", edit(noise=[{"name": "x"}])),
    "layer unknown": ("pass.json", edit(layers=["model.nowhere"])),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_again_with_a_warning(task, kept, folder, caplog, monkeypatch, name, damage):
    damage(entry_of(folder) / name)
    runs = []
    monkeypatch.setattr(reference, "_run", lambda *given: runs.append(1) or (kept[0].observed, kept[0].noise))
    with caplog.at_level(logging.WARNING):
        found = run(task, folder, noise=True)
    assert runs == [1]
    assert found.cache is not None and not found.cache.hit
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(entry_of(folder)) in caplog.text and "damaged" in caplog.text
    monkeypatch.setattr(reference, "_run", no_model)
    assert_equal(kept[0], run(task, folder, noise=True))


def test_a_half_written_entry_is_not_one(task, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_run", lambda *given: (kept[0].observed, kept[0].noise))
    entry = tmp_path / "reference" / kept[0].cache.key
    partial = entry.with_name(f".{entry.name}.partial-1")
    partial.mkdir(parents=True)
    (partial / "pass.safetensors").write_bytes(b"half")
    found = run(task, tmp_path, noise=True)
    assert found.cache is not None and not found.cache.hit
    assert (found.cache.key, found.observed) == (kept[0].cache.key, kept[0].observed)
    assert partial.exists(), "another process may be writing it"


def test_an_interrupted_write_leaves_nothing(task, kept, tmp_path, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(reference, "save_file", interrupted)
    monkeypatch.setattr(reference, "_run", lambda *given: (kept[0].observed, kept[0].noise))
    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path, noise=True)
    assert not list((tmp_path / "reference").iterdir())


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_costs_the_cache_and_no_more(task, kept, tmp_path, caplog, monkeypatch, problem):
    def full(*given):
        raise problem

    monkeypatch.setattr(reference, "save_file", full)
    monkeypatch.setattr(reference, "_run", lambda *given: (kept[0].observed, kept[0].noise))
    found = run(task, tmp_path, noise=True)
    assert found.cache is None and not list((tmp_path / "reference").iterdir())
    assert "could not be kept" in caplog.text


def test_no_cache_folder_and_one_that_cannot_be_written(task, kept, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(reference, "_run", lambda *given: (kept[0].observed, kept[0].noise))
    assert run(task, None, noise=True).cache is None
    assert not caplog.text
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = run(task, blocked, noise=True)
    assert found.cache is None and found.observed is kept[0].observed
    assert "could not be kept" in caplog.text
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() != 0:  # nothing is locked to root
        assert run(task, locked, noise=True).cache is None


def test_a_folder_that_can_only_be_read_still_gives_hits(task, kept, folder, monkeypatch):
    monkeypatch.setattr(reference, "_run", no_model)
    for path in (folder / "reference", entry_of(folder)):
        path.chmod(0o500)
    try:
        assert_equal(kept[0], run(task, folder, noise=True))
    finally:
        for path in (folder / "reference", entry_of(folder)):
            path.chmod(0o700)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_cache() == tmp_path / "a"
    monkeypatch.delenv("QUANTKIT_CACHE")
    assert default_cache() == tmp_path / "b" / "quantkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert default_cache() == tmp_path / "c" / ".cache" / "quantkit"


# ---- the noise floor ----


def test_the_noise_floor_against_a_naive_pass(task, kept):
    """bfloat16 against float32, each item alone, whole logits, float64."""
    rows = {row.name: row for row in kept[0].noise if row.positions == "text"}
    assert set(rows) == {"single", "bfloat16"}
    assert rows["bfloat16"].what == "bfloat16 against float32"
    positions = sum(place.positions.numel() for place in task.places)
    for row in rows.values():
        assert (row.items, row.tokens) == (8, positions)
        assert row.kl_max >= row.kl_p99 >= row.kl_mean >= 0
    assert rows["single"].kl_mean < 1e-7 < rows["bfloat16"].kl_mean < 1e-2
    assert rows["single"].logit_rms < 1e-4 < rows["bfloat16"].logit_rms
    assert rows["bfloat16"].top1 > 0.9
    exact, rough = load_dequantized(TINY, "float32"), load_dequantized(TINY, "bfloat16")
    found = []
    for sample, place in zip(task.samples, task.places, strict=True):
        given = {**sample.inputs, "downsample_mode": sample.downsample_mode, "use_cache": False}
        with torch.inference_mode():
            states = [model.model(**given).last_hidden_state[0, place.positions] for model in (exact, rough)]
            heads = (exact.lm_head.weight, rough.lm_head.weight)
            p, q = (logits(s, h).double().log_softmax(-1) for s, h in zip(states, heads, strict=True))
        found.append((p.exp() * (p - q)).sum(-1))
    assert rows["bfloat16"].kl_mean == pytest.approx(float(torch.cat(found).mean()), rel=0.3)


def test_noise_is_measured_on_some_items_of_each_modality(task, monkeypatch):
    monkeypatch.setattr(reference, "NOISE_ITEMS", 5)
    chosen = reference.noise_items(task)
    assert len(chosen) == 5 and chosen == sorted(chosen)
    assert {task.samples[index].modality for index in chosen} == {"text", "image", "images", "video"}


def test_one_model_at_a_time_is_in_memory(first_run):
    made, _, watched, _ = first_run
    assert watched.together == [0, 0]
    gc.collect()
    assert watched.models[-1]() is None and made.observed.head is not None


def test_a_reference_that_overflows_is_refused_by_item(task, tmp_path):
    def loud(tensors):
        tensors["model.language_model.layers.0.mlp.down_proj.weight"].fill_(3e38)

    checkpoint = open_checkpoint(variant(tmp_path / "loud", loud))
    with pytest.raises(QuantkitError, match=r"final hidden states of item 'm-\d+' hold NaN or Inf"):
        reference.reference_pass(checkpoint, replace(task, generate=False), "float32", "cpu", None, False, nothing)


def test_states_are_those_of_the_scored_positions(task, kept):
    for prediction, place in zip(kept[0].observed.predictions, task.places, strict=True):
        assert isinstance(prediction, States)
        assert tuple(prediction.states.shape) == (place.positions.numel(), 256)
