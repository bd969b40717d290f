"""Opening and reading checkpoints: what safetensors itself reads, and one clear line for every fault."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, EMBEDDING, raw_file, read_index, some_tensors, write_checkpoint, write_index
from safetensors import safe_open
from safetensors.torch import save_file

from quantkit import checkpoint as checkpoint_module
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError

SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
A = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", shards=2)


def fault(folder: Path) -> str:
    """The message with which opening fails: one line that names something in the folder."""
    with pytest.raises(QuantkitError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# ---- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
def test_reads_what_safetensors_reads(tmp_path: Path, shards: int) -> None:
    folder = write_checkpoint(
        tmp_path, {**some_tensors(), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}, shards=shards
    )
    checkpoint = open_checkpoint(folder)
    seen = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - not a dict
                expected = reader.get_tensor(name)
                found = checkpoint.load(name)
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)
                assert checkpoint.shape(name) == tuple(expected.shape)
                assert checkpoint.dtype(name) == reader.get_slice(name).get_dtype()
                assert checkpoint.nbytes(name) == expected.nbytes
                seen += 1
    assert seen == len(checkpoint.tensor_names) == 6
    assert checkpoint.total_bytes == 8 * 6 * 2 + 2 * 5 * 6 * 2 + 3 * 4 + 4
    assert checkpoint.num_parameters() == 48 + 60 + 3 + 1


def test_reads_integer_tensors_of_a_quantized_model(tmp_path: Path) -> None:
    tensors = {
        "a.qweight": torch.arange(-3, 9, dtype=torch.int32).view(3, 4),
        "a.scales": torch.tensor([1.5], dtype=torch.float16),
        "a.codes": torch.arange(7, dtype=torch.uint8),
        "a.signed": torch.arange(-3, 4, dtype=torch.int8),
        "a.wide": torch.tensor([1 << 40]),
        "a.flag": torch.tensor([True, False]),
    }
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, {"quantization_config": {"quant_method": "awq"}}))
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.load(name), tensor)


def test_load_converts_and_does_not_share_memory(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    tensor = checkpoint.load(EMBEDDING, dtype=torch.float32)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, some_tensors()[EMBEDDING].float())
    checkpoint.load(EMBEDDING).zero_()
    assert torch.equal(checkpoint.load(EMBEDDING), some_tensors()[EMBEDDING])


def test_tied_head_counts_once(tmp_path: Path) -> None:
    tensors = {EMBEDDING: torch.zeros(4, 2), "lm_head.weight": torch.zeros(4, 2), "norm": torch.zeros(2)}
    assert open_checkpoint(write_checkpoint(tmp_path / "tied", tensors)).num_parameters() == 10
    untied = write_checkpoint(tmp_path / "untied", tensors, {"tie_word_embeddings": False})
    assert open_checkpoint(untied).num_parameters() == 18


def test_opening_imports_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; import quantkit.output; from quantkit.checkpoint import open_checkpoint\n"
        "c = open_checkpoint(sys.argv[1]); c.num_parameters(); c.fingerprint(); c.side_files()\n"
        "print([name for name in ('torch', 'transformers', 'safetensors', 'huggingface_hub') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_tensor_names_the_nearest(folder: Path) -> None:
    with pytest.raises(
        QuantkitError, match=r"no tensor model\.language_model\.embed_tokens; the nearest.*embed_tokens\.weight"
    ):
        open_checkpoint(folder).load("model.language_model.embed_tokens")


def test_check_names(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    names = checkpoint.tensor_names
    checkpoint.check_names(names)
    with pytest.raises(QuantkitError, match=r"has no tensor model\.language_model\.layers\.2\.mlp"):
        checkpoint.check_names([*names, "model.language_model.layers.2.mlp.up_proj.weight"])
    with pytest.raises(QuantkitError, match=rf"model\.safetensors: tensor {names[-1]} belongs to no part"):
        checkpoint.check_names(names[:-1])


def test_file_that_shrinks_meanwhile(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 40)
    with pytest.raises(QuantkitError, match="ends inside tensor"):
        checkpoint.load(checkpoint.tensor_names[-1])


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (float("-inf"), "Inf")])
def test_not_finite(tmp_path: Path, value: float, kind: str) -> None:
    tensors = some_tensors()
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    tensors[name][2, 1] = value
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors))
    assert not torch.isfinite(checkpoint.load(name)).all()
    assert checkpoint.load(EMBEDDING, check_finite=True).isfinite().all()
    with pytest.raises(QuantkitError, match=rf"model\.safetensors: tensor {name} holds {kind} \(element 13 of 30\)"):
        checkpoint.load(name, check_finite=True)


def test_not_finite_is_found_beyond_the_first_chunk(folder: Path) -> None:
    info = open_checkpoint(folder).info(EMBEDDING)
    tensor = torch.zeros(48)
    tensor[37] = float("nan")
    with pytest.raises(QuantkitError, match="element 37 of 48"):
        checkpoint_module._check_finite(info, tensor, chunk=10)


# ---- damaged weight files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        pytest.param(
            {"a": A, "b": B}, b"x" * 15, r"truncated, \d+ bytes found, \d+ expected; download", id="truncated"
        ),
        pytest.param({"a": A, "b": B}, b"x" * 17, r"\d+ bytes found, the header describes \d+; download", id="longer"),
        pytest.param(b'{"a": {', b"", r"header is damaged \(Expecting", id="json"),
        pytest.param(b'{"a": {}}\xff', b"", r"header is damaged \('utf-8'", id="utf-8"),
        pytest.param([1], b"", "no JSON object", id="list"),
        pytest.param(b"[" * 100_000, b"", "nested too deeply", id="deep"),
        pytest.param(b'{"a": 1, "a": 1}', b"", "a is there twice", id="twice"),
        pytest.param({"a": {"dtype": "BF16"}}, b"", "tensor a: the header entry is damaged", id="entry"),
        pytest.param({"a": dict(A, dtype="BG16")}, b"x" * 8, "tensor a: unknown dtype 'BG16'", id="dtype"),
        pytest.param({"a": dict(A, dtype=[])}, b"x" * 8, r"tensor a: unknown dtype \[\]", id="dtype-list"),
        pytest.param({"a": dict(A, shape=[2, -2])}, b"x" * 8, "tensor a: the header entry is damaged", id="negative"),
        pytest.param({"a": dict(A, shape=[2, 2.0])}, b"x" * 8, "tensor a: the header entry is damaged", id="fraction"),
        pytest.param({"a": dict(A, data_offsets=[8])}, b"x" * 8, "tensor a: the header entry is damaged", id="offsets"),
        pytest.param({"a": dict(A, shape=[2, 3])}, b"x" * 8, r"takes 12 bytes, the header gives 8", id="size"),
        pytest.param({"a": dict(A, data_offsets=[8, 16])}, b"x" * 16, "a gap before a", id="gap"),
        pytest.param({"a": A, "b": dict(B, data_offsets=[4, 12])}, b"x" * 12, "an overlap before b", id="overlap"),
        pytest.param(
            {"__metadata__": {"format": "mlx"}, "a": A}, b"x" * 8, "the header says format 'mlx'", id="format"
        ),
        pytest.param({"__metadata__": {"format": 1}, "a": A}, b"x" * 8, "__metadata__ holds no texts", id="metadata"),
        pytest.param({}, b"", "hold no tensor", id="nothing"),
        pytest.param(
            {"a": dict(A, dtype="I16")}, b"x" * 8, "tensor a is I16; quantkit starts from BF16", id="integers"
        ),
    ],
)
def test_bad_header(folder: Path, header: object, data: bytes, message: str) -> None:
    raw_file(folder / "model.safetensors", header, data)
    with pytest.raises(QuantkitError, match=message):
        open_checkpoint(folder)
    assert "model.safetensors" in fault(folder) or not header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, 0 bytes found, at least 8 expected"),
        (b"\x10\0\0", "truncated, 3 bytes found, at least 8 expected"),
        (b"\x10\0\0\0\0\0\0\0{}", "truncated, 10 bytes found, the header alone needs 24"),
        (b"\xff" * 16, "a header of 18446744073709551615 bytes is announced"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer, not the weights"),
    ],
)
def test_bad_beginning(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert message in fault(folder)


def test_every_flipped_bit_of_a_header_is_seen(tmp_path: Path) -> None:
    """With an index: each flip is refused, or it leaves all tensors' names, shapes, dtypes and values as they were."""
    tensors = {"layers.0.w": torch.ones(2, 3).bfloat16(), "layers.1.w": torch.zeros(4, dtype=torch.float16)}
    folder = write_checkpoint(tmp_path, tensors, shards=2)
    path = folder / SHARD_1
    good = path.read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    harmless = set()
    for position in range(length):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                checkpoint = open_checkpoint(folder)
            except QuantkitError:
                continue
            assert {name: checkpoint.shape(name) for name in tensors} == {"layers.0.w": (2, 3), "layers.1.w": (4,)}
            assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in tensors.items())
            harmless.add(position)
    start = good.index(b"format")
    assert len(good) - 12 == length
    assert harmless <= set(range(start, start + len(b"format"))), "only the key of the metadata says nothing"


