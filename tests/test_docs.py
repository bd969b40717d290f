"""The documentation: every command runs or at least parses, its output is as shown, and the site builds."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import DOCS, ROOT, Block, blocks, missing_line, needs, spans, words

Run = Callable[..., tuple[int, str, str]]

PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])


# ---- commands that run ----------------------------------------------------------------------------------------------


@dataclass
class Shelf:
    """Where the pages' commands run: one folder for all, so that a variant made on one page serves another."""

    folder: Path
    done: dict[Path, str | None] = field(default_factory=dict)  # page -> its first fault
    names: dict[Path, dict[str, Any]] = field(default_factory=dict)  # page -> what its Python has defined


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("docs")
    for name in ("recipes", "scripts", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    return Shelf(folder)


@pytest.fixture
def inside(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shelf.folder)


@each_page
@pytest.mark.usefixtures("inside")
def test_a_pages_commands_run_and_give_what_it_shows(page: Path, shelf: Shelf, run: Run) -> None:
    sound(run_page(page, shelf, run))


SLOW = [page for page in PAGES if any(block.runs and "slow" in block.marks for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=[str(page.relative_to(DOCS)) for page in SLOW])
@pytest.mark.usefixtures("inside")
def test_slow_commands_run_too(page: Path, shelf: Shelf, run: Run) -> None:
    sound(run_page(page, shelf, run))
    for block in blocks(page):
        if block.runs and "slow" in block.marks:
            sound(run_block(block, shelf, run))


def sound(fault: str | None) -> None:
    if fault is not None:
        pytest.fail(fault, pytrace=False)


def run_page(page: Path, shelf: Shelf, run: Run) -> str | None:
    """Run a page's blocks, those of the pages that it needs before; its first fault."""
    if page in shelf.done:
        return shelf.done[page]
    shelf.done[page] = "needs itself"
    for other in needs(page):
        fault = run_page(other, shelf, run)
        if fault is not None:
            shelf.done[page] = f"needs {other.name}: {fault}"
            return shelf.done[page]
    faults = (run_block(block, shelf, run) for block in blocks(page) if "slow" not in block.marks)
    shelf.done[page] = next((fault for fault in faults if fault is not None), None)
    return shelf.done[page]


def run_block(block: Block, shelf: Shelf, run: Run) -> str | None:
    """Run one block, or write the file that it is; what is wrong with it."""
    if block.title is not None and block.kind in ("yaml", "jsonl"):
        (shelf.folder / block.title).write_text(block.text, encoding="utf-8")
    if not block.runs:
        return None
    if block.kind == "python":
        code, output = run_python(block, shelf.names.setdefault(block.page, {"__name__": "docs"}))
    else:
        code, output = run_shell(block, shelf.folder, run)
    expected = int(block.marks.get("exit", 0))
    if code != expected:
        return f"{block.where}: exit code {code}, not {expected}\n{output}"
    line = missing_line(block.output, output) if block.output is not None else None
    return None if line is None else f"{block.where}: not in the output: {line}\n{output}"


def run_python(block: Block, names: dict[str, Any]) -> tuple[int, str]:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        try:
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
        except BaseException:  # noqa: BLE001 - whatever it is, it is the page's fault and is shown
            return 1, told.getvalue() + traceback.format_exc()
    return 0, told.getvalue()


def run_shell(block: Block, folder: Path, run: Run) -> tuple[int, str]:
    code, told = 0, ""
    for line in block.commands():
        command = line.removeprefix("HF_HUB_OFFLINE=1 ")  # as all tests have it
        if code:
            return code, f"{told}\n(stopped before {command})"
        if command.startswith("quantkit ") and len(words(command)) == 1 and ">" not in command:
            try:
                code, output, errors = run(*words(command)[0][1:])
            except Exception:  # noqa: BLE001 - a bug of the command's, told with the place of its page
                return 1, told + traceback.format_exc()
            told += output + errors
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True, check=False
            )
            code, told = done.returncode, told + done.stdout + done.stderr
    return code, told


def test_output_is_compared_line_by_line() -> None:
    told = "┃ linear ┃ layers ┃\n│ up   │      4 │\nsize 11.5 MB -> 7.5 MB\n"
    assert missing_line("linear layers\nup 4\nsize … 7.5 MB", told) is None
    assert missing_line("up 4\nlinear layers", told) == "linear layers"  # in another order
    assert missing_line("size … 8.5 MB", told) == "size … 8.5 MB"
    assert missing_line("up 5", told) == "up 5"


# ---- commands that parse --------------------------------------------------------------------------------------------


def fenced_commands() -> Iterator[tuple[str, list[str]]]:
    """Every `quantkit ...` in a fenced block of a page or of the README: its place and its words."""
    for page in [*PAGES, README]:
        for block in blocks(page):
            if block.kind not in ("bash", "console", "") or block.marks.get("exit") == "2":
                continue  # a fault that a page shows is run
            for line in block.commands():
                if "quantkit " in line:
                    yield from ((block.where, part[1:]) for part in words(line) if part[0] == "quantkit")


FENCED = list(fenced_commands())
SPANS = [(f"{page.relative_to(ROOT)}", span) for page in [*PAGES, README] for span in spans(page)]


def test_there_are_commands_to_check() -> None:
    assert len(FENCED) > 60 and len(SPANS) > 30
    assert any(where.startswith("README.md") for where, _ in FENCED)


@pytest.mark.parametrize(("where", "arguments"), FENCED, ids=[f"{where} {args[0]}" for where, args in FENCED])
def test_every_option_of_a_command_exists(where: str, arguments: list[str]) -> None:
    del where
    context = parsed(arguments)
    if context.args:  # options of a recipe's method, which `run` and its like pass on
        name, rest = method_of(arguments), list(context.args)
        command(name).make_context(name, rest)


@pytest.mark.parametrize(("where", "span"), SPANS, ids=[f"{where} {span}" for where, span in SPANS])
def test_every_option_of_a_command_in_the_text_exists(where: str, span: str) -> None:
    del where
    names = [[], *leading(span.split()[1:])][-1]
    found = command(*names)
    known = options_of(found)
    if found.context_settings.get("ignore_unknown_options"):
        known |= options_of(command("awq"))
    asked = {part.partition("=")[0] for part in span.split() if re.match(r"--?[a-z]", part)}
    assert asked <= known, f"quantkit {' '.join(names)} has no {sorted(asked - known)}"


def options_of(found: Any) -> set[str]:
    return {name for one in found.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}


def leading(parts: list[str]) -> Iterator[list[str]]:
    """The subcommands at the start: `calib`, then `calib check`."""
    names = []
    for part in parts:
        if part.startswith("-") or not re.fullmatch(r"[a-z-]+", part):
            break
        names.append(part)
        try:
            command(*names)
        except KeyError:
            if len(names) == 1:
                raise
            break
        yield list(names)


def command(*names: str) -> Any:
    """A command or group by its names; KeyError where there is none."""
    found = root()
    for name in names:
        if not hasattr(found, "commands"):
            raise KeyError(name)
        found = found.commands[name]
    return found


@lru_cache(1)
def root() -> Any:
    import typer

    from quantkit.cli import app

    return typer.main.get_command(app)


def parsed(arguments: list[str]) -> Any:
    """The context that click makes of a command line; any fault of it is raised."""
    names = list(leading(arguments))[-1]
    return command(*names).make_context(" ".join(names), arguments[len(names) :])


def method_of(arguments: list[str]) -> str:
    """The method whose options follow a recipe's name: as the file of the repository or of a page has it."""
    titled = {block.title: block.text for page in PAGES for block in blocks(page) if block.title}
    for argument in arguments:
        text = titled.get(argument) or ((ROOT / argument).read_text() if (ROOT / argument).is_file() else "")
        found = re.search(r"^method: (\w+)", text, re.MULTILINE)
        if found:
            return found[1]
    return "awq"


# ---- the site -------------------------------------------------------------------------------------------------------


def test_blocks_of_data_are_sound() -> None:
    import yaml

    for page in PAGES:
        for block in blocks(page):
            if block.kind == "json" and "…" not in block.text:
                json.loads(block.text)
            if block.kind == "yaml":
                assert yaml.safe_load(block.text), block.where


def test_every_page_that_needs_another_names_one_that_is_there() -> None:
    for page in PAGES:
        assert all(other.is_file() for other in needs(page)), page


def test_the_recipes_table_says_what_the_recipes_say() -> None:
    rows = re.findall(
        r"^\| `([\w-]+\.yaml)` \|[^|]+\|([^|]+)\|([^|]+)\|$", (DOCS / "recipes.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 6
    for name, sizes, losses in rows:
        told = (ROOT / "recipes" / name).read_text(encoding="utf-8").splitlines()[2]
        assert all(figure in told for figure in re.findall(r"[\d.]+", sizes + losses)), (name, told)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site needs mkdocs: pip install 'quantkit[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # not --quiet, which keeps warnings from being counted, so that nothing is strict
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site_with_its_formulas(site: Path) -> None:
    for page in PAGES:
        text = (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert "<h1" in text, page
        formulas = re.search(r"^\s*\$\$$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert bool(formulas) == ('display="block"' in text), page
        assert "$$" not in re.sub(r"<pre.*?</pre>|<code>.*?</code>", "", text, flags=re.DOTALL), page


def test_the_parts_of_other_files_are_in_it(site: Path) -> None:
    runtimes = (site / "runtimes.html").read_text(encoding="utf-8")
    assert "xllamacpp" in runtimes and "README.md, Runtimes" not in runtimes
    assert "What quantization costs" in (site / "figures.html").read_text(encoding="utf-8")


def test_what_is_not_run_is_said(site: Path) -> None:
    for page in PAGES:
        text = (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert text.count('class="not-run"') == sum("not run" in block.marks for block in blocks(page)), page


def test_reading_it_fetches_nothing(site: Path) -> None:
    """Links may lead out; pictures, styles, scripts, fonts and frames come from the folder itself."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:img|script|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|data)=\"([^\"]+)\"", text
        )
        for tag in re.findall(r"<link\b[^>]*>", text):
            href = re.search(r'href="([^"]+)"', tag)
            if href and not re.search(r'rel="(?:canonical|next|prev)"', tag):
                loaded.append(href[1])
        outside = [address for address in loaded if re.match(r"(?:https?:)?//", address)]
        assert not outside, f"{path.name}: {outside}"
    for path in site.rglob("*.css"):
        styles = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles), path.name


def test_the_reference_has_the_public_functions(site: Path) -> None:
    for page, names in {
        "verify": ("quantkit.verify.run.verify", "quantkit.verify.report.Report"),
        "quantize": ("quantkit.quantize.quantize", "quantkit.gguf.quantize.quantize_gguf"),
        "methods": ("quantkit.methods.refine.refine", "quantkit.methods.solver.factorise"),
        "formats": ("quantkit.formats.awq.pack", "quantkit.formats.gguf.blocks.unpack"),
    }.items():
        text = (site / "api" / f"{page}.html").read_text(encoding="utf-8")
        assert all(f'id="{name}"' in text for name in names), page
