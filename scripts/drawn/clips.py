"""Clips of two to eight frames: something moves, grows, counts, changes its colour, or the weather turns."""

import math
from dataclasses import replace

from drawn.base import GREY, INK, NAMED, PALE, WHITE, Board, Draft, Draw, Picture, article, listed, markdown
from drawn.charts import axes
from drawn.lands import draw_land, some_land
from drawn.scenes import Street, draw_street
from drawn.words import SERIES, TOWNS, some

Turns = list[tuple[str, str]]


def clip(task: str, boards: list[Board], turns: Turns, codec: str) -> Draft:
    """The frames as a draft."""
    return Draft(task, [Picture(board.done(), codec) for board in boards], turns, clip=True)


def drive(draw: Draw) -> Draft:
    """A car that crosses the street."""
    frames, right = draw.rng.randrange(3, 7), draw.rng.random() < 0.5
    places = [0.12 + 0.74 * k / (frames - 1) for k in range(frames)]
    paint = draw.rng.choice(("red", "blue", "orange"))
    street = Street(tuple(draw.rng.choice(("green", "purple", "teal", "blue")) for _ in range(4)), 0, paint)
    scale = (1.0, 1.6)[draw.index // 8 % 2]
    boards = [draw_street(draw, replace(street, car=x), 420, 280, scale) for x in (places if right else places[::-1])]
    en = [
        ("Which way does the car go?", f"It drives from {'left to right' if right else 'right to left'}."),
        (
            "What happens in the clip?",
            f"{article(paint).capitalize()} car drives along a street with four houses from "
            f"{'left to right' if right else 'right to left'}; the light stays green.",
        ),
        ("What colour is the car?", f"It is {paint}."),
    ]
    zh = [
        ("汽车往哪边开？", f"从{'左往右' if right else '右往左'}开。"),
        (
            "视频里发生了什么？",
            f"一辆{NAMED[paint][0]}的汽车沿着有四座房子的街道从"
            f"{'左往右' if right else '右往左'}开过，信号灯一直是绿灯。",
        ),
        ("汽车是什么颜色？", f"{NAMED[paint][0]}。"),
    ]
    return clip("drive", boards, draw.say(en, zh), "webp:84")


def dusk(draw: Draw) -> Draft:
    """Night falls over a landscape, or the day breaks."""
    frames, falls = draw.rng.randrange(3, 7), draw.rng.random() < 0.5
    land = replace(some_land(draw), birds=0)
    shades = [k / (frames - 1) for k in range(frames)]
    size = ((400, 270, 1.12), (400, 270, 1.8))[draw.index // 8 % 2]
    boards = [draw_land(draw, replace(land, sky=s), *size) for s in (shades if falls else shades[::-1])]
    en = [
        (
            "What changes during the clip?",
            "It gets dark: the sky turns from blue to night, and the windows light up."
            if falls
            else "It gets light: the sky turns from night to blue, and the windows go dark.",
        ),
        ("Is it day or night in the last frame?", "Night." if falls else "Day."),
        ("How many houses stay in view?", f"{len(land.houses)}."),
    ]
    zh = [
        (
            "视频里有什么变化？",
            "天黑了：天空从蓝色变成夜晚，窗户亮了起来。" if falls else "天亮了：天空从夜晚变成蓝色，窗户的灯灭了。",
        ),
        ("最后一帧是白天还是夜晚？", "夜晚。" if falls else "白天。"),
        ("画面里一直有几座房子？", f"{len(land.houses)}座。"),
    ]
    return clip("dusk", boards, draw.say(en, zh), "webp:84")


def counter(draw: Draw) -> Draft:
    """A display that counts up or down."""
    frames, step, start = draw.rng.randrange(4, 9), draw.rng.choice((1, 2, 5, 10, -1, -3)), draw.rng.randrange(30, 60)
    values, boards = [start + step * k for k in range(frames)], []
    for value in values:
        board = Board(draw, 160, 120, (1.0, 2.8)[draw.index // 8 % 2], (22, 26, 32))
        board.rect(12, 20, 148, 100, fill=(38, 44, 52), round_=8)
        board.text(80, 60, str(value), 52, (120, 230, 150), "mono", "mm")
        boards.append(board)
    seen = listed([str(v) for v in values], draw.zh)
    way = ("up", "增加") if step > 0 else ("down", "减少")
    en = [
        ("Which numbers appear?", f"{seen}."),
        (
            "How does the number change?",
            f"It counts {way[0]} by {abs(step)} each time, from {values[0]} to {values[-1]}.",
        ),
        (
            "What comes next?",
            f"If it goes on, {values[-1]} {'+' if step > 0 else '-'} {abs(step)} = {values[-1] + step}.",
        ),
    ]
    zh = [
        ("依次出现了哪些数字？", f"{seen}。"),
        ("数字怎样变化？", f"每次{way[1]}{abs(step)}，从{values[0]}到{values[-1]}。"),
        (
            "下一个会是多少？",
            f"照这样继续，{values[-1]} {'+' if step > 0 else '-'} {abs(step)} = {values[-1] + step}。",
        ),
    ]
    return clip("counter", boards, draw.say(en, zh), "flat:12")


def growing(draw: Draw) -> Draft:
    """Three bars, one of which overtakes the others."""
    goods, frames = some(draw, SERIES, 3), draw.rng.randrange(3, 7)
    start, end = draw.rng.sample(range(10, 40), 3), draw.rng.sample(range(42, 78), 3)
    boards, shown = [], []
    for k in range(frames):
        values = [round(a + (b - a) * k / (frames - 1)) for a, b in zip(start, end, strict=True)]
        shown.append(values)
        board = Board(draw, 360, 280, (0.9, 1.9)[draw.index // 8 % 2], WHITE)
        board.text(20, 12, str(2015 + k), 20, INK, "bold")
        axes(board, (56, 50, 344, 236), 80)
        for i, (name, value) in enumerate(zip(goods, values, strict=True)):
            x, y = 80 + 90 * i, 236 - 186 * value / 80
            board.rect(x, y, x + 60, 236, fill=NAMED[("blue", "orange", "green")[i]][1])
            board.text(x + 30, y - 4, str(value), 13, INK, "bold", "mb")
            board.text(x + 30, 244, name, board.fit(name, 13, 86), INK, anchor="ma")
        boards.append(board)
    first, last = goods[start.index(max(start))], goods[end.index(max(end))]
    rows = [[str(2015 + k), *map(str, v)] for k, v in enumerate(shown)]
    en = [
        ("Which bar leads at the start and which at the end?", f"At the start {first}, at the end {last}."),
        ("Write down all the figures.", markdown(["Year", *goods], rows)),
        ("Do the bars grow or shrink?", "All three grow."),
    ]
    zh = [
        ("开始时哪一项最高？结束时呢？", f"开始时是{first}，结束时是{last}。"),
        ("写出所有数据。", markdown(["年份", *goods], rows)),
        ("条形在变高还是变低？", "三个都在变高。"),
    ]
    return clip("growing", boards, draw.say(en, zh), "flat:24")


def weather(draw: Draw) -> Draft:
    """A weather map of four towns over some days."""
    towns, days = some(draw, TOWNS, 4), draw.rng.randrange(3, 6)
    spots, kinds = [(90, 90), (250, 70), (110, 200), (270, 190)], (("sun", "晴"), ("cloud", "多云"), ("rain", "雨"))
    coast = [(0, 0), *[(330 + 14 * math.sin(k * 0.9 + draw.index), 28 * k) for k in range(11)], (0, 280)]
    forecast = [[(draw.rng.randrange(3), draw.rng.randrange(2, 28)) for _ in towns] for _ in range(days)]
    boards = []
    for day, states in enumerate(forecast):
        board = Board(draw, 380, 280, (0.9, 1.7)[draw.index // 8 % 2], (170, 206, 228))
        board.shape(coast, (214, 222, 184))
        label = draw.say(f"Day {day + 1}", f"第{day + 1}天")
        board.text(372, 8, label, 16, INK, "bold", "ra")
        for (x, y), town, (kind, degrees) in zip(spots, towns, states, strict=True):
            symbol(board, x, y - 22, kind)
            board.text(x, y + 6, f"{town} {degrees}°", board.fit(f"{town} {degrees}°", 13, 150), INK, "bold", "ma")
        boards.append(board)
    t, d = draw.rng.randrange(4), draw.rng.randrange(days)
    kind, degrees = forecast[d][t]
    name = kinds[kind][draw.zh]
    course = [forecast[k][t] for k in range(days)]
    rows = [[str(k + 1), kinds[a][draw.zh], f"{b}°"] for k, (a, b) in enumerate(course)]
    wet = [town for i, town in enumerate(towns) if forecast[-1][i][0] == 2]
    en = [
        (f"How is the weather in {towns[t]} on day {d + 1}?", f"There is {name}, at {degrees} degrees."),
        (f"Follow {towns[t]} through the clip.", markdown(["Day", "Weather", "Temperature"], rows)),
        ("Where does it rain on the last day?", f"In {listed(wet, False)}." if wet else "Nowhere."),
    ]
    zh = [
        (f"第{d + 1}天{towns[t]}天气怎样？", f"{name}，{degrees}度。"),
        (f"{towns[t]}每天的天气如何？", markdown(["天", "天气", "气温"], rows)),
        ("最后一天哪里下雨？", f"{listed(wet, True)}。" if wet else "都没有下雨。"),
    ]
    return clip("weather", boards, draw.say(en, zh), "flat:32")


def symbol(board: Board, x: float, y: float, kind: int) -> None:
    """A sun, a cloud, or a cloud with rain."""
    if kind == 0:
        board.disc(x, y, 13, fill=(250, 190, 40))
        for k in range(8):
            cos, sin = math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)
            board.line([(x + 16 * cos, y + 16 * sin), (x + 21 * cos, y + 21 * sin)], (250, 190, 40), 2)
        return
    for dx, dy, r in ((-10, 3, 8), (0, -3, 11), (11, 3, 8)):
        board.disc(x + dx, y + dy, r, fill=(120, 128, 140) if kind == 2 else WHITE)
    board.rect(x - 12, y + 2, x + 13, y + 11, fill=(120, 128, 140) if kind == 2 else WHITE)
    for dx in (-8, 0, 8) if kind == 2 else ():
        board.line([(x + dx, y + 14), (x + dx - 3, y + 22)], (40, 98, 190), 2)


def lights(draw: Draw) -> Draft:
    """A traffic light that changes."""
    cycle = ["red", "green", "yellow"]
    start, frames = draw.rng.randrange(3), draw.rng.randrange(2, 6)
    shown, boards = [cycle[(start + k) % 3] for k in range(frames)], []
    for name in shown:
        board = Board(draw, 120, 280, (0.8, 1.6)[draw.index // 8 % 2], (196, 212, 226))
        board.rect(54, 200, 66, 280, fill=GREY)
        board.rect(24, 16, 96, 212, fill=INK, round_=14)
        for k, (each, colour) in enumerate(
            (("red", (230, 50, 46)), ("yellow", (250, 206, 60)), ("green", (70, 200, 100)))
        ):
            board.disc(60, 52 + 62 * k, 25, fill=colour if each == name else (64, 66, 72))
        boards.append(board)
    zh_names = {"red": "红灯", "yellow": "黄灯", "green": "绿灯"}
    seen = [draw.say(n, zh_names[n]) for n in shown]
    en = [
        ("In which order do the lights come on?", ", then ".join(seen) + "."),
        ("What does it show in the first frame?", f"{seen[0].capitalize()}."),
        ("May I drive at the end?", "Yes, it is green." if shown[-1] == "green" else f"No, it is {seen[-1]}."),
    ]
    zh = [
        ("灯依次怎样变化？", "，然后".join(seen) + "。"),
        ("第一帧是什么灯？", f"{seen[0]}。"),
        ("最后可以通行吗？", "可以，是绿灯。" if shown[-1] == "green" else f"不可以，是{seen[-1]}。"),
    ]
    return clip("lights", boards, draw.say(en, zh), "flat:16")


def progress(draw: Draw) -> Draft:
    """A download that goes on, and perhaps fails."""
    frames, fails, name = draw.rng.randrange(3, 7), draw.rng.random() < 0.4, f"backup_{draw.rng.randrange(10, 99)}.zip"
    parts, boards = sorted(draw.rng.sample(range(5, 90), frames - 1)), []
    parts.append(parts[-1] if fails else 100)
    for k, part in enumerate(parts):
        board = Board(draw, 420, 150, (0.9, 1.8)[draw.index // 8 % 2], PALE)
        stopped, done = fails and k == frames - 1, part == 100
        title = draw.say(
            "Stopped" if stopped else "Done" if done else "Downloading",
            "已停止" if stopped else "已完成" if done else "正在下载",
        )
        board.text(28, 22, title, 18, (200, 50, 46) if stopped else INK, "bold")
        board.text(28, 54, name, 14, GREY)
        board.rect(28, 90, 392, 112, fill=WHITE, round_=11)
        board.rect(
            28, 90, 28 + 364 * max(part, 6) / 100, 112, fill=(200, 50, 46) if stopped else NAMED["blue"][1], round_=11
        )
        board.text(392, 54, f"{part}%", 14, INK, "bold", "ra")
        boards.append(board)
    seen = ", ".join(f"{p}%" for p in parts)
    en = [
        ("Does the download finish?", f"No, it stops at {parts[-1]}%." if fails else "Yes, it reaches 100%."),
        ("List the percentages.", seen),
        ("Which file is being loaded?", name),
    ]
    zh = [
        ("下载完成了吗？", f"没有，停在{parts[-1]}%。" if fails else "完成了，到了100%。"),
        ("列出各帧的百分比。", seen),
        ("正在下载什么文件？", name),
    ]
    return clip("progress", boards, draw.say(en, zh), "flat:16")


def clock(draw: Draw) -> Draft:
    """A clock whose hands go on in equal steps."""
    frames, step = draw.rng.randrange(2, 7), draw.rng.choice((5, 10, 15, 30, 60))
    start, boards = draw.rng.randrange(12) * 60 + draw.rng.randrange(12) * 5, []
    times = [(start + step * k) % 720 for k in range(frames)]
    for minute in times:
        board = Board(draw, 224, 224, (1.0, 2.4)[draw.index // 8 % 2], (222, 214, 200))
        board.disc(112, 112, 100, fill=WHITE, edge=INK, line=5)
        for k in range(12):
            angle = k * math.pi / 6
            board.text(112 + 82 * math.sin(angle), 112 - 82 * math.cos(angle), str(k or 12), 17, INK, "bold", "mm")
        for angle, length, width in ((minute / 720, 46, 7), (minute % 60 / 60, 70, 4)):
            turn = angle * 2 * math.pi
            board.line([(112, 112), (112 + length * math.sin(turn), 112 - length * math.cos(turn))], INK, width)
        board.disc(112, 112, 6, fill=(206, 46, 44))
        boards.append(board)
    seen = [f"{m // 60 or 12}:{m % 60:02d}" for m in times]
    en = [
        ("What time does the clock show in each frame?", f"{listed(seen, False)}."),
        ("How much time passes from frame to frame?", f"{step} minutes."),
        ("Which time is shown last?", f"{seen[-1]}."),
    ]
    zh = [
        ("每一帧钟表显示几点？", f"{listed(seen, True)}。"),
        ("每帧之间过了多久？", f"{step}分钟。"),
        ("最后显示几点？", f"{seen[-1]}。"),
    ]
    return clip("clock", boards, draw.say(en, zh), "flat:16")


def moving(draw: Draw) -> Draft:
    """One of the eight in turn."""
    return (drive, counter, weather, dusk, growing, lights, clock, progress)[draw.index % 8](draw)


KINDS = {"clip": moving}
