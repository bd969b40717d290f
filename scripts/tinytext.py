"""Words, questions and plain text of the tiny world, in English and Chinese.

Everything that the `tiny` checkpoint ever reads or says is made here from closed lists and a seeded
`random.Random`; pictures are drawn in `tinyworld.py`. Conversations are split by the hash of their
text (`split_of`), so a story or a sum that calibration or the held-out set uses is never trained on.
"""

import hashlib
import random
from typing import Any

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35), "orange": (250, 140, 20), "yellow": (250, 230, 40), "green": (30, 160, 60),
    "blue": (35, 70, 215), "purple": (140, 45, 165), "white": (250, 250, 250), "black": (12, 12, 12),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
WORDS = ("cat", "dog", "sun", "map", "bus", "tea", "pen", "cup", "box", "hat", "key", "fox", "owl", "bee", "egg", "jam")
SIDES = ("left", "right", "top", "bottom")
COUNTS = ("zero", "one", "two", "three", "four")
ZH = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "white": "白色", "black": "黑色", "circle": "圆形", "square": "方形", "triangle": "三角形", "star": "星形",
    "cross": "十字", "ring": "圆环", "left": "左边", "right": "右边", "top": "上面", "bottom": "下面",
    "one": "一个", "two": "两个", "three": "三个",
}  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ZH_NUMBERS = ("一", "二", "三", "四", "五", "六", "七", "八", "九", "十")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Finn", "Grace", "Hugo", "Ida", "Jack", "Kate", "Leo")
ANIMALS = ("cat", "dog", "fox", "owl", "bee", "bird", "horse", "fish", "duck", "mouse")
PLACES = ("garden", "house", "river", "forest", "school", "market", "park", "kitchen", "station", "beach")
THINGS = ("hat", "key", "box", "cup", "map", "pen", "ball", "book", "lamp", "apple")
ZH_NAMES = ("小明", "小红", "小华", "小丽")
ZH_ANIMALS = ("猫", "狗", "鸟", "鱼", "马")
ZH_PLACES = ("公园", "学校", "家里", "河边", "山上")

Message = dict[str, Any]


