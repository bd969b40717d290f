"""Code in several languages: written to order, explained, mended, traced; the tests run the Python."""

from drawn.base import Draft, Draw
from drawn.tools import said

FENCE = "```"


def fenced(language: str, code: str) -> str:
    """Code in a Markdown fence."""
    return f"{FENCE}{language}\n{code.strip()}\n{FENCE}"


def python_function(draw: Draw) -> Draft:
    """A Python function with an example."""
    step, name = draw.rng.randrange(2, 9), draw.rng.choice(("chunks", "batches", "split_list", "portions", "pages"))
    first = draw.rng.randrange(1, 60)
    items = list(range(first, first + draw.rng.randrange(step + 1, 3 * step)))
    parts = [items[i : i + step] for i in range(0, len(items), step)]
    code = f'''def {name}(items, size={step}):
    """Yield slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


print(list({name}({items})))'''
    words = draw.say(
        (
            f"Write a Python function `{name}` that cuts a list into parts of {step}, and show an example.",
            f"It prints `{parts}`. The last part may be shorter.",
        ),
        (f"写一个Python函数`{name}`，把列表切成每段{step}个，并给出例子。", f"输出是`{parts}`，最后一段可能更短。"),
    )
    return Draft(
        "code_write", messages=[said("user", words[0]), said("assistant", f"{fenced('python', code)}\n\n{words[1]}")]
    )


def python_bug(draw: Draw) -> Draft:
    """A loop that stops one too early."""
    n, name = draw.rng.randrange(4, 30), draw.rng.choice(("total", "add_up", "sum_to"))
    bad = (
        f"def {name}(n):\n    result = 0\n    for k in range(1, n):\n        result += k\n"
        f"    return result\n\n\nprint({name}({n}))"
    )
    good = bad.replace("range(1, n)", "range(1, n + 1)")
    want, got = n * (n + 1) // 2, n * (n - 1) // 2
    words = draw.say(
        (
            f"This should print {want}, the sum of 1 to {n}, but it prints {got}. Why?",
            f"`range(1, n)` stops before `n`, so {n} itself is not added: {want} - {n} = {got}. Let it run to `n + 1`:",
        ),
        (
            f"它应该输出1到{n}的和{want}，却输出{got}，为什么？",
            f"`range(1, n)`在`n`之前就停了，没有加上{n}：{want} - {n} = {got}。应改成`n + 1`：",
        ),
    )
    return Draft(
        "code_fix",
        messages=[
            said("user", f"{words[0]}\n\n{fenced('python', bad)}"),
            said("assistant", f"{words[1]}\n\n{fenced('python', good)}"),
        ],
    )


def python_trace(draw: Draw) -> Draft:
    """What a loop prints, step by step."""
    start, factor, limit = draw.rng.randrange(1, 6), draw.rng.randrange(2, 4), draw.rng.randrange(40, 400)
    code = f"value = {start}\nwhile value < {limit}:\n    value *= {factor}\nprint(value)"
    steps, value = [start], start
    while value < limit:
        value *= factor
        steps.append(value)
    path = " → ".join(map(str, steps))
    words = draw.say(
        (
            "What does this print?",
            f"`value` goes {path}. {value} is not below {limit}, so the loop ends and `{value}` is printed.",
        ),
        ("这段代码输出什么？", f"`value`依次为{path}。{value}不小于{limit}，循环结束，输出`{value}`。"),
    )
    return Draft(
        "code_trace", messages=[said("user", f"{words[0]}\n\n{fenced('python', code)}"), said("assistant", words[1])]
    )


def sql(draw: Draw) -> Draft:
    """A query with a join, a group and a limit; then a filter is added."""
    table, limit, year = (
        draw.rng.choice(("orders", "visits", "loans")),
        draw.rng.randrange(3, 11),
        draw.rng.randrange(2015, 2024),
    )
    query = (
        f"SELECT c.name, COUNT(*) AS number\nFROM {table} AS t\nJOIN customers AS c ON "
        "c.id = t.customer_id\nGROUP BY c.id, c.name\nORDER BY number DESC\nLIMIT "
        f"{limit};"
    )
    more = query.replace("\nGROUP", f"\nWHERE t.day >= '{year}-01-01'\nGROUP")
    turns = draw.say(
        (
            f"SQL, please: the {limit} customers with the most rows in `{table}`. Tables: "
            f"`{table}(id, customer_id, day)`, `customers(id, name)`.",
            f"Only since {year}.",
        ),
        (
            f"请写SQL：`{table}`中记录最多的{limit}位客户。表：`{table}(id, customer_id, "
            "day)`，`customers(id, name)`。",
            f"只统计{year}年以来的。",
        ),
    )
    return Draft(
        "code_write",
        messages=[
            said("user", turns[0]),
            said("assistant", fenced("sql", query)),
            said("user", turns[1]),
            said("assistant", fenced("sql", more)),
        ],
    )


