"""Screens: a window with files, a dialog, a phone's settings, a list of chats, a terminal; and diagrams."""

import json
from collections.abc import Callable

from drawn.base import GREY, INK, NAMED, PALE, RULE, WHITE, Board, Colour, Draft, Draw, Picture, listed, markdown, mix
from drawn.words import AS_JSON, AS_TABLE, DESCRIBE, NAMES, TRANSCRIBE, ask, some

FILES = (
    ("report", "budget", "minutes", "photo", "invoice", "draft", "map", "notes"),
    ("报告", "预算", "会议记录", "照片", "发票", "草稿", "地图", "笔记"),
)
ENDINGS = ("pdf", "xlsx", "txt", "png", "docx")
SETTINGS = (
    ("Wi-Fi", "Bluetooth", "Airplane mode", "Location", "Dark theme", "Notifications", "Battery saver", "Auto-rotate"),
    ("无线网络", "蓝牙", "飞行模式", "定位", "深色主题", "通知", "省电模式", "自动旋转"),
)
SAID = (
    (
        "See you at the station",
        "The parcel is here",
        "Can you call me back?",
        "Thanks, that works",
        "Running ten minutes late",
        "Photos from Sunday",
    ),
    ("车站见", "包裹到了", "方便回个电话吗？", "谢谢，可以", "我要晚到十分钟", "周日的照片"),
)
ACCENTS = ("blue", "green", "purple", "teal", "orange")


