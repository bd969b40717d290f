"""Read a safetensors checkpoint one tensor at a time, after checking all of it before any work starts.

Opening parses the shards' headers only: names, shapes and dtypes are known without loading a weight (`--dry-run` needs
no more), and neither torch nor transformers is imported. `load` reads one tensor with plain reads into memory that the
caller frees; unlike a memory map this never counts the whole file as resident, and a file that shrinks meanwhile is an
error instead of a SIGBUS. No code of a checkpoint is ever run: no pickles, no *.py.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import tensorfile
from quantkit.errors import QuantkitError
from quantkit.source import Source, resolve
from quantkit.tensorfile import TensorInfo

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("BF16", "F16", "F32")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".index.json")
_PACKED = (".qweight", ".weight_packed", ".weight_scale", ".quant_state.bitsandbytes__nf4", ".absmax")
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_AGAIN = "download or copy the checkpoint again"
# what verify and serve-check write about a checkpoint: no part of it, and written anew by every run
_RECORDS = ("report.json", "report.md", "report.html", "runtimes.json")


def open_checkpoint(
    model: str | Path, revision: str | None = None, token: str | None = None, verify_checksums: bool = True
) -> "Checkpoint":
    """Resolve `tiny`, a folder or a hub id, check the checkpoint and return it; no weight is loaded.

    verify_checksums: compare the files with SHA256SUMS or the hub cache's checksums where there are any (reads every
    byte, about a second a gigabyte; without it a flipped bit in the data is seen only if it makes a NaN or an Inf).
    Raises QuantkitError naming the file and the remedy.
    """
    checkpoint = Checkpoint(resolve(model, revision, token))
    if verify_checksums:
        checkpoint.verify_checksums()
    return checkpoint


class Checkpoint:
    """A folder with config.json, safetensors weights and the side files that a processor needs."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.path = source.path
        self.revision = source.revision
        self.config: dict[str, Any] = _read_config(self.path)
        _check_side_files(self.path)
        self._shards = _find_shards(self.path)
        self._tensors = _read_tensors(self.path, self._shards)
        self.quantization_method = _quantization_method(self.config, self._tensors)
        if not self.is_quantized:
            _check_floats(self._tensors.values())

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are quantized already; `quantization_method` names the method."""
        return self.quantization_method is not None

    @property
    def tensor_names(self) -> list[str]:
        """All tensors' names, shard by shard in the order of the data."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and place of a tensor; QuantkitError with the nearest name if there is none."""
        if name not in self._tensors:
            close = get_close_matches(name, self._tensors, n=1)
            hint = f"; the nearest name is {close[0]}" if close else ""
            raise QuantkitError(f"{self.path}: has no tensor {name}{hint}")
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.info(name).shape

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors spells it: "BF16", "F16", "F32", and in quantized files "I32" etc."""
        return self.info(name).dtype

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor's data in the file."""
        return self.info(name).nbytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors' data, headers not counted."""
        return sum(info.nbytes for info in self._tensors.values())

    def num_parameters(self) -> int:
        """Return the number of stored elements; a head that is tied to the embedding and stored as well counts once."""
        tied = self.config.get("tie_word_embeddings", False)
        total = 0
        for name, info in self._tensors.items():
            if tied and name == _HEAD and any(other.endswith(_EMBEDDING) for other in self._tensors):
                continue
            total += info.nbytes // tensorfile.DTYPES[info.dtype][1]
        return total

    def check_names(self, expected: Iterable[str]) -> None:
        """Raise QuantkitError unless exactly these tensors are there: the one check that sees a flipped bit in a name.

        (An index or a checksum sees it too; a single file without either has no other witness.)
        """
        wanted = dict.fromkeys(expected)
        missing = [name for name in wanted if name not in self._tensors]
        strange = [name for name in self._tensors if name not in wanted]
        if missing:
            self.info(missing[0])
        if strange:
            info = self._tensors[strange[0]]
            raise QuantkitError(f"{info.file}: tensor {info.name} belongs to no part of this model; {_AGAIN}")

    def load(self, name: str, dtype: "torch.dtype | None" = None, check_finite: bool = False) -> "torch.Tensor":
        """Read one tensor into memory of its own, converted to `dtype` where one is given.

        check_finite: raise QuantkitError naming tensor, file and position if an element is NaN or infinite.
        """
        import torch

        info = self.info(name)
        tensor = torch.empty(info.shape, dtype=getattr(torch, tensorfile.DTYPES[info.dtype][0]))
        if info.nbytes:
            array: Any = tensor.view(-1).view(torch.uint8).numpy()
            _read_into(info, memoryview(array))
        if check_finite and tensor.is_floating_point():
            _check_finite(info, tensor)
        return tensor if dtype is None else tensor.to(dtype)

    def fingerprint(self) -> str:
        """Return a SHA-256 over config.json, all names, dtypes and shapes, and a sample of every tensor's bytes.

        Sampled are 1 KiB at 16 places spread over each tensor (all of it up to 16 KiB), so that 2.6 GB take well under
        a second: another model or another training step is always told apart; one changed weight may not be.
        It does not depend on the sharding or on the folder.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self._tensors):
            info = self._tensors[name]
            digest.update(f"\n{name} {info.dtype} {list(info.shape)} ".encode())
            digest.update(_sample(info))
        return digest.hexdigest()

    def verify_checksums(self) -> list[str]:
        """Compare weights and side files with their checksums, where there are any; return the files that had one."""
        names = [*self._shards, "config.json", *(str(path.relative_to(self.path)) for path in self.side_files())]
        return tensorfile.verify_checksums(self.path, names)

    def side_files(self) -> list[Path]:
        """Return every file that a quantized copy takes over as it is, subfolders included, sorted.

        Left out: weights, the shards' index, config.json (the format writes its own), README* (it describes another
        model), reports, SHA256SUMS, *.py (never run, never copied) and hidden files. In a hub cache the files are links
        into the repository's own blobs; any other link that leaves the folder is an error.
        """
        return sorted(_side_files(self.path))

    def copy_side_files(self, folder: Path) -> list[Path]:
        """Copy the side files byte for byte into an existing folder; return what was written."""
        written = []
        for path in self.side_files():
            target = folder / path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            written.append(target)
        return written


# ---- reading ------------------------------------------------------------------------------------------------------


def _read_into(info: TensorInfo, target: memoryview) -> None:
    """Fill `target` with a tensor's bytes."""
    done = 0
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.start)
        while done < len(target):
            count = file.readinto(target[done:])
            if not count:
                raise QuantkitError(f"{info.file}: ends inside tensor {info.name}: it was changed while being read")
            done += count


