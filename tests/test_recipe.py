"""Recipes: what a file may say, what comes first, and what is wrong with it, with line and nearest name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantkit.errors import QuantkitError
from quantkit.recipe import COMMANDS, GgufOptions, QuantizeOptions, make_options, recorded
from quantkit.recipe.document import read_recipe
from quantkit.recipe.schema import recipe_model, schema

Run = Callable[..., tuple[int, str, str]]
GOOD = """\
# a comment
method: gptq
model: tiny
bits: 3
group_size: 64
keep: layers.0
calib: [bundled, "photos,weight=0.5"]
samples: 20
verify: {samples: 10}
gates:
  max_kl: 1e-2
  min_top1: {all: 0.9, video: 0.5}
"""


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_values_become_options_and_typed_ones_come_first(write_yaml: Callable[[str], Path]) -> None:
    found = read_recipe(write_yaml(GOOD))
    made = found.options()
    assert made == QuantizeOptions(
        method="gptq", model="tiny", bits=3, group_size=64, keep=("layers.0",), out=Path("tiny-GPTQ"), samples=20,
        calib=("bundled", "photos,weight=0.5"),
    )  # fmt: skip
    assert found.options({"bits": 8, "keep": ()}) == replace(made, bits=8, keep=())
    verify = found.verify_options()
    assert verify is not None and verify.samples == 10
    assert found.gates == {"max_kl": 0.01, "min_top1": {"all": 0.9, "video": 0.5}}
    assert read_recipe(write_yaml("method: rtn")).verify_options() is None
    assert read_recipe(write_yaml("method: rtn\nverify: {}")).verify_options() is not None


@pytest.mark.parametrize("method", COMMANDS)
def test_what_is_shown_resolved_is_a_recipe_that_says_the_same(
    method: str, run: Run, write_yaml: Callable[[str], Path], tmp_path: Path
) -> None:
    given = {"seed": 3} if "seed" in COMMANDS[method].option_names() else {}
    path = write_yaml(f"method: {method}\nverify: {{}}\n")
    code, shown, errors = run("recipe", "show", path, "--resolved", *(["--seed", 3] if given else []))
    assert code == 0, errors
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert read_recipe(again).options() == make_options(method, given)
    names = {line.split(":")[0] for line in shown.partition("\nverify:")[0].splitlines()}
    assert names == {"method", *COMMANDS[method].option_names()} - {"token"}
    assert all("# " in line for line in shown.splitlines() if ": " in line and not line.startswith("method"))


def test_shown_without_resolved_is_what_was_stated(run: Run, write_yaml: Callable[[str], Path]) -> None:
    code, shown, _ = run("recipe", "show", write_yaml(GOOD), "--bits", 4)
    assert code == 0
    assert yaml.safe_load(shown) == yaml.safe_load(GOOD) | {"bits": 4, "keep": ["layers.0"]} | {
        "gates": {"max_kl": 0.01, "min_top1": {"all": 0.9, "video": 0.5}}
    }


@pytest.mark.parametrize("method", COMMANDS)
def test_every_option_that_decides_the_bytes_is_recorded_and_reads_back(method: str) -> None:
    options = make_options(method, {})
    told = json.loads(json.dumps(recorded(options)))
    recipe_model(method).model_validate(told)
    names = set(COMMANDS[method].option_names())
    places = {name for name in names if type(options).__dataclass_fields__[name].metadata["place"]}
    if method == "gguf":
        assert set(told) == {"method"} | names - places
    assert not set(told) & places and set(told) - {"method"} <= names


def test_of_local_data_only_the_name_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("")
    options = GgufOptions(calib=(f"{tmp_path}/chats.jsonl,weight=2", "org/name,split=train", "bundled"))
    assert recorded(options)["calib"] == ["chats.jsonl,weight=2", "org/name,split=train", "bundled"]


def test_the_schema_knows_every_recipe_option(run: Run, tmp_path: Path) -> None:
    assert run("recipe", "schema", "--out", tmp_path / "s.json")[0] == 0
    made = json.loads((tmp_path / "s.json").read_text())
    assert made == schema()
    for method, command in COMMANDS.items():
        properties = made["$defs"][f"{method}_recipe"]["properties"]
        assert set(properties) == {"method", "verify", "gates", *command.option_names()} - {"token"}
        assert made["$defs"][f"{method}_recipe"]["additionalProperties"] is False
    assert made["$defs"]["gptq_recipe"]["properties"]["solver"]["enum"] == ["rtn", "gptq", "refine"]


def test_recipes_that_come_along_go_by_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = run("recipe", "list")
    assert code == 0 and "smallest" in output and "1.87 GB" in output, errors
    code, output, errors = run("run", "awq", "--model", "tiny", "--dry-run")
    assert code == 0 and "would write tiny-AWQ" in output, errors
    code, _, errors = run("run", "awk", "--model", "tiny", "--dry-run")
    assert code == 2 and "no recipe of that name comes with quantkit; did you mean awq?" in errors
    (tmp_path / "awq").write_text("method: rtn\nmodel: tiny\n")  # a file comes first
    code, output, _ = run("recipe", "show", "awq")
    assert code == 0 and output.startswith("method: rtn")


# ---- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("bits: 3", "bitz: 3", 4, "bitz: unknown; did you mean bits?"),
        ("bits: 3", 'bits: "3"', 4, "bits: write a whole number; found '3'"),
        ("bits: 3", "bits: 3.5", 4, "bits: write a whole number; found 3.5"),
        ("bits: 3", "bits: yes", 4, "bits: write a whole number; found True"),
        ("bits: 3", "revision: 12", 4, "revision: write a text (numbers and dates need quotes); found 12"),
        ("bits: 3", "bits: 3\nbits: 4", 5, "bits stands twice, on line 4 too"),
        ("bits: 3", "type: nf4", 4, "type: is no option of gptq (of bnb, gguf)"),
        ("bits: 3", "token: hf_secret", 4, "token: a secret does not belong in a file"),
        ("bits: 3", "solver: refin", 4, "solver: 'refin' is unknown; did you mean refine?; use rtn, gptq or refine"),
        ("samples: 20", "samples: 0", 8, "samples: input should be greater than or equal to 1; found 0"),
        ("bits: 3", "damping: 2", 4, "--damping 2.0: must lie between 0 and 1"),
        ("bits: 3", "budget: 4bpv", 4, "--budget '4bpv': write it as 4.5bpw"),
        ("method: gptq", "method: gpttq", 2, "method: 'gpttq' is unknown; did you mean gptq?"),
        ("{samples: 10}", "{sample: 10}", 9, "verify.sample: unknown; did you mean samples?"),
        ("{samples: 10}", "{max_kl: 1}", 9, "verify.max_kl: unknown"),
        ("{samples: 10}", "3", 9, "verify: write options as name: value; found 3"),
        ("max_kl", "max_kll", 11, "gates.max_kll: unknown; did you mean max_kl?"),
        ("1e-2", "low", 11, "gates.max_kl: write a number; found 'low'"),
        ("bits: 3", "bits: &a 3", 4, "anchors are not read"),
        ("bits: 3", "  bits: 3", 4, "no valid YAML"),
        ("bits: 3", "bits: !!python/name:os.system x", 4, "no valid YAML"),
        ("bits: 3", 'revision: "a\\0b"', 4, "revision: holds a character that no name may have"),
        ("bits: 3", 'keep: ["\\ud800"]', 4, "keep.0: holds a character that no name may have"),
        ("method: gptq", "method: [awq, gptq]", 2, "method: write one of awq, gptq, rtn"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_with_its_place(
    write_yaml: Callable[[str], Path], old: str, new: str, line: int, words: str
) -> None:
    path = write_yaml(GOOD.replace(old, new, 1))
    with pytest.raises(QuantkitError) as error:
        read_recipe(path).options()
    assert str(error.value).startswith(f"{path}:{line}: ") and words in str(error.value), error.value
    assert "\n" not in str(error.value) and "hf_secret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write options as name: value"),
        ("- a", "write options as name: value"),
        ("bits: 3", "method is missing; write method: with one of awq, gptq, rtn, bnb, gguf, imatrix"),
        ("[" * 5000, "no valid YAML"),
        ("method: awq\nskip_bad: !!bool x", "no valid YAML"),
        ("method: awq\nrevision: !!timestamp x", "no valid YAML"),
    ],
)
def test_no_recipe_at_all(write_yaml: Callable[[str], Path], text: str, words: str) -> None:
    with pytest.raises(QuantkitError, match=words):
        read_recipe(write_yaml(text))


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match=r"none\.yaml: cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"method: \xff")
    with pytest.raises(QuantkitError, match="no text in UTF-8"):
        read_recipe(tmp_path / "b.yaml")


# ---- run ------------------------------------------------------------------------------------------------------------


def test_late_errors_name_the_line_and_typed_ones_do_not(
    run: Run, write_yaml: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_yaml("method: gptq\nbits: 5\nkeep: o_porj\n")
    out = ["--out", tmp_path / "out"]
    code, _, errors = run("run", path, *out)
    assert code == 2 and f"{path}:2: --bits 5: GPTQ's layout holds" in errors
    code, _, errors = run("run", path, "--bits", 7, *out)
    assert code == 2 and "error: --bits 7" in errors and str(path) not in errors
    code, _, errors = run("run", path, "--bits", 4, *out)
    assert code == 2 and f"{path}:3: --keep 'o_porj' matches no quantizable linear; did you mean o_proj?" in errors
    code, _, errors = run("run", path, "--bitz", 4, *out)
    assert code == 2 and "No such option: --bitz" in errors
    assert not (tmp_path / "out").exists()


def test_a_recipe_runs_measures_and_keeps_its_limits(
    run: Run, write_yaml: Callable[[str], Path], small_calibration: Path, tmp_path: Path
) -> None:
    text = "method: rtn\nbits: 2\nmethod_format: gptq\nverify: {samples: 8, max_new_tokens: 2}\ngates: {max_kl: 9}\n"
    out = tmp_path / "out"
    code, output, errors = run("run", write_yaml(text), "--out", out)
    assert code == 0 and "PASS" in output, errors
    report = json.loads((out / "report.json").read_text())
    assert report["options"]["samples"] == 8 and report["gates"][0]["limit"] == 9
    told = json.loads((out / "quantkit.json").read_text())
    assert told["recipe"]["method"] == "rtn" and told["recipe"]["bits"] == 2 and told["seconds"]
    code, output, errors = run(
        "run", write_yaml(text.replace("max_kl: 9", "max_kl: 1e-9")), "--out", out, "--overwrite"
    )
    assert code == 3 and "FAIL" in output, errors
    code, output, errors = run("run", write_yaml(text), "--out", tmp_path / "b", "--no-verify")
    assert code == 0 and not (tmp_path / "b" / "report.json").exists(), errors
    code, output, errors = run("run", write_yaml(text), "--out", tmp_path / "c", "--dry-run")
    assert code == 0 and "would write" in output and not (tmp_path / "c").exists(), errors


def test_all_faults_are_told_at_once(run: Run, write_yaml: Callable[[str], Path], tmp_path: Path) -> None:
    path = write_yaml("method: gptq\nbits: x\ngroup_sice: 64\nverify: {sample: 3}\ngates:\n  max_kl: low\n")
    code, _, errors = run("run", path, "--out", tmp_path / "out")
    lines = errors.splitlines()
    assert code == 2 and [line.partition(": ")[2].partition(" ")[0] for line in lines] == [
        f"{path}:{line}:" for line in (2, 3, 4, 6)
    ], errors
    assert all(line.startswith("error: ") for line in lines)


def test_a_flag_of_the_file_can_be_turned_off(run: Run, write_yaml: Callable[[str], Path]) -> None:
    path = write_yaml("method: gptq\nsequential: true\nskip_bad: true\n")
    code, output, errors = run("recipe", "show", path, "--no-sequential", "--resolved")
    assert code == 0 and "sequential: false  # command line" in output and "skip_bad: true  # line 3" in output, errors
    code, _, errors = run("recipe", "show", path, "--no-sequentiel")
    assert code == 2 and "No such option: --no-sequentiel" in errors


def test_an_interrupted_measurement_says_what_is_there(
    run: Run, write_yaml: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["quantkit.cli.recipe"], "measure", stops)
    out = tmp_path / "out"
    code, _, errors = run("run", write_yaml("method: rtn\nverify: {samples: 8}\n"), "--out", out)
    assert code == 130 and f"{out} is written, and not measured: quantkit verify tiny {out}" in errors
    assert "nothing was written" not in errors and (out / "quantkit.json").is_file()


@pytest.mark.parametrize("method", ["gptq", "gguf"])
def test_a_plan_looks_for_the_data(run: Run, method: str, tmp_path: Path) -> None:
    given = [method, "--model", "tiny", "--out", tmp_path / "out", "--dry-run"]
    code, _, errors = run(*given, "--calib", tmp_path / "chats.jsonl")
    assert code == 2 and "chats.jsonl" in errors, errors
    code, _, errors = run(*given, "--eval-data", tmp_path / "held.jsonl")
    assert code == 2 and "held.jsonl" in errors, errors
    assert run(*given)[0] == 0


def test_bad_limits_are_told_before_the_work(run: Run, write_yaml: Callable[[str], Path], tmp_path: Path) -> None:
    path = write_yaml("method: rtn\ngates:\n  min_top1: 98\n")
    code, _, errors = run("run", path, "--out", tmp_path / "out")
    assert code == 2 and f"{path}:2: gates: min_top1: gate min_top1: a share from 0 to 1" in errors
    assert not (tmp_path / "out").exists()


def test_secrets_of_verify_come_from_the_environment(
    write_yaml: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_API_KEY", "sesame")
    found = read_recipe(write_yaml("method: rtn\nverify: {}")).verify_options()
    assert found is not None and found.api_key == "sesame" and "sesame" not in repr(found)


def test_a_folder_hides_no_recipe_that_comes_along(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "awq").mkdir()  # such as an earlier --out awq
    code, shown, errors = run("recipe", "show", "awq")
    assert code == 0 and shown.startswith("method: awq"), errors


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("verify: {engine: vlm}", "given.yaml:2: --engine vlm: unknown; known are"),
        (
            "verify: {engine: [dequantized, dequantized]}",
            "given.yaml:2: --engine: name at least one engine, and none twice",
        ),
        ("verify: {device: cuda:99}", "given.yaml:2: --device cuda:99: torch cannot use it here"),
        ("verify: {data: evening.jsonl}", "given.yaml:2: --data evening.jsonl: no such file or folder"),
        ("verify: {data: ./chats}", "given.yaml:2: --data ./chats: no such file or folder"),
    ],
)
def test_a_bad_measurement_is_told_before_the_work(
    run: Run, write_yaml: Callable[[str], Path], tmp_path: Path, section: str, words: str
) -> None:
    code, _, errors = run("run", write_yaml(f"method: rtn\n{section}\n"), "--out", tmp_path / "out")
    assert code == 2 and words in errors, errors
    assert not (tmp_path / "out").exists()


def test_the_reference_is_the_revision_that_was_quantized(
    run: Run, write_yaml: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit import source

    asked = []

    def download(repo: str, revision: str | None, token: str | None) -> Path:
        asked.append((repo, revision, token))
        return source.tiny_folder()

    monkeypatch.setattr(source, "_download", download)
    monkeypatch.chdir(tmp_path)
    path = write_yaml("method: rtn\nmodel: org/name\nrevision: v2\nverify: {quick: true}\n")
    code, _, errors = run("run", path, "--token", "secret", "--out", tmp_path / "out")
    assert code == 0, errors
    assert len(asked) > 1 and set(asked) == {("org/name", "v2", "secret")}


# ---- reproduce ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory, small_calibration: Path) -> Path:
    from quantkit.quantize import quantize

    out = tmp_path_factory.mktemp("variant") / "tiny-GPTQ"
    given = {"calib": (str(small_calibration),), "samples": 4, "no_cache": True, "out": out, "solver": "gptq"}
    quantize(make_options("gptq", given))
    return out


def copied(variant: Path, place: Path) -> Path:
    shutil.copytree(variant, place / "v")
    return place / "v"


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / "quantkit.json").read_text())
    change(content)
    (folder / "quantkit.json").write_text(json.dumps(content))


def test_a_variant_is_made_again_byte_for_byte(
    run: Run, variant: Path, small_calibration: Path, tmp_path: Path
) -> None:
    folder = copied(variant, tmp_path)
    (folder / "report.json").write_text("{}")  # not of the run
    threads = torch.get_num_threads()
    try:
        given = ["--calib", small_calibration, "--no-cache"]
        code, output, errors = run("reproduce", folder, *given)
        assert code == 0 and "the same bytes" in output and "report.json" not in output, errors
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "chat_template.jinja").unlink()
        edited(folder, lambda content: content["versions"].update(torch="1.0"))
        code, output, errors = run("reproduce", folder, *given, "--keep", tmp_path / "kept")
        assert code == 3, errors
        assert "differs: chat_template.jinja, model.safetensors, quantkit.json" in output
        assert "torch was 1.0" in output and (tmp_path / "kept" / "model.safetensors").exists()
    finally:
        torch.set_num_threads(threads)


def test_what_lay_elsewhere_has_to_be_named(run: Run, variant: Path, random_checkpoint: Path) -> None:
    code, _, errors = run("reproduce", variant)
    assert code == 2 and "does not exist" in errors and "as --calib FILE" in errors
    code, _, errors = run("reproduce", variant, "--model", random_checkpoint)
    assert code == 2 and "is not the tiny that" in errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("recipe"), "recipe.method None is unknown"),
        (lambda content: content["recipe"].update(method="magic"), "recipe.method 'magic' is unknown"),
        (lambda content: content["recipe"].update(bits="4"), "recipe.bits: input should be a valid integer"),
        (lambda content: content["recipe"].update(bitz=4), "recipe.bitz: extra inputs are not permitted"),
    ],
)
def test_a_record_of_another_kind_is_one_line(
    run: Run, variant: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    folder = copied(variant, tmp_path)
    edited(folder, change)
    code, _, errors = run("reproduce", folder)
    assert code == 2 and f"quantkit.json: {words}" in errors, errors


def test_a_folder_that_is_no_variant(run: Run, tmp_path: Path) -> None:
    code, _, errors = run("reproduce", tmp_path)
    assert code == 2 and "quantkit.json: cannot be read" in errors
    (tmp_path / "quantkit.json").write_text("{")
    code, _, errors = run("reproduce", tmp_path)
    assert code == 2 and "quantkit.json: no valid JSON" in errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["recipe"].update(save_stats="mine", overwrite=True), "recipe.overwrite: quantkit rec"),
        (
            lambda content: content["recipe"].update(private_urls=True),
            "recipe.private_urls: quantkit records no places",
        ),
        (lambda content: content["recipe"].update(calib=["bundled", "/home/me"]), "recipe.calib: names a path (/home"),
        (
            lambda content: content["recipe"].update(eval_data="../x.jsonl"),
            "recipe.eval_data: names a path (../x.jsonl)",
        ),
        (lambda content: content["source"].update(revision=3), "source.revision: no text"),
    ],
)
def test_a_hostile_record_reads_and_writes_nothing(
    run: Run, variant: Path, small_calibration: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:  # fmt: skip
    folder = copied(variant, tmp_path)
    edited(folder, change)
    code, _, errors = run("reproduce", folder)
    assert code == 2 and f"quantkit.json: {words}" in errors, errors


def test_odd_versions_and_threads_of_a_record_do_no_harm(variant: Path, tmp_path: Path) -> None:
    from quantkit.reproduce import read_record

    folder = copied(variant, tmp_path)
    for threads in (-1, 0, True, 10**20, "4"):
        edited(folder, lambda content, threads=threads: content.update(threads=threads, versions={"": "1"}))  # type: ignore[misc]
        found = read_record(folder)
        assert found.threads is None and found.other_versions()[""] == ("1", "not installed")


def test_what_reproduce_cannot_do_is_refused(run: Run, variant: Path, tmp_path: Path) -> None:
    folder = copied(variant, tmp_path)
    for given, words in (
        (["--dry-run"], "--dry-run: is not for reproduce"),
        (["--out", tmp_path / "x"], "--out: is not for reproduce"),
        (["--keep", f"{folder}/../v", "--overwrite"], "is what is compared with"),
    ):
        code, _, errors = run("reproduce", folder, *given)
        assert code == 2 and words in errors, errors
    assert (folder / "model.safetensors").is_file()


def test_kept_files_in_the_home_folder_are_compared(
    run: Run, small_calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["--method-format", "gptq", "--bits", 2]
    threads = torch.get_num_threads()
    try:
        assert run("rtn", "--model", "tiny", "--out", tmp_path / "v", *given)[0] == 0
        (tmp_path / "v" / "chat_template.jinja").unlink()
        code, output, errors = run("reproduce", tmp_path / "v", "--keep=~/kept")
    finally:
        torch.set_num_threads(threads)
    assert code == 3 and "differs: chat_template.jinja" in output, errors
    assert (tmp_path / "kept" / "model.safetensors").is_file()
