"""Text alone: maths worked step by step (some inside a thought), translation, summaries, JSON, dialogue."""

import json
import math
from fractions import Fraction

from drawn.base import Draft, Draw, listed
from drawn.tools import Message, said
from drawn.words import GOODS, NAMES, SENTENCES, STREETS, TOWNS, paragraph, pick, some


def shares(draw: Draw) -> tuple[str, str, str]:
    """Sharing costs in a ratio: question, working, answer."""
    a, b, unit = draw.rng.randrange(2, 6), draw.rng.randrange(3, 9), draw.rng.randrange(12, 90)
    x, y = some(draw, NAMES, 2)
    total = (a + b) * unit
    return draw.say(
        (
            f"{x} and {y} share {total} coins in the ratio {a} to {b}. How many does each get?",
            f"There are {a} + {b} = {a + b} parts.\n{total} / {a + b} = {unit} coins a part.\n"
            f"{x}: {a} × {unit} = {a * unit}\n{y}: {b} × {unit} = {b * unit}\nCheck: {a * unit} + {b * unit} = {total}",
            f"{x} gets {a * unit} coins and {y} {b * unit}.",
        ),
        (
            f"{x}和{y}按{a}比{b}分{total}枚硬币，各得多少？",
            f"一共{a} + {b} = {a + b}份。\n每份{total} ÷ {a + b} = {unit}枚。\n{x}：{a} × {unit} = {a * unit}\n"
            f"{y}：{b} × {unit} = {b * unit}\n检验：{a * unit} + {b * unit} = {total}",
            f"{x}得{a * unit}枚，{y}得{b * unit}枚。",
        ),
    )


def speed(draw: Draw) -> tuple[str, str, str]:
    """When two trains meet."""
    u, v, hours = draw.rng.randrange(40, 90, 5), draw.rng.randrange(45, 110, 5), draw.rng.randrange(2, 6)
    a, b = some(draw, TOWNS, 2)
    way = (u + v) * hours
    return draw.say(
        (
            f"{a} and {b} are {way} km apart. Two trains start towards each other at {u} and "
            f"{v} km/h. When do they meet?",
            f"They come closer by {u} + {v} = {u + v} km each hour.\n{way} / {u + v} = "
            f"{hours} hours.\nThe first has gone {u} × {hours} = {u * hours} km, the second "
            f"{v * hours} km.",
            f"They meet after {hours} hours, {u * hours} km from {a}.",
        ),
        (
            f"{a}和{b}相距{way}公里，两列火车分别以每小时{u}公里和{v}公里相向而行，多久相遇？",
            f"每小时靠近{u} + {v} = {u + v}公里。\n{way} ÷ {u + v} = {hours}小时。\n"
            f"第一列走了{u} × {hours} = {u * hours}公里，第二列走了{v * hours}公里。",
            f"{hours}小时后相遇，离{a}{u * hours}公里。",
        ),
    )


def equation(draw: Draw) -> tuple[str, str, str]:
    """Two linear equations."""
    x, y = draw.rng.randrange(-8, 9), draw.rng.randrange(1, 9)
    a, b = draw.rng.randrange(2, 7), draw.rng.randrange(2, 7)
    first, second = a * x + y, b * x - y
    lines = (f"{a}x + y = {first}", f"{b}x - y = {second}")
    steps = f"({a} + {b})x = {first} + ({second})\n{a + b}x = {first + second}\nx = {x}\ny = {first} - {a}·({x}) = {y}"
    return draw.say(
        (f"Solve: {lines[0]}, {lines[1]}", f"Add both equations; y drops out:\n{steps}", f"x = {x}, y = {y}"),
        (f"解方程组：{lines[0]}，{lines[1]}", f"两式相加，消去y：\n{steps}", f"x = {x}，y = {y}"),
    )


def chance(draw: Draw) -> tuple[str, str, str]:
    """Drawing two of one colour."""
    red, blue = draw.rng.randrange(3, 18), draw.rng.randrange(2, 18)
    total = red + blue
    value = Fraction(math.comb(red, 2), math.comb(total, 2))
    counts = f"C({red},2) = {math.comb(red, 2)}, C({total},2) = {math.comb(total, 2)}"
    return draw.say(
        (
            f"A bag holds {red} red and {blue} blue balls. Two are drawn at once. How likely are both red?",
            f"Pairs of red balls and all pairs: {counts}.\n{math.comb(red, 2)}/{math.comb(total, 2)} = {value}",
            f"The probability is {value}, about {float(value):.3f}.",
        ),
        (
            f"袋中有{red}个红球和{blue}个蓝球，一次取两个，都是红球的概率是多少？",
            f"红球对数和总对数：{counts}。\n{math.comb(red, 2)}/{math.comb(total, 2)} = {value}",
            f"概率是{value}，约{float(value):.3f}。",
        ),
    )


