"""Documents: pages of text in one or two columns, tables, receipts; answered by transcripts, Markdown, JSON."""

import json
from dataclasses import dataclass

from drawn.base import GREY, INK, RULE, WHITE, Board, Colour, Draft, Draw, Picture, markdown, mix
from drawn.photo import photographed
from drawn.words import (
    AS_JSON,
    AS_TABLE,
    DESCRIBE,
    GOODS,
    MONTHS,
    NAMES,
    SERIES,
    SHOPS,
    STREETS,
    TITLES,
    TOWNS,
    TRANSCRIBE,
    ask,
    paragraph,
    pick,
    some,
)

# width, height, columns, scale: pixels are units times scale; from a phone's crop to a scanned sheet of A4
SHEETS = (
    (620, 877, 1, 2.0),
    (480, 640, 1, 1.0),
    (700, 900, 2, 1.5),
    (360, 360, 1, 1.25),
    (820, 560, 2, 1.75),
    (430, 1180, 1, 1.2),
    (560, 420, 1, 0.9),
    (700, 1000, 2, 1.9),
    (520, 700, 1, 1.3),
)
PAPERS: tuple[Colour, ...] = (WHITE, (252, 249, 240), (244, 246, 250))


def page(draw: Draw) -> Draft:
    """A page with a heading, a by-line, paragraphs and a page number."""
    width, height, columns, scale = SHEETS[draw.index % len(SHEETS)]
    title, author, town = str(pick(draw, TITLES)), str(pick(draw, NAMES)), str(pick(draw, TOWNS))
    number = draw.rng.randrange(2, 240)
    board, paper = Board(draw, width, height, scale, draw.rng.choice(PAPERS), smooth=1), []
    style = draw.rng.choice(("serif", "regular"))
    board.text(40, 32, title, board.fit(title, 24, width - 80, "bold"), INK, "bold")
    byline = draw.say(f"{author}, {town}", f"{author}　{town}")
    board.text(40, 68, byline, 12, GREY)
    board.line([(40, 90), (width - 40, 90)], RULE, 1)
    span = (width - 80 - 24 * (columns - 1)) / columns
    for column in range(columns):
        x, y = 40 + column * (span + 24), 104.0
        while True:
            text = paragraph(draw, draw.rng.choice((2, 3)))
            rows = len(board.wrap(text, 13, span, style))
            if y + rows * 20 > height - 50:
                break
            y = board.paragraph(x, y, span, text, 13, INK, style, 20 / 13) + 10
            paper.append(text)
        if not paper:
            raise ValueError("the sheet has no room for a paragraph")
    board.text(width / 2, height - 30, str(number), 11, GREY, anchor="ma")
    sheet = board.done()
    picture = photographed(draw, sheet) if draw.index % 3 == 1 else Picture(sheet, "flat:12")
    return Draft("page", [picture], page_turns(draw, title, byline, paper, number, columns))


def page_turns(
    draw: Draw, title: str, byline: str, paper: list[str], number: int, columns: int
) -> list[tuple[str, str]]:
    """What one can ask about a page."""
    whole = "\n\n".join([title, byline, *paper, str(number)])
    place = draw.rng.randrange(len(paper))
    half = len(paper[0]) // 2
    cut = half if draw.zh else paper[0].index(" ", half)
    en = [
        (ask(draw, TRANSCRIBE), whole),
        (
            "What is the heading, who wrote the page, and which page is it?",
            f"The heading is “{title}”. The line below it reads “{byline}”, and the page is number {number}.",
        ),
        (f"Copy paragraph {place + 1} exactly.", paper[place]),
        (
            "How is the page laid out?",
            f"A bold heading and a grey by-line stand above a thin rule. Below it the text "
            f"runs in {'two columns' if columns == 2 else 'one column'}, {len(paper)} paragraphs in all, and the page "
            f"number {number} stands at the bottom.",
        ),
        (f"The first paragraph begins “{paper[0][:cut]}”. How does it go on?", paper[0][cut:].strip()),
    ]
    zh = [
        (ask(draw, TRANSCRIBE), whole),
        ("标题是什么？作者是谁？第几页？", f"标题是《{title}》，标题下面写着“{byline}”，页码是{number}。"),
        (f"请原样抄录第{place + 1}段。", paper[place]),
        (
            "这一页的版式是怎样的？",
            f"上方是加粗的标题和灰色的署名，下面有一条细线。正文分{'两' if columns == 2 else '一'}栏，"
            f"共{len(paper)}段，页码{number}在底部居中。",
        ),
        (f"第一段开头是“{paper[0][:cut]}”，后面是什么？", paper[0][cut:].strip()),
    ]
    return draw.say(en, zh)


GRIDS = (
    (640, 360, 1.2),
    (900, 420, 2.0),
    (420, 520, 0.8),
    (760, 300, 1.0),
    (520, 520, 1.5),
    (1000, 360, 1.1),
    (480, 300, 0.7),
)