def test_flipped_bit_in_a_name_of_a_single_file(folder: Path) -> None:
    names = open_checkpoint(folder).tensor_names
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"layers.1.mlp", b"layers.3.mlp"))
    with pytest.raises(QuantkitError, match=r"has no tensor model\.language_model\.layers\.1\.mlp"):
        open_checkpoint(folder).check_names(names)


# ---- index and shards ---------------------------------------------------------------------------------------------


def test_shard_is_missing(sharded: Path) -> None:
    (sharded / SHARD_2).unlink()
    assert f"{SHARD_2}: named by model.safetensors.index.json, but not there" in fault(sharded)


def test_index_is_missing(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert "model.safetensors.index.json: missing, though there are shards (model-00001-of" in fault(sharded)


def test_index_names_a_tensor_that_is_nowhere(sharded: Path) -> None:
    write_index(sharded, {**read_index(sharded), "model.ghost": SHARD_1})
    assert f"tensor model.ghost should be in {SHARD_1}, but is not" in fault(sharded)


def test_index_names_the_wrong_shard(sharded: Path) -> None:
    weight_map = read_index(sharded)
    wrong = SHARD_2 if weight_map[EMBEDDING] == SHARD_1 else SHARD_1
    write_index(sharded, {**weight_map, EMBEDDING: wrong})
    assert f"tensor {EMBEDDING} should be in {wrong}, but is not" in fault(sharded)


def test_index_lacks_a_tensor(sharded: Path) -> None:
    weight_map = read_index(sharded)
    shard = weight_map.pop(EMBEDDING)
    write_index(sharded, weight_map)
    assert f"{shard}: tensor {EMBEDDING} is not in model.safetensors.index.json" in fault(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    tensors = some_tensors()
    other = next(name for name, shard in read_index(sharded).items() if shard == SHARD_2)
    save_file({EMBEDDING: tensors[EMBEDDING], other: tensors[other]}, sharded / SHARD_2)
    assert f"{SHARD_2}: tensor {EMBEDDING} is in {SHARD_1} as well" in fault(sharded)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/x.safetensors", "model.bin", 3])
def test_index_leads_elsewhere(sharded: Path, shard: object) -> None:
    write_index(sharded, {**read_index(sharded), EMBEDDING: shard})  # type: ignore[dict-item]
    assert f"puts tensor {EMBEDDING} into {shard!r}" in fault(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_index_is_broken(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in fault(sharded)


def test_single_file_beside_an_index_of_others(sharded: Path) -> None:
    save_file(some_tensors(), sharded / "model.safetensors")
    assert "has model.safetensors and an index of other shards" in fault(sharded)


# ---- folders that are no checkpoint -------------------------------------------------------------------------------


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "not a checkpoint, it has no config.json" in fault(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no valid JSON"), ("[1]", "holds no JSON object"), ('{"a": 1, "a": 2}', "a is there twice")],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_broken_json(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    assert f"{name}: " in fault(folder)
    assert message in fault(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_missing_side_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"misses {name}" in fault(folder)


def test_all_missing_side_files_in_one_line(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    message = fault(folder)
    assert (
        "misses tokenizer.json, tokenizer_config.json, preprocessor_config.json (or processor_config.json);" in message
    )


def test_side_files_under_their_other_names(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    assert "misses tokenizer.json" in fault(folder)
    (folder / "merges.txt").write_text("a b\n")
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    open_checkpoint(folder)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin: a pickle can run code when read and is refused" in fault(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights, neither model.safetensors nor" in fault(folder)


def test_weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "model.safetensors.index.json: missing" in fault(folder)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"bits": 4}}, "an unnamed method"),
        ({"quantization_config": None}, None),
        ({}, None),
    ],
)
def test_quantized_by_config(tmp_path: Path, config: dict[str, object], method: str | None) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config={**CONFIG, **config}))
    assert checkpoint.quantization_method == method
    assert checkpoint.is_quantized == (method is not None)


@pytest.mark.parametrize("suffix", ["qweight", "weight_packed"])
def test_quantized_by_tensor_name(tmp_path: Path, suffix: str) -> None:
    tensors = {f"a.{suffix}": torch.zeros(2, 2, dtype=torch.int32)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors))
    assert checkpoint.quantization_method == f"an unnamed method (tensor a.{suffix})"


