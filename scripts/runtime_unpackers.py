"""Unpacks every AWQ weight of a checkpoint with gptqmodel's and compressed-tensors' readers; hashes what they find.

    python runtime_unpackers.py JOB.json RESULT.json        # job: {"model": folder}

Both are the format's own readers, so equal hashes mean that quantkit's `unpack` sees the same integers and scales. Only
these two packages, torch and safetensors are imported. Exit status 3: one of them is missing.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

EXIT_MISSING = 3
Packed = tuple[Tensor, Tensor, Tensor]  # qweight int32 [in, out/8], qzeros int32 [groups, out/8], scales [groups, out]
Unpacked = tuple[Tensor, Tensor, Tensor]  # codes [out, in], zeros [out, groups], scales [out, groups]


def digest(codes: Tensor, zeros: Tensor, scales: Tensor) -> str:
    """SHA-256 over codes [out, in] and zeros [out, groups] as bytes and scales [out, groups] as they are stored."""
    result = hashlib.sha256()
    for tensor in (codes.to(torch.uint8), zeros.to(torch.uint8), scales):
        result.update(f"{tensor.dtype};{tuple(tensor.shape)};".encode())
        result.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def unpack_gptqmodel(packed: Packed, bits: int) -> Unpacked:
    """gptqmodel's reading of one weight."""
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq

    qweight, qzeros, scales = packed
    codes, zeros = reverse_awq_order(*unpack_awq(qweight, qzeros, bits), bits)
    return codes.T, zeros.T, scales.T


def unpack_compressed_tensors(packed: Packed, bits: int) -> Unpacked:
    """compressed-tensors' reading of one weight; its converter counts codes from -2^(bits-1), hence the shift."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    qweight, qzeros, scales = packed
    rows, out = qweight.shape[0], scales.shape[1]
    converter = AutoAWQConverter(bits=bits, group_size=rows // scales.shape[0], zero_point=True, ignore=())
    found = converter.process({"linear.qweight": qweight, "linear.qzeros": qzeros, "linear.scales": scales})
    half = 2 ** (bits - 1)
    codes = unpack_from_int32(found["linear.weight_packed"], bits, torch.Size((out, rows)))
    shape = torch.Size((out, scales.shape[0]))
    zeros = unpack_from_int32(found["linear.weight_zero_point"], bits, shape, packed_dim=0)
    return codes.to(torch.int32) + half, zeros.to(torch.int32) + half, found["linear.weight_scale"]


READERS: dict[str, Callable[[Packed, int], Unpacked]] = {
    "gptqmodel": unpack_gptqmodel,
    "compressed-tensors": unpack_compressed_tensors,
}


def packed_weights(folder: Path) -> Iterator[tuple[str, Packed]]:
    """Every packed linear of a checkpoint, in order of its name; raises if one of its three tensors is missing."""
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file)
    for name in sorted(place.removesuffix(".qweight") for place in places if place.endswith(".qweight")):
        triple = []
        for suffix in ("qweight", "qzeros", "scales"):
            with safe_open(places[f"{name}.{suffix}"], "pt") as tensors:
                triple.append(tensors.get_tensor(f"{name}.{suffix}"))
        yield name, (triple[0], triple[1], triple[2])


def main(job_path: str, result_path: str) -> int:
    """Hash what each reader finds; returns the exit status."""
    folder = Path(json.loads(Path(job_path).read_text(encoding="utf-8"))["model"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bits = config["quantization_config"]["bits"]
    result: dict[str, dict[str, Any]] = {}
    try:
        for reader, unpack in READERS.items():
            result[reader] = {name: digest(*unpack(packed, bits)) for name, packed in packed_weights(folder)}
    except ImportError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_MISSING
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