def growth(draw: Draw) -> tuple[str, str, str]:
    """Interest over some years."""
    amount, rate, years = draw.rng.randrange(2, 20) * 100, draw.rng.choice((2, 3, 4, 5, 10)), draw.rng.randrange(2, 4)
    steps, value = [], Fraction(amount)
    for year in range(1, years + 1):
        value *= Fraction(100 + rate, 100)
        steps.append(draw.say(f"Year {year}: {float(value):.2f}", f"第{year}年：{float(value):.2f}"))
    return draw.say(
        (
            f"{amount} at {rate}% a year, with compound interest. How much is it after {years} years?",
            "\n".join(steps),
            f"{float(value):.2f}",
        ),
        (f"本金{amount}，年利率{rate}%，复利，{years}年后是多少？", "\n".join(steps), f"{float(value):.2f}"),
    )


def divisor(draw: Draw) -> tuple[str, str, str]:
    """Euclid's algorithm."""
    base = draw.rng.randrange(3, 18)
    a, b = base * draw.rng.randrange(12, 40), base * draw.rng.randrange(5, 12)
    lines, x, y = [], a, b
    while y:
        lines.append(f"{x} = {x // y} × {y} + {x % y}")
        x, y = y, x % y
    return draw.say(
        (
            f"Find the greatest common divisor of {a} and {b} by Euclid's algorithm.",
            "\n".join(lines),
            f"The greatest common divisor is {x}.",
        ),
        (f"用辗转相除法求{a}和{b}的最大公约数。", "\n".join(lines), f"最大公约数是{x}。"),
    )


def maths(draw: Draw) -> Draft:
    """One problem; every third time the working is a thought and the answer short."""
    question, work, answer = (shares, speed, equation, chance, growth, divisor)[draw.index % 6](draw)
    if draw.index % 3 == 2:
        return Draft(
            "maths_thinking", messages=[said("user", question), said("assistant", answer, reasoning_content=work)]
        )
    return Draft("maths", messages=[said("user", question), said("assistant", f"{work}\n\n{answer}")])


def translation(draw: Draw) -> Draft:
    """Sentences from one language into the other; the answer's side follows the conversation's language."""
    picked = draw.rng.sample(range(len(SENTENCES[0])), draw.rng.randrange(2, 5))
    fills = [(draw.rng.randrange(20, 900), draw.rng.randrange(4, 19)) for _ in picked]
    english = " ".join(SENTENCES[0][i].format(n=n, d=d) for i, (n, d) in zip(picked, fills, strict=True))
    chinese = "".join(SENTENCES[1][i].format(n=n, d=d) for i, (n, d) in zip(picked, fills, strict=True))
    messages = draw.say(
        [said("user", f"Translate into English:\n\n{chinese}"), said("assistant", english)],
        [said("user", f"翻译成中文：\n\n{english}"), said("assistant", chinese)],
    )
    return Draft("translation", messages=messages)


def summary(draw: Draw) -> Draft:
    """A report of figures in one sentence, then as a list."""
    town, person, days = str(pick(draw, TOWNS)), str(pick(draw, NAMES)), draw.rng.randrange(3, 9)
    visitors, sold, left = draw.rng.randrange(200, 4000), draw.rng.randrange(40, 190), draw.rng.randrange(5, 40)
    filler = paragraph(draw, 3)
    text = draw.say(
        f"The market in {town} was open for {days} days. {filler} According to {person}, "
        f"{visitors} people came. {sold} stalls were let and {left} stayed empty.",
        f"{town}的集市开放了{days}天。{filler}据{person}介绍，共有{visitors}人前来。租出摊位{sold}个，空置{left}个。",
    )
    turns = draw.say(
        [
            (
                f"Sum this up in one sentence:\n\n{text}",
                f"Over {days} days {visitors} people came to the market in {town}, where {sold} "
                f"of {sold + left} stalls were let.",
            ),
            (
                "The figures as a list, please.",
                f"- days: {days}\n- visitors: {visitors}\n- stalls let: {sold}\n- stalls empty: {left}",
            ),
        ],
        [
            (
                f"用一句话概括：\n\n{text}",
                f"{town}的集市{days}天里来了{visitors}人，{sold + left}个摊位中租出{sold}个。",
            ),
            ("把数字列成清单。", f"- 天数：{days}\n- 人数：{visitors}\n- 租出摊位：{sold}\n- 空置摊位：{left}"),
        ],
    )
    return Draft("summary", messages=spoken(turns))