def table(draw: Draw) -> Draft:
    """A table of sales by month, with a total; striped, ruled or boxed."""
    width, height, scale = GRIDS[draw.index % len(GRIDS)]
    count, number = draw.rng.randrange(2, 5), draw.rng.randrange(3, 7)
    months, goods = draw.say(*MONTHS)[:count], some(draw, SERIES, min(number, 6))
    values = [[draw.rng.randrange(12, 480) for _ in months] for _ in goods]
    header = [draw.say("Item", "商品"), *months, draw.say("Total", "合计")]
    rows = [[name, *map(str, line), str(sum(line))] for name, line in zip(goods, values, strict=True)]
    title = draw.say(f"Sales in {pick(draw, TOWNS)}, pieces", f"{pick(draw, TOWNS)}销量（件）")
    board = Board(draw, width, height, scale, WHITE, smooth=1)
    board.text(24, 18, title, 18, INK, "bold")
    draw_grid(draw, board, header, rows, (24, 56, width - 24, height - 20))
    best = max(range(len(goods)), key=lambda i: sum(values[i]))
    month = draw.rng.randrange(count)
    column = sum(line[month] for line in values)
    spelled = " + ".join(str(line[month]) for line in values)
    item = draw.rng.randrange(len(goods))
    en = [
        (ask(draw, AS_TABLE), markdown(header, rows)),
        ("Which item sold best over the whole time?", f"{goods[best]}, with {sum(values[best])} pieces."),
        (f"How many pieces were sold in {months[month]} altogether?", f"Adding the column: {spelled} = {column}."),
        (f"How many {goods[item].lower()} were sold in {months[month]}?", str(values[item][month])),
        (ask(draw, AS_JSON), json.dumps({"title": title, "rows": [dict(zip(header, r, strict=True)) for r in rows]})),
    ]
    zh = [
        (ask(draw, AS_TABLE), markdown(header, rows)),
        ("哪种商品总销量最高？", f"{goods[best]}最高，一共卖出{sum(values[best])}件。"),
        (f"{months[month]}一共卖出多少件？", f"把这一列相加：{spelled} = {column}，共{column}件。"),
        (f"{months[month]}的{goods[item]}卖了多少？", f"{values[item][month]}件。"),
        (
            ask(draw, AS_JSON),
            json.dumps({"标题": title, "数据": [dict(zip(header, r, strict=True)) for r in rows]}, ensure_ascii=False),
        ),
    ]
    sheet = board.done()
    picture = photographed(draw, sheet) if draw.index % 3 == 2 else Picture(sheet, "flat:16")
    return Draft("table", [picture], draw.say(en, zh))


def draw_grid(
    draw: Draw, board: Board, header: list[str], rows: list[list[str]], box: tuple[float, float, float, float]
) -> None:
    """A table in the box; the first column takes twice the width of the others, figures stand right."""
    x0, y0, x1, y1 = box
    step, look = (y1 - y0) / (len(rows) + 1), draw.rng.choice(("striped", "ruled", "boxed"))
    edges = [x0, x0 + (x1 - x0) * 2 / (len(header) + 1)]
    while len(edges) <= len(header):
        edges.append(edges[-1] + (x1 - x0) / (len(header) + 1))
    tint = draw.rng.choice(((225, 236, 248), (232, 244, 232), (248, 238, 226)))
    size = min(15.0, step * 0.5)
    for index, row in enumerate([header, *rows]):
        top = y0 + index * step
        if index == 0 or (look == "striped" and index % 2 == 0):
            board.rect(x0, top, x1, top + step, fill=tint if index == 0 else mix(tint, WHITE, 0.5))
        if look != "striped":
            board.line([(x0, top + step), (x1, top + step)], RULE, 1)
        for place, cell in enumerate(row):
            style = "bold" if index == 0 or place == len(row) - 1 else "regular"
            x = edges[place] + 8 if place == 0 else edges[place + 1] - 8
            fitted = board.fit(cell, size, edges[place + 1] - edges[place] - 14, style)
            board.text(x, top + step / 2, cell, fitted, INK, style, "lm" if place == 0 else "rm")
    if look == "boxed":
        for x in edges:
            board.line([(x, y0), (x, y1)], RULE, 1)
        board.rect(x0, y0, x1, y1, edge=GREY)


@dataclass(frozen=True)
class Till:
    """What a receipt says: head, (name, count, cents) a line, the total and the cash in cents."""

    facts: dict[str, str]
    lines: list[tuple[str, int, int]]
    total: int
    paid: int