def _sample(info: TensorInfo, places: int = 16, length: int = 1024) -> bytes:
    """Return `length` bytes from each of `places` places spread over a tensor, its beginning and end among them."""
    last = max(info.nbytes - length, 0)
    starts = [0] if last == 0 else sorted({last * place // (places - 1) for place in range(places)})
    if info.nbytes <= places * length:
        starts, length = [0], info.nbytes
    with info.file.open("rb", buffering=0) as file:
        return b"".join(os.pread(file.fileno(), length, info.start + start) for start in starts)


def is_finite(tensor: "torch.Tensor") -> bool:
    """Whether no element is NaN or infinite; by its least and largest, which takes a third of `isfinite`'s time."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def _check_finite(info: TensorInfo, tensor: "torch.Tensor", chunk: int = 1 << 24) -> None:
    """Raise QuantkitError at the first NaN or Inf, looking at `chunk` elements at a time to stay small."""
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk]
        if is_finite(part):
            continue
        finite = part.isfinite()
        offset = int((~finite).nonzero()[0, 0])
        kind = "NaN" if part[offset].isnan() else "Inf"
        count = f"element {start + offset} of {flat.numel()}"
        raise QuantkitError(f"{info.file}: tensor {info.name} holds {kind} ({count}): damaged or diverged; {_AGAIN}")


# ---- checks on opening --------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = tensorfile.strict_json(path.read_bytes())
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    except ValueError as error:
        raise QuantkitError(f"{path}: no valid JSON ({' '.join(str(error).split())}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise QuantkitError(f"{path}: holds no JSON object; {_AGAIN}")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        raise QuantkitError(f"{folder}: not a checkpoint, it has no config.json; give the folder that holds one")
    return _read_json(folder / "config.json")


def _check_side_files(folder: Path) -> None:
    """Raise QuantkitError naming every file without which no processor can be made, and any that is no JSON."""

    def has(name: str) -> bool:
        return (folder / name).exists()

    missing = []
    if not has("tokenizer.json") and not (has("vocab.json") and has("merges.txt")):
        missing.append("tokenizer.json")
    if not has("tokenizer_config.json"):
        missing.append("tokenizer_config.json")
    if not has("preprocessor_config.json") and not has("processor_config.json"):
        missing.append("preprocessor_config.json (or processor_config.json)")
    if missing:
        raise QuantkitError(f"{folder}: misses {', '.join(missing)}; copy what is missing from the model's hub page")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if has(name):
            _read_json(folder / name)


def _find_shards(folder: Path) -> list[str]:
    """Return the weight files' names: the index's where there is one, else model.safetensors."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if (folder / INDEX).exists():
        shards = sorted(set(_weight_map(folder).values()))
        absent = [name for name in shards if name not in found]
        if absent:
            raise QuantkitError(f"{folder / absent[0]}: named by {INDEX}, but not there; {_AGAIN}")
        if WEIGHTS in found and WEIGHTS not in shards:
            raise QuantkitError(f"{folder}: has {WEIGHTS} and an index of other shards; delete whichever is stale")
        return shards
    if WEIGHTS in found:
        return [WEIGHTS]
    if found:
        raise QuantkitError(f"{folder / INDEX}: missing, though there are shards ({found[0]}, ...); {_AGAIN}")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise QuantkitError(
            f"{folder / pickles[0]}: a pickle can run code when read and is refused; convert it to safetensors first"
        )
    raise QuantkitError(f"{folder}: has no weights, neither {WEIGHTS} nor {INDEX}; {_AGAIN}")


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise QuantkitError(f"{folder / INDEX}: has no weight_map; {_AGAIN}")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise QuantkitError(f"{folder / INDEX}: puts tensor {name} into {shard!r}, no shard's name; {_AGAIN}")
    return weight_map


def _read_tensors(folder: Path, shards: list[str]) -> dict[str, TensorInfo]:
    """Read all headers; check that no tensor is in two shards and that index and shards agree."""
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in tensorfile.read_header(folder / shard).items():
            if name in tensors:
                raise QuantkitError(f"{info.file}: tensor {name} is in {tensors[name].file.name} as well; {_AGAIN}")
            tensors[name] = info
    if not tensors:
        raise QuantkitError(f"{folder}: its weight files hold no tensor; {_AGAIN}")
    if (folder / INDEX).exists():
        weight_map = _weight_map(folder)
        for name, shard in weight_map.items():
            if name not in tensors or tensors[name].file.name != shard:
                raise QuantkitError(f"{folder / INDEX}: tensor {name} should be in {shard}, but is not; {_AGAIN}")
        for name, info in tensors.items():
            if name not in weight_map:
                raise QuantkitError(f"{info.file}: tensor {name} is not in {INDEX}; {_AGAIN}")
    return tensors


def _check_floats(tensors: Iterable[TensorInfo]) -> None:
    for info in tensors:
        if info.dtype not in FLOATS:
            raise QuantkitError(
                f"{info.file}: tensor {info.name} is {info.dtype}; quantkit starts from {', '.join(FLOATS)} weights"
            )


def _quantization_method(config: dict[str, Any], names: Iterable[str]) -> str | None:
    """Return the method's name if the config or a tensor's name says that the weights are quantized."""
    text_config = config.get("text_config")
    for place in (config, text_config if isinstance(text_config, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            found = place.get(key)
            if found:
                method = found.get("quant_method") if isinstance(found, dict) else None
                return str(method or "an unnamed method")
    packed = next((name for name in names if name.endswith(_PACKED)), None)
    return f"an unnamed method (tensor {packed})" if packed else None


# ---- side files ---------------------------------------------------------------------------------------------------


def _side_files(root: Path) -> Iterator[Path]:
    allowed = [root.resolve()]
    if root.resolve().parent.name == "snapshots":
        allowed.append(root.resolve().parent.parent)  # the hub cache: links lead to blobs/ beside snapshots/
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in folders:
            if (Path(parent) / name).is_symlink():
                logger.warning("%s: a link to a folder, not followed", Path(parent) / name)
        for name in names:
            path = Path(parent) / name
            if not _is_side_file(path, top=path.parent == root):
                continue
            if not path.exists():
                raise QuantkitError(f"{path}: a link to a file that is not there; {_AGAIN}")
            if not any(path.resolve().is_relative_to(place) for place in allowed):
                raise QuantkitError(f"{path}: links to a file outside the checkpoint; put the file itself in its place")
            yield path


def _is_side_file(path: Path, top: bool) -> bool:
    name = path.name
    if name.endswith((".py", ".pyc")):
        logger.info("%s: code is never run and not copied", path)
        return False
    if name.startswith((".", "README")) or name == tensorfile.CHECKSUM_FILE or (top and name == "config.json"):
        return False
    if top and name in _RECORDS:
        return False
    return not name.lower().endswith(_PICKLES + _OTHER_WEIGHTS)
