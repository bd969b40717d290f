"""The whole card in one language: metadata, what it is, sizes, loss, runtimes, use, fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantkit.card.evidence import KNOWN
from quantkit.card.facts import Facts
from quantkit.card.finetune import finetune_sections
from quantkit.card.loss import headline, interval, loss_section
from quantkit.card.markup import code, fence, front_matter, table, text
from quantkit.card.section import base, said, title
from quantkit.card.sizes import QUANTIZED, SOURCE_BYTES, FileSize, PartSize, stored
from quantkit.card.texts import Language, Texts
from quantkit.card.use_folder import folder_sections
from quantkit.card.use_gguf import gguf_sections
from quantkit.card.variant import PROVENANCE, part
from quantkit.integrity.inventory import grouped
from quantkit.report.figures import MISSING, bits, count, plain, share, size
from quantkit.tensorfile import CHECKSUM_FILE

if TYPE_CHECKING:
    from quantkit.verify.report import Report

_NAMED = 12  # kept linears before a count takes over
# options worth a line, in this order; what is off or none is left out
_OPTIONS = (
    "method", "method_format", "type", "mmproj_type", "bits", "group_size", "symmetric", "solver", "mixture", "preset",
    "budget", "budget_bits", "budget_types", "tensor_type", "tune", "scales", "keep", "double_quant", "compute_dtype",
    "downsample_mode", "seed",
)  # fmt: skip


def render(facts: Facts, language: Language) -> str:
    """A card as Markdown, metadata first; the English and the Chinese one say the same."""
    t = Texts(language)
    sections: list[tuple[int, str, str]] = [
        (2, t("what"), _what(facts, t)),
        (2, t("how"), _how(facts, t)),
        (2, t("size"), "\n\n".join(_sizes(facts, file, t) for file in facts.files)),
        (2, t("loss"), loss_section(facts, t)),
        (2, t("runtimes"), _runtimes(facts, t)),
        (2, t("use"), ""),
        *((3, heading, body) for heading, body in (*folder_sections(facts, t), *gguf_sections(facts, t))),
        (2, t("tune"), ""),
        *((3, heading, body) for heading, body in finetune_sections(facts, t)),
        (2, t("check"), fence("bash", f"sha256sum -c {CHECKSUM_FILE}")),
        (2, t("licence"), _licence(facts, t)),
    ]
    parts = [
        front_matter(metadata(facts)),
        f"# {text(facts.name)}",
        t("languages"),
        _intro(facts, t),
        _glance(facts, t),
    ]
    parts += [f"{'#' * level} {heading}" + (f"\n\n{body}" if body else "") for level, heading, body in sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(facts: Facts) -> dict[str, Any]:
    """What the hub reads; only what is known."""
    tags = ["quantkit", "minicpm-v", "multimodal", *_tags(facts)]
    return {
        "base_model": facts.base.repo,
        "base_model_relation": "quantized" if facts.base.repo else None,
        "license": facts.licence,
        "pipeline_tag": "image-text-to-text",
        "library_name": "gguf" if facts.variant.is_gguf else "transformers",
        "tags": tags,
    }


def _tags(facts: Facts) -> list[str]:
    widths = dict.fromkeys(row.bits for file in facts.files for row in file.inventory.linears if row.layout != "plain")
    found = [f"{width}-bit" for width in widths if width is not None and not facts.variant.is_gguf]
    return ["llama.cpp", "gguf"] if facts.variant.is_gguf else [facts.variant.method, *found]


# ---- the top ------------------------------------------------------------------------------------------------------


def _intro(facts: Facts, t: Texts) -> str:
    version = facts.record.get("quantkit")
    known = base(facts)
    if facts.base.revision:
        known += t("bracket", value=t("revision", revision=code(facts.base.revision[:12])))
    values = {"name": code(facts.name), "base": known, "version": text(version) if version else t("unknown_version")}
    if facts.variant.is_gguf:
        return t("intro_gguf", types=text(t.list(_types(facts))), **values)
    ways = [t.stored(way) for way in facts.bits()]
    shown = " / ".join(ways) if len(ways) <= 3 else " / ".join([*ways[:3], "..."])
    return t("intro", bits=text(shown or "?"), method=text(facts.method), **values)


def _types(facts: Facts) -> list[str]:
    """What llama.cpp calls the text files."""
    from quantkit.gguf.inventory import GgufInventory

    found = [file.inventory for file in facts.texts]
    return [one.facts.file_type or "?" for one in found if isinstance(one, GgufInventory)]


def _glance(facts: Facts, t: Texts) -> str:
    rows = []
    here, source = sum(file.file_bytes for file in facts.files), facts.source_bytes
    if source and len(facts.texts) <= 1 and len(facts.visions) <= 1:
        value = t("glance_size_value", here=size(here), source=size(source), share=share(here / source))
    else:
        value = t("glance_size_alone", here=size(here))
    rows.append([t("glance_size"), value])
    found = headline(facts)
    if found is None:
        rows.append([t("glance_loss"), t("glance_loss_none")])
    else:
        report, figures, items = found
        several = len(facts.evidence.measured) > 1
        data = MISSING if report.data is None else code(report.data.source)
        values = {"kl": interval(figures.kl_mean), "top1": interval(figures.top1, share), "items": items, "data": data}
        about = t("bracket", value=code(facts.evidence.measured[0].covers[0])) if several else ""
        rows.append([t("glance_loss"), t("glance_loss_value", **values) + about])
    for one in facts.evidence.measured:
        verdict = one.report.verdict
        words = t(f"verdict_{verdict.status}", count=len(one.report.gates), headline=text(verdict.headline))
        if len(facts.evidence.measured) > 1:
            words += t("bracket", value=t.list([code(name) for name in one.covers]))
        rows.append([t("glance_verdict"), words])
    return table(["", t("glance")], rows, left=2)


# ---- what and how -------------------------------------------------------------------------------------------------


def _what(facts: Facts, t: Texts) -> str:
    files = facts.texts if facts.variant.is_gguf else facts.files
    parts = [part for file in files for part in _file(facts, file, t)]
    if facts.variant.is_gguf:
        parts.append(t("side_files_gguf"))
    elif any(_copied(one.report) for one in facts.evidence.measured):
        parts.append(t("side_files"))
    return "\n\n".join(parts)


def _copied(report: Report) -> bool:
    """Whether verify compared the side files with the source's and found nothing."""
    return "side files" in report.checks and not any(found.check == "side files" for found in report.integrity)


