"""Questions about scenes of the tiny world and their one right answer, in English and Chinese.

A scene knows its frames' objects; `questions` lists every question that the scene answers. Answers are whole
short sentences from closed lists, so exact match is a fair measure.
"""

import random
from dataclasses import dataclass, field

from tinytext import COLOURS, COUNTS, SHAPES, SIDES, WORDS, ZH, a

MOTIONS = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Thing:
    """One drawn object: `kind` is digit, shape or word; centre (`x`, `y`) and side (`size`) in parts of the canvas."""

    kind: str
    name: str
    colour: str
    x: float
    y: float
    size: float
    side: str = "middle"  # left, right, top, bottom or middle, where the layout makes it unambiguous


@dataclass(frozen=True)
class Scene:
    """What is in the picture(s): one list of things a picture or frame."""

    layout: str  # single, side, pair, trio, two_pictures, same, moving, changing
    modality: str  # image, images, video
    frames: tuple[tuple[Thing, ...], ...]
    motion: str = ""
    sources: tuple[str, ...] = field(default=())  # ids of the handwritten digits used


@dataclass(frozen=True)
class Question:
    """One question with its answer."""

    task: str
    language: str
    text: str
    answer: str


def english(thing: Thing) -> str:
    """ "the red star", "the blue 7", "the green word cat"."""
    return f"the {thing.colour} word {thing.name}" if thing.kind == "word" else f"the {thing.colour} {thing.name}"


def chinese(thing: Thing) -> str:
    """The same in Chinese: 红色的星形, 蓝色的7, 绿色的单词cat."""
    name = {"word": f"单词{thing.name}", "shape": ZH.get(thing.name, ""), "digit": thing.name}[thing.kind]
    return f"{ZH[thing.colour]}的{name}"


def sentence(text: str) -> str:
    """The text as a sentence."""
    return text[0].upper() + text[1:] + "."


def name_question(thing: Thing) -> list[Question]:
    """What digit, shape or word a single thing is."""
    name = thing.name
    if thing.kind == "digit":
        return [Question("digit", "en", "What digit is in the picture?", f"The digit is {name}."),
                Question("digit", "en", "Which digit do you see?", f"The digit is {name}."),
                Question("digit", "zh", "图中是什么数字？", f"数字是{name}。")]  # fmt: skip
    if thing.kind == "shape":
        return [Question("shape", "en", "What shape is in the picture?", f"It is {a(name)}."),
                Question("shape", "zh", "图中是什么形状？", f"形状是{ZH[name]}。")]  # fmt: skip
    return [Question("word", "en", "What word is written?", f"It says {name}."),
            Question("word", "zh", "图中写着什么？", f"写着{name}。")]  # fmt: skip


def single_questions(thing: Thing) -> list[Question]:
    """Everything one can ask about a picture with one thing."""
    questions = name_question(thing) + [
        Question("colour", "en", "What colour is it?", f"It is {thing.colour}."),
        Question("colour", "zh", "它是什么颜色？", f"它是{ZH[thing.colour]}。"),
        Question("describe", "en", "What is in the picture?", sentence(english(thing))),
        Question("describe", "zh", "图中有什么？", f"{chinese(thing)}。"),
        Question("count", "en", "How many objects are there?", "There is one."),
        Question("count", "zh", "有几个物体？", "有一个。"),
    ]
    if thing.side in SIDES:
        where = f"It is {place(thing.side)}."
        questions += [
            Question("where", "en", "Where is it?", where),
            Question("where", "zh", "它在哪里？", f"它在{ZH[thing.side]}。"),
        ]
    return questions


def place(side: str) -> str:
    """ "on the left", "at the top"."""
    return f"on the {side}" if side in ("left", "right") else f"at the {side}"


def count_questions(things: tuple[Thing, ...]) -> list[Question]:
    """How many things there are."""
    word = COUNTS[len(things)]
    return [Question("count", "en", "How many objects are there?", f"There are {word}."),
            Question("count", "zh", "有几个物体？", f"有{ZH[word]}。")]  # fmt: skip


def presence_questions(things: tuple[Thing, ...], rng: random.Random) -> list[Question]:
    """Whether a coloured shape is there; right and wrong ones in equal number."""
    shapes = [(t.colour, t.name) for t in things if t.kind == "shape"]
    if not shapes:
        return []
    colour, name = rng.choice(shapes)
    if rng.random() < 0.5:
        other_colour, other_name = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        colour, name = rng.choice(((other_colour, name), (colour, other_name), (other_colour, other_name)))
    there = (colour, name) in shapes
    answer = "Yes, there is." if there else "No, there is not."
    return [Question("yesno", "en", f"Is there {a(colour)} {name}?", answer),
            Question("yesno", "zh", f"有{ZH[colour]}的{ZH[name]}吗？", "有。" if there else "没有。")]  # fmt: skip


