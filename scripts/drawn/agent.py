"""Pictures and tools together: a receipt is booked, settings are switched, a sign is reported."""

from drawn.base import Draft, Draw
from drawn.maps import sign
from drawn.pages import make_receipt, money
from drawn.photo import photographed
from drawn.screens import settings
from drawn.tools import TOOLS, Message, called, result, said, tool
from drawn.words import STREETS, pick

BOOK = tool(
    "add_expense",
    "Book an expense.",
    3,
    shop="string",
    date={"type": "string", "format": "date"},
    total="number",
    number="string",
)
TOGGLE = tool("set_switch", "Switch a setting of the phone on or off.", 2, name="string", on="boolean")
REPORT = tool("report_sign", "Report a traffic sign for the map.", 2, street="string", meaning="string")


def shown(draw: Draw, text: str) -> Message:
    """A user's message with the first picture."""
    return {"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": text}]}


def expense(draw: Draw) -> Draft:
    """Book a photographed receipt."""
    picture, till = make_receipt(draw, 1.5)
    facts, total = till.facts, till.total
    arguments = {"shop": facts["shop"], "date": facts["date"], "total": total / 100, "number": facts["number"]}
    messages = [
        shown(draw, draw.say("Please book this receipt.", "请把这张小票记账。")),
        called(("add_expense", arguments)),
        result({"ok": True}),
        said(
            "assistant",
            draw.say(
                f"Booked: {money(total)} at {facts['shop']} on {facts['date']}.",
                f"已记账：{facts['date']}，{facts['shop']}，{money(total)}元。",
            ),
        ),
    ]
    return Draft(
        "agent_expense", [photographed(draw, picture.image)], messages=messages, tools=[BOOK, TOOLS["add_event"]]
    )


def switch(draw: Draw) -> Draft:
    """Switch on what the screenshot shows as off: one call each."""
    draft = settings(draw)
    off = draft.turns[1][1].rstrip(".。")
    names = (
        [n for part in off.split("、") for n in part.split("和")] if draw.zh else off.replace(" and ", ", ").split(", ")
    )
    messages = [
        shown(draw, draw.say("Switch on everything that is off here.", "把这里关闭的都打开。")),
        called(*(("set_switch", {"name": n, "on": True}) for n in names)),
        *(result({"name": n, "on": True}) for n in names),
        said("assistant", draw.say(f"Done; these are on now: {off}.", f"好了，现在已打开：{off}。")),
    ]
    return Draft(
        "agent_switch", draft.pictures, messages=messages, tools=[TOGGLE, TOOLS["set_light"], TOOLS["send_message"]]
    )


def report(draw: Draw) -> Draft:
    """Report what a sign means."""
    draft, street = sign(draw), str(pick(draw, STREETS))
    meaning = draft.turns[0][1]
    messages = [
        said(
            "system",
            draw.say(
                "You help to map signs. Call report_sign once for each picture.",
                "你协助标注路牌，每张图调用一次report_sign。",
            ),
        ),
        shown(draw, draw.say(f"I saw this in {street}.", f"我在{street}看到的。")),
        called(("report_sign", {"street": street, "meaning": meaning})),
        result({"ok": True}),
        said(
            "assistant",
            draw.say(f"Thank you, I have reported it for {street}. {meaning}", f"谢谢，已在{street}标注。{meaning}"),
        ),
    ]
    return Draft("agent_report", draft.pictures, messages=messages, tools=[REPORT, TOOLS["search_notes"]])


def agent(draw: Draw) -> Draft:
    """One of the three in turn."""
    return (expense, switch, report)[draw.index % 3](draw)


KINDS = {"agent": agent}
