"""One painter per scene kind: how its facts become shapes on a :class:`~scst.data.scenes.canvas.Canvas`.

Every painter takes the canvas and the facts ``count, colour, shape, companion, arrangement`` by keyword
and uses those that its kind has. :data:`~scst.data.scenes.dataset.LAYOUTS` states which values they may take.
"""

import math
from collections.abc import Callable

from scst.data.scenes.canvas import (
    ASPHALT,
    CAR_PAINTS,
    CONCRETE,
    GRID,
    PAINT,
    SAND,
    SOIL,
    WATER,
    Box,
    Canvas,
    Colour,
    cells,
    middle,
    shrink,
)


def river(c: Canvas, shape: str, colour: str, companion: str, **_: object) -> None:
    """A winding or straight band of water between two banks."""
    c.fill_with(companion, (0, 0, GRID, GRID))
    swing = c.rng.uniform(9, 14) if shape == "curved" else 0.0
    phase, tilt = c.rng.uniform(0, 6.3), c.rng.uniform(-5, 5)
    course = [
        (x, GRID / 2 + swing * math.sin(x / 11 + phase) + tilt * (x / 32 - 1)) for x in range(-4, 70, 2)
    ]
    width = c.rng.uniform(9, 13)
    for half, paint in ((width / 2 + 1.3, c.tint((150, 140, 104))), (width / 2, c.tint(WATER[colour], 6))):
        c.polygon([(x, y - half) for x, y in course] + [(x, y + half) for x, y in reversed(course)], paint)


def bridge(c: Canvas, count: int, colour: str, companion: str, **_: object) -> None:
    """A wide straight river with road bridges across."""
    c.fill_with(companion, (0, 0, GRID, GRID))
    c.rect((0, 17, GRID, 47), c.tint(WATER[colour], 6))
    for lane in range(count):
        x = GRID * (lane + 1) / (count + 1) + c.rng.uniform(-4, 4)
        c.rect((x - 3.2, 0, x + 5.4, GRID), (40, 44, 48))
        c.rect((x - 4, 0, x + 4, GRID), (206, 204, 196))
        c.rect((x - 2.8, 0, x + 2.8, GRID), c.tint(ASPHALT))
        for _step in range(4):
            c.car(x + c.rng.choice((-2.2, 0.6)), c.rng.uniform(2, 58))


def port(c: Canvas, count: int, colour: str, companion: str, **_: object) -> None:
    """Boats moored along a pier that leaves the quay."""
    c.rect((0, 0, GRID, GRID), c.tint(WATER[colour], 6))
    c.fill_with(companion, (0, 0, GRID, STRIP_OF_LAND))
    c.rect((0, STRIP_OF_LAND, GRID, STRIP_OF_LAND + 2.5), CONCRETE)
    c.rect((30.5, STRIP_OF_LAND, 33.5, 60), c.tint(CONCRETE))
    for index in range(count):
        side, row = index % 2, index // 2
        left = 34.5 if side else 16.5
        boat(c, left, STRIP_OF_LAND + 6 + row * (7.5 if count > 6 else 11), flip=not side)


STRIP_OF_LAND = 13


def boat(c: Canvas, x: float, y: float, flip: bool) -> None:
    """A white hull of 13 units with a cabin."""
    tip, stern = (x, x + 13) if flip else (x + 13, x)
    bow = tip + (4 if flip else -4)
    c.polygon([(stern, y), (bow, y), (tip, y + 2.2), (bow, y + 4.4), (stern, y + 4.4)], (238, 238, 236))
    c.rect((x + 4.5, y + 1.1, x + 8.5, y + 3.3), c.rng.choice(((60, 90, 150), (150, 110, 70), (90, 90, 90))))


def airport(c: Canvas, count: int, companion: str, **_: object) -> None:
    """Planes on an apron beside a runway."""
    c.fill_with(companion, (0, 0, GRID, 12))
    c.rect((0, 12, GRID, 46), c.tint(CONCRETE, 8))
    c.rect((0, 50, GRID, 60), c.tint((84, 86, 90), 8))
    for x in range(1, GRID, 8):
        c.rect((x, 54.4, x + 4.5, 55.8), (236, 236, 236))
    for box in cells((2, 13, 62, 46), count):
        plane(c, *middle(box), span=8.5 if count < 5 else 6.8)


