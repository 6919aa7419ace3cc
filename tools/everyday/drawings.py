"""Pages, tables, charts, screens and signs, drawn from a string seed, and what is asked about each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GREY, RULE = (25, 25, 30), (255, 255, 255), (110, 110, 115), (200, 200, 205)
PAINTS = {"blue": (45, 95, 200), "orange": (240, 140, 30), "green": (40, 150, 80), "red": (205, 45, 50), "purple": (125, 70, 170)}
GOODS = ("Apples", "Bread", "Cheese", "Coffee", "Eggs", "Lemons", "Milk", "Onions", "Pasta", "Rice", "Salt", "Tea")
CITIES = ("Berlin", "Cairo", "Lima", "Madrid", "Oslo", "Paris", "Quito", "Rome", "Seoul", "Tokyo", "Tunis", "Vienna")
NAMES = ("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SENTENCES = (
    "The library opens at nine and closes at six on weekdays.",
    "Visitors are asked to leave their bags at the front desk.",
    "Last year more than forty thousand people came to see the garden.",
    "The old bridge was closed in March because of the flood.",
    "A new path now leads from the station to the lake.",
    "Every second Sunday a guide explains the history of the mill.",
    "Tickets are free for children under twelve.",
    "The museum shop sells maps, books and postcards.",
    "In winter the upper floor is not heated.",
    "Questions are answered by the office on the ground floor.",
)
TITLES = ("Opening Hours", "Annual Report", "News from the Valley", "A Walk by the River", "House Rules", "Notes of the Meeting")


@dataclass(frozen=True)
class Drawing:
    """A picture and the questions about it."""

    name: str
    image: Image.Image
    questions: tuple[str, ...]


class Sheet:
    """A picture under a pen, with text of any size."""

    def __init__(self, width: int, height: int, color: tuple[int, int, int] = PAPER) -> None:
        self.image = Image.new("RGB", (width, height), color)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, size: int = 18, color: tuple[int, int, int] = INK, anchor: str = "la") -> None:
        self.pen.text((x, y), words, fill=color, font=ImageFont.load_default(size), anchor=anchor)

    def paragraph(self, x: float, y: float, words: str, width: float, size: int = 17) -> float:
        """Lines of words no wider than `width`; returns where the next one starts."""
        font, line = ImageFont.load_default(size), ""
        for word in words.split():
            longer = f"{line} {word}".strip()
            if font.getlength(longer) > width:
                self.text(x, y, line, size)
                y, line = y + size * 1.45, word
            else:
                line = longer
        self.text(x, y, line, size)
        return y + size * 1.9


def page(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet = Sheet(560, 720)
    title, day = source.choice(TITLES), f"{source.randint(1, 28)} {source.choice(MONTHS)} {source.randint(2001, 2024)}"
    sheet.text(50, 50, title, 30)
    sheet.text(50, 92, day, 15, GREY)
    y = 135.0
    for _ in range(3):
        y = sheet.paragraph(50, y, " ".join(source.sample(SENTENCES, source.randint(2, 3))), 460)
    sheet.text(280, 690, str(source.randint(2, 90)), 14, GREY, "mm")
    return sheet.image, (
        "What is the title of this page?",
        "Which date is on the page?",
        "How many paragraphs are there?",
        "Is there a picture on the page?",
        "What is the page number?",
        "Sum up the first paragraph in one sentence.",
    )


def receipt(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet = Sheet(360, 520, (250, 248, 240))
    bought = source.sample(GOODS, source.randint(4, 7))
    cents = [source.randint(80, 950) for _ in bought]
    sheet.text(180, 40, f"MARKET {source.choice(CITIES).upper()}", 22, anchor="mm")
    sheet.text(180, 70, f"{source.randint(1, 28):02}.{source.randint(1, 12):02}.{source.randint(2015, 2024)}", 14, GREY, "mm")
    for row, (name, price) in enumerate(zip(bought, cents, strict=True)):
        sheet.text(35, 105 + 36 * row, name)
        sheet.text(325, 105 + 36 * row, f"{price / 100:.2f}", anchor="ra")
    end = 115 + 36 * len(bought)
    sheet.pen.line((35, end, 325, end), fill=INK, width=2)
    sheet.text(35, end + 12, "TOTAL", 22)
    sheet.text(325, end + 12, f"{sum(cents) / 100:.2f}", 22, anchor="ra")
    return sheet.image, (
        "What is the total?",
        f"How much do the {bought[1].lower()} cost?",
        "How many things were bought?",
        "What is the name of the shop?",
        f"Is there {source.choice(GOODS).lower()} on the receipt?",
        "Which is the most expensive item?",
    )


def table(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet = Sheet(620, 400)
    columns, rows = source.sample(("Points", "Age", "Height", "Rank", "Score"), 3), source.sample(NAMES, 6)
    sheet.text(30, 20, source.choice(("Results", "Members", "Team list")), 24)
    for line in range(8):
        sheet.pen.line((30, 65 + 44 * line, 590, 65 + 44 * line), fill=RULE, width=1)
    for number, name in enumerate(("Name", *columns)):
        sheet.text(45 + 140 * number, 76, name, 18, PAINTS["blue"])
    for row, name in enumerate(rows, 1):
        for number, words in enumerate((name, *(str(source.randint(10, 99)) for _ in columns))):
            sheet.text(45 + 140 * number, 76 + 44 * row, words)
    return sheet.image, (
        f"What is the {columns[0].lower()} of {rows[2]}?",
        "How many rows does the table have, without the header?",
        f"Who has the highest {columns[1].lower()}?",
        f"Is {source.choice(NAMES)} in the table?",
        "What are the names of the columns?",
        "Describe the table in one sentence.",
    )


def _axes(sheet: Sheet, title: str, top: int) -> None:
    sheet.text(320, 30, title, 24, anchor="mm")
    for step in range(6):
        y = 390 - 60 * step
        sheet.pen.line((80, y, 600, y), fill=RULE)
        sheet.text(70, y, f"{top * step // 5}", 14, GREY, "rm")


def bars(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet, names, paint = Sheet(640, 460), source.sample(CITIES, 5), source.choice(list(PAINTS))
    title = source.choice(("Rainy days", "Visitors in thousands", "Sunny hours a week", "Trains per hour"))
    values = [source.randint(8, 98) for _ in names]
    _axes(sheet, title, 100)
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        left = 105 + 100 * place
        sheet.pen.rectangle((left, 390 - 3 * value, left + 60, 390), fill=PAINTS[paint])
        sheet.text(left + 30, 408, name, 15, anchor="mm")
    return sheet.image, (
        "Which city has the highest bar?",
        f"About how large is the value of {names[2]}?",
        "How many bars are there?",
        "What is the title of the chart?",
        f"Is {names[0]} higher than {names[1]}?",
        "What color are the bars?",
    )


def lines(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet, chosen = Sheet(640, 460), source.sample(list(PAINTS), 2)
    months = MONTHS[: source.choice((6, 8))]
    labels = source.sample(CITIES, 2)
    _axes(sheet, source.choice(("Temperature", "Sales", "Water level")), 50)
    for number, (name, color) in enumerate(zip(labels, chosen, strict=True)):
        points = [(100 + 480 * place / (len(months) - 1), 390 - 6 * source.randint(5, 48)) for place in range(len(months))]
        sheet.pen.line(points, fill=PAINTS[color], width=4)
        sheet.text(110 + 180 * number, 62, name, 17, PAINTS[color])
    for place, month in enumerate(months):
        sheet.text(100 + 480 * place / (len(months) - 1), 408, month, 15, anchor="mm")
    return sheet.image, (
        f"What color is the line of {labels[0]}?",
        "How many lines are there?",
        f"In which month is {labels[1]} highest?",
        "Which months are shown?",
        f"Does {labels[0]} end higher than it starts?",
        "Describe the chart in one sentence.",
    )


def pie(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet, names = Sheet(560, 420), source.sample(GOODS, 4)
    shares = [source.randint(10, 60) for _ in names]
    start = -90.0
    sheet.text(280, 28, "Share of sales", 24, anchor="mm")
    for place, (name, share, color) in enumerate(zip(names, shares, PAINTS, strict=False)):
        end = start + 360 * share / sum(shares)
        sheet.pen.pieslice((50, 70, 370, 390), start, end, fill=PAINTS[color], outline=PAPER)
        sheet.pen.rectangle((400, 120 + 50 * place, 424, 144 + 50 * place), fill=PAINTS[color])
        sheet.text(436, 122 + 50 * place, name)
        start = end
    return sheet.image, (
        "What has the largest share?",
        "How many parts does the pie have?",
        f"What color stands for {names[1].lower()}?",
        f"Is the share of {names[0].lower()} larger than a half?",
        "Where is the legend?",
    )


def screen(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet, who = Sheet(640, 420, (240, 242, 246)), source.choice(NAMES)
    tabs = source.sample(("Home", "Files", "Mail", "Music", "Photos", "Settings"), 4)
    sheet.pen.rectangle((0, 0, 640, 50), fill=(50, 60, 80))
    for number, name in enumerate(tabs):
        sheet.text(30 + 120 * number, 15, name, 17, PAPER)
    sheet.text(40, 80, f"Welcome back, {who}", 28)
    boxes = source.sample(("Send me news", "Dark mode", "Show pictures", "Sound on", "Remember me"), 3)
    ticked = [source.random() < 0.5 for _ in boxes]
    for row, (name, there) in enumerate(zip(boxes, ticked, strict=True)):
        y = 150 + 45 * row
        sheet.pen.rectangle((45, y, 67, y + 22), fill=PAPER, outline=INK, width=2)
        if there:
            sheet.pen.line([(49, y + 11), (55, y + 18), (64, y + 4)], fill=PAINTS["green"], width=4)
        sheet.text(82, y, name)
    for number, (name, color) in enumerate((("Cancel", (150, 155, 165)), (source.choice(("Save", "OK", "Next")), PAINTS["blue"]))):
        sheet.pen.rounded_rectangle((360 + 130 * number, 350, 475 + 130 * number, 392), 8, fill=color)
        sheet.text(417 + 130 * number, 371, name, 18, PAPER, "mm")
    return sheet.image, (
        "Who is greeted?",
        f"Is the box {boxes[0]} ticked?",
        "How many boxes are there?",
        "What does the blue button say?",
        "Which tabs are in the bar at the top?",
        "Where is the button Cancel?",
    )


def messages(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet, (other, name) = Sheet(400, 640, (232, 238, 245)), source.sample(NAMES, 2)
    sheet.pen.rectangle((0, 0, 400, 60), fill=PAINTS["green"])
    sheet.text(24, 18, other, 22, PAPER)
    said = (
        f"Hi {name}, where are you?",
        f"On the train to {source.choice(CITIES)}.",
        "When do you arrive?",
        f"At {source.randint(1, 12)}:{source.choice(('00', '15', '30', '45'))}.",
        f"Shall I bring {source.choice(GOODS).lower()}?",
        "Yes, please!",
    )
    for row, words in enumerate(said):
        mine, width = row % 2, int(ImageFont.load_default(17).getlength(words)) + 28
        left = 384 - width if mine else 16
        sheet.pen.rounded_rectangle((left, 85 + 85 * row, left + width, 130 + 85 * row), 12, fill=(210, 245, 205) if mine else PAPER)
        sheet.text(left + 14, 97 + 85 * row, words, 17)
    return sheet.image, (
        "Who is this conversation with?",
        "How many messages are there?",
        "When does the train arrive?",
        "Where is the traveler going?",
        "On which side are the green messages?",
        "Sum up the conversation in one sentence.",
    )


def sign(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sky, color = (175, 205, 235), source.choice(list(PAINTS))
    sheet = Sheet(480, 480, sky)
    sheet.pen.rectangle((0, 400, 480, 480), fill=(95, 130, 75))
    sheet.pen.rectangle((228, 250, 252, 440), fill=(120, 120, 125))
    words, shape = source.choice(("STOP", "EXIT", "TAXI", "SLOW", "BUS", "OPEN")), source.choice(("round", "square", "triangle"))
    if shape == "round":
        sheet.pen.ellipse((120, 60, 360, 300), fill=PAINTS[color], outline=PAPER, width=8)
    elif shape == "square":
        sheet.pen.rectangle((120, 70, 360, 300), fill=PAINTS[color], outline=PAPER, width=8)
    else:
        sheet.pen.polygon([(240, 30), (90, 300), (390, 300)], fill=PAINTS[color], outline=PAPER, width=8)
    sheet.text(240, 200 if shape == "triangle" else 180, words, 56, PAPER, "mm")
    return sheet.image, (
        "What does the sign say?",
        "What color is the sign?",
        "What shape is the sign?",
        "Is the sign on a pole?",
        "What is below the sign?",
    )


def board(source: Random) -> tuple[Image.Image, tuple[str, ...]]:
    sheet, cities = Sheet(640, 380, (20, 24, 40)), source.sample(CITIES, 5)
    light = (250, 210, 70)
    sheet.text(30, 22, "Departures", 28, PAPER)
    for row, city in enumerate(cities):
        hour, minute = source.randint(5, 23), source.choice(("05", "10", "25", "40", "55"))
        for x, words in (
            (30, f"{hour:02}:{minute}"),
            (150, city),
            (400, str(source.randint(1, 12))),
            (480, source.choice(("on time", "late", "on time"))),
        ):
            sheet.text(x, 85 + 55 * row, words, 24, light)
    return sheet.image, (
        f"When does the train to {cities[1]} leave?",
        f"From which platform does the train to {cities[3]} leave?",
        "How many trains are late?",
        f"Is there a train to {source.choice(CITIES)}?",
        "What is the heading?",
        "What color is the text of the table?",
    )


KINDS: dict[str, tuple[int, Callable[[Random], tuple[Image.Image, tuple[str, ...]]]]] = {
    "page": (3, page),
    "receipt": (2, receipt),
    "table": (3, table),
    "bars": (3, bars),
    "lines": (2, lines),
    "pie": (2, pie),
    "screen": (3, screen),
    "messages": (2, messages),
    "sign": (3, sign),
    "board": (1, board),
}


def drawings() -> Iterator[Drawing]:
    """All of them, the same ones for ever."""
    for kind, (count, draw) in KINDS.items():
        for number in range(1, count + 1):
            image, questions = draw(Random(f"{kind}/{number}"))
            yield Drawing(f"{kind}-{number}", image, questions)