def _file(facts: Facts, file: FileSize, t: Texts) -> list[str]:
    found = file.inventory
    key = "what_intro"
    if facts.variant.is_gguf:
        key = "what_plain_gguf" if found.bits_per_quantized_weight is None else "what_intro_gguf"
    intro = t(key, file=code(file.name), density=bits(found.bits_per_quantized_weight))
    rows = [
        [code(row.kind), str(len(members)), text(t.stored(stored(row))), _shape(row.out_features, row.in_features),
         bits(row.bits_per_weight) if row.out_features else MISSING]
        for row, members in grouped(found.linears)
    ]  # fmt: skip
    headings = [t(f"col_{name}") for name in ("linear", "layers", "stored", "shape", "bits")]
    stayed = [_named(one, t) for one in file.parts if one.what != QUANTIZED]
    if facts.variant.is_gguf:
        visions = [code(vision.name) for vision in facts.visions]
        closing = t("stayed_gguf", parts=t.list(stayed) or t("stayed_none"),
                    visions=t.list(visions) or t("stayed_none"))  # fmt: skip
    else:
        closing = t("stayed", parts=t.list(stayed) or t("stayed_none"))
    return [intro, table(headings, rows), closing, *([t("kept", names=_some(found.kept, t))] if found.kept else [])]


