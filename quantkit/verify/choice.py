"""Which option of a multiple-choice question a free text names.

Read in this order, the first that names exactly one option decides:
1. the whole text is a letter ("B", "(b)", "B.") or an option's own text;
2. it states its answer: "the answer is B", "I choose (B)", "选B", "答案是B", "\\boxed{B}", "<answer>B</answer>", a
   line that is a capital letter;
3. it opens with a letter and a mark: "B. The cat", "B: because ...";
4. all option texts and single capital letters that occur in it name one option, and nothing in it negates.

Anything else, several options or none, is no answer. MMMU's and MMBench's own readers guess at random or ask another
model there; a verification must give the same figure twice, and must not pay for rambling.
"""

from __future__ import annotations

import re
import unicodedata

_OPEN, _CLOSE = r"[(\[{<\"'「『【]*", r"[)\]}>\"'」』】]*"
_ALONE_BEFORE, _ALONE_AFTER = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9'])"
_STATES = (
    r"(?:answer|choice)\s*(?:(?:is|would be|should be|must be)\s*:?|:|=)\s*(?:(?:the )?(?:option|letter)\s*)?:?\s*",
    r"(?:choose|chose|select|pick|go with|opt for)\s+(?:(?:the )?(?:option|choice|letter|answer)\s*)?:?\s*",
    r"(?:答案|正确选项|正确的选项)\s*(?:应该|应当|应)?\s*(?:是|为|选)?\s*(?:选项)?\s*:?\s*",
    r"选\s*(?:择|项)?\s*(?:选项)?\s*(?:是|为)?\s*:?\s*",
)
_MORE = re.compile(
    rf"\s*{_CLOSE}\s*(?:,|/|&|;|or\b|and\b|和|或者?|与|、)\s*(?:(?:or|and)\s+)?(?:option\s+)?{_OPEN}([A-Za-z]){_ALONE_AFTER}"
)
_NEGATION = re.compile(r"\b(?:not|neither|nor|none|never|cannot|wrong|incorrect|except|instead of)\b|n't\b|不|非|错|除")
_NEGATED_BEFORE = re.compile(r"(?:\bnot|n't|\bnever|不|别|勿)\s*(?:be\s+|应该?)?$", re.IGNORECASE)
_ARTICLES = {"A": r"(?!\s+(?!is\b|and\b|or\b)[a-z])", "I": r"(?!\s+[a-z])"}  # words as well as letters


def extract_choice(text: str, choices: dict[str, str]) -> str | None:
    """The letter of the one option that `text` names, None where it names none or several.

    `choices`: capital letter -> the option's text.
    """
    plain = _normal(text)
    for read in (_whole, _stated, _leading, _mentioned):
        found = read(plain, choices)
        if found:
            letter = next(iter(found))
            return letter if len(found) == 1 and letter in choices else None
    return None


def _normal(text: str) -> str:
    """Full-width letters and marks as ASCII, without emphasis; LaTeX boxes and answer tags as statements."""
    plain = unicodedata.normalize("NFKC", text).replace("**", "").replace("`", "").replace("’", "'")
    plain = re.sub(r"\$?\\boxed\{\s*(?:\\text\{)?([^{}]*)\}+\$?", r" answer: (\1) ", plain)
    plain = re.sub(r"<answer>\s*(.*?)\s*</answer>", r" answer: (\1) ", plain, flags=re.DOTALL | re.IGNORECASE)
    return plain.strip().strip("*_").strip()


def _bare(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .,:;!?()[]{}<>\"'。、「」")


def _whole(text: str, choices: dict[str, str]) -> set[str]:
    """The text is a letter, or the text of an option (of one only)."""
    bare = _bare(text)
    letters = {letter for letter in choices if letter.lower() == bare}
    return letters or {letter for letter, option in choices.items() if bare and _bare(_normal(option)) == bare}


def _stated(text: str, choices: dict[str, str]) -> set[str]:
    found = {letter for line in text.splitlines() if (letter := line.strip(" .()[]*_")) in choices}
    for pattern in _STATES:
        for match in re.finditer(rf"{pattern}{_OPEN}\s*([A-Za-z]){_ALONE_AFTER}", text, re.IGNORECASE):
            end = match.end()
            if _NEGATED_BEFORE.search(text[: match.start()]) or not _is_letter(match[1], text[end:]):
                continue
            found |= _with_more(match[1], text, end)
    return found & set(choices) or found


def _is_letter(letter: str, rest: str) -> bool:
    """A small letter, or I, is one only before a mark or the end: "answer is a cat" names no option."""
    return (letter.isupper() and letter != "I") or re.match(r"\s*(?:[.,;:)\]}>\"'!。]|$|\n)", rest) is not None


def _leading(text: str, choices: dict[str, str]) -> set[str]:
    """Letters that open a line, followed by a mark; the listing of several options so names several."""
    found: set[str] = set()
    for number, line in enumerate(text.splitlines()):
        match = re.match(rf"\s*(?:[-*]\s+)?{_OPEN}([A-Za-z])(?:{_CLOSE}\s*(?:[.,:;、]|$)|[)\]}}>】]|\s+-\s)", line)
        if match and match[1].upper() in choices and (number == 0 or found):
            found |= _with_more(match[1], line, match.end(1))
    return found & set(choices)


def _with_more(letter: str, text: str, end: int) -> set[str]:
    """The letter and those that are listed right after it: "B or C"."""
    found = {letter.upper()}
    while more := _MORE.match(text, end):
        if not _is_letter(more[1], text[more.end() :]):
            break
        found.add(more[1].upper())
        end = more.end()
    return found


def _mentioned(text: str, choices: dict[str, str]) -> set[str]:
    if _NEGATION.search(text.lower()):
        return set()
    found = set()
    rest = text
    # longest first and then blanked out, so that "red" is not seen within "dark red"
    for letter, option in sorted(choices.items(), key=lambda pair: -len(pair[1])):
        pattern = _option_pattern(_normal(option))
        if pattern is not None and pattern.search(rest):
            found.add(letter)
            rest = pattern.sub(lambda match: "\0" * len(match[0]), rest)
    for letter in choices:
        article = _ARTICLES.get(letter, "")
        if re.search(rf"{_ALONE_BEFORE}{letter}{_ALONE_AFTER}{article}", rest):
            found.add(letter)
    return found


def _option_pattern(option: str) -> re.Pattern[str] | None:
    """The option as whole words, numbers not within longer ones ("3" not in "3.5"); None for a bare letter."""
    option = option.strip(" .")
    if not option or re.fullmatch("[A-Za-z]", option):
        return None
    words = [re.escape(word) for word in option.split()]
    return re.compile(r"(?<![A-Za-z0-9])(?<!\d[.,])" + r"\s+".join(words) + r"(?![A-Za-z0-9])(?![.,]\d)", re.IGNORECASE)