def javascript(draw: Draw) -> Draft:
    """Grouping with reduce, in JavaScript; then in TypeScript."""
    key, each = (
        draw.rng.choice(("city", "colour", "team", "month", "kind", "size", "owner", "year")),
        draw.rng.choice(("row", "entry", "item")),
    )
    plain = (
        f"function groupBy{key.capitalize()}(rows) {{\n  const groups = new Map();\n  for "
        f"(const {each} of rows) {{\n    const list = groups.get({each}.{key}) ?? [];\n   "
        f" list.push({each});\n    groups.set({each}.{key}, list);\n  }}\n  return "
        f"groups;\n}}"
    )
    typed = f"type Row = {{ {key}: string }};\n\n" + plain.replace(
        "(rows)", "<T extends Row>(rows: T[]): Map<string, T[]>"
    ).replace("new Map()", "new Map<string, T[]>()")
    turns = draw.say(
        (f"Group an array of objects by `{key}` in JavaScript.", "Now in TypeScript."),
        (f"用JavaScript按`{key}`给对象数组分组。", "再写成TypeScript。"),
    )
    return Draft(
        "code_write",
        messages=[
            said("user", turns[0]),
            said("assistant", fenced("javascript", plain)),
            said("user", turns[1]),
            said("assistant", fenced("typescript", typed)),
        ],
    )


def c_function(draw: Draw) -> Draft:
    """Reversing a string in C, with what to look out for."""
    name, word = (
        draw.rng.choice(("reverse", "flip", "mirror")),
        draw.rng.choice(
            ("kettle", "harbour", "lantern", "meadow", "copper", "timber", "window", "silver", "basket", "orchard")
        ),
    )
    code = (
        f"#include <stdio.h>\n#include <string.h>\n\nvoid {name}(char *text) {{\n    "
        f"size_t length = strlen(text);\n    for (size_t i = 0; i < length / 2; i++) {{\n "
        "       char kept = text[i];\n        text[i] = text[length - 1 - i];\n        "
        f"text[length - 1 - i] = kept;\n    }}\n}}\n\nint main(void) {{\n    char word[] "
        f'= "{word}";\n    {name}(word);\n    printf("%s\\n", word);\n    return 0;\n}}'
    )
    words = draw.say(
        (
            f"Reverse a string in place in C and try it with “{word}”.",
            f"It prints `{word[::-1]}`. The word must be an array, not a string literal, "
            "because it is changed; bytes are swapped, so multi-byte characters would break.",
        ),
        (
            f"用C语言原地反转字符串，并用“{word}”测试。",
            f"输出`{word[::-1]}`。必须用数组而不是字符串常量，因为内容会被修改；这里交换的是字节，多字节字符会被破坏。",
        ),
    )
    return Draft(
        "code_write", messages=[said("user", words[0]), said("assistant", f"{fenced('c', code)}\n\n{words[1]}")]
    )


def shell(draw: Draw) -> Draft:
    """A pipeline, explained part by part."""
    ending, number = draw.rng.choice(("log", "csv", "txt", "json")), draw.rng.randrange(3, 21)
    command = f"find . -name '*.{ending}' -type f -size +{number}M -mtime -7 | sort"
    parts = draw.say(
        (
            ("find .", "walks from the current folder down"),
            (f"-name '*.{ending}'", f"keeps names that end in `.{ending}`"),
            ("-type f", "files only"),
            (f"-size +{number}M", f"larger than {number} MiB"),
            ("-mtime -7", "changed in the last seven days"),
            ("| sort", "sorts the paths"),
        ),
        (
            ("find .", "从当前目录向下查找"),
            (f"-name '*.{ending}'", f"只要以`.{ending}`结尾的名字"),
            ("-type f", "只要文件"),
            (f"-size +{number}M", f"大于{number} MiB"),
            ("-mtime -7", "最近七天内修改过"),
            ("| sort", "对路径排序"),
        ),
    )
    lines = "\n".join(f"- `{a}`: {b}" for a, b in parts)
    ask = draw.say(
        f"A bash line that lists all .{ending} files over {number} MiB changed in the "
        "last week, sorted. Explain each part.",
        f"写一行bash：列出最近一周修改过、大于{number} MiB的.{ending}文件并排序，逐项解释。",
    )
    return Draft("code_write", messages=[said("user", ask), said("assistant", f"{fenced('bash', command)}\n\n{lines}")])