def extraction(draw: Draw) -> Draft:
    """A letter into JSON with a schema in the system prompt."""
    person, street, house = str(pick(draw, NAMES)), str(pick(draw, STREETS)), draw.rng.randrange(1, 120)
    order = [(name, draw.rng.randrange(1, 9)) for name, _ in draw.rng.sample(draw.say(*GOODS), 3)]
    wishes = listed([draw.say(f"{n} x {g}", f"{n}份{g}") for g, n in order], draw.zh)
    value = {"name": person, "street": street, "number": house, "items": [{"item": g, "count": n} for g, n in order]}
    system = draw.say(
        'Answer with JSON only: {"name": string, "street": string, "number": integer, '
        '"items": [{"item": string, "count": integer}]}',
        '只输出JSON：{"name": 字符串, "street": 字符串, "number": 整数, "items": [{"item": 字符串, "count": 整数}]}',
    )
    letter = draw.say(
        f"Hello, this is {person}. Please bring {wishes} to {street} {house}. The bell does not work, so knock.",
        f"你好，我是{person}。请把{wishes}送到{street}{house}号。门铃坏了，请敲门。",
    )
    return Draft(
        "json",
        messages=[
            said("system", system),
            said("user", letter),
            said("assistant", json.dumps(value, ensure_ascii=False, indent=1)),
        ],
    )


def dialogue(draw: Draw) -> Draft:
    """A talk of several turns with a shop's assistant, a librarian or a guide."""
    person, town = str(pick(draw, NAMES)), str(pick(draw, TOWNS))
    goods, cents = draw.rng.choice(draw.say(*GOODS))
    number, day = draw.rng.randrange(2, 9), draw.rng.randrange(2, 6)
    system = draw.say(
        f"You are the assistant of a shop in {town}. {goods} costs {cents:.2f}. Delivery "
        f"takes {day} days. Be brief and friendly.",
        f"你是{town}一家商店的助手。{goods}每件{cents:.2f}元，送货需要{day}天。回答简短友好。",
    )
    turns = draw.say(
        [
            (
                f"Hello, {person} here. What would {number} of {goods.lower()} cost?",
                f"Good day, {person}! {number} × {cents:.2f} = {number * cents:.2f}.",
            ),
            ("And when would they be here?", f"In {day} days."),
            (
                "Can you also repair my umbrella?",
                "I am sorry, I know nothing about repairs here. Please ask at the counter.",
            ),
            ("Fine, thank you.", "You are welcome. Have a good day!"),
        ],
        [
            (
                f"你好，我是{person}。{number}件{goods}多少钱？",
                f"您好，{person}！{number} × {cents:.2f} = {number * cents:.2f}元。",
            ),
            ("什么时候能送到？", f"{day}天后。"),
            ("你们能修雨伞吗？", "抱歉，我不清楚维修的事，请到柜台询问。"),
            ("好的，谢谢。", "不客气，祝您愉快！"),
        ],
    )
    return Draft("dialogue", messages=[said("system", system), *spoken(turns[: draw.rng.randrange(2, 5)])])


def writing(draw: Draw) -> Draft:
    """A letter or a plan to order, of some length."""
    person, town, hour = str(pick(draw, NAMES)), str(pick(draw, TOWNS)), draw.rng.randrange(8, 12)
    if draw.index % 2:
        stops = [f"{hour + 2 * k}:00" for k in range(4)]
        plan = draw.say(
            (
                "Walk along the river to the mill",
                "Lunch at the market",
                "Visit the museum",
                "Tea at the station before the train leaves",
            ),
            ("沿河走到磨坊", "在市场吃午饭", "参观博物馆", "在车站喝茶，等火车"),
        )
        lines = "\n".join(f"- {t} {p}" for t, p in zip(stops, plan, strict=True))
        pair = draw.say(
            (
                f"Plan a day in {town} for {person}, from {hour} o'clock, with four stops.",
                f"**A day in {town}**\n\n{lines}\n\nAll stops are within walking distance of each "
                "other, with two hours for each.",
            ),
            (
                f"请为{person}安排在{town}的一天，从{hour}点开始，四个安排。",
                f"**{town}一日**\n\n{lines}\n\n每项安排两小时，之间步行即可。",
            ),
        )
    else:
        pair = draw.say(
            (
                f"Write a short letter to {person}: the meeting in {town} moves to {hour} o'clock.",
                f"Dear {person},\n\nour meeting in {town} has been moved: we shall begin at "
                f"{hour} o'clock. The place stays the same. Please tell me if this does not suit "
                "you.\n\nKind regards",
            ),
            (
                f"给{person}写一封短信：{town}的会议改到{hour}点。",
                f"{person}：\n\n您好！{town}的会议改到{hour}点开始，地点不变。如果时间不合适，请告诉我。\n\n此致\n敬礼",
            ),
        )
    return Draft("writing", messages=[said("user", pair[0]), said("assistant", pair[1])])


def spoken(turns: list[tuple[str, str]]) -> list[Message]:
    """Pairs as messages."""
    return [said(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]


def talk(draw: Draw) -> Draft:
    """One of the five in turn."""
    return (translation, dialogue, extraction, summary, writing)[draw.index % 5](draw)


KINDS = {"maths": maths, "text": talk}