def _shape(out: int, inputs: int) -> str:
    return f"{out} × {inputs}" if out else MISSING


def _named(one: PartSize, t: Texts) -> str:
    return t("stayed_part", what=text(t.part(one.what)), stored=text(t.stored(one.stored)))


def _some(names: list[str], t: Texts) -> str:
    shown = [code(name) for name in names[:_NAMED]]
    if len(names) > _NAMED:
        shown.append(t("more", count=len(names) - _NAMED))
    return t.list(shown)


def _how(facts: Facts, t: Texts) -> str:
    record = facts.record
    if not record:
        return t("how_record_none", file=code(PROVENANCE))
    options = part(record, "recipe")
    method = options.get("method") or record.get("format") or "?"
    rows = [[t("how_method"), text(plain(method))]]
    shown = [f"{name} {plain(options[name])}" for name in _OPTIONS if _says(options.get(name)) and name != "method"]
    rows.append([t("how_options"), text("; ".join(shown)) or MISSING])
    rows.append([t("how_calibration"), _calibration(record, t)])
    if part(record, "seconds"):
        rows.append([t("how_seconds"), text(plain(record["seconds"]))])
    if record.get("threads") is not None:
        rows.append([t("how_threads"), text(plain(record["threads"]))])
    rows.append([t("how_versions"), text(plain(part(record, "versions")))])
    return f"{table(['', t('how')], rows, left=2)}\n\n{t('how_record', file=code(PROVENANCE))}"


def _says(value: Any) -> bool:
    return value is not None and value is not False and value not in ([], "", 0)


def _calibration(record: dict[str, Any], t: Texts) -> str:
    found = part(record, "calibration")
    if not found.get("fingerprint"):
        return t("how_imatrix") if record.get("imatrix") else t("how_calibration_none")
    sources = found.get("sources")
    names = [str(one.get("source")) for one in sources if isinstance(one, dict)] if isinstance(sources, list) else []
    return t(
        "how_calibration_value", samples=text(plain(found.get("samples"))), tokens=text(plain(found.get("tokens"))),
        sources=t.list([code(name) for name in names]) or "?", fingerprint=code(str(found["fingerprint"])[:12]),
    )  # fmt: skip


# ---- sizes and runtimes -------------------------------------------------------------------------------------------


def _sizes(facts: Facts, file: FileSize, t: Texts) -> str:
    each = SOURCE_BYTES[facts.source_dtype]
    rows = [_size_row(text(t.part(one.what)), text(t.stored(one.stored)), one, each) for one in file.parts]
    rows.append(_size_row(f"**{t('total')}**", "", file.whole, each))
    headings = [t(f"col_{name}") for name in ("part", "stored", "weights", "source", "here", "bits")]
    intro = f"{code(file.name)}\n\n" if facts.variant.is_gguf else ""
    intro += t("size_intro", dtype=text(facts.source_dtype))
    return f"{intro}\n\n{table(headings, rows, left=2)}\n\n{t('size_file', size=size(file.file_bytes))}"


def _size_row(what: str, how: str, one: PartSize, each: int) -> list[str]:
    return [what, how, count(one.weights), size(one.in_source(each)), size(one.bytes), bits(one.bits)]


def _runtimes(facts: Facts, t: Texts) -> str:
    """A list of tasks: the hubs draw ticks."""
    lines = []
    for runtime in KNOWN:
        runs = facts.evidence.runs[runtime]
        lines.append(f"- [{'x' if runs else ' '}] {t('pair', what=title(runtime, t), value=said(runs, t))}")
    return f"{t('runtimes_intro')}\n\n" + "\n".join(lines)


def _licence(facts: Facts, t: Texts) -> str:
    if facts.licence:
        return t("licence_known", licence=code(facts.licence))
    return t("licence_unknown", base=base(facts))