def window(draw: Draw) -> Draft:
    """A file manager: names, sizes and dates; one row is selected."""
    width, height, scale = ((720, 420, 1.0), (720, 420, 2.6), (640, 360, 0.7))[draw.index // 5 % 3]
    stems = some(draw, FILES, 6)
    sizes, months = draw.rng.sample(range(2, 990), 6), draw.rng.sample(range(1, 13), 6)
    files = [
        (
            f"{stem}_{draw.rng.randrange(1, 30):02d}.{draw.rng.choice(ENDINGS)}",
            size,
            f"2024-{month:02d}-{draw.rng.randrange(1, 29):02d}",
        )
        for stem, size, month in zip(stems, sizes, months, strict=True)
    ]
    chosen, accent = draw.rng.randrange(6), NAMED[draw.rng.choice(ACCENTS)][1]
    board = Board(draw, width, height, scale, PALE, smooth=1)
    board.rect(0, 0, width, 36, fill=mix(accent, INK, 0.35))
    title = draw.say("Documents", "文档")
    board.text(16, 18, title, 14, WHITE, "bold", "lm")
    for k, colour in enumerate(((232, 88, 80), (238, 186, 70), (104, 190, 96))):
        board.disc(width - 24 - 24 * k, 18, 7, fill=colour)
    header, xs = draw.say(["Name", "Size", "Changed"], ["名称", "大小", "修改日期"]), (28, width * 0.55, width * 0.74)
    for x, head in zip(xs, header, strict=True):
        board.text(x, 52, head, 12, GREY, "bold")
    step = (height - 110) / 6
    rows = []
    for index, (name, size, date) in enumerate(files):
        y = 76 + index * step
        if index == chosen:
            board.rect(14, y, width - 14, y + step - 2, fill=mix(accent, WHITE, 0.75), round_=4)
        rows.append([name, f"{size} KB", date])
        for x, cell in zip(xs, rows[-1], strict=True):
            board.text(x, y + step / 2, cell, 13, INK, anchor="lm")
    status = draw.say("6 items, 1 selected", "6个项目，已选中1个")
    board.text(16, height - 18, status, 11, GREY, anchor="lm")
    big, new = max(files, key=lambda f: f[1]), max(files, key=lambda f: f[2])
    en = [
        ("Which file is selected?", files[chosen][0]),
        (ask(draw, AS_TABLE), markdown(header, rows)),
        (
            "Which file is the largest, and which was changed last?",
            f"The largest is {big[0]} with {big[1]} KB; the one changed last is {new[0]}, on {new[2]}.",
        ),
        (
            ask(draw, DESCRIBE),
            f"A file manager window called “{title}” with six files in three columns: name, size and date. "
            f"{files[chosen][0]} is highlighted. The status line says “{status}”.",
        ),
    ]
    zh = [
        ("选中的是哪个文件？", f"{files[chosen][0]}"),
        (ask(draw, AS_TABLE), markdown(header, rows)),
        ("哪个文件最大？哪个最近修改过？", f"最大的是{big[0]}，{big[1]} KB；最近修改的是{new[0]}，日期{new[2]}。"),
        (
            ask(draw, DESCRIBE),
            f"这是一个名为“{title}”的文件管理器窗口，六个文件分三列显示名称、大小和日期，{files[chosen][0]}被选中，"
            f"状态栏写着“{status}”。",
        ),
    ]
    return Draft("screen", [Picture(board.done(), "flat:24")], draw.say(en, zh))


def dialog(draw: Draw) -> Draft:
    """A question with two buttons, the default one coloured."""
    name = f"{draw.rng.choice(draw.say(*FILES))}_{draw.rng.randrange(1, 40)}.{draw.rng.choice(ENDINGS)}"
    kinds = draw.say(
        (
            ("Delete file?", f"“{name}” will be removed for good.", "Delete", "Cancel"),
            ("Save changes?", f"“{name}” has changes that are not saved.", "Save", "Discard"),
            ("Replace file?", f"A file named “{name}” is already here.", "Replace", "Keep both"),
        ),
        (
            ("删除文件？", f"“{name}”将被永久删除。", "删除", "取消"),
            ("保存更改？", f"“{name}”有尚未保存的更改。", "保存", "放弃"),
            ("替换文件？", f"此处已有名为“{name}”的文件。", "替换", "都保留"),
        ),
    )
    title, body, yes, no = draw.rng.choice(kinds)
    colour = draw.rng.choice(ACCENTS)
    scale = (1.0, 1.5, 0.6)[draw.index // 5 % 3]
    board = Board(draw, 520, 300, scale, (96, 108, 122), smooth=2)
    board.rect(50, 50, 470, 250, fill=WHITE, round_=12)
    board.text(80, 76, title, 20, INK, "bold")
    board.paragraph(80, 116, 360, body, 14, GREY)
    board.rect(350, 195, 446, 230, fill=NAMED[colour][1], round_=6)
    board.text(398, 212, yes, 14, WHITE, "bold", "mm")
    board.rect(240, 195, 336, 230, edge=RULE, round_=6)
    board.text(288, 212, no, 14, INK, anchor="mm")
    called = draw.say(colour, NAMED[colour][0])
    en = [
        (
            "What does the dialog ask, and what are my choices?",
            f"It asks “{title}” and says: {body} The buttons are “{no}” and “{yes}”.",
        ),
        (f"Which button is {called}?", f"“{yes}”, on the right."),
        (ask(draw, TRANSCRIBE), "\n".join((title, body, no, yes))),
        (
            "I want to leave the file as it is. Is the coloured button right?",
            f"No. The {called} button reads “{yes}”."
            if yes in ("Delete", "Replace")
            else f"The {called} button reads “{yes}”; it would write your changes. “{no}” leaves the file as it was.",
        ),
    ]
    zh = [
        ("对话框在问什么？有哪些选择？", f"它问“{title}”，并说明：{body}按钮有“{no}”和“{yes}”。"),
        (f"哪个按钮是{called}的？", f"右边的“{yes}”。"),
        (ask(draw, TRANSCRIBE), "\n".join((title, body, no, yes))),
    ]
    return Draft("screen", [Picture(board.done(), "flat:24")], draw.say(en, zh))


def settings(draw: Draw) -> Draft:
    """A phone's settings with switches, tall and narrow."""
    names, accent = some(draw, SETTINGS, 7), draw.rng.choice(ACCENTS)
    state = [draw.rng.random() < 0.5 for _ in names]
    state[0], state[1] = True, False
    theme = draw.say("Dark theme", "深色主题")
    dark = state[names.index(theme)] if theme in names else draw.rng.random() < 0.4
    back, card, ink = ((24, 26, 30), (44, 47, 54), (230, 232, 236)) if dark else (PALE, WHITE, INK)
    scale = (1.2, 2.4, 0.8)[draw.index // 5 % 3]
    board = Board(draw, 320, 660, scale, back)
    clock, charge = f"{draw.rng.randrange(24)}:{draw.rng.randrange(60):02d}", draw.rng.randrange(8, 100)
    board.text(18, 14, clock, 12, ink)
    board.text(302, 14, f"{charge}%", 12, ink, anchor="ra")
    title = draw.say("Settings", "设置")
    board.text(18, 46, title, 26, ink, "bold")
    for index, (name, on) in enumerate(zip(names, state, strict=True)):
        y = 100 + index * 76
        board.rect(14, y, 306, y + 64, fill=card, round_=14)
        board.text(30, y + 32, name, 16, ink, anchor="lm")
        board.rect(244, y + 20, 288, y + 44, fill=NAMED[accent][1] if on else GREY, round_=12)
        board.disc(276 if on else 256, y + 32, 9, fill=WHITE)
    on_, off_ = (
        [n for n, s in zip(names, state, strict=True) if s],
        [n for n, s in zip(names, state, strict=True) if not s],
    )
    en = [
        ("Which switches are on?", listed(on_, False) + "."),
        ("Which settings are off?", listed(off_, False) + "."),
        (ask(draw, AS_JSON), json.dumps({n: "on" if s else "off" for n, s in zip(names, state, strict=True)})),
        ("What time is it on the phone, and how full is the battery?", f"It is {clock}; the battery is at {charge}%."),
        (
            ask(draw, DESCRIBE),
            f"The settings page of a phone in a {'dark' if dark else 'light'} theme: seven entries with "
            f"switches, {len(on_)} of them on in {accent}.",
        ),
    ]
    zh = [
        ("哪些开关是打开的？", listed(on_, True) + "。"),
        ("哪些是关闭的？", listed(off_, True) + "。"),
        (
            ask(draw, AS_JSON),
            json.dumps({n: "开" if s else "关" for n, s in zip(names, state, strict=True)}, ensure_ascii=False),
        ),
        ("手机上几点？电量多少？", f"{clock}，电量{charge}%。"),
        (
            ask(draw, DESCRIBE),
            f"这是手机的设置页面，{'深色' if dark else '浅色'}主题，共七项，其中{len(on_)}项的开关是打开的，"
            f"显示为{NAMED[accent][0]}。",
        ),
    ]
    return Draft("screen", [Picture(board.done(), "flat:32")], draw.say(en, zh))


def chats(draw: Draw) -> Draft:
    """A list of chats with the last message, the time and a badge of unread ones."""
    people, said = some(draw, NAMES, 5), some(draw, SAID, 5)
    unread = [draw.rng.choice((0, 0, 1, 2, 3, 7)) for _ in people]
    unread[draw.rng.randrange(5)] = draw.rng.randrange(8, 20)
    hours = sorted(draw.rng.sample(range(7, 23), 5), reverse=True)
    times = [f"{h:02d}:{draw.rng.randrange(60):02d}" for h in hours]
    scale = (1.3, 2.2, 0.75)[draw.index // 5 % 3]
    board = Board(draw, 360, 440, scale, WHITE)
    board.rect(0, 0, 360, 50, fill=(38, 110, 96))
    title = draw.say("Messages", "消息")
    board.text(18, 25, title, 18, WHITE, "bold", "lm")
    for index, (person, text) in enumerate(zip(people, said, strict=True)):
        y = 64 + index * 74
        colour = list(NAMED.values())[index][1]
        board.disc(40, y + 28, 22, fill=colour)
        board.text(40, y + 28, person[0], 18, WHITE, "bold", "mm")
        board.text(76, y + 8, person, 15, INK, "bold")
        board.text(76, y + 32, text, 13, GREY)
        board.text(342, y + 10, times[index], 11, GREY, anchor="ra")
        if unread[index]:
            board.disc(330, y + 42, 10, fill=(214, 60, 56))
            board.text(330, y + 42, str(unread[index]), 10, WHITE, "bold", "mm")
        board.line([(76, y + 64), (344, y + 64)], PALE, 1)
    most, k = max(range(5), key=lambda i: unread[i]), draw.rng.randrange(5)
    rows = [[p, t, m, str(u)] for p, t, m, u in zip(people, times, said, unread, strict=True)]
    waiting = [p for p, u in zip(people, unread, strict=True) if u]
    sums = " + ".join(str(u) for u in unread if u)
    en = [
        (f"What did {people[k]} write?", f"“{said[k]}”, at {times[k]}."),
        (
            "How many unread messages are there?",
            f"{sums} = {sum(unread)} unread messages, from {listed(waiting, False)}.",
        ),
        (ask(draw, AS_TABLE), markdown(["Person", "Time", "Message", "Unread"], rows)),
        ("Who has sent most that is unread?", f"{people[most]}, with {unread[most]}."),
    ]
    zh = [
        (f"{people[k]}写了什么？", f"“{said[k]}”，时间{times[k]}。"),
        ("一共有多少条未读消息？", f"{sums} = {sum(unread)}，共{sum(unread)}条，来自{listed(waiting, True)}。"),
        (ask(draw, AS_TABLE), markdown(["联系人", "时间", "消息", "未读"], rows)),
        ("谁的未读消息最多？", f"{people[most]}，有{unread[most]}条。"),
    ]
    return Draft("screen", [Picture(board.done(), "flat:32")], draw.say(en, zh))


def terminal(draw: Draw) -> Draft:
    """A terminal with a small program, its run and an error or a result."""
    size, step, limit = draw.rng.randrange(2, 9), draw.rng.randrange(2, 7), draw.rng.randrange(3, 7)
    values = [size + step * i for i in range(limit)]
    broken = draw.index // 5 % 2 == 0
    name = draw.rng.choice(("steps", "count", "series", "ladder"))
    source = [
        f"def {name}(start, step, n):",
        "    values = []",
        "    for i in range(n):",
        "        values.append(start + step * i)",
        f"    return {'value' if broken else 'values'}",
        "",
        f"print({name}({size}, {step}, {limit}))",
    ]
    error = "NameError: name 'value' is not defined. Did you mean: 'values'?"
    output = (
        ["Traceback (most recent call last):", f'  File "{name}.py", line 7, in <module>', error]
        if broken
        else [str(values)]
    )
    lines = [f"$ cat {name}.py", *source, f"$ python {name}.py", *output, "$ _"]
    scale = (1.0, 2.3, 0.7)[draw.index // 5 % 3]
    board = Board(draw, 600, 40 + 22 * len(lines), scale, (18, 22, 28), smooth=1)
    for index, text in enumerate(lines):
        colour: Colour = (210, 216, 222)
        if text.startswith("$"):
            colour = (120, 210, 140)
        elif "Error" in text or "Traceback" in text:
            colour = (240, 110, 100)
        elif text.strip().startswith(("def", "for", "return", "print")):
            colour = (130, 180, 250)
        board.text(18, 18 + index * 22, text, 14, colour, "mono")
    code = "```python\n" + "\n".join(source) + "\n```"
    fixed = code.replace("return value\n", "return values\n")
    en = [
        ("Copy the program from the screen.", code),
        (
            "What does the program print when it works?",
            f"It adds {step} again and again, starting at {size}: {values}.",
        ),
        (
            "What went wrong, and how do I mend it?",
            f"Line 5 returns `value`, which does not exist; the list is called `values`.\n\n{fixed}",
        )
        if broken
        else ("Did the program run without an error?", f"Yes. It printed {output[0]}."),
        (ask(draw, TRANSCRIBE), "\n".join(lines)),
    ]
    zh = [
        ("请抄录屏幕上的程序。", code),
        ("程序正常运行时输出什么？", f"从{size}开始，每次加{step}：{values}。"),
        ("哪里出错了？怎么改？", f"第5行返回了不存在的`value`，列表的名字是`values`。\n\n{fixed}")
        if broken
        else ("程序有没有报错？", f"没有，输出是{output[0]}。"),
        (ask(draw, TRANSCRIBE), "\n".join(lines)),
    ]
    return Draft("screen", [Picture(board.done(), "flat:24")], draw.say(en, zh))


def screen(draw: Draw) -> Draft:
    """One of the five in turn."""
    makers: tuple[Callable[[Draw], Draft], ...] = (window, settings, terminal, chats, dialog)
    return makers[draw.index % 5](draw)


KINDS = {"screen": screen}
