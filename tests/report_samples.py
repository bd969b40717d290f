"""Reports made by hand, plausible in every field, for tests of the pages."""

from __future__ import annotations

import base64
import io
import math
import random
import zlib
from typing import Any

from quantkit.verify.report import Report

MODALITIES = ("text", "image", "images", "video")
LINEARS = {
    False: ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj"),
    True: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
}
QUESTIONS = {
    "en": (
        "What is the total on the receipt?",
        "The total printed at the bottom of the receipt is $48.20, tax included.",
    ),
    "zh": ("图中的招牌上写着什么？", "招牌上写着“老街面馆”，下面一行小字是营业时间：早上七点到晚上九点。"),
    "ar": ("ما لون السيارة في الصورة؟", "السيارة في الصورة حمراء اللون ومتوقفة أمام المبنى."),
}


def picture(seed: int = 0, size: tuple[int, int] = (160, 120)) -> str:
    """A small JPEG data URI."""
    from PIL import Image, ImageDraw

    chance = random.Random(seed)
    canvas = Image.new("RGB", size, tuple(chance.randrange(120, 250) for _ in range(3)))
    draw = ImageDraw.Draw(canvas)
    for _ in range(6):
        x, y = chance.randrange(size[0] - 40), chance.randrange(size[1] - 40)
        colour = tuple(chance.randrange(256) for _ in range(3))
        draw.rectangle((x, y, x + chance.randrange(10, 60), y + chance.randrange(10, 60)), fill=colour)
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def interval(value: float, part: float = 0.15) -> dict[str, float]:
    return {"value": value, "low": value * (1 - part), "high": value * (1 + part * 1.3)}


def tokens(kl: float, number: int = 4000, logits: bool = True) -> dict[str, Any]:
    """Figures at some positions, with the long tail that KL has."""
    top1 = max(0.0, 1 - 1.8 * math.sqrt(kl))
    return {
        "tokens": number, "kl_mean": interval(kl), "kl_p50": kl * 0.09, "kl_p90": kl * 2.4, "kl_p95": kl * 4.6,
        "kl_p99": interval(kl * 14, 0.3), "kl_p999": kl * 55, "kl_max": kl * 190,
        "top1": {"value": top1, "low": top1 - 0.008, "high": min(1.0, top1 + 0.006)}, "top5": max(0.0, top1 - 0.011),
        "rms_dp": math.sqrt(kl) * 0.4, "perplexity_reference": 5.314, "perplexity_candidate": 5.314 * (1 + kl),
        "perplexity_ratio": {"value": 1 + kl, "low": 1 + kl * 0.4, "high": 1 + kl * 1.7},
        "logit_rms": math.sqrt(kl) * 2 if logits else None, "coverage": 1.0 if logits else 0.9721,
    }  # fmt: skip