def make_receipt(draw: Draw, scale: float) -> tuple[Picture, Till]:
    """A till receipt: goods, quantities, prices, total, cash and change."""
    bought = draw.rng.sample(draw.say(*GOODS), draw.rng.randrange(3, 9))
    lines = [(name, draw.rng.choice((1, 1, 1, 2, 3)), round(price * 100)) for name, price in bought]
    total = sum(count * cents for _, count, cents in lines)
    paid = (total // 1000 + 1 + draw.rng.randrange(2)) * 1000
    facts = {
        "shop": str(pick(draw, SHOPS)),
        "street": f"{pick(draw, STREETS)} {draw.rng.randrange(1, 90)}",
        "date": f"2024-{draw.rng.randrange(1, 13):02d}-{draw.rng.randrange(1, 29):02d}",
        "time": f"{draw.rng.randrange(8, 21):02d}:{draw.rng.randrange(60):02d}",
        "number": str(draw.rng.randrange(1000, 9999)),
    }
    if draw.zh:
        facts["street"] = facts["street"].replace(" ", "") + "号"
    board = Board(draw, 300, 250 + 22 * len(lines), scale, (250, 249, 245), smooth=1)
    till = Till(facts, lines, total, paid)
    draw_receipt(draw, board, till)
    return Picture(board.done(), "flat:12"), till


def receipt(draw: Draw) -> Draft:
    """A receipt and questions about it."""
    picture, till = make_receipt(draw, (1.0, 1.6, 2.2, 0.75, 3.0)[draw.index % 5])
    if draw.index % 2:
        picture = photographed(draw, picture.image)
    return Draft("receipt", [picture], receipt_turns(draw, till))


def money(cents: int) -> str:
    """Cents as an amount with two decimals."""
    return f"{cents / 100:.2f}"


def receipt_text(draw: Draw, till: Till) -> list[tuple[str, str]]:
    """The receipt's lines: left text, right text."""
    facts, lines, total, paid = till.facts, till.lines, till.total, till.paid
    head = [(facts["shop"], ""), (facts["street"], ""), (f"{facts['date']} {facts['time']}", f"#{facts['number']}")]
    body = [(f"{count} x {name}" if count > 1 else name, money(count * cents)) for name, count, cents in lines]
    words = draw.say(("TOTAL", "Cash", "Change", "Thank you!"), ("合计", "现金", "找零", "谢谢惠顾！"))
    return [
        *head,
        *body,
        (words[0], money(total)),
        (words[1], money(paid)),
        (words[2], money(paid - total)),
        (words[3], ""),
    ]


def draw_receipt(draw: Draw, board: Board, till: Till) -> None:
    """Draw the receipt's lines, with dashed rules between its parts."""
    rows, y = receipt_text(draw, till), 18.0
    for index, (left, right) in enumerate(rows):
        bold = "bold" if index == 0 or index == len(rows) - 4 else "mono"
        if index in (3, 3 + len(till.lines)):
            board.text(150, y - 2, "- " * 21, 10, GREY, "mono", "ma")
            y += 18
        if right:
            board.text(18, y, left, board.fit(left, 13, 190, bold), INK, bold)
            board.text(282, y, right, 13, INK, bold, "ra")
        else:
            size = 18 if index == 0 else 12
            board.text(150, y, left, board.fit(left, size, 264, bold), INK, bold, "ma")
        y += 28 if index == 0 else 22


def receipt_turns(draw: Draw, till: Till) -> list[tuple[str, str]]:
    """What one can ask about a receipt."""
    facts, lines, total, paid = till.facts, till.lines, till.total, till.paid
    text = "\n".join(f"{a} {b}".strip() for a, b in receipt_text(draw, till))
    fields = {
        **facts,
        "items": [{"name": n, "count": c, "amount": c * p / 100} for n, c, p in lines],
        "total": total / 100,
        "cash": paid / 100,
        "change": (paid - total) / 100,
    }
    dear = max(lines, key=lambda line: line[1] * line[2])
    sums = " + ".join(money(c * p) for _, c, p in lines)
    en = [
        (ask(draw, AS_JSON), json.dumps(fields)),
        (ask(draw, TRANSCRIBE), text),
        (
            "What is the total, and how much change was given?",
            f"The total is {money(total)}. {money(paid)} was paid in cash, so the change is {money(paid - total)}.",
        ),
        ("Check the sum.", f"{sums} = {money(total)}, which is the printed total."),
        ("Which line cost the most?", f"{dear[0]}, at {money(dear[1] * dear[2])}."),
        (
            ask(draw, DESCRIBE),
            f"A till receipt from {facts['shop']}, {facts['street']}, dated {facts['date']} at "
            f"{facts['time']}. It lists {len(lines)} lines of goods and a total of {money(total)}.",
        ),
    ]
    zh = [
        (ask(draw, AS_JSON), json.dumps(fields, ensure_ascii=False)),
        (ask(draw, TRANSCRIBE), text),
        ("一共多少钱？找零多少？", f"合计{money(total)}元，付现金{money(paid)}元，找零{money(paid - total)}元。"),
        ("请核对总额。", f"{sums} = {money(total)}，与小票上的合计一致。"),
        ("哪一行最贵？", f"{dear[0]}，{money(dear[1] * dear[2])}元。"),
        (
            ask(draw, DESCRIBE),
            f"这是一张{facts['shop']}的购物小票，地址{facts['street']}，日期{facts['date']}，时间"
            f"{facts['time']}，共{len(lines)}行商品，合计{money(total)}元。",
        ),
    ]
    return draw.say(en, zh)


KINDS = {"page": page, "table": table, "receipt": receipt}
