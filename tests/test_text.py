r"""Answers made fit to be shown: literal \n becomes a line break, and nothing else becomes anything."""

from __future__ import annotations

import re
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.text import (
    CODE,
    MATH,
    TEXT,
    ResponseStream,
    normalize_response_text,
    segments,
    without_controls,
)

# input, output; raw strings hold backslashes as a model writes them
EXAMPLES = {
    "one": (r"one\ntwo", "one\ntwo"),
    "carriage return": (r"one\r\ntwo\r\n\r\nthree", "one\ntwo\n\nthree"),
    "several": (r"a\n\n- b\n- c", "a\n\n- b\n- c"),
    "at the ends": (r"\na\n", "\na\n"),
    "beside real ones": ("a\\n\nb", "a\n\nb"),
    "before a capital": (r"Hello\nWorld", "Hello\nWorld"),
    "before a word that begins like a command": (r"x\nnot y\nabout z\nuse", "x\nnot y\nabout z\nuse"),
    "before Chinese": (r"第一\n第二", "第一\n第二"),
    "a tab stays": (r"a\tb\rc", r"a\tb\rc"),
    "commands": (r"\nabla f \neq 0, \nu, \ne, \notin, \not=", r"\nabla f \neq 0, \nu, \ne, \notin, \not="),
    "a command behind a break": (r"a\n\nabla b", "a\n\\nabla b"),
    "a carriage return before a command": (r"a\r\nabla", r"a\r\nabla"),
    "escaped": (r"print \\n and \\\n", r"print \\n and \\\n"),
    "fence": ("a\\nb\n```py\nx = 'a\\nb'\n```\nc\\nd", "a\nb\n```py\nx = 'a\\nb'\n```\nc\nd"),
    "fence behind a literal break": ("a\\n```\nx\\ny\n```\\nb", "a\n```\nx\\ny\n```\nb"),
    "fence with literal breaks alone": (r"a\n```py\nx\n```\nb\nc", "a\n```py\\nx\\n```\nb\nc"),
    "fence of tildes": ("~~~\na\\nb\n```\n~~~\nc\\nd", "~~~\na\\nb\n```\n~~~\nc\nd"),
    "longer fence": ("````\n```\na\\nb\n```\n````\nc\\nd", "````\n```\na\\nb\n```\n````\nc\nd"),
    "open fence": ("a\\nb\n```\nc\\nd", "a\nb\n```\nc\\nd"),
    "open fence whose first line ends with a literal break": (r"```a\nb `c` d\ne", r"```a\nb `c` d\ne"),
    "inline code": (r"`a\nb` c\nd ``e`\nf`` g\nh", "`a\\nb` c\nd ``e`\\nf`` g\nh"),
    "lone backtick": (r"a ` b\nc", "a ` b\nc"),
    "backtick of another paragraph": ("a ` b\\nc\n\nd ` e\\nf", "a ` b\nc\n\nd ` e\nf"),
    "code before a fence": ("a ` b\\nc\n```\n`d\\ne\n```", "a ` b\nc\n```\n`d\\ne\n```"),
    "escaped backtick": (r"\`a\nb`", "\\`a\nb`"),
    "formulas": (r"$a\nb$ c\nd $$e\nf$$ g\nh", "$a\\nb$ c\nd $$e\\nf$$ g\nh"),
    "formulas of LaTeX": (r"\(a\nb\) c\nd \[e\nf\] g\nh", "\\(a\\nb\\) c\nd \\[e\\nf\\] g\nh"),
    "rows of a formula": (r"\[a \\[2pt] \nb \\ c\n\]\nd", "\\[a \\\\[2pt] \\nb \\\\ c\\n\\]\nd"),
    "prices": (r"$5\nand $6\nor $7", "$5\nand $6\nor $7"),
    "prices with letters": (r"US$5\nto US$6\nor so", "US$5\nto US$6\nor so"),
    "escaped dollar": (r"\$5\nor \$6", "\\$5\nor \\$6"),
    "dollars of two paragraphs": (r"5$.\n\nThen 6$", "5$.\n\nThen 6$"),
    "dollar and code": (r"$5 and `a$b`\nc", "$5 and `a$b`\nc"),
    "open formula": (r"\(a\nb", "\\(a\nb"),
    "path": (r"in C:\new\notes.txt\nNext", "in C:\\new\\notes.txt\nNext"),
    "path behind a break": (r"see:\nC:\new", "see:\nC:\\new"),
    "path and an end of a sentence": (r"in C:\out.\nthe rest", "in C:\\out.\nthe rest"),
    "path and a blank line": (r"in C:\out\n\nthe rest", "in C:\\out\n\nthe rest"),
    "path with blanks": (r"C:\Program Files (x86)\nvidia\bin", r"C:\Program Files (x86)\nvidia\bin"),
    "path of a host": (r"on \\nas\new\nThe rest", "on \\\\nas\\new\nThe rest"),
    "letters that are no drives": (r"Q:\nWhat?\nA:\nIt is.\nabc:\nx", "Q:\nWhat?\nA:\nIt is.\nabc:\nx"),
}


