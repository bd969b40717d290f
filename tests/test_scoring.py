"""Scores of answers: each rule by hand, edit distance and overlap against naive oracles, and nothing is guessed."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.calibration.conversations import METRICS as NAMES
from quantkit.errors import QuantkitError
from quantkit.verify.choice import extract_choice
from quantkit.verify.scoring import METRICS, levenshtein, overlap, parse_box, score

CHOICES = {"A": "the dog", "B": "the cat", "C": "vitamin C", "D": "3"}


def test_the_names_that_rows_may_use_are_the_metrics_there_are():
    assert tuple(METRICS) == NAMES


def test_bad_arguments():
    with pytest.raises(QuantkitError, match="unknown metric 'bleu'; known: exact"):
        score("bleu", "a", ["a"])
    with pytest.raises(QuantkitError, match="metric 'anls' needs at least one accepted answer"):
        score("anls", "a", [])
    with pytest.raises(QuantkitError, match="needs the item's choices"):
        score("choice", "A", ["A"])
    with pytest.raises(QuantkitError, match="no box of four numbers"):
        score("iou", "[0, 0, 1, 1]", ["somewhere"])


def test_exact():
    assert score("exact", " It is blue.\n", ["It is blue."]) == 1
    assert score("exact", "It is blue", ["It is blue."]) == 0
    assert score("exact", "b", ["a", "b "]) == 1


# ---- ANLS ----

ANLS = [
    ("hello", ["hello"], 1.0),
    ("HELLO  world\n", ["hello world"], 1.0),
    ("hallo", ["hello"], 0.8),
    ("hel", ["hello"], 0.6),
    ("he", ["hello"], 0.0),  # 3 of 5 away
    ("ab", ["abcd"], 0.0),  # exactly one half is not below the threshold
    ("abc", ["abcde", "abcd"], 0.75),  # the best answer counts
    ("", ["a"], 0.0),
    ("", [""], 1.0),
]


@pytest.mark.parametrize(("text", "accepted", "expected"), ANLS)
def test_anls(text, accepted, expected):
    assert score("anls", text, accepted) == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_levenshtein_is_the_recursion_of_its_definition(first, second):
    @functools.cache
    def naive(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        replaced = naive(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(replaced, naive(i - 1, j) + 1, naive(i, j - 1) + 1)

    assert levenshtein(first, second) == naive(len(first), len(second))


# ---- relaxed ----

RELAXED = [
    ("100", "100", 1),
    ("105", "100", 1),
    ("95.0", "100", 1),
    ("105.1", "100", 0),
    ("94.9", "100", 0),
    ("-100", "100", 0),
    ("0", "0", 1),
    ("0.001", "0", 0),
    ("1,234", "1234", 1),
    ("1 234", "1,234.0", 1),
    ("12,345,678", "12345678", 1),
    ("1,5", "1.5", 0),  # a decimal comma is no number
    ("5%", "5", 1),
    ("5 percent", "5%", 1),
    ("0.05", "5%", 1),
    ("50%", "0.05", 0),
    ("5%", "500%", 0),
    ("3.2 million", "3.2", 1),
    ("3,200,000", "3.2 million", 1),
    ("3.2 billion", "3.2 million", 0),
    ("2 millions", "2,000,000", 1),
    ("12 km", "12", 1),
    ("12 km", "12 kg", 0),
    ("$12", "12", 1),
    ("$12", "€12", 0),
    ("12 €", "12", 1),
    ("Blue.", "blue", 1),
    ("light blue", "blue", 0),
    ("It is 12", "12", 0),  # ChartQA's answers are the number alone
    ("nan", "nan", 1),
    ("inf", "100", 0),
]


@pytest.mark.parametrize(("text", "answer", "expected"), RELAXED)
def test_relaxed(text, answer, expected):
    assert score("relaxed", text, [answer]) == expected
    assert score("relaxed", text, ["something else", answer]) == expected


# ---- choices ----

NAMED = [
    ("B", "B"),
    ("b", "B"),
    (" (B) ", "B"),
    ("B.", "B"),
    ("[b]", "B"),
    ("**B**", "B"),
    ("Ｂ", "B"),
    ("（B）", "B"),
    ("B. the cat", "B"),
    ("B) the cat", "B"),
    ("(B) the cat", "B"),
    ("B: it is not a dog", "B"),
    ("b. the cat", "B"),
    ("The answer is B", "B"),
    ("The answer is (B).", "B"),
    ("The correct answer is: B, as dogs bark.", "B"),
    ("Answer: B", "B"),
    ("**Answer:** B", "B"),
    ("the answer is b.", "B"),
    ("The correct choice is option B", "B"),
    ("I would go with B because A dog is larger.", "B"),
    ("The animal is no dog, so the answer is B.", "B"),
    ("The answer is A because it barks", "A"),
    (r"Thus $\boxed{B}$", "B"),
    (r"\boxed{\text{B}}", "B"),
    ("<answer>B</answer>", "B"),
    ("I see whiskers.\nB", "B"),
    ("选B", "B"),
    ("选择B。", "B"),
    ("答案是B", "B"),
    ("答案为：B", "B"),
    ("正确答案：（B）", "B"),
    ("正确选项是B，因为它有胡须", "B"),
    ("the cat", "B"),
    ("The cat.", "B"),
    ("It must be the cat", "B"),
    ("I think it is B", "B"),
    ("Option B is correct", "B"),
    ("A is correct", "A"),
    ("It is vitamin C", "C"),
    ("There are 3 of them", "D"),
    # nothing or several: no guess
    ("", None),
    ("E", None),
    ("The answer is E, unlike A", None),
    ("I do not know", None),
    ("The answer is B or C", None),
    ("B, C", None),
    ("B and C", None),
    ("选B和C", None),
    ("Either the dog or the cat", None),
    ("A. the dog\nB. the cat\nC. vitamin C\nD. 3", None),
    ("It is not B", None),
    ("不选B", None),
    ("I would not choose B", None),
    ("The answer is a fish", None),
    ("A fish", None),
    ("The answer is A. No, the answer is B.", None),
    ("Bad", None),
    ("There are 3.5 of them", None),
    ("33", None),
    ("concatenate", None),
]


@pytest.mark.parametrize(("text", "letter"), NAMED)
def test_the_option_that_a_text_names(text, letter):
    assert extract_choice(text, CHOICES) == letter


def test_choice_texts():
    colours = {"A": "red", "B": "dark red", "C": "红色", "D": "深红色"}
    assert extract_choice("It looks dark red to me", colours) == "B"
    assert extract_choice("它是红色的", colours) == "C"
    assert extract_choice("它是深红色的", colours) == "D"
    assert extract_choice("same", {"A": "same", "B": "same"}) is None
    assert extract_choice("I see I. Newton", {letter: letter * 3 for letter in "ABCDEFGHI"}) == "I"
    assert extract_choice("I think it is H", {letter: letter * 3 for letter in "ABCDEFGHI"}) == "H"


def test_choice_scores_letters_and_texts():
    assert score("choice", "(B)", ["B"], CHOICES) == 1
    assert score("choice", "(B)", ["the cat"], CHOICES) == 1
    assert score("choice", "(B)", ["A", "B"], CHOICES) == 1
    assert score("choice", "(B)", ["A"], CHOICES) == 0
    assert score("choice", "perhaps", ["A"], CHOICES) == 0


YES_NO = [
    ("Yes", "Yes", 1),
    ("Yes, there is no cat.", "Yes", 1),
    ("no.", "No", 1),
    ("No, it is.", "Yes", 0),
    ("There is no cat.", "No", 1),
    ("I know.", "No", 0),
    ("It may be yes or no.", "Yes", 0),
    ("Unclear", "No", 0),
    ("是的", "Yes", 1),
    ("不是", "No", 1),
    ("没有", "Yes", 0),
]


@pytest.mark.parametrize(("text", "answer", "expected"), YES_NO)
def test_yes_and_no(text, answer, expected):
    assert score("yesno", text, [answer]) == expected


# ---- OCRBench and MMMU ----


def test_contains():
    assert score("contains", "The sign says CENTRE.", ["centre", "center"]) == 1
    assert score("contains", "The sign\nsays", ["sign says"]) == 1
    assert score("contains", "cent re", ["centre"]) == 0
    assert score("contains", "anything", [" "]) == 0


def test_formula_drops_blanks_and_keeps_case():
    assert score("formula", "It is \\frac { a } { B }\n+ 1", ["\\frac{a}{B} + 1"]) == 1
    assert score("formula", "\\frac{a}{b}+1", ["\\frac{a}{B}+1"]) == 0
    assert score("contains", "\\frac { a } { B }", ["\\frac{a}{B}"]) == 0


OPEN = [
    ("24.32", ["24.32"], 1),
    ("The total is 1,024.", ["1024"], 1),
    ("x = 3.141", ["3.14"], 1),
    ("x = 3.2", ["3.14"], 0),
    ("We add 5 and 7.\nSo the answer is 12.", ["12"], 1),
    ("We add 5 and 7.\nSo the answer is 12.", ["5"], 0),  # not in the phrase that concludes
    ("The result is an oak tree", ["oak"], 1),
    ("The result is an elm", ["oak", "elm"], 1),
    ("It is y", ["y"], 1),
    ("It is yellow", ["y"], 0),
    ("I cannot say", ["12"], 0),
]


@pytest.mark.parametrize(("text", "accepted", "expected"), OPEN)
def test_open_questions(text, accepted, expected):
    assert score("open", text, accepted) == expected


# ---- boxes ----

BOXES = [
    ("[10, 20, 30, 40]", (10, 20, 30, 40)),
    ("The box is [10,20,30,40] in x1, y1, x2, y2.", (10, 20, 30, 40)),
    ("<ref>cat</ref><box>10 20 30 40</box>", (10, 20, 30, 40)),
    ("(10,20),(30,40)", (10, 20, 30, 40)),
    ('[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]', (10, 20, 30, 40)),
    ("0.1, .2, 0.3, 0.4", (0.1, 0.2, 0.3, 0.4)),
    ("[-5, 0, 5, 5]", (-5, 0, 5, 5)),
    ("[30, 20, 10, 40]", None),
    ("[10, 20, 30]", None),
    ("no box", None),
]


@pytest.mark.parametrize(("text", "box"), BOXES)
def test_boxes_are_read(text, box):
    assert parse_box(text) == box


def test_iou_by_hand_and_its_threshold():
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert score("iou", "[0, 0, 100, 50]", ["[0, 0, 100, 100]"]) == 1  # exactly one half
    assert score("iou", "[0, 0, 100, 49]", ["[0, 0, 100, 100]"]) == 0
    assert score("iou", "none", ["[0, 0, 100, 100]"]) == 0


def test_a_box_counts_in_the_scales_that_the_item_lists():
    accepted = ["[100, 200, 500, 600]", "[0.1, 0.2, 0.5, 0.6]"]
    assert score("iou", "[0.1, 0.2, 0.5, 0.6]", accepted) == 1
    assert score("iou", "[100, 200, 500, 600]", accepted) == 1
    assert score("iou", "[0.1, 0.2, 0.5, 0.6]", accepted[:1]) == 0
    assert score("iou", "[64, 96, 320, 288]", accepted) == 0  # the same in the pixels of 640 x 480


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=8, max_size=8))
def test_overlap_counts_pixels(numbers):
    boxes = []
    for left, top, right, bottom in (numbers[:4], numbers[4:]):
        boxes.append((left, top, right + left + 1, bottom + top + 1))
    cells = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in boxes]
    assert overlap(*boxes) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))
