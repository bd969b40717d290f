"""Several pictures: what changed, page one and two, two charts, receipts, signs, textures, icons, screens."""

from dataclasses import replace

from drawn import maps, strips
from drawn import textures as surfaces
from drawn.base import INK, NAMED, WHITE, Board, Draft, Draw, Picture, listed, markdown
from drawn.charts import axes, nice_top, standing_bars
from drawn.lands import Land, draw_land, land_words, some_land
from drawn.pages import make_receipt, money
from drawn.scenes import Street as StreetScene
from drawn.scenes import draw_street
from drawn.words import DESCRIBE, SERIES, TITLES, TRANSCRIBE, ask, paragraph, pick, some

DIFFER = (
    (
        "What is the difference between the two pictures?",
        "Spot the difference.",
        "What has changed from the first picture to the second?",
    ),
    ("两张图有什么不同？", "请找出不同之处。", "从第一张到第二张，什么变了？"),
)


def change(draw: Draw, land: Land) -> tuple[Land, str]:
    """The landscape with one thing changed, and what."""
    kind = draw.rng.choice(("tree", "roof", "sun", "birds", "lake"))
    if kind == "tree":
        gone = draw.rng.randrange(len(land.trees))
        left = tuple(t for k, t in enumerate(land.trees) if k != gone)
        return replace(land, trees=left), draw.say(
            f"One tree is missing in the second picture: there are {len(left)} instead of {len(land.trees)}.",
            f"第二张图少了一棵树：从{len(land.trees)}棵变成{len(left)}棵。",
        )
    if kind == "roof":
        (x, old), *rest = land.houses
        new = draw.rng.choice([c for c in ("red", "blue", "green", "purple") if c != old])
        return replace(land, houses=((x, new), *rest)), draw.say(
            f"The roof of the leftmost house was {old} and is now {new}.",
            f"最左边的房子屋顶从{NAMED[old][0]}变成了{NAMED[new][0]}。",
        )
    if kind == "sun":
        old, new = ("left", "right") if land.sun < 0.5 else ("right", "left")
        zh = {"left": "左", "right": "右"}
        return replace(land, sun=1 - land.sun), draw.say(
            f"The sun has moved from the upper {old} to the upper {new}.", f"太阳从{zh[old]}上方移到了{zh[new]}上方。"
        )
    if kind == "birds":
        return replace(land, birds=0 if land.birds else 3), draw.say(
            "The three birds are gone." if land.birds else "Three birds have appeared in the sky.",
            "三只鸟不见了。" if land.birds else "天上多了三只鸟。",
        )
    return replace(land, lake=not land.lake), draw.say(
        "The lake in the foreground is gone." if land.lake else "A lake has appeared in the foreground.",
        "前面的湖不见了。" if land.lake else "前面多了一个湖。",
    )