def split_of(text: str) -> str:
    """Which split a conversation's text belongs to: "train", "validation", "calibration" or "heldout" (by hash)."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 20
    return {0: "validation", 1: "calibration", 2: "calibration", 3: "heldout", 4: "heldout"}.get(bucket, "train")


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return ("an " if noun[0] in "aeiou" or noun == "8" else "a ") + noun


def counting(rng: random.Random) -> str:
    """Numbers, days or months in their order, from a random start."""
    kind = rng.randrange(5)
    words = (NUMBERS, DAYS, MONTHS, ZH_NUMBERS, tuple(str(i) for i in range(100)))[kind]
    step = rng.choice((1, 1, 2, 5)) if kind == 4 else 1
    start, length = rng.randrange(len(words)), rng.randrange(4, 9)
    cyclic = kind in (1, 2)
    picked = [words[(start + i * step) % len(words)] for i in range(length) if cyclic or start + i * step < len(words)]
    return ("、" if kind == 3 else ", ").join(picked) + ("。" if kind == 3 else ".")


def story(rng: random.Random) -> str:
    """Three or four short sentences about a person, an animal, a place and a thing."""
    name, other = rng.sample(NAMES, 2)
    animal, place, thing, colour = (
        rng.choice(ANIMALS),
        rng.choice(PLACES),
        rng.choice(THINGS),
        rng.choice(list(COLOURS)),
    )
    opening = rng.choice((
        f"{name} has {a(colour)} {thing}.", f"{name} went to the {place}.",
        f"One day {name} saw {a(animal)} in the {place}.",
    ))  # fmt: skip
    middle = rng.choice((
        f"The {animal} took the {thing} and ran to the {place}.", f"{name} met {other} near the {place}.",
        f"There was {a(colour)} {animal} with {a(thing)}.", f"{name} gave the {thing} to {other}.",
    ))  # fmt: skip
    closing = rng.choice((
        f"{other} was happy.", f"Then {name} went home with the {animal}.", f"The {thing} was {colour}.",
        f"\"Thank you, {name},\" said {other}.",
    ))  # fmt: skip
    return " ".join((opening, middle, closing))


def zh_story(rng: random.Random) -> str:
    """Two short Chinese sentences."""
    name, animal, place = rng.choice(ZH_NAMES), rng.choice(ZH_ANIMALS), rng.choice(ZH_PLACES)
    colour, shape = ZH[rng.choice(list(COLOURS))], ZH[rng.choice(SHAPES)]
    return rng.choice((
        f"{name}在{place}看见一只{colour}的{animal}。{animal}很高兴。",
        f"{name}去{place}。那里有一个{colour}的{shape}。",
        f"今天{name}和{animal}在{place}。他们很高兴。",
    ))  # fmt: skip


def code(rng: random.Random) -> str:
    """A few lines of Python."""
    name, first, second = rng.choice(THINGS), rng.randrange(1, 20), rng.randrange(1, 20)
    return rng.choice((
        f"def {name}(x):\n    return x + {first}\n\nprint({name}({second}))\n",
        f"for i in range({first}):\n    print(i * {second})\n",
        f"{name} = [{first}, {second}]\nif {name}[0] > {second}:\n    print(\"{name}\")\n",
    ))  # fmt: skip


def sums(rng: random.Random) -> str:
    """A small sum."""
    x, y = rng.randrange(10), rng.randrange(10)
    return f"{x} + {y} = {x + y}" if rng.random() < 0.6 else f"{max(x, y)} - {min(x, y)} = {max(x, y) - min(x, y)}"


def plain(rng: random.Random) -> tuple[str, str]:
    """One plain text and its language."""
    kind = rng.choice((counting, story, story, story, zh_story, code, sums))
    text = kind(rng)
    return text, "zh" if any(ord(c) > 0x3000 for c in text) else "en"


def turn(role: str, text: str, **more: Any) -> Message:
    """One message with a single text part."""
    return {"role": role, "content": [{"type": "text", "text": text}], **more}


def chat_fact(rng: random.Random) -> list[Message]:
    """A question of general knowledge in this small world, with its answer."""
    i, x, y = rng.randrange(7), rng.randrange(10), rng.randrange(10)
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    question, answer = rng.choice((
        (f"Which day comes after {DAYS[i]}?", f"It is {DAYS[(i + 1) % 7]}."),
        (f"Which month comes after {MONTHS[i]}?", f"It is {MONTHS[i + 1]}."),
        (f"What is {x} + {y}?", f"It is {x + y}."), (f"{x} + {y} 等于几？", f"等于{x + y}。"),
        (f"How do you say {colour} in Chinese?", f"{ZH[colour]}。"),
        (f"How do you say {shape} in Chinese?", f"{ZH[shape]}。"),
        (f"{ZH[colour]}用英文怎么说？", f"{colour}."),
    ))  # fmt: skip
    return [turn("user", question), turn("assistant", answer)]


def chat_story(rng: random.Random) -> list[Message]:
    """A request for a tiny story about somebody, or for counting on."""
    if rng.random() < 0.3:
        return [turn("user", rng.choice(("Please count.", "Count for me."))), turn("assistant", counting(rng))]
    text = story(rng)
    return [turn("user", f"Tell a story. It starts like this: {text.split('.')[0]}."), turn("assistant", text)]


WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
ADD_TOOL = {"type": "function", "function": {"name": "add", "description": "Adds two numbers.",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
                           "required": ["x", "y"]}}}  # fmt: skip


def chat_tool(rng: random.Random) -> tuple[list[Message], list[dict[str, Any]]]:
    """A tool call, its response and the closing answer, with the tools to declare."""
    if rng.random() < 0.5:
        place, weather = rng.choice(PLACES), rng.choice(("sun", "rain", "snow", "wind"))
        question, arguments, result = f"How is the weather at the {place}?", {"place": place}, weather
        tool, answer = WEATHER_TOOL, f"There is {weather} at the {place}."
    else:
        x, y = rng.randrange(10, 100), rng.randrange(10, 100)
        question, arguments, result = f"What is {x} + {y}?", {"x": x, "y": y}, str(x + y)
        tool, answer = ADD_TOOL, f"It is {x + y}."
    call = {"type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}
    return [turn("user", question), {"role": "assistant", "content": "", "tool_calls": [call]}, turn("tool", result),
            turn("assistant", answer)], [tool]  # fmt: skip


def chat_thinking(rng: random.Random) -> list[Message]:
    """A sum answered after a thought."""
    x, y = rng.randrange(10, 60), rng.randrange(10)
    return [turn("user", f"What is {x} + {y}? Think first."),
            turn("assistant", f"It is {x + y}.", reasoning_content=f"{x} + {y} = {x + y}")]  # fmt: skip


def text_chat(rng: random.Random) -> tuple[list[Message], list[dict[str, Any]] | None, str]:
    """One conversation of text alone: messages, tools (or None), task name."""
    kind = rng.choice(("fact", "fact", "story", "story", "tool", "tool", "thinking"))
    if kind == "tool":
        messages, tools = chat_tool(rng)
        return messages, tools, kind
    return {"fact": chat_fact, "story": chat_story, "thinking": chat_thinking}[kind](rng), None, kind