def pair_questions(things: tuple[Thing, ...]) -> list[Question]:
    """What is on each side of a picture with two things."""
    questions = []
    for thing in things:
        where = place(thing.side)
        questions += [Question("side", "en", f"What is {where}?", sentence(f"{where} is {english(thing)}")),
                      Question("side", "zh", f"{ZH[thing.side]}是什么？", f"{chinese(thing)}。")]  # fmt: skip
    return questions


def two_picture_questions(scene: Scene) -> list[Question]:
    """Questions that compare two pictures."""
    first, second = scene.frames[0][0], scene.frames[1][0]
    questions = []
    if (first.kind == "digit") != (second.kind == "digit"):
        which, zh = ("first", "一") if first.kind == "digit" else ("second", "二")
        questions += [Question("images", "en", "Which picture has a digit?", f"The {which} one."),
                      Question("images", "zh", "哪张图有数字？", f"第{zh}张。")]  # fmt: skip
    if first.kind == second.kind == "shape":
        same = first.name == second.name
        answer = "Yes, they are." if same else "No, they are not."
        questions += [Question("same", "en", "Are the two shapes the same?", answer),
                      Question("same", "zh", "两个形状一样吗？", "一样。" if same else "不一样。")]  # fmt: skip
    for thing, word, zh in ((first, "first", "一"), (second, "second", "二")):
        answer = f"The {word} picture shows {english(thing)}."
        questions += [Question("images", "en", f"What is in the {word} picture?", answer),
                      Question("images", "zh", f"第{zh}张图有什么？", f"{chinese(thing)}。")]  # fmt: skip
    return questions


def video_questions(scene: Scene) -> list[Question]:
    """Which way a thing moves, or what the first and the last digit of a clip are."""
    if scene.layout == "moving":
        thing, toward = scene.frames[0][0], {"left": "左", "right": "右", "up": "上", "down": "下"}[scene.motion]
        return [Question("video", "en", "Which way does it move?", f"It moves {scene.motion}."),
                Question("video", "zh", "它往哪边动？", f"往{toward}。"),
                Question("video", "en", "What colour is it?", f"It is {thing.colour}."),
                Question("video", "en", "What is in the video?", sentence(english(thing))),
                Question("video", "zh", "视频里有什么？", f"{chinese(thing)}。")]  # fmt: skip
    first, last = scene.frames[0][0].name, scene.frames[-1][0].name
    return [Question("video", "en", "What is the first digit?", f"The first digit is {first}."),
            Question("video", "en", "What is the last digit?", f"The last digit is {last}."),
            Question("video", "zh", "第一个数字是什么？", f"第一个数字是{first}。"),
            Question("video", "zh", "最后的数字是什么？", f"最后的数字是{last}。")]  # fmt: skip


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Every question that the scene answers, in a fixed order (`rng` picks what yes-no questions name)."""
    if scene.modality == "video":
        return video_questions(scene)
    if scene.modality == "images":
        return two_picture_questions(scene)
    things = scene.frames[0]
    if len(things) == 1:
        return single_questions(things[0]) + presence_questions(things, rng)
    sides = pair_questions(things) if scene.layout == "pair" else []
    return count_questions(things) + presence_questions(things, rng) + sides


def phrases() -> list[str]:
    """Every question and answer form with every filler, for the tokenizer's corpus."""
    texts: list[str] = []
    names = [("digit", str(d)) for d in range(10)] + [("shape", s) for s in SHAPES] + [("word", w) for w in WORDS]
    colours = list(COLOURS)
    for index, (kind, name) in enumerate(names):
        for step in range(2):
            thing = Thing(kind, name, colours[(index + step) % len(colours)], 0.5, 0.5, 0.4, SIDES[(index + step) % 4])
            other = Thing(
                "shape", SHAPES[index % 6], colours[(index + 3) % 8], 0.5, 0.5, 0.4, SIDES[(index + step + 2) % 4]
            )
            scenes = [Scene("single", "image", ((thing,),)), Scene("pair", "image", ((thing, other),)),
                      Scene("two_pictures", "images", ((thing,), (other,))),
                      Scene("trio", "image", ((thing, other, other),)),
                      Scene("moving", "video", ((thing,), (thing,)), MOTIONS[index % 4])]  # fmt: skip
            if kind == "digit":
                scenes.append(Scene("changing", "video", ((thing,), (thing,))))
            for scene in scenes:
                texts += [t for q in questions(scene, random.Random(index)) for t in (q.text, q.answer)]
    return texts