# ---- side files ---------------------------------------------------------------------------------------------------


def test_side_files_and_their_copies(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copied = {
        "LICENSE": b"terms\r\n",
        "vocab.txt": b"\xff\x00",
        "templates/tools.jinja": b"{{ tools }}",
        "templates/deep/config.json": b"{}",
    }
    left = [".gitattributes", ".cache/x.json", "README.md", "modeling_x.py", "sub/tool.py", "__pycache__/x.pyc"]
    left += [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "x.pt",
        "x.gguf",
        "sub/extra.safetensors",
        "SHA256SUMS",
    ]
    for name, content in {**copied, **dict.fromkeys(left, b"")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    checkpoint = open_checkpoint(folder)
    expected = {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"}
    expected |= {"chat_template.jinja", *copied}
    caplog.set_level("INFO")
    assert {str(path.relative_to(folder)) for path in checkpoint.side_files()} == expected
    assert "modeling_x.py: code is never run and not copied" in caplog.text
    target = tmp_path / "copy"
    target.mkdir()
    assert len(checkpoint.copy_side_files(target)) == len(expected)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == expected
    assert all((target / name).read_bytes() == (folder / name).read_bytes() for name in expected)


def test_link_out_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "notes.txt").symlink_to("../secret.txt")
    assert "notes.txt: links to a file outside the checkpoint" in fault(folder)
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to("chat_template.jinja")
    assert folder / "notes.txt" in open_checkpoint(folder).side_files()


def test_link_to_nothing(folder: Path) -> None:
    (folder / "notes.txt").symlink_to("nowhere.txt")
    assert "notes.txt: a link to a file that is not there" in fault(folder)


def test_linked_folder_is_not_followed(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.json").write_text("{}")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert all(path.parent == folder for path in open_checkpoint(folder).side_files())
    assert "linked: a link to a folder, not followed" in caplog.text


# ---- checksums and fingerprint ------------------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja", "config.json"])
def test_checksum_file(folder: Path, name: str) -> None:
    lines = [
        f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in sorted(os.listdir(folder))
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
    assert len(open_checkpoint(folder).verify_checksums()) == len(lines)
    if name == "config.json":
        (folder / name).write_text((folder / name).read_text() + " ")
    else:
        flip_last_byte(folder / name)
    assert f"{name}: damaged or changed, its bytes do not match SHA256SUMS" in fault(folder)
    open_checkpoint(folder, verify_checksums=False)


def test_checksum_file_is_broken(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("\n<html>\n")
    assert "SHA256SUMS: line 2 is no checksum line" in fault(folder)


def test_no_checksums_nothing_verified(folder: Path) -> None:
    assert open_checkpoint(folder).verify_checksums() == []


def test_fingerprint(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(300, 300), "b": torch.randn(4), "c": torch.randn(6, 2)}
    first = open_checkpoint(write_checkpoint(tmp_path / "1", tensors)).fingerprint()
    assert first == open_checkpoint(write_checkpoint(tmp_path / "2", tensors, shards=2)).fingerprint()

    def changed(number: int, tensors: dict[str, torch.Tensor], config: dict[str, object] | None = None) -> str:
        return open_checkpoint(write_checkpoint(tmp_path / f"c{number}", tensors, config)).fingerprint()

    others = {changed(0, {"A": tensors["a"], "b": tensors["b"], "c": tensors["c"]})}
    others.add(changed(1, tensors, {**CONFIG, "x": 1}))
    others.add(changed(2, {**tensors, "c": tensors["c"].view(2, 6)}))
    others.add(changed(3, {**tensors, "c": tensors["c"].view(torch.int32).view(torch.float32) * 1.0001}))
    for number, place in enumerate([(0, 0), (299, 299)]):
        weights = tensors["a"].clone()
        weights[place] += 1
        others.add(changed(10 + number, {**tensors, "a": weights}))
    others.add(changed(20, {**tensors, "a": tensors["a"] * 1.001}))
    assert len(others - {first}) == 7


def test_fingerprint_covers_small_tensors_completely(tmp_path: Path) -> None:
    weights = torch.zeros(64, 64)
    prints = set()
    for index in range(0, 4096, 163):
        changed = weights.clone()
        changed.view(-1)[index] = 1
        prints.add(open_checkpoint(write_checkpoint(tmp_path / str(index), {"a": changed})).fingerprint())
    assert len(prints) == len(range(0, 4096, 163))


def test_config_is_parsed(folder: Path) -> None:
    assert open_checkpoint(folder).config == json.loads((folder / "config.json").read_text())
    assert open_checkpoint(str(folder)).name == "model"
