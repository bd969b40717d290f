"""Invented names, places, goods and sentences of the calibration set, and ways to ask, in two languages."""

from drawn.base import Draw

NAMES = (
    ("Maren Olt", "Tobias Quill", "Ines Varga", "Oskar Lindh", "Priya Nand", "Ruth Abel", "Samir Kova", "Nora Fenn"),
    ("林晓雨", "赵一鸣", "周思远", "陈若兰", "吴立新", "何静怡", "孙家乐", "郑文博"),
)
TOWNS = (
    ("Larkhaven", "Port Minnow", "Eastmere", "Quillford", "Aldenbrook", "Stonewick", "Millrace", "Fernhollow"),
    ("青石镇", "云河市", "东岭县", "柳湾", "白鹭城", "松浦", "南溪镇", "月桥"),
)
STREETS = (
    ("Cooper Street", "Harbour Road", "Linden Lane", "Mill Street", "Station Road", "Chapel Hill", "Orchard Way"),
    ("滨河路", "学院街", "槐树巷", "中山东路", "车站大道", "竹园路", "灯塔街"),
)
SHOPS = (
    ("Blue Kettle Cafe", "Harrow & Finch Grocers", "The Paper Boat", "Copper Pan Bistro", "Moss Garden Centre"),
    ("小木屋面包店", "四季水果行", "老街茶馆", "海风餐厅", "青禾超市"),
)
GOODS = (
    (
        ("Oat bread", 3.2),
        ("Apples 1 kg", 2.9),
        ("Green tea", 4.5),
        ("Butter", 2.75),
        ("Tomato soup", 3.9),
        ("Rice 2 kg", 5.4),
        ("Notebook", 2.1),
        ("Olive oil", 7.8),
        ("Coffee beans", 8.6),
        ("Cheddar", 4.15),
        ("Eggs x10", 3.35),
        ("Lemonade", 1.95),
    ),
    (
        ("全麦面包", 12.5),
        ("苹果一公斤", 9.8),
        ("绿茶", 28.0),
        ("黄油", 16.5),
        ("番茄汤", 18.0),
        ("大米两公斤", 22.4),
        ("笔记本", 6.5),
        ("橄榄油", 58.0),
        ("咖啡豆", 66.0),
        ("酸奶", 8.9),
        ("鸡蛋十个", 11.9),
        ("柠檬水", 7.0),
    ),
)
SERIES = (
    ("Bicycles", "Lamps", "Umbrellas", "Kettles", "Backpacks", "Tents"),
    ("自行车", "台灯", "雨伞", "水壶", "背包", "帐篷"),
)
MONTHS = (
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug"),
    ("一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月"),
)
TITLES = (
    (
        "Notes on a River Town",
        "How the Workshop Saves Heat",
        "A Short Guide to Wild Herbs",
        "Winter Timetable Changes",
        "Keeping Bees on a Roof",
        "The Library Moves House",
    ),
    ("河边小镇札记", "车间如何节省热能", "野菜入门", "冬季班次调整", "屋顶养蜂", "图书馆搬家"),
)
SENTENCES = (
    (
        "The ferry leaves at dawn and returns when the market closes.",
        "Every spring the volunteers count the nests along the eastern bank.",
        "Most of the heat is lost through the roof, so the loft was insulated first.",
        "A narrow path leads from the mill to the old glass factory.",
        "Visitors are asked to keep dogs on a lead between March and July.",
        "The new pump moves {n} litres a minute and needs little care.",
        "In the first year the garden gave {n} kilograms of beans.",
        "Nobody remembers who planted the row of poplars behind the station.",
        "The committee will meet again on the {d}th and vote on the plan.",
        "When the wind turns north, the harbour fills with small boats.",
        "The workshop repaired {n} bicycles last winter and gave most of them away.",
        "Rain is collected in two tanks under the terrace.",
        "The oldest house in the lane has walls almost a metre thick.",
        "Tickets cost {d} coins and are sold at the kiosk near the bridge.",
        "Children may borrow up to {d} books for three weeks.",
        "A second bell was added after the fog of last November.",
    ),
    (
        "渡船清晨出发，集市散后才回来。",
        "每年春天，志愿者都会沿着东岸清点鸟巢。",
        "大部分热量从屋顶散失，因此先给阁楼做了保温。",
        "一条小路从磨坊通向旧玻璃厂。",
        "三月到七月，请游客给狗系好绳子。",
        "新水泵每分钟抽水{n}升，几乎不用维护。",
        "第一年，菜园收了{n}公斤豆子。",
        "没有人记得车站后面的那排杨树是谁种的。",
        "委员会将在{d}日再次开会，对方案进行表决。",
        "北风一起，港湾里就停满了小船。",
        "去年冬天，车间修好了{n}辆自行车，大部分都送了人。",
        "雨水收集在露台下面的两个水箱里。",
        "巷子里最老的房子，墙有将近一米厚。",
        "门票{d}元一张，在桥边的售货亭出售。",
        "儿童一次最多可以借{d}本书，期限三周。",
        "去年十一月的大雾之后，又加装了一口钟。",
    ),
)

DESCRIBE = (
    (
        "Describe this picture.",
        "What do you see?",
        "Give a short description of the image.",
        "What is shown here?",
        "Tell me what this picture contains.",
    ),
    ("请描述这张图片。", "图里有什么？", "简单介绍一下这张图。", "这张图展示了什么内容？"),
)
TRANSCRIBE = (
    (
        "Transcribe the text in this image.",
        "Read out everything that is written.",
        "What does it say? Keep the line order.",
        "Please OCR this picture.",
        "Type out the text, nothing else.",
    ),
    ("请转写图中的文字。", "图上写了什么？请完整抄录。", "识别图片里的全部文字。", "只输出图中的文字。"),
)
AS_TABLE = (
    ("Give the data as a Markdown table.", "Turn this into a Markdown table.", "Extract the table, please."),
    ("请用Markdown表格列出数据。", "把图中的内容整理成Markdown表格。", "提取表格内容。"),
)
AS_JSON = (
    ("Return the contents as JSON.", "Extract the fields as a JSON object.", "Answer with JSON only."),
    ("请以JSON格式输出内容。", "提取字段，用JSON表示。", "只用JSON回答。"),
)


def pick(draw: Draw, pool: tuple) -> object:
    """A random one from the pool's half for the language."""
    return draw.rng.choice(draw.say(pool[0], pool[1]))


def ask(draw: Draw, pool: tuple[tuple[str, ...], tuple[str, ...]]) -> str:
    """A random way to ask."""
    return draw.rng.choice(draw.say(pool[0], pool[1]))


def some(draw: Draw, pool: tuple, number: int) -> list:
    """That many different ones, in random order."""
    return draw.rng.sample(draw.say(pool[0], pool[1]), number)


def paragraph(draw: Draw, sentences: int) -> str:
    """Sentences of the pool with numbers filled in."""
    chosen = some(draw, SENTENCES, sentences)
    filled = [s.format(n=draw.rng.randrange(20, 900), d=draw.rng.randrange(4, 19)) for s in chosen]
    return draw.say(" ", "").join(filled)