def rust(draw: Draw) -> Draft:
    """Counting words in Rust, with a test."""
    words = draw.rng.sample(("sea", "hill", "lamp", "road", "bell", "tree"), 3)
    text = f"{words[0]} {words[1]} {words[0]} {words[2]} {words[0]}"
    code = (
        "use std::collections::HashMap;\n\nfn count(text: &str) -> HashMap<&str, usize> "
        f"{{\n    let mut counts = HashMap::new();\n    for word in "
        f"text.split_whitespace() {{\n        *counts.entry(word).or_insert(0) += 1;\n    "
        f"}}\n    counts\n}}\n\n#[test]\nfn counts_words() {{\n    "
        f'assert_eq!(count("{text}")["{words[0]}"], 3);\n}}'
    )
    ask = draw.say(
        f"Count words in Rust, and write a test with “{text}”.", f"用Rust统计单词次数，并用“{text}”写一个测试。"
    )
    end = draw.say("The keys borrow from the text, so nothing is copied.", "键借用原文本，没有复制。")
    return Draft("code_write", messages=[said("user", ask), said("assistant", f"{fenced('rust', code)}\n\n{end}")])


def page_code(draw: Draw) -> Draft:
    """A small page in HTML and CSS."""
    colour, wide = draw.rng.choice(("teal", "navy", "maroon", "olive")), draw.rng.randrange(24, 60, 4)
    title = draw.one(("Opening hours", "Our garden", "Lost and found"), ("营业时间", "我们的花园", "失物招领"))
    code = (
        f'<!DOCTYPE html>\n<html lang="{draw.language}">\n<head>\n  <meta '
        f'charset="utf-8">\n  <title>{title}</title>\n  <style>\n    main {{ max-width: '
        f"{wide}rem; margin: 2rem auto; }}\n    h1 {{ color: {colour}; }}\n  </style>\n"
        f"</head>\n<body>\n  <main><h1>{title}</h1></main>\n</body>\n</html>"
    )
    ask = draw.say(
        f"A bare HTML page titled “{title}”, {colour} heading, text no wider than {wide}rem, centred.",
        f"写一个最简单的HTML页面，标题“{title}”为{colour}色，内容最宽{wide}rem并居中。",
    )
    return Draft("code_write", messages=[said("user", ask), said("assistant", fenced("html", code))])


def pattern(draw: Draw) -> Draft:
    """A regular expression, with matches and non-matches, in Python."""
    digits, letters = draw.rng.randrange(2, 6), draw.rng.randrange(1, 4)
    sample = (
        "".join(draw.rng.choices("ABCDEFGHKLMNPQRST", k=letters)),
        str(draw.rng.randrange(10 ** (digits - 1), 10**digits)),
    )
    good, bad = "-".join(sample), "".join(sample)
    code = (
        f'import re\n\nPATTERN = re.compile(r"[A-Z]{{{letters}}}-[0-9]{{{digits}}}")\n\n'
        f'assert PATTERN.fullmatch("{good}")\nassert not PATTERN.fullmatch("{bad}")'
    )
    ask = draw.say(
        f"A regex for part numbers: {letters} capital letter{'s' if letters > 1 else ''}, "
        f"a hyphen, {digits} digits. Test it in Python.",
        f"写一个正则表达式：{letters}个大写字母、一个连字符、{digits}个数字，并用Python测试。",
    )
    end = draw.say(
        f"`{good}` matches; `{bad}` does not, because the hyphen is missing.",
        f"`{good}`匹配；`{bad}`不匹配，因为缺少连字符。",
    )
    return Draft("code_write", messages=[said("user", ask), said("assistant", f"{fenced('python', code)}\n\n{end}")])


def code(draw: Draw) -> Draft:
    """One of the ten in turn."""
    makers = (python_function, sql, python_bug, javascript, shell, python_trace, c_function, rust, page_code, pattern)
    return makers[draw.index % 10](draw)


KINDS = {"code": code}