def plane(c: Canvas, x: float, y: float, span: float) -> None:
    """A plane seen from above, its nose up."""
    x, y, white = x + c.rng.uniform(-1, 1), y + c.rng.uniform(-1, 1), (246, 246, 246)
    for shift, paint in ((1.2, (112, 112, 112)), (0.0, white)):
        u, v = x + shift, y + shift
        c.line([(u, v - span), (u, v + span)], span * 0.3, paint)
        c.polygon(
            [
                (u, v - span * 0.45),
                (u + span, v + span * 0.4),
                (u + span, v + span * 0.65),
                (u, v + span * 0.3),
                (u - span, v + span * 0.65),
                (u - span, v + span * 0.4),
            ],
            paint,
        )
        c.polygon([(u, v + span * 0.5), (u + span * 0.45, v + span), (u - span * 0.45, v + span)], paint)


def dense_residential(c: Canvas, colour: str, companion: str, **_: object) -> None:
    """Small roofs in tight rows, streets between the rows."""
    for street in (15.2, 31.4, 47.6):
        c.rect((0, street - 1.3, GRID, street + 1.3), c.tint(ASPHALT))
    for row in range(8):
        top, x = 1.2 + (row // 2) * 16.2 + (row % 2) * 6.4, c.rng.uniform(0, 2)
        while x < GRID:
            width = c.rng.uniform(4.8, 6.4)
            c.house((x, top, x + width, top + 5.2), c.tint(PAINT[colour], 24))
            x += width + c.rng.uniform(1.0, 2.0)
    for _tree in range(46 if companion == "trees" else 5):
        c.disc(c.rng.uniform(0, GRID), c.rng.uniform(0, GRID), 1.5, c.tint((38, 82, 42)))


def house(c: Canvas, count: int, colour: str, companion: str, arrangement: str, **_: object) -> None:
    """A few large houses with lawns."""
    for box in cells(c.surround(companion, arrangement), count):
        (x, y), side = middle(box), min(box[2] - box[0], box[3] - box[1])
        half = min(10.5, side * 0.36) * c.rng.uniform(0.9, 1.1)
        c.rect((x - 1.4, y, x + 1.4, box[3]), (190, 186, 176))
        c.house((x - half, y - half * 0.72, x + half, y + half * 0.72), c.tint(PAINT[colour]))
        c.house((x - half * 0.3, y, x + half * 0.55, y + half), c.tint(PAINT[colour]))


def storage_tank(c: Canvas, count: int, colour: str, companion: str, arrangement: str, **_: object) -> None:
    """Round tanks with rims and shadows."""
    for box in cells(c.surround(companion, arrangement), count):
        (x, y), radius = middle(box), min(box[2] - box[0], box[3] - box[1]) * 0.39
        c.disc(x + radius * 0.28, y + radius * 0.28, radius, (70, 68, 60))
        c.disc(x, y, radius, tuple(int(v * 0.72) for v in PAINT[colour]))
        c.disc(x, y, radius * 0.86, c.tint(PAINT[colour], 8))


def tennis_court(c: Canvas, count: int, colour: str, companion: str, arrangement: str, **_: object) -> None:
    """Courts with white lines and a net."""
    for box in cells(c.surround(companion, arrangement), count):
        x, y = middle(box)
        height = min((box[3] - box[1]) * 0.9, (box[2] - box[0]) * 1.5, 30)
        width = min(height * 0.6, (box[2] - box[0]) * 0.9)
        c.rect((x - width / 2, y - height / 2, x + width / 2, y + height / 2), (96, 120, 92))
        court_lines(
            c, (x - width * 0.38, y - height * 0.4, x + width * 0.38, y + height * 0.4), c.tint(PAINT[colour])
        )


def court_lines(c: Canvas, court: Box, paint: Colour) -> None:
    """The painted field of one tennis court."""
    left, top, right, bottom = court
    x, y = middle(court)
    c.rect(court, (240, 240, 240))
    c.rect(shrink(court, 0.8), paint)
    c.rect((left, y - 0.5, right, y + 0.5), (240, 240, 240))
    c.rect((x - 0.3, top + 3, x + 0.3, bottom - 3), (240, 240, 240))


def farmland(c: Canvas, count: int, colour: str, shape: str, companion: str, **_: object) -> None:
    """Ploughed pieces, rectangular or circular, in shades of one colour."""
    c.fill_with(companion, (0, 0, GRID, 10))
    for box in cells((0, 11, GRID, GRID), count):
        paint = c.tint(FIELDS[colour], 26)
        if shape == "circular":
            radius = min(box[2] - box[0], box[3] - box[1]) * 0.47
            c.disc(*middle(box), radius, paint)
            c.line([middle(box), (box[0] + radius, box[1])], 0.7, (150, 140, 110))
            continue
        c.rect(shrink(box, 0.6), paint)
        darker = tuple(int(v * 0.86) for v in paint)
        for step in range(int(box[1]) + 2, int(box[3]) - 1, 4):
            c.rect((box[0] + 0.6, step, box[2] - 0.6, step + 1.4), darker)


FIELDS: dict[str, Colour] = {"green": (96, 152, 72), "yellow": (206, 186, 96), "brown": (144, 108, 76)}


def forest(c: Canvas, shape: str, companion: str, **_: object) -> None:
    """Crowns everywhere, dense or sparse, sometimes cut by a road or a clearing."""
    c.trees((-2, -2, 66, 66), crowding=2.0 if shape == "dense" else 0.3)
    if companion == "road":
        c.rect((0, 28, GRID, 36), c.tint(SOIL))
        c.road((0, 26, GRID, 38))
    elif companion in ("bareland", "meadow"):
        paint = SOIL if companion == "bareland" else (126, 166, 82)
        c.disc(
            c.rng.uniform(20, 44), c.rng.uniform(20, 44), c.rng.uniform(12, 15), c.tint(paint, 8), flat=0.8
        )


def parking(c: Canvas, count: int, companion: str, arrangement: str, **_: object) -> None:
    """Rows of cars on asphalt; ``count`` above 20 fills the bays."""
    left, top, right, bottom = c.surround(companion, arrangement)
    c.rect((left, top, right, bottom), c.tint((104, 104, 108), 8))
    share = 0.92 if count > 20 else 0.3
    y = top + 1.2
    while y < bottom - 4.5:
        x = left + 1
        while x < right - 2.8:
            c.rect((x - 0.5, y - 0.4, x - 0.1, y + 4.6), (214, 214, 210))
            if c.rng.random() < share:
                c.rect((x + 0.2, y, x + 2.5, y + 4.2), c.rng.choice(CAR_PAINTS))
            x += 3.3
        y += 7.8


def baseball_field(c: Canvas, count: int, companion: str, arrangement: str, **_: object) -> None:
    """Green sectors with a brown infield."""
    for box in cells(c.surround(companion, arrangement), count):
        side = min(box[2] - box[0], box[3] - box[1]) - 1
        left, bottom, s = middle(box)[0] - side / 2, middle(box)[1] + side / 2, c.scale
        for radius, paint in ((1.0, (80, 156, 74)), (0.56, (186, 132, 84))):
            reach = side * radius
            c.pen.pieslice(
                ((left - reach) * s, (bottom - reach) * s, (left + reach) * s, (bottom + reach) * s),
                270,
                360,
                fill=c.tint(paint, 8),
            )
        d = side * 0.3
        c.polygon(
            [
                (left + d * 0.2, bottom - d * 0.2),
                (left + d * 1.1, bottom - d * 0.2),
                (left + d * 1.1, bottom - d * 1.1),
                (left + d * 0.2, bottom - d * 1.1),
            ],
            (88, 160, 80),
        )


def beach(c: Canvas, colour: str, shape: str, companion: str, **_: object) -> None:
    """Sea, a line of waves, sand and what grows behind it."""
    c.rect((0, 0, GRID, GRID), c.tint(SAND, 8))
    wave, swing = c.rng.uniform(0, 6.3), c.rng.uniform(1, 3)
    shore = [(x, 31 + swing * math.sin(x / 9 + wave)) for x in range(0, 68, 4)]
    sea = {"blue": (44, 104, 164), "green": (58, 142, 132)}[colour]
    c.polygon([(0, 0), *shore, (GRID, 0)], c.tint(sea, 8))
    crests = 4 if shape == "wavy" else 1
    for crest in range(crests):
        c.line([(x, y - crest * 4.5) for x, y in shore], 1.8 if crests > 1 else 0.8, (240, 244, 244))
    c.fill_with(companion, (0, 47, GRID, GRID))


def roundabout(c: Canvas, count: int, companion: str, **_: object) -> None:
    """A ring road with three or four arms around a green island."""
    for corner in ((0, 0, 25, 25), (39, 0, 64, 25), (0, 39, 25, 64), (39, 39, 64, 64)):
        c.fill_with(companion, corner)
    asphalt = c.tint((122, 122, 124), 8)
    c.rect((0, 27, GRID, 37), asphalt)
    c.rect((27, 0 if count > 3 else 32, 37, GRID), asphalt)
    for radius, paint in ((19.0, asphalt), (12.0, (214, 214, 206)), (11.0, c.tint((96, 152, 78)))):
        c.disc(32, 32, radius, paint)
    for turn in range(6):
        angle = turn * 1.05 + c.rng.uniform(0, 0.6)
        c.car(31 + 15.5 * math.cos(angle), 31 + 15.5 * math.sin(angle), wide=bool(turn % 2))


def pond(c: Canvas, colour: str, companion: str, arrangement: str, **_: object) -> None:
    """A rounded sheet of water on a lawn."""
    box = c.surround(companion, arrangement)
    (x, y), wide = middle(box), (box[2] - box[0]) * 0.44
    flat = min(0.95, (box[3] - box[1]) * 0.45 / wide)
    for grow, paint in ((1.1, (164, 152, 118)), (1.0, c.tint(WATER[colour], 6))):
        c.disc(x, y, wide * grow, paint, flat)
        c.disc(x + wide * 0.3, y + wide * flat * 0.25, wide * 0.72 * grow, paint, flat)


def industrial(c: Canvas, count: int, colour: str, companion: str, arrangement: str, **_: object) -> None:
    """Long ribbed roofs of factories."""
    for box in cells(c.surround(companion, arrangement), count):
        roof, (left, top, right, bottom) = c.tint(INDUSTRIAL_ROOFS[colour], 8), shrink(box, 1.4)
        c.house((left, top, right, bottom), roof)
        darker = tuple(int(v * 0.84) for v in roof)
        for x in range(int(left) + 2, int(right), 4):
            c.rect((x, top, x + 1, bottom), darker)


INDUSTRIAL_ROOFS: dict[str, Colour] = {"blue": (66, 116, 186), "white": (228, 230, 230), "red": (168, 84, 70)}


def railway_station(c: Canvas, count: int, colour: str, companion: str, **_: object) -> None:
    """A station roof beside tracks with trains."""
    c.fill_with(companion, (0, 0, GRID, 12))
    c.rect((4, 14, 60, 28), (70, 70, 66))
    c.rect((3, 13, 59, 27), c.tint(PAINT[colour], 10))
    c.rect((3, 19.4, 59, 20.6), (92, 92, 92))
    c.rect((0, 30, GRID, GRID), c.tint((134, 122, 108)))
    for track in range(6):
        for rail in (0.0, 2.4):
            c.rect((0, 32 + track * 5.4 + rail, GRID, 32.8 + track * 5.4 + rail), (66, 62, 60))
    for track in c.rng.sample(range(6), count):
        start, paint = c.rng.uniform(-4, 20), c.rng.choice(((236, 236, 240), (60, 90, 170), (190, 60, 50)))
        for wagon in range(4):
            left = start + wagon * 12
            c.rect((left, 31.3 + track * 5.4, left + 11.2, 35.7 + track * 5.4), paint)


def playground(c: Canvas, colour: str, companion: str, arrangement: str, **_: object) -> None:
    """A football field inside a red running track."""
    box = c.surround(companion, arrangement)
    (x, y), half = middle(box), min(15.5, (box[3] - box[1]) / 2)
    reach = min(29.0 if arrangement != "around" else 21.0, half * 1.8)
    grass = {"green": (84, 158, 72), "yellow": (190, 172, 98)}[colour]
    for grow, paint in ((1.0, (188, 78, 58)), (0.68, c.tint(grass, 8))):
        r, straight = half * grow, reach - half
        c.disc(x - straight, y, r, paint)
        c.disc(x + straight, y, r, paint)
        c.rect((x - straight, y - r, x + straight, y + r), paint)
    c.rect((x - 0.4, y - half * 0.68, x + 0.4, y + half * 0.68), (236, 236, 230))
    c.disc(x, y, half * 0.22, (236, 236, 230))
    c.disc(x, y, half * 0.15, grass)


PAINTERS: dict[str, Callable[..., None]] = {
    "river": river,
    "bridge": bridge,
    "port": port,
    "airport": airport,
    "dense residential": dense_residential,
    "house": house,
    "storage tank": storage_tank,
    "tennis court": tennis_court,
    "farmland": farmland,
    "forest": forest,
    "parking": parking,
    "baseball field": baseball_field,
    "beach": beach,
    "roundabout": roundabout,
    "pond": pond,
    "industrial": industrial,
    "railway station": railway_station,
    "playground": playground,
}