@pytest.mark.parametrize(("text", "expected"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples(text: str, expected: str) -> None:
    assert normalize_response_text(text) == expected


COMMANDS = re.findall(
    r"\w+",
    "nabla natural ncong ne nearrow neg neq newcommand newline newpage nexists ngeq ngtr ni nleftarrow nLeftarrow nleq "
    "nless nmid noindent nolimits nonumber norm normalsize not notag notin nparallel nprec nrightarrow nsim nsubseteq "
    "nsucc nsupseteq ntriangleleft nu nvdash nVDash nwarrow",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_stays_and_a_longer_word_is_none(name: str) -> None:
    for behind in ("", " x", "{x}", "_1", "^2", "\\", "1", ".", "好"):
        assert normalize_response_text(f"a \\{name}{behind}") == f"a \\{name}{behind}"
    # every command that begins with another is listed, so a letter that continues none shows the boundary
    assert normalize_response_text(f"a\\{name}Q") == f"a\n{name[1:]}Q"


# ---- properties -----------------------------------------------------------------------------------------------------

# whatever decides, cut finely enough that it meets in every order
TOKENS = [
    *("\\n", "\\r\\n", "\\", "\\\\", "\n", "\n\n", "\\n\\n", "\\nabla", "\\neq", "\\t", "\\rho", "n", "r", "u"),
    *("`", "``", "```", "````", "~~~", "    ", " ", "\t", "$", "$$", "\\$", "\\(", "\\)", "\\[", "\\]", "\\`"),
    *("a", "Word", "5", ".", "好", "C:", "C:\\new", "\\\\host", " Files", "C:\\Program", " (x86)", "abla", "q"),
]
messy = st.lists(st.sampled_from(TOKENS), max_size=40).map("".join)
anything = st.one_of(messy, st.text(max_size=80), st.text("\\nr`$()[] \nab5~C:", max_size=60))


@given(st.text().map(lambda text: text.replace("\\", "")))
def test_text_without_a_backslash_is_unchanged(text: str) -> None:
    assert normalize_response_text(text) == text


@settings(max_examples=1500)
@given(anything)
def test_twice_is_once(text: str) -> None:
    once = normalize_response_text(text)
    assert normalize_response_text(once) == once


@settings(max_examples=500)
@given(anything)
def test_only_literal_breaks_change(text: str) -> None:
    r"""Read side by side, both texts are the same letters but where \n or \r\n stands against a line break."""
    result = normalize_response_text(text)
    places = {0}  # where the output may be after so much of the input
    literals = ("\\r\\n", "\\n")
    at_input = [set[int]() for _ in range(len(text) + 1)]
    at_input[0] = places
    for at in range(len(text)):
        for out in at_input[at]:
            if out < len(result) and result[out] == text[at]:
                at_input[at + 1].add(out + 1)
            for literal in literals:
                if text.startswith(literal, at) and out < len(result) and result[out] == "\n":
                    at_input[at + len(literal)].add(out + 1)
    assert len(result) in at_input[len(text)]


words = st.lists(st.sampled_from(["One", "two", "3.", "好的", "(x)", "a-b"]), min_size=1, max_size=4).map(" ".join)
inner = st.lists(st.sampled_from(["x", "\\n", "\\nabla", "\\r\\n", " y", "{2}", "\\t", "1"]), max_size=6).map("".join)
fenced = st.tuples(st.sampled_from(["```", "~~~", "`````"]), st.sampled_from(["", "py"]), inner).map(
    lambda one: f"\n{one[0]}{one[1]}\n{one[2]}\n{one[0]}\n"
)
protected = st.one_of(
    fenced,
    inner.map(lambda body: f" `x{body}` "),
    inner.map(lambda body: f" ``x{body} ` y`` "),
    inner.filter(lambda body: "\\n\\n" not in body and "\\r\\n" not in body).map(lambda body: f" $x{body}x$ "),
    inner.map(lambda body: f" $${body}$$ "),
    inner.map(lambda body: f" \\({body}\\) "),
    inner.map(lambda body: f" \\[{body}\\] "),
    st.sampled_from([" C:\\new\\name ", " \\\\nas\\new ", " \\\\n ", " \\nabla ", " \\nu+\\neq "]),
)
plain = st.lists(st.one_of(words, st.sampled_from(["\\n", "\\r\\n"])), max_size=6)


@settings(max_examples=400)
@given(st.lists(st.tuples(plain, protected), max_size=5), plain)
def test_protected_regions_are_byte_identical_and_the_rest_is_converted(
    body: list[tuple[list[str], str]], rest: list[str]
) -> None:
    def meant(pieces: list[str]) -> str:
        return "".join("\n" if piece in ("\\n", "\\r\\n") else piece for piece in pieces)

    text = "".join("".join(pieces) + region for pieces, region in body) + "".join(rest)
    expected = "".join(meant(pieces) + region for pieces, region in body) + meant(rest)
    assert normalize_response_text(text) == expected


@settings(max_examples=1000)
@given(anything, st.data())
def test_a_stream_cut_anywhere_gives_the_same_text(text: str, data: st.DataObject) -> None:
    stream, out, at = ResponseStream(), "", 0
    while at < len(text):
        size = data.draw(st.sampled_from([1, 1, 2, 3, 7, 40]))
        out += stream.feed(text[at : at + size])
        assert normalize_response_text(text).startswith(out)
        at += size
    assert out + stream.finish() == normalize_response_text(text)


LONG = {
    "fence that is none": "` a\\n\n```" + "x" * 60 + "` ` b\\nc",
    "long command": r"$a\n\ntrianglerighteq b$ c\nd",
    "long path": r"in C:\Program Files (x86)\nvidia\nThe rest",
}


@pytest.mark.parametrize("text", [*(text for text, _ in EXAMPLES.values()), *LONG.values()], ids=[*EXAMPLES, *LONG])
@pytest.mark.parametrize("size", [1, 5])
def test_a_stream_letter_by_letter(text: str, size: int) -> None:
    stream = ResponseStream()
    out = "".join(stream.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert out + stream.finish() == normalize_response_text(text)


def test_a_stream_gives_what_is_settled_at_once() -> None:
    stream = ResponseStream()
    assert stream.feed("The digit ") == "The digit "
    assert stream.feed("is 5.\\") == "is 5."  # what follows decides
    assert (
        stream.feed("nNext, a sentence that is long enough to settle it")
        == "\nNext, a sentence that is long enough to settle it"
    )
    assert stream.feed(" `code") == " "
    assert stream.feed("\\n") == ""  # held until the code ends
    assert (
        stream.feed("` and then a sentence that is long enough") == "`code\\n` and then a sentence that is long enough"
    )
    assert stream.finish() == ""


def test_segments_tell_kinds_and_add_up() -> None:
    text = "a\\nb `c` $d$ \\(e\\)\n```\nf\n```\ng"
    found = list(segments(text))
    assert [piece for kind, piece in found if kind == MATH] == ["$d$", "\\(e\\)"]
    assert [piece for kind, piece in found if kind == CODE] == ["`c`", "```\nf\n```"]
    assert "".join(piece for _, piece in found) == normalize_response_text(text)
    assert {kind for kind, _ in found} == {TEXT, CODE, MATH}


@pytest.mark.parametrize("unit", ["`", "$a ", "\\(", "\\[ ", "``` ``", "$$", "C:\\new ", "\\n`", "\n```a`", "$\\n\\n"])
def test_long_texts_take_no_square_of_their_length(unit: str) -> None:
    text = "\\n" + unit * (100_000 // len(unit))
    began = time.perf_counter()
    normalize_response_text(text)
    assert time.perf_counter() - began < 10  # 0.2 s; a square takes minutes


# ---- control characters ---------------------------------------------------------------------------------------------


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    clean = without_controls(text)
    assert not any((ord(letter) < 32 and letter not in "\n\t") or 127 <= ord(letter) < 160 for letter in clean)
    assert without_controls(clean) == clean


def test_what_is_no_control_character_stays() -> None:
    text = string.printable.replace("\r", "").replace("\x0b", "").replace("\x0c", "") + "é好👍\u200d👩"
    assert without_controls(text) == text
    assert without_controls("a\r\nb\x1b[31mc\x9b2Jd\x07\u202ee\ud800") == "a\nb[31mc2Jde"
