"""Diagrams: a flow chart with a decision, an organisation's tree."""

import json

from drawn.base import GREY, INK, NAMED, WHITE, Board, Colour, Draft, Draw, Picture, listed, mix
from drawn.photo import photographed
from drawn.words import AS_JSON, DESCRIBE, NAMES, ask, pick

ACCENTS = ("blue", "green", "purple", "teal", "orange")
STEPS = (
    ("Receive order", "Check stock", "Pack goods", "Send parcel", "Write invoice"),
    ("收到订单", "检查库存", "打包商品", "寄出包裹", "开具发票"),
)
ROLES = (
    ("Director", "Sales", "Workshop", "Finance", "Design", "Repairs", "Paint"),
    ("主管", "销售部", "车间", "财务部", "设计组", "维修组", "喷漆组"),
)


def box(board: Board, x: float, y: float, text: str, colour: Colour, width: float = 120) -> None:
    """A labelled box around (x, y)."""
    board.rect(
        x - width / 2, y - 20, x + width / 2, y + 20, fill=mix(colour, WHITE, 0.75), edge=colour, line=1.5, round_=6
    )
    board.text(x, y, text, board.fit(text, 13, width - 12), INK, anchor="mm")


def flow(draw: Draw) -> Draft:
    """A flow chart: steps from top to bottom with one decision."""
    steps, colour = draw.say(*STEPS), NAMED[draw.rng.choice(ACCENTS)][1]
    question, yes, no = draw.say(("In stock?", "yes", "no"), ("有货吗？", "是", "否"))
    other = draw.say(
        draw.rng.choice(("Order more", "Tell the customer", "Cancel order")),
        draw.rng.choice(("补货", "通知顾客", "取消订单")),
    )
    board = Board(draw, 420, 560, (1.0, 1.7, 0.7)[draw.index // 2 % 3], WHITE)
    spots = [(150, 50), (150, 130), (150, 310), (150, 400), (150, 490)]
    for (x, y), text in zip(spots, steps, strict=True):
        box(board, x, y, text, colour)
    board.shape([(150, 178), (222, 220), (150, 262), (78, 220)], mix(colour, WHITE, 0.5))
    board.text(150, 220, question, 12, INK, anchor="mm")
    box(board, 340, 220, other, (190, 90, 60))
    for y0, y1 in ((70, 110), (150, 178), (262, 290), (330, 380), (420, 470)):
        board.arrow(150, y0, 150, y1, GREY)
    board.arrow(222, 220, 278, 220, GREY)
    board.text(162, 268, yes, 11, GREY)
    board.text(236, 202, no, 11, GREY)
    ordered = "\n".join(f"{i + 1}. {s}" for i, s in enumerate(steps))
    en = [
        ("List the steps of the main path in order.", ordered),
        (f"What happens when the answer to “{question}” is no?", f"The chart leads to “{other}”."),
        (
            ask(draw, DESCRIBE),
            f"A flow chart from top to bottom: {', then '.join(s.lower() for s in steps)}. After “{steps[1]}” a "
            f"diamond asks “{question}”; no leads to a box on the right, “{other}”.",
        ),
    ]
    zh = [
        ("按顺序列出主流程的步骤。", ordered),
        (f"如果“{question}”的答案是否，会怎样？", f"流程转到“{other}”。"),
        (
            ask(draw, DESCRIBE),
            f"这是一张自上而下的流程图：{'，'.join(steps)}。在“{steps[1]}”之后有一个菱形判断“{question}”，"
            f"答案为否时转到右边的“{other}”。",
        ),
    ]
    return Draft("diagram", [Picture(board.done(), "flat:24")], draw.say(en, zh))


def tree(draw: Draw) -> Draft:
    """Who reports to whom: one head, three parts, three groups under two of them."""
    head, *rest = draw.say(*ROLES)
    parts, groups = draw.rng.sample(rest[:3], 3), draw.rng.sample(rest[3:], 3)
    person, colour = str(pick(draw, NAMES)), NAMED[draw.rng.choice(ACCENTS)][1]
    board = Board(draw, 600, 340, (1.0, 1.8, 0.8)[draw.index // 2 % 3], WHITE)
    middle, low = [(110, 170), (300, 170), (490, 170)], [(110, 290), (230, 290), (490, 290)]
    board.line([(300, 70), (300, 110)], GREY)
    board.line([(110, 110), (490, 110)], GREY)
    for x, _ in middle:
        board.line([(x, 110), (x, 150)], GREY)
    board.line([(110, 190), (110, 270)], GREY)
    board.line([(110, 230), (230, 230), (230, 270)], GREY)
    board.line([(490, 190), (490, 270)], GREY)
    title = draw.say(f"{head}: {person}", f"{head}：{person}")
    box(board, 300, 48, title, colour, 210)
    for (x, y), text in zip([*middle, *low], [*parts, *groups], strict=True):
        box(board, x, y, text, colour, 108)
    under = {parts[0]: groups[:2], parts[1]: [], parts[2]: groups[2:]}
    nested = {title: {part: under[part] for part in parts}}
    en = [
        (ask(draw, AS_JSON), json.dumps(nested)),
        (f"Which groups belong to {parts[0]}?", f"{listed(groups[:2], False)}."),
        ("Who is at the top?", f"{person}, the {head.lower()}."),
        (f"Does {parts[1]} have any groups below it?", "No, nothing hangs below it."),
    ]
    zh = [
        (ask(draw, AS_JSON), json.dumps(nested, ensure_ascii=False)),
        (f"{parts[0]}下面有哪些组？", f"{listed(groups[:2], True)}。"),
        ("最上面是谁？", f"{head}{person}。"),
        (f"{parts[1]}下面还有组吗？", "没有，下面没有任何组。"),
    ]
    return Draft("diagram", [Picture(board.done(), "flat:24")], draw.say(en, zh))


def diagram(draw: Draw) -> Draft:
    """A flow chart or an organisation's tree; one is on paper, photographed."""
    draft = (flow, tree)[draw.index % 2](draw)
    if draw.index == 3:
        draft.pictures[0] = photographed(draw, draft.pictures[0].image)
    return draft


KINDS = {"diagram": diagram}