def differ(draw: Draw) -> Draft:
    """Two landscapes with one difference."""
    land = some_land(draw)
    other, words = change(draw, land)
    size = ((480, 320, 1.0), (480, 360, 2.3), (360, 360, 0.8))[draw.index // 8 % 3]
    pictures = [Picture(draw_land(draw, scene, *size).done(), "webp:86") for scene in (land, other)]
    turns = [
        (ask(draw, DIFFER), words),
        (draw.say("Describe the first picture.", "请描述第一张图。"), land_words(draw, land)),
        (
            draw.say("Are the mountains the same in both?", "两张图里的山一样吗？"),
            draw.say("Yes, they are the same.", "一样。"),
        ),
    ]
    return Draft("differ", pictures, turns)


def sheet(draw: Draw, title: str, text: str, number: int) -> Picture:
    """A small page."""
    board = Board(draw, 420, 460, (1.0, 2.2, 1.5)[draw.index // 8 % 3], (252, 250, 244), smooth=1)
    board.text(36, 30, title, board.fit(title, 20, 348, "bold"), INK, "bold")
    board.paragraph(36, 74, 348, text, 14, INK, "serif", 1.55)
    board.text(210, 430, str(number), 12, INK, anchor="ma")
    return Picture(board.done(), "flat:12")


def two_pages(draw: Draw) -> Draft:
    """Two pages of one text; every second time the second page comes with the second question."""
    title, first, second, number = (
        str(pick(draw, TITLES)),
        paragraph(draw, 4),
        paragraph(draw, 3),
        draw.rng.randrange(1, 40),
    )
    pictures = [sheet(draw, title, first, number), sheet(draw, title, second, number + 1)]
    pages = draw.say((f"Page {number}", f"Page {number + 1}"), (f"第{number}页", f"第{number + 1}页"))
    if draw.index // 8 % 2:
        turns = [
            (ask(draw, TRANSCRIBE), f"{title}\n\n{first}\n\n{number}"),
            (
                draw.say("Here is the next page. What does it add?", "这是下一页，写了什么？"),
                f"{title}\n\n{second}\n\n{number + 1}",
            ),
        ]
        return Draft("pages", pictures, turns, all_turns=True, apart=True)
    turns = [
        (
            draw.say("Transcribe both pages.", "请转写这两页。"),
            f"## {pages[0]}\n{title}\n\n{first}\n\n## {pages[1]}\n{title}\n\n{second}",
        ),
        (
            draw.say("What are the page numbers?", "页码是多少？"),
            draw.say(f"{number} and {number + 1}.", f"{number}和{number + 1}。"),
        ),
        (
            draw.say("How does the second page begin?", "第二页怎么开头？"),
            second[: second.find(draw.say(".", "。")) + 1],
        ),
    ]
    return Draft("pages", pictures, turns)


def two_charts(draw: Draw) -> Draft:
    """Bars of two years."""
    goods, colour = some(draw, SERIES, 4), draw.rng.choice(list(NAMED))
    old = draw.rng.sample(range(20, 150), 4)
    new = [max(5, v + draw.rng.choice((-18, -9, 7, 16, 30))) for v in old]
    top, size = nice_top(max(*old, *new)), ((460, 340, 1.0), (460, 340, 1.8), (460, 340, 0.6))[draw.index // 8 % 3]
    pictures = []
    for year, values in ((2022, old), (2023, new)):
        board = Board(draw, *size, WHITE)
        board.text(230, 14, str(year), 18, INK, "bold", "ma")
        axes(board, (56, 50, 440, 296), top)
        standing_bars(board, goods, values, NAMED[colour][1], (460, 340, top), True)
        pictures.append(Picture(board.done(), "flat:24"))
    up, down = (
        [g for g, a, b in zip(goods, old, new, strict=True) if b > a],
        [g for g, a, b in zip(goods, old, new, strict=True) if b < a],
    )
    rows = [[g, str(a), str(b), f"{b - a:+d}"] for g, a, b in zip(goods, old, new, strict=True)]
    total = f"{sum(old)} → {sum(new)}"
    en = [
        (
            "Which items grew and which fell from 2022 to 2023?",
            f"Grew: {listed(up, False) or 'none'}. Fell: {listed(down, False) or 'none'}.",
        ),
        ("Put both charts into one table with the change.", markdown(["Item", "2022", "2023", "Change"], rows)),
        (
            "Did the total rise?",
            f"The totals are {total}, so it "
            f"{'rose' if sum(new) > sum(old) else 'fell' if sum(new) < sum(old) else 'stayed the same'}"
            ".",
        ),
    ]
    zh = [
        (
            "从2022年到2023年，哪些增加了，哪些减少了？",
            f"增加：{listed(up, True) or '无'}。减少：{listed(down, True) or '无'}。",
        ),
        ("把两张图合成一个表格，并写出变化。", markdown(["商品", "2022", "2023", "变化"], rows)),
        (
            "总量上升了吗？",
            f"总量{total}，{'上升了' if sum(new) > sum(old) else '下降了' if sum(new) < sum(old) else '不变'}。",
        ),
    ]
    return Draft("charts", pictures, draw.say(en, zh))


def two_receipts(draw: Draw) -> Draft:
    """Two receipts to compare and add."""
    (first, a), (second, b) = make_receipt(draw, 1.1), make_receipt(draw, (0.8, 1.9)[draw.index // 8 % 2])
    more = (a, b)[b.total > a.total]
    sums = f"{money(a.total)} + {money(b.total)} = {money(a.total + b.total)}"
    which = draw.say(("first", "second"), ("一", "二"))[b.total > a.total]
    en = [
        (
            "Which receipt is higher, and what do both make together?",
            f"The {which} one, from {more.facts['shop']}, with {money(more.total)}. Together: {sums}.",
        ),
        (
            "Who are the two shops, and when was each visit?",
            f"{a.facts['shop']} on {a.facts['date']} and {b.facts['shop']} on {b.facts['date']}.",
        ),
    ]
    zh = [
        (
            "哪张小票金额更高？两张一共多少钱？",
            f"第{which}张更高，是{more.facts['shop']}的，{money(more.total)}元。合计：{sums}。",
        ),
        (
            "两张小票分别是哪家店、哪一天的？",
            f"{a.facts['shop']}，{a.facts['date']}；{b.facts['shop']}，{b.facts['date']}。",
        ),
    ]
    return Draft("receipts", [first, second], draw.say(en, zh))


def three_signs(draw: Draw) -> Draft:
    """Three signs in random order; which is which."""
    kinds = draw.rng.sample((maps.speed, maps.warning, maps.shop, maps.posts), 3)
    pictures, said = [], []
    for kind in kinds:
        board = Board(draw, 400, 400, draw.rng.choice((0.5, 0.8, 1.2)), (176, 206, 232))
        board.rect(194, 200, 206, 400, fill=(110, 114, 120))
        said.append(kind(draw, board)[2 if draw.zh else 1])
        pictures.append(Picture(board.done(), "flat:32"))
    every = "\n".join(f"{i + 1}. {s}" for i, s in enumerate(said))
    k = draw.rng.randrange(3)
    en = [
        ("What does each sign tell me?", every),
        (f"And sign {k + 1}?", said[k]),
        ("How many pictures did I send?", "Three."),
    ]
    zh = [("每块牌子是什么意思？", every), (f"第{k + 1}块牌子呢？", said[k]), ("我发了几张图？", "三张。")]
    return Draft("signs", pictures, draw.say(en, zh))


def textures(draw: Draw) -> Draft:
    """Two or three textures, two of them perhaps of one kind."""
    number = draw.rng.choice((2, 3))
    kinds = [draw.rng.randrange(8) for _ in range(number)]
    pictures = [
        Picture(
            surfaces.picture(draw.noise(), k, draw.rng.choice((160, 224, 320)), draw.rng.choice((224, 280, 480))),
            "webp:80",
        )
        for k in kinds
    ]
    names = [surfaces.TEXTURES[k][1 + draw.zh] for k in kinds]
    alike = len(set(kinds)) < number
    every = "\n".join(f"{i + 1}. {n}" for i, n in enumerate(names))
    en = [
        ("Name the surface in each picture.", every),
        ("Do two of them show the same material?", "Yes." if alike else "No, they are all different."),
    ]
    zh = [("说出每张图的材质。", every), ("有两张是同一种材质吗？", "有。" if alike else "没有，都不一样。")]
    return Draft("textures", pictures, draw.say(en, zh))


def icons(draw: Draw) -> Draft:
    """Four tiny icons in order."""
    made, words = [], []
    for k in draw.rng.sample(range(6), 4):
        draft = strips.icon(replace(draw, index=k))
        made.append(draft.pictures[0])
        words.append(draft.turns[0][1].rstrip(".。"))
    every = draw.say(", ".join(words).lower().capitalize() + ".", "、".join(words) + "。")
    en = [
        ("Name the icons in order.", every),
        ("What is the third one?", words[2] + "."),
        ("How many icons are there?", "Four."),
    ]
    zh = [("按顺序说出这些图标。", every), ("第三个是什么？", words[2] + "。"), ("一共几个图标？", "四个。")]
    return Draft("icons", made, draw.say(en, zh))


def two_streets(draw: Draw) -> Draft:
    """One street twice: the light, the car or a house has changed."""
    street = StreetScene(tuple(draw.rng.choice(("red", "blue", "green", "teal")) for _ in range(4)), 0.3, "blue", "red")
    kind = draw.rng.choice(("light", "car", "paint"))
    if kind == "light":
        other, en, zh = (
            replace(street, light="green"),
            "The traffic light was red and is now green.",
            "信号灯从红灯变成了绿灯。",
        )
    elif kind == "car":
        other, en, zh = replace(street, car=0.7), "The car has moved to the right.", "汽车向右移动了。"
    else:
        other, en, zh = replace(street, paint="orange"), "The car was blue and is now orange.", "汽车从蓝色变成了橙色。"
    size = ((480, 320, 1.3), (480, 320, 0.9), (480, 320, 2.3))[draw.index // 8 % 3]
    pictures = [Picture(draw_street(draw, s, *size).done(), "webp:86") for s in (street, other)]
    houses = draw.say(street.houses, tuple(NAMED[c][0] for c in street.houses))
    turns = [
        (ask(draw, DIFFER), draw.say(en, zh)),
        (
            draw.say("What colours are the houses, from left to right?", "房子从左到右是什么颜色？"),
            listed(houses, draw.zh) + draw.say(".", "。"),
        ),
        (
            ask(draw, DESCRIBE),
            draw.say(f"Two views of one street with four houses. {en}", f"同一条街的两张图，街上有四座房子。{zh}"),
        ),
    ]
    return Draft("streets", pictures, turns)


def several(draw: Draw) -> Draft:
    """One of the eight in turn."""
    makers = (differ, two_charts, two_pages, two_receipts, three_signs, textures, icons, two_streets)
    return makers[draw.index % 8](draw)


KINDS = {"several": several}