def group(by: str, value: str, items: int, kl: float, answers: bool = True) -> dict[str, Any]:
    accuracy = {
        "items": items, "metrics": {"exact": items - items // 3, "anls": items // 3}, "reference": 0.7317,
        "candidate": 0.7171, "difference": {"value": -0.0146, "low": -0.0341, "high": 0.0049},
        "mcnemar": {"only_reference": 9, "only_candidate": 3, "p_value": 0.146},
    }  # fmt: skip
    generation = {
        "items": items, "same": {"value": 0.812, "low": 0.774, "high": 0.849}, "diverged_at_median": 11.0,
        "diverged_at_p10": 2.0, "loops_reference": 0, "loops_candidate": 1, "empty_reference": 0, "empty_candidate": 0,
        "unfinished_reference": 3, "unfinished_candidate": 3,
    }  # fmt: skip
    return {
        "by": by, "value": value, "items": items, "ran": items, "answer": tokens(kl, items * 31) if answers else None,
        "prompt": tokens(kl * 1.7, items * 77), "text": tokens(kl * 1.5, items * 108),
        "accuracy": accuracy if answers else None, "generation": generation if answers else None,
    }  # fmt: skip


def layers(blocks: int = 24, vision: int = 27, seed: int = 2) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    found: list[dict[str, Any]] = [
        {"name": f"model.vision_tower.encoder.layers.{i}", "kind": "vision", "layer": i, "error": 2e-7 * (i + 1)}
        for i in range(vision)
    ]
    found.append({"name": "model.merger", "kind": "merger", "layer": None, "error": 3e-6})
    error = 0.0
    for index in range(blocks):
        before, error = error, (error + chance.uniform(0.004, 0.012)) * chance.uniform(0.93, 1.0)
        growth = error - before if index else None
        names = (*LINEARS[index % 4 == 3], "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        prefix = f"model.language_model.layers.{index}"
        for name in names:
            value = before + chance.uniform(0.01, 0.06) * (2 if "out_proj" in name else 1)
            found.append({"name": f"{prefix}.{name}", "kind": "linear", "layer": index, "error": value})
        found.append({"name": prefix, "kind": "block", "layer": index, "error": error, "growth": growth})
    return found


def items(number: int = 410, pictures: int = 12, seed: int = 3) -> list[dict[str, Any]]:
    """Items in the source's order; the worst `pictures` of those with pictures carry them."""
    chance = random.Random(seed)
    made = [_item(index, chance) for index in range(number)]
    for item in sorted(made, key=lambda entry: -entry["kl_answer_mean"])[:pictures]:
        many = {"text": 0, "image": 1}.get(item["modality"], 3)
        item["pictures"] = [picture(zlib.crc32(item["id"].encode()) + i) for i in range(many)]
    return made


def _item(index: int, chance: random.Random) -> dict[str, Any]:
    language = ("en", "en", "zh", "ar")[index % 4]
    prompt, answer = QUESTIONS[language]
    differs = chance.random() < 0.3
    at = chance.randrange(len(answer) // 3, len(answer) - 4) if differs else None
    candidate = (
        answer
        if at is None
        else answer[:at].rsplit(" ", 1)[0] + (" a different ending." if language == "en" else "不同")
    )
    place = None if at is None else next(i for i, (a, b) in enumerate(zip(answer, candidate)) if a != b)  # noqa: B905
    kl = math.exp(chance.gauss(-6.4, 1.3)) * (3 if differs else 1)
    modality = MODALITIES[(index * 7) % 4]
    return {
        "id": f"{modality}-{language}-{index:04d}", "modality": modality, "mode": ("16x", "4x")[index % 2],
        "language": language,
        "prompt": prompt, "answer": answer.split(" ")[-1], "metric": "anls", "reference_text": answer,
        "candidate_text": candidate, "reference_score": 1.0, "candidate_score": 0.0 if differs else 1.0,
        "diverged_at": None if place is None else place // 4, "diverged_at_char": place, "tokens": 90 + index % 60,
        "kl_mean": kl * 1.4, "kl_max": kl * 60, "kl_answer_mean": kl,
    }  # fmt: skip


def histogram(seed: int = 4) -> dict[str, Any]:
    chance = random.Random(seed)
    edges = [-9 + 0.25 * i for i in range(41)]
    counts = {}
    for shift, name in enumerate(MODALITIES):
        bins = [0] * (len(edges) - 1)
        for _ in range(2500):
            value = chance.gauss(-4.4 + 0.3 * shift, 1.2)
            bins[max(0, min(int((value + 9) * 4), len(bins) - 1))] += 1
        counts[name] = bins
    return {"edges": edges, "counts": counts}


def engine(name: str = "dequantized", kl: float = 0.0041, **changes: Any) -> dict[str, Any]:
    steps = {"text": 0.55, "image": 0.9, "images": 1.25, "video": 1.6}
    groups = [group("all", "all", 410, kl)]
    groups += [group("modality", value, 102, kl * steps[value]) for value in MODALITIES]
    groups += [group("mode", value, 205, kl * factor) for value, factor in (("16x", 1.1), ("4x", 0.9))]
    groups += [group("language", value, 137, kl * factor) for value, factor in (("en", 0.9), ("zh", 1.05), ("ar", 1.3))]
    return {
        "name": name, "status": "ran", "kernel": None, "versions": {"torch": "2.8.0", "transformers": "5.23.0"},
        "groups": groups, "layers": layers(), "histogram": histogram(), "items": items(), **changes,
    }  # fmt: skip


def content(**changes: Any) -> dict[str, Any]:
    """A report's JSON: 410 items, two engines that ran and two that did not, all gates passed."""
    real = engine(
        "transformers", 0.0048, kernel="gptqmodel TorchFusedAwqLinear", layers=[], histogram=None,
        versions={"transformers": "5.23.0", "gptqmodel": "7.7.0"}, left_out={"longer than 2048 tokens": 3},
    )  # fmt: skip
    gates = [
        gate("max-kl", "all", 0.02, 0.0049), gate("max-kl", "video", 0.02, 0.0079),
        gate("min-top1", "all", 0.85, 0.877),
        gate("max-accuracy-drop", "all", 0.05, 0.0341),
    ]  # fmt: skip
    left_behind = {"check": "side files", "where": "generation_config.json", "message": "not in the candidate"}
    noise = {"positions": "answer", "items": 64, "tokens": 6912, "kl_p99": 4.1e-4, "kl_max": 2.2e-3, "top1": 0.9931}
    return {
        "schema_version": "2",
        "verdict": {
            "status": "pass",
            "headline": "All 4 gates hold: mean KL 0.0041 nats on answer tokens, top-1 agreement 88.5 %.",
            "lines": ["No integrity error in 18 checks.", "vllm and sglang were not run; see Engines."],
        },
        "reference": model("openbmb/MiniCPM-V-4.6", 2_600_883_424, 16.0),
        "candidate": {
            **model("MiniCPM-V-4.6-AWQ-4bit-g128", 1_921_334_112, 11.82), "bits_per_quantized_weight": 4.16,
            "quantization": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
            "calibration": {
                "fingerprint": "sha256:77aa01", "samples": 128, "tokens": 65_432, "sources": ["bundled", "photos"],
            },
        },
        "data": {
            "source": "heldout", "available": 410, "items": 410, "answers": 410, "fingerprint": "sha256:4be1f0a3c2d9",
            "overlap": "none",
        },
        "options": {
            "engine": ["dequantized", "transformers"], "samples": None, "max_tokens": 2048, "downsample_mode": "both",
            "dtype": "float32", "seed": 0, "generate": True, "max_new_tokens": 64,
        },
        "noise_floor": [
            {"name": "bfloat16", "what": "BF16 against float32", **noise, "kl_mean": 2.1e-5, "logit_rms": 0.021},
            {"name": "batch", "what": "batches of 8 against single", **noise, "kl_mean": 6.3e-6, "logit_rms": 0.008},
        ],
        "cache": {
            "key": "sha256:90ab3c", "hit": True, "bytes": 45_312_998, "positions": 44_280, "bytes_per_position": 1023.3,
            "kl_error_bound": 3.2e-7,
        },
        "integrity": [{"severity": "warning", **left_behind}],
        "checks": ["tensors", "shapes", "finite values", "scales", "zero points", "side files", "skip list"],
        "engines": [
            engine(), real, {"name": "vllm", "status": "not run", "why": "no Python with vLLM was named (--python)"},
            {"name": "sglang", "status": "not run", "why": "no server's address was given (--url)"},
        ],
        "gates": gates,
        "environment": {"quantkit": "0.3.0", "torch": "2.8.0", "python": "3.11.9", "system": "Linux"},
        "seconds": {"integrity": 1.21, "reference": 181.02, "candidate": 190.4, "metrics": 14.6},
        **changes,
    }  # fmt: skip


def model(name: str, size: int, bits: float) -> dict[str, Any]:
    return {
        "name": name, "fingerprint": f"sha256:{abs(len(name) * 7919):016x}", "bytes": size, "parameters": 1_300_428_016,
        "bits_per_weight": bits, "dtype": "bfloat16", "quantization": None,
    }  # fmt: skip


def gate(name: str, where: str, limit: float, value: float | None, passed: bool = True) -> dict[str, Any]:
    words = f"{name} {where}: {value} against a limit of {limit}"
    return {
        "gate": name, "group": where, "engine": "dequantized", "limit": limit, "value": value, "passed": passed,
        "message": words,
    }  # fmt: skip


def sample(**changes: Any) -> Report:
    """The full report."""
    return Report.model_validate(content(**changes))


def failed() -> Report:
    """A ruined candidate: a failed gate, an alarm, an integrity error; four layers; 40 items."""
    ruined = engine(kl=1.98, layers=layers(4, 0), items=items(40))
    finding = {
        "severity": "error",
        "check": "norms",
        "where": "layers.0.input_layernorm",
        "message": "not compensated for its scale",
    }
    verdict = {
        "status": "fail", "headline": "The candidate is ruined: mean KL 1.98 nats on answer tokens.",
        "lines": ["max-kl all: 2.49 exceeds 0.02", "1 alarm: top-1 agreement is below chance"],
    }  # fmt: skip
    alarm = {"severity": "error", "check": "agreement", "where": "all", "message": "top-1 agreement is below 5 %"}
    return sample(
        verdict=verdict, engines=[ruined], integrity=[finding], alarms=[alarm],
        gates=[gate("max-kl", "all", 0.02, 2.49, False), gate("min-top1", "all", 0.85, None, False)],
    )  # fmt: skip


def quick(clear: bool = True) -> Report:
    """`--quick`: the files alone."""
    verdict = {"status": "measured", "headline": "7 integrity checks, nothing found.", "lines": []}
    changes: dict[str, Any] = {"integrity": []} if clear else {}
    return sample(
        verdict=verdict,
        data=None,
        noise_floor=[],
        cache=None,
        engines=[],
        gates=[],
        seconds={"integrity": 0.8},
        **changes,
    )


def bare() -> Report:
    """One item, one group, no answers, no layers, no intervals, KL of zero."""
    zero = {**tokens(0.0, 12), "logit_rms": None}
    alone = {"by": "all", "value": "all", "items": 1, "ran": 1, "answer": None, "prompt": None, "text": zero}
    one = {
        **items(1, 0)[0], "answer": None, "metric": None, "reference_text": None, "candidate_text": None,
        "reference_score": None, "candidate_score": None, "diverged_at": None, "diverged_at_char": None,
        "kl_mean": 0.0, "kl_max": 0.0, "kl_answer_mean": None,
    }  # fmt: skip
    verdict = {"status": "measured", "headline": "No gate was set.", "lines": []}
    result = {"name": "dequantized", "status": "ran", "groups": [alone], "items": [one]}
    return sample(verdict=verdict, engines=[result], noise_floor=[], cache=None, gates=[], integrity=[], checks=[])


def variant(label: str, size: int, kl: float, **changes: Any) -> tuple[str, Report]:
    """A labelled report for a comparison."""
    found = content(**changes)
    found["candidate"] |= {"bytes": size, "bits_per_weight": 8 * size / 1_300_428_016}
    found["engines"] = [engine(kl=kl, items=items(4, 0), layers=[], histogram=None)]
    return label, Report.model_validate(found)


def variants() -> list[tuple[str, Report]]:
    """Eight variants over the usual range."""
    made = (
        ("AWQ 4 bits g128", 1.921e9, 0.0041), ("AWQ 4 bits g64", 1.938e9, 0.0034), ("GPTQ 4 bits", 1.921e9, 0.0046),
        ("AWQ 3 bits", 1.86e9, 0.0287), ("RTN 4 bits g128", 1.921e9, 0.0121), ("AWQ 8 bits", 2.2e9, 0.00021),
        ("GGUF Q4_K_M", 1.637e9, 0.0138), ("bitsandbytes NF4", 1.35e9, 0.031),
    )  # fmt: skip
    return [variant(label, int(size), kl) for label, size, kl in made]
