"""The drawing surface of the embedded scenes: strokes in grid units, companions in strips, cells for
objects.
"""

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

GRID = 64  # painters think in a 64 x 64 grid, whatever the size of the picture
OVERSAMPLING = 3
STRIP = 15  # width of a companion's strip, in grid units

Colour = tuple[int, ...]
"""Red, green, blue from 0 to 255."""
Box = tuple[float, float, float, float]

PAINT: dict[str, Colour] = {
    "blue": (52, 98, 158),
    "brown": (128, 92, 58),
    "gray": (150, 150, 150),
    "green": (64, 118, 66),
    "red": (172, 62, 48),
    "white": (232, 232, 228),
    "yellow": (196, 172, 92),
    "black": (52, 54, 60),
}
WATER: dict[str, Colour] = {
    "blue": (40, 84, 140),
    "green": (58, 104, 92),
    "brown": (122, 104, 74),
    "black": (30, 42, 48),
}
ASPHALT, CONCRETE, SAND = (112, 112, 114), (168, 166, 160), (214, 194, 148)
GRASS, SOIL, TREE = (112, 142, 84), (180, 154, 118), (38, 82, 42)
CAR_PAINTS = ((230, 230, 230), (180, 40, 40), (40, 60, 140), (40, 40, 44), (200, 200, 120))


class Canvas:
    """A drawing surface in grid units with the strokes that painters share."""

    def __init__(self, rng: random.Random, ground: Colour, scale: float) -> None:
        self.rng, self.scale = rng, scale
        side = round(GRID * scale)
        self.image = Image.new("RGB", (side, side), self.tint(ground, 10))
        self.pen = ImageDraw.Draw(self.image)

    def tint(self, colour: Colour, spread: int = 14) -> Colour:
        """A nearby colour: one shift for all channels, a small one for each."""
        shift = self.rng.uniform(-spread, spread)
        return tuple(int(min(255, max(0, c + shift + self.rng.uniform(-4, 4)))) for c in colour)

    def rect(self, box: Box, fill: Colour) -> None:
        """A filled rectangle ``(left, top, right, bottom)``; an empty one is passed over."""
        left, top, right, bottom = (value * self.scale for value in box)
        if right > left and bottom > top:
            self.pen.rectangle((left, top, right - 1, bottom - 1), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: Colour, flat: float = 1.0) -> None:
        """A filled ellipse around ``(x, y)``, ``flat`` times as high as it is wide."""
        s, height = self.scale, radius * flat
        self.pen.ellipse(((x - radius) * s, (y - height) * s, (x + radius) * s, (y + height) * s), fill=fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: Colour) -> None:
        """A polyline with round joints."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.pen.line(scaled, fill=fill, width=max(1, round(width * self.scale)), joint="curve")

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        """A filled polygon."""
        self.pen.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=fill)

    def house(self, box: Box, roof: Colour) -> None:
        """A roof with a lit half and a shadow."""
        left, top, right, bottom = box
        self.rect((left + 0.8, top + 0.8, right + 1.0, bottom + 1.0), (58, 58, 52))
        self.rect(box, roof)
        self.rect((left, top, right, (top + bottom) / 2), tuple(min(255, c + 22) for c in roof))

    def car(self, x: float, y: float, wide: bool = False) -> None:
        """A car of 3.0 x 1.6 units."""
        width, height = (3.0, 1.6) if wide else (1.6, 3.0)
        self.rect((x, y, x + width, y + height), self.rng.choice(CAR_PAINTS))

    def trees(self, box: Box, crowding: float = 1.0) -> None:
        """Tree crowns scattered over a box, ``crowding`` times the usual number."""
        left, top, right, bottom = box
        for _ in range(int((right - left) * (bottom - top) * crowding / 13)):
            x, y = self.rng.uniform(left, right), self.rng.uniform(top, bottom)
            radius = self.rng.uniform(1.8, 3.2)
            self.disc(x + 0.7, y + 0.7, radius, (24, 48, 28))
            self.disc(x, y, radius, self.tint(TREE, 22))

    def buildings(self, box: Box) -> None:
        """Grey and brown blocks in a loose grid."""
        left, top, right, bottom = box
        y = top + 1
        while y < bottom - 4:
            x = left + 1
            while x < right - 4:
                width, height = self.rng.uniform(4.5, 7), self.rng.uniform(4.5, 6)
                roof = self.tint(self.rng.choice(((150, 146, 140), (134, 112, 96), (176, 172, 168))), 16)
                self.house((x, y, min(x + width, right), min(y + height, bottom)), roof)
                x += width + 2.2
            y += 8

    def fill_with(self, companion: str, box: Box) -> None:
        """Cover a box with a companion."""
        if companion == "trees":
            self.rect(box, self.tint((88, 116, 68)))
            self.trees(box)
        elif companion == "buildings":
            self.rect(box, self.tint((136, 136, 120)))
            self.buildings(box)
        elif companion == "road":
            self.road(box)
        else:
            self.rect(box, self.tint(SOIL if companion == "bareland" else (126, 166, 82), 8))

    def road(self, box: Box) -> None:
        """A road with a dashed centre line and cars along the middle of a strip."""
        left, top, right, bottom = box
        across, half = right - left > bottom - top, 4.0
        middle = (top + bottom) / 2 if across else (left + right) / 2
        road = (
            (left, middle - half, right, middle + half)
            if across
            else (middle - half, top, middle + half, bottom)
        )
        self.rect(road, self.tint(ASPHALT, 8))
        for at in range(int(left if across else top), int(right if across else bottom), 5):
            dash = (at, middle - 0.4, at + 2.5, middle + 0.4)
            self.rect(dash if across else (dash[1], dash[0], dash[3], dash[2]), (220, 220, 210))
            if self.rng.random() < 0.25:
                lane = middle + self.rng.choice((-2.8, 1.2))
                x, y = (at, lane) if across else (lane, at)
                self.car(x, y, wide=across)

    def surround(self, companion: str, arrangement: str) -> Box:
        """Lay the companion out in strips and return the box that stays free."""
        left, top, right, bottom = 0.0, 0.0, float(GRID), float(GRID)
        strips: list[Box] = [(0, 0, GRID, STRIP)]
        top = STRIP
        if arrangement in ("sides", "around"):
            strips.append((0, GRID - STRIP, GRID, GRID))
            bottom = GRID - STRIP
        if arrangement == "around":
            left, right = 11.0, GRID - 11.0
            strips += [(0, STRIP, left, bottom), (right, STRIP, GRID, bottom)]
        for strip in strips:
            self.fill_with(companion, strip)
        return (left + 1, top + 1, right - 1, bottom - 1)


def cells(box: Box, count: int) -> list[Box]:
    """Cut a box into a grid of at least ``count`` nearly square cells and return the first ``count``."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    columns = min(
        range(1, count + 1), key=lambda c: abs(math.log(width / c / (height / math.ceil(count / c))))
    )
    rows = math.ceil(count / columns)
    dx, dy = width / columns, height / rows
    places = [
        (left + c * dx, top + r * dy, left + (c + 1) * dx, top + (r + 1) * dy)
        for r in range(rows)
        for c in range(columns)
    ]
    return places[:count]


def shrink(box: Box, margin: float) -> Box:
    """The box without a margin on each side."""
    return (box[0] + margin, box[1] + margin, box[2] - margin, box[3] - margin)


def middle(box: Box) -> tuple[float, float]:
    """The centre of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
