"""Chats with tools: one call, several at once, call after call, a failing call, a question back, and no call at all."""

import json
from typing import Any

from drawn.base import Draft, Draw
from drawn.words import GOODS, NAMES, TOWNS, pick, some

Message = dict[str, Any]


def tool(name: str, about: str, required: int = 99, /, **fields: Any) -> dict[str, Any]:
    """A tool's declaration; a field is a type or a whole JSON schema; the first `required` fields are required."""
    properties = {key: {"type": value} if isinstance(value, str) else value for key, value in fields.items()}
    parameters = {"type": "object", "properties": properties, "required": list(fields)[:required]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


TOOLS = {
    "get_weather": tool(
        "get_weather",
        "Current weather of a town.",
        1,
        town="string",
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    "convert_money": tool(
        "convert_money", "Convert an amount between currencies.", amount="number", source="string", target="string"
    ),
    "find_trains": tool(
        "find_trains",
        "Trains between two towns on a day.",
        3,
        start="string",
        end="string",
        date={"type": "string", "format": "date"},
        first_class="boolean",
    ),
    "add_event": tool(
        "add_event",
        "Put an event into the calendar.",
        3,
        title="string",
        date="string",
        time="string",
        guests={"type": "array", "items": {"type": "string"}},
    ),
    "set_light": tool(
        "set_light",
        "Set a lamp's brightness, 0 to 100.",
        room="string",
        brightness={"type": "integer", "minimum": 0, "maximum": 100},
    ),
    "stock_level": tool("stock_level", "How many pieces of an item are in stock.", item="string"),
    "send_message": tool("send_message", "Send a text message to a contact.", contact="string", text="string"),
    "search_notes": tool("search_notes", "Full-text search in the user's notes.", 1, query="string", limit="integer"),
}


def said(role: str, text: str, **more: Any) -> Message:
    """A message of one text."""
    return {"role": role, "content": [{"type": "text", "text": text}], **more}


def called(*calls: tuple[str, dict[str, Any]]) -> Message:
    """An assistant's message with calls."""
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(value: Any) -> Message:
    """A tool's answer as JSON."""
    return said("tool", json.dumps(value, ensure_ascii=False))


def declared(draw: Draw, *needed: str) -> list[dict[str, Any]]:
    """The tools needed among one to three others, in random order."""
    others = draw.rng.sample([n for n in TOOLS if n not in needed], draw.rng.randrange(1, 4))
    names = [*needed, *others]
    draw.rng.shuffle(names)
    return [TOOLS[name] for name in names]


SKY = (("clear", "晴"), ("cloudy", "多云"), ("rain", "有雨"), ("snow", "有雪"))


def weather(draw: Draw) -> Draft:
    """Two towns at once: parallel calls and a comparison."""
    towns, degrees, skies = some(draw, TOWNS, 2), draw.rng.sample(range(-4, 33), 2), draw.rng.choices(SKY, k=2)
    warm = towns[degrees[1] > degrees[0]]
    facts = [{"town": t, "temperature": d, "sky": s[0]} for t, d, s in zip(towns, degrees, skies, strict=True)]
    gap = abs(degrees[0] - degrees[1])
    messages = [
        said(
            "user",
            draw.one(
                (
                    f"Is it warmer in {towns[0]} or in {towns[1]} right now?",
                    f"Compare the weather in {towns[0]} and {towns[1]}, please.",
                ),
                (f"{towns[0]}和{towns[1]}现在哪里更暖和？", f"比较一下{towns[0]}和{towns[1]}的天气。"),
            ),
        ),
        called(*(("get_weather", {"town": t, "unit": "celsius"}) for t in towns)),
        *(result(f) for f in facts),
        said(
            "assistant",
            draw.say(
                f"{warm} is warmer by {gap} degrees: {towns[0]} has {degrees[0]} °C and "
                f"{skies[0][0]}, {towns[1]} {degrees[1]} °C and {skies[1][0]}.",
                f"{warm}更暖和，高{gap}度：{towns[0]}{degrees[0]}°C，{skies[0][1]}；"
                f"{towns[1]}{degrees[1]}°C，{skies[1][1]}。",
            ),
        ),
    ]
    return Draft("tools_parallel", messages=messages, tools=declared(draw, "get_weather"))


def money(draw: Draw) -> Draft:
    """One call, then a second one that builds on the first."""
    amount, rate, second = (
        draw.rng.randrange(20, 900),
        draw.rng.choice((0.5, 1.25, 7.2, 0.8, 1.5)),
        draw.rng.randrange(5, 60),
    )
    first, other = round(amount * rate, 2), round(second * rate, 2)
    messages = [
        said("user", draw.say(f"How much is {amount} euros in dollars?", f"{amount}欧元是多少美元？")),
        called(("convert_money", {"amount": amount, "source": "EUR", "target": "USD"})),
        result({"result": first, "rate": rate}),
        said(
            "assistant",
            draw.say(
                f"{amount} euros are {first} dollars at a rate of {rate}.",
                f"按汇率{rate}，{amount}欧元等于{first}美元。",
            ),
        ),
        said("user", draw.say(f"And {second} more?", f"再加{second}欧元呢？")),
        called(("convert_money", {"amount": second, "source": "EUR", "target": "USD"})),
        result({"result": other, "rate": rate}),
        said(
            "assistant",
            draw.say(
                f"{second} euros are {other} dollars, so together it is {first} + {other} = "
                f"{first + other:.2f} dollars.",
                f"{second}欧元是{other}美元，加起来是{first} + {other} = {first + other:.2f}美元。",
            ),
        ),
    ]
    return Draft("tools_multi_turn", messages=messages, tools=declared(draw, "convert_money"))


def trains(draw: Draw) -> Draft:
    """A search whose result is set out as a table."""
    start, end = some(draw, TOWNS, 2)
    date, hours = (
        f"2024-{draw.rng.randrange(1, 13):02d}-{draw.rng.randrange(1, 29):02d}",
        sorted(draw.rng.sample(range(6, 21), 3)),
    )
    found = [
        {
            "train": f"R{draw.rng.randrange(10, 99)}",
            "departs": f"{h:02d}:{draw.rng.randrange(0, 60, 5):02d}",
            "minutes": draw.rng.randrange(40, 150),
        }
        for h in hours
    ]
    quick = min(found, key=lambda t: int(str(t["minutes"])))
    rows = "\n".join(f"| {t['train']} | {t['departs']} | {t['minutes']} |" for t in found)
    head = draw.say(
        "| Train | Departs | Minutes |\n| --- | --- | --- |\n", "| 车次 | 发车 | 分钟 |\n| --- | --- | --- |\n"
    )
    messages = [
        said(
            "user",
            draw.say(
                f"Which trains go from {start} to {end} on {date}? I want the quickest.",
                f"{date}从{start}到{end}有哪些火车？我要最快的。",
            ),
        ),
        called(("find_trains", {"start": start, "end": end, "date": date})),
        result(found),
        said(
            "assistant",
            head
            + rows
            + draw.say(
                f"\n\nThe quickest is {quick['train']} at {quick['departs']}; it takes {quick['minutes']} minutes.",
                f"\n\n最快的是{quick['departs']}发车的{quick['train']}，用时{quick['minutes']}分钟。",
            ),
        ),
    ]
    return Draft("tools_search", messages=messages, tools=declared(draw, "find_trains"))


def event(draw: Draw) -> Draft:
    """A question back for what is missing, then the call."""
    guest, hour, day = str(pick(draw, NAMES)), draw.rng.randrange(8, 19), draw.rng.randrange(1, 29)
    title = draw.one(
        ("Budget meeting", "Dentist", "Piano lesson", "Garden visit"), ("预算会议", "看牙医", "钢琴课", "参观花园")
    )
    messages = [
        said(
            "system",
            draw.say(
                "You keep the user's calendar. Never guess a date or a time.", "你管理用户的日历，不要猜测日期和时间。"
            ),
        ),
        said(
            "user",
            draw.say(f"Please put “{title}” with {guest} into my calendar.", f"请把和{guest}的“{title}”加入日历。"),
        ),
        said("assistant", draw.say("Gladly. On which day, and at what time?", "好的，请问是哪一天、几点？")),
        said("user", draw.say(f"On 2024-05-{day:02d} at {hour}:30.", f"2024-05-{day:02d}，{hour}:30。")),
        called(
            ("add_event", {"title": title, "date": f"2024-05-{day:02d}", "time": f"{hour:02d}:30", "guests": [guest]})
        ),
        result({"ok": True, "id": draw.rng.randrange(100, 999)}),
        said(
            "assistant",
            draw.say(
                f"Done: “{title}” with {guest} on 2024-05-{day:02d} at {hour}:30.",
                f"已添加：2024-05-{day:02d} {hour}:30，和{guest}的“{title}”。",
            ),
        ),
    ]
    return Draft("tools_ask_back", messages=messages, tools=declared(draw, "add_event"))


def lamps(draw: Draw) -> Draft:
    """Three calls at once for three rooms."""
    every = draw.say(
        ["kitchen", "hall", "bedroom", "study", "bathroom", "cellar"],
        ["厨房", "走廊", "卧室", "书房", "浴室", "地下室"],
    )
    rooms, level = draw.rng.sample(every, 3), draw.rng.randrange(5, 100)
    messages = [
        said(
            "user",
            draw.say(
                f"Set the {rooms[0]} and the {rooms[1]} to {level} percent and switch the {rooms[2]} off.",
                f"把{rooms[0]}和{rooms[1]}的灯调到{level}%，{rooms[2]}关掉。",
            ),
        ),
        called(*(("set_light", {"room": r, "brightness": b}) for r, b in zip(rooms, (level, level, 0), strict=True))),
        *(result({"ok": True}) for _ in rooms),
        said(
            "assistant",
            draw.say(
                f"All three are set: {rooms[0]} and {rooms[1]} at {level} percent, {rooms[2]} off.",
                f"都设置好了：{rooms[0]}和{rooms[1]}{level}%，{rooms[2]}已关闭。",
            ),
        ),
    ]
    return Draft("tools_parallel", messages=messages, tools=declared(draw, "set_light"))


def stock(draw: Draw) -> Draft:
    """A call that fails, and the next try."""
    item = draw.rng.choice(draw.say(*GOODS))[0]
    short, count = item[:-1], draw.rng.randrange(0, 80)
    messages = [
        said("user", draw.say(f"Do we still have {short}?", f"{short}还有货吗？")),
        called(("stock_level", {"item": short})),
        result({"error": "unknown item", "similar": [item]}),
        called(("stock_level", {"item": item})),
        result({"item": item, "pieces": count}),
        said(
            "assistant",
            draw.say(
                f"There is no “{short}” in the list; I looked up “{item}” instead. {count} pieces are in stock.",
                f"清单里没有“{short}”，我查了“{item}”，库存{count}件。",
            ),
        ),
    ]
    return Draft("tools_error", messages=messages, tools=declared(draw, "stock_level"))


def notes(draw: Draw) -> Draft:
    """A search, then a message with what was found; one call after the other."""
    person, code = str(pick(draw, NAMES)), f"{draw.rng.randrange(1000, 9999)}"
    what = draw.one(("garage code", "Wi-Fi password", "locker number"), ("车库密码", "无线网络密码", "储物柜号码"))
    text = draw.say(f"The {what} is {code}.", f"{what}是{code}。")
    messages = [
        said(
            "user",
            draw.say(
                f"Look up the {what} in my notes and send it to {person}.", f"在我的笔记里找到{what}，发给{person}。"
            ),
        ),
        called(("search_notes", {"query": what, "limit": 1})),
        result([{"title": what, "text": text}]),
        called(("send_message", {"contact": person, "text": text})),
        result({"sent": True}),
        said(
            "assistant",
            draw.say(f"I found it and sent {person} this message: “{text}”", f"找到了，已发给{person}：“{text}”"),
        ),
    ]
    return Draft("tools_chain", messages=messages, tools=declared(draw, "search_notes", "send_message"))


def unneeded(draw: Draw) -> Draft:
    """Tools are there, but the question needs none; or none fits."""
    a, b = draw.rng.randrange(11, 99), draw.rng.randrange(3, 12)
    if draw.index % 16 < 8:
        pair = draw.say(
            (f"What is {a} times {b}?", f"{a} times {b} is {a * b}."),
            (f"{a}乘以{b}等于多少？", f"{a} × {b} = {a * b}。"),
        )
    else:
        food = draw.one(("pizzas", "soups", "salads", "sandwiches", "pies"), ("披萨", "汤", "沙拉", "三明治", "馅饼"))
        pair = draw.say(
            (
                f"Order me {b} {food}, please.",
                "I cannot order food with the tools I have. I can look up the weather, trains or "
                "notes, or add an event.",
            ),
            (f"请帮我订{b}份{food}。", "我现有的工具不能订餐。我可以查天气、火车和笔记，也可以添加日程。"),
        )
    tools = [TOOLS[n] for n in ("get_weather", "find_trains", "search_notes", "add_event")]
    return Draft("tools_none", messages=[said("user", pair[0]), said("assistant", pair[1])], tools=tools)


def tools(draw: Draw) -> Draft:
    """One of the eight in turn."""
    return (weather, money, trains, event, lamps, stock, notes, unneeded)[draw.index % 8](draw)


KINDS = {"tools": tools}
