"""The places of the miniature world: the 20 recontextualisations of the DreamBooth protocol, drawn.

Each function paints the background of one place on a canvas; `FOREGROUNDS` paint what lies in front of the subject
(the water that it floats in). Everything random comes from the `random.Random` that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image

from .drawing import UNITS, WHITE, Canvas, Colour, Point, blend, shade, star_points

S = UNITS


def vary(colour: Colour, rng: Random, amount: float = 12) -> Colour:
    """The colour moved at random, mostly in brightness, by at most 1.5 times `amount` a channel."""
    common = rng.uniform(-amount, amount)
    red, green, blue = (int(max(0, min(255, c + common + rng.uniform(-amount / 2, amount / 2)))) for c in colour)
    return red, green, blue


def _horizon(rng: Random) -> float:
    return S * rng.uniform(0.46, 0.56)


def _fir(canvas: Canvas, x: float, ground: float, height: float, colour: Colour) -> None:
    for level in range(3):
        half = height * (0.32 - 0.07 * level)
        foot = ground - height * 0.27 * level
        points = [(x - half, foot), (x + half, foot), (x, foot - height * 0.46)]
        canvas.polygon(points, shade(colour, 1 + 0.1 * level))


def _leaf(canvas: Canvas, x: float, y: float, length: float, angle: float, colour: Colour) -> None:
    ux, uy = math.cos(angle) * length / 2, math.sin(angle) * length / 2
    points = [(x - ux, y - uy), (x - uy * 0.55, y + ux * 0.55), (x + ux, y + uy), (x + uy * 0.55, y - ux * 0.55)]
    canvas.polygon(points, colour)
    canvas.line([(x - ux, y - uy), (x + ux, y + uy)], shade(colour, 0.7), 2)


def jungle(canvas: Canvas, rng: Random) -> None:
    canvas.gradient(vary((30, 92, 44), rng), (14, 46, 24))
    for _ in range(rng.randint(3, 4)):
        x, w = rng.uniform(0, S), rng.uniform(6, 11)
        canvas.box(x - w, 0, x + w, S * 0.8, vary((84, 60, 34), rng))
    greens = [(40, 128, 50), (76, 164, 58), (22, 98, 54)]
    for _ in range(32):
        x, y = rng.uniform(-10, S + 10), rng.uniform(-10, S + 10)
        _leaf(canvas, x, y, rng.uniform(36, 62), rng.uniform(0, 6.28), vary(rng.choice(greens), rng))


def snow(canvas: Canvas, rng: Random) -> None:
    horizon = _horizon(rng)
    canvas.gradient(vary((146, 182, 222), rng), (214, 228, 242), 0, horizon)
    canvas.gradient((247, 250, 255), (218, 229, 244), horizon, S)
    for _ in range(rng.randint(3, 4)):
        ground = horizon + rng.uniform(-2, 10)
        _fir(canvas, rng.uniform(0, S), ground, rng.uniform(60, 100), vary((46, 98, 84), rng))
    for _ in range(46):
        radius = rng.uniform(2, 4.5)
        canvas.ellipse(rng.uniform(0, S), rng.uniform(0, S), radius, radius, WHITE)


def beach(canvas: Canvas, rng: Random) -> None:
    shore = _horizon(rng)
    sea = shore * 0.6
    canvas.gradient(vary((92, 178, 236), rng), (192, 228, 246), 0, sea)
    canvas.gradient(vary((22, 116, 180), rng), (66, 186, 206), sea, shore)
    canvas.gradient(vary((242, 216, 156), rng), (224, 188, 122), shore, S)
    x, y = rng.uniform(24, S - 24), rng.uniform(20, 42)
    canvas.ellipse(x, y, 17, 17, (255, 242, 150))
    for left in range(0, int(S), 32):
        canvas.ellipse(left + 16, shore, 20, 7, (246, 251, 251))
    for _ in range(36):
        canvas.ellipse(rng.uniform(0, S), rng.uniform(shore + 14, S), 2.5, 2.5, (204, 170, 108))


def cobblestone(canvas: Canvas, rng: Random) -> None:
    stone = vary((116, 114, 118), rng)
    canvas.gradient(shade(stone, 0.5), shade(stone, 0.5))
    side = rng.uniform(30, 36)
    shift = rng.uniform(0, side)
    for row in range(-1, int(S / (side * 0.8)) + 2):
        for column in range(-2, int(S / side) + 2):
            x = column * side + shift + (side / 2 if row % 2 else 0)
            y = row * side * 0.8
            canvas.ellipse(x, y, side * 0.46, side * 0.37, vary(shade(stone, 1.15), rng, 16))


def pink_fabric(canvas: Canvas, rng: Random) -> None:
    colour = vary((242, 150, 188), rng, 8)
    y, x = np.mgrid[0 : canvas.pixels, 0 : canvas.pixels].astype(np.float32) / canvas.k
    angle = rng.uniform(0.5, 1.2) * rng.choice([-1, 1])
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    bend = 2 * np.sin(across * 0.02 + rng.uniform(0, 6))
    fold = np.sin(along * rng.uniform(0.045, 0.065) + bend + rng.uniform(0, 6))
    picture = np.array(colour, np.float32) * (1 + 0.13 * fold[..., None])
    canvas.replace(Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)))


def wooden_floor(canvas: Canvas, rng: Random) -> None:
    wall = _horizon(rng) - 14
    canvas.gradient(vary((230, 216, 192), rng), (212, 196, 168), 0, wall)
    canvas.box(0, wall - 10, S, wall, (246, 242, 234))
    wood = vary((172, 112, 62), rng)
    y, height = wall, 18.0
    while y < S:
        canvas.box(0, y, S, y + height, vary(wood, rng, 9))
        for _ in range(2):
            x = rng.uniform(0, S)
            canvas.line([(x, y), (x, y + height)], shade(wood, 0.62), 3)
        canvas.line([(0, y), (S, y)], shade(wood, 0.62), 3)
        y += height
        height *= 1.35


def city(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) + 34
    canvas.gradient(vary((158, 190, 226), rng), (238, 228, 218), 0, ground)
    x = -rng.uniform(4, 20)
    while x < S:
        width, top = rng.uniform(34, 54), rng.uniform(14, 84)
        colour = vary(rng.choice([(92, 104, 136), (128, 120, 126), (72, 84, 112)]), rng)
        canvas.box(x, top, x + width, ground, colour)
        for row in range(int((ground - top - 10) / 20)):
            for column in range(int((width - 8) / 14)):
                left, upper = x + 7 + 14 * column, top + 8 + 20 * row
                window = (252, 228, 134) if rng.random() < 0.65 else shade(colour, 0.65)
                canvas.box(left, upper, left + 7, upper + 10, window)
        x += width + 2
    canvas.gradient(vary((112, 112, 118), rng), (78, 78, 86), ground, S)


def mountain(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) + 22
    canvas.gradient(vary((112, 172, 232), rng), (218, 234, 246), 0, ground)
    for middle in (0.12, 0.88, 0.5):
        x, top, half = S * (middle + rng.uniform(-0.1, 0.1)), rng.uniform(10, 52), rng.uniform(80, 112)
        colour = vary((112, 106, 132), rng)
        canvas.polygon([(x - half, ground), (x + half, ground), (x, top)], colour)
        canvas.polygon([(x, top), (x + half, ground), (x + half * 0.2, ground)], shade(colour, 0.8))
        snowline, w = top + (ground - top) * 0.32, half * 0.32
        zigzag = [(x - w, snowline), (x - w * 0.4, snowline - 7), (x, snowline + 7), (x + w * 0.5, snowline - 7)]
        canvas.polygon([(x, top), *zigzag, (x + w, snowline)], (249, 251, 253))
    canvas.gradient(vary((118, 158, 90), rng), (88, 128, 66), ground, S)


def blue_house(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) + 30
    canvas.gradient(vary((176, 214, 240), rng), (226, 238, 246), 0, ground)
    canvas.gradient(vary((124, 190, 92), rng), (90, 156, 70), ground, S)
    middle, half = S * rng.uniform(0.42, 0.58), rng.uniform(92, 108)
    eaves = rng.uniform(62, 74)
    wall = vary((58, 112, 200), rng, 10)
    canvas.box(middle - half, eaves, middle + half, ground, wall)
    for y in range(int(eaves) + 12, int(ground), 14):
        canvas.line([(middle - half, y), (middle + half, y)], shade(wall, 0.86), 2)
    canvas.polygon(
        [(middle - half - 14, eaves), (middle + half + 14, eaves), (middle, eaves - 62)], vary((112, 66, 62), rng)
    )
    for x in (middle - half * 0.68, middle + half * 0.68):
        canvas.box(x - 19, eaves + 16, x + 19, eaves + 56, (252, 240, 190), WHITE, width=5)
        canvas.line([(x, eaves + 16), (x, eaves + 56)], WHITE, 4)
    canvas.box(middle - 17, eaves + 20, middle + 17, ground, (120, 76, 46), WHITE, width=4)


def rug_in_forest(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) + 4
    canvas.gradient(vary((120, 170, 122), rng), (170, 204, 150), 0, ground)
    canvas.gradient(vary((110, 128, 64), rng), (82, 98, 48), ground, S)
    for i in range(7):
        x, w = S * (i + rng.uniform(0.1, 0.9)) / 7, rng.uniform(6, 11)
        bark = vary((98, 72, 50), rng)
        canvas.box(x - w, 0, x + w, ground + rng.uniform(0, 14), bark)
        canvas.box(x, 0, x + w, ground, shade(bark, 0.8))
    for _ in range(12):
        x, y, radius = rng.uniform(0, S), rng.uniform(-6, 22), rng.uniform(16, 28)
        canvas.ellipse(x, y, radius, radius * 0.7, vary((46, 112, 56), rng))
    rug = vary((134, 64, 168), rng, 8)
    canvas.ellipse(S / 2, S * 0.87, 126, 40, rug, (232, 200, 96), 5)
    canvas.ellipse(S / 2, S * 0.87, 98, 27, None, shade(rug, 1.35), 5)


def wheat_field(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) - 22
    canvas.gradient(vary((104, 172, 230), rng), (220, 232, 236), 0, ground + 16)
    canvas.gradient(vary((236, 200, 92), rng), (198, 150, 52), ground, S)
    for depth in range(6):
        y = ground + 4 + depth * (S - ground) / 5.2
        height = 22 + 9 * depth
        for i in range(20 - depth):
            x = S * (i + rng.uniform(0.1, 0.9)) / (20 - depth)
            lean = rng.uniform(-7, 7)
            colour = vary((228, 182, 70) if rng.random() < 0.6 else (196, 142, 44), rng)
            canvas.line([(x, y + height), (x + lean, y - 4)], shade(colour, 0.86), 3)
            canvas.ellipse(x + lean, y - 8, 3 + 0.5 * depth, 8 + depth, colour)


def autumn_tree(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) + 28
    canvas.gradient(vary((190, 212, 230), rng), (244, 232, 208), 0, ground)
    canvas.gradient(vary((198, 140, 68), rng), (160, 98, 44), ground, S)
    x = S * rng.choice([0.2, 0.8]) + rng.uniform(-12, 12)
    bark = vary((92, 60, 40), rng)
    canvas.polygon([(x - 15, ground + 12), (x + 15, ground + 12), (x + 9, 40), (x - 9, 40)], bark)
    canvas.line([(x, 96), (S / 2, 44)], bark, 9)
    reds = [(226, 96, 34), (240, 158, 44), (204, 58, 36), (246, 194, 62)]
    for _ in range(26):
        cx, cy, radius = x + rng.gauss(0, 62), rng.gauss(30, 26), rng.uniform(13, 24)
        canvas.ellipse(cx, cy, radius, radius * 0.85, vary(rng.choice(reds), rng))
    for _ in range(30):
        y = rng.uniform(ground, S) if rng.random() < 0.8 else rng.uniform(60, ground)
        length, angle = rng.uniform(15, 24), rng.uniform(0, 6.28)
        _leaf(canvas, rng.uniform(0, S), y, length, angle, vary(rng.choice(reds), rng))


def eiffel_tower(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) + 40
    canvas.gradient(vary((150, 170, 222), rng), (252, 214, 196), 0, ground)
    canvas.gradient(vary((146, 186, 104), rng), (112, 156, 82), ground, S)
    for _ in range(3):
        cx, cy = rng.uniform(0, S), rng.uniform(14, 60)
        canvas.ellipse(cx, cy, rng.uniform(24, 40), 9, (250, 236, 232))
    x = S * rng.choice([rng.uniform(0.18, 0.36), rng.uniform(0.64, 0.82)])
    iron = vary((104, 78, 62), rng, 8)
    top, height = 8.0, ground - 8

    def half(t: float) -> float:  # half width of the tower at a share t of its height, from the top
        return 2.5 + 46 * t**2.3

    left = [(x - half(t / 12), top + height * t / 12) for t in range(13)]
    right = [(x + half(t / 12), top + height * t / 12) for t in range(13)]
    canvas.polygon(left + right[::-1], iron)
    arch = [(x + 27 * math.cos(math.pi * t / 10), ground - 34 * math.sin(math.pi * t / 10)) for t in range(11)]
    canvas.polygon(arch, (236, 208, 194))
    canvas.polygon(
        [(x - 12, ground - 52), (x + 12, ground - 52), (x + 5, ground - 84), (x - 5, ground - 84)], (244, 212, 198)
    )
    for t in (0.42, 0.68):
        w, y = half(t) + 6, top + height * t
        canvas.box(x - w, y - 4, x + w, y + 4, shade(iron, 0.75))
    canvas.line([(x, 0), (x, 20)], iron, 4)


def _waves(canvas: Canvas, rng: Random, top: float, colour: Colour, count: int) -> None:
    for _ in range(count):
        x, y = rng.uniform(-20, S), rng.uniform(top + 6, S)
        width = rng.uniform(22, 46) * (0.5 + 0.7 * (y - top) / (S - top))
        points: list[Point] = [(x + width * i / 8, y + 4 * math.sin(i * math.pi / 4)) for i in range(9)]
        canvas.line(points, colour, 4)


def water(canvas: Canvas, rng: Random) -> None:
    shore = S * rng.uniform(0.28, 0.36)
    canvas.gradient(vary((136, 196, 240), rng), (214, 234, 246), 0, shore)
    canvas.gradient(vary((38, 128, 200), rng), (20, 84, 158), shore, S)
    _waves(canvas, rng, shore, vary((132, 200, 238), rng), 24)


def milk(canvas: Canvas, rng: Random) -> None:
    shore = S * rng.uniform(0.24, 0.32)
    canvas.gradient(vary((198, 186, 222), rng), (232, 222, 236), 0, shore)
    canvas.gradient((253, 250, 242), (240, 232, 216), shore, S)
    _waves(canvas, rng, shore, vary((224, 212, 194), rng, 6), 22)
    for _ in range(7):
        radius = rng.uniform(4, 9)
        canvas.ellipse(rng.uniform(0, S), rng.uniform(shore - 30, shore + 30), radius, radius, (255, 253, 247))


def sunflowers(canvas: Canvas, rng: Random) -> None:
    canvas.gradient(vary((112, 192, 78), rng), (64, 146, 54))
    for _ in range(80):
        x, y = rng.uniform(0, S), rng.uniform(0, S)
        canvas.line([(x, y), (x + rng.uniform(-5, 5), y - 15)], vary((56, 128, 46), rng), 3)
    for i in range(12):
        angle = 2 * math.pi * (i + rng.uniform(-0.3, 0.3)) / 12
        x = S / 2 + math.cos(angle) * S * rng.uniform(0.4, 0.52)
        y = S / 2 + math.sin(angle) * S * rng.uniform(0.38, 0.5)
        radius = rng.uniform(18, 24)
        for petal in range(9):
            turn = petal * 2 * math.pi / 9
            px, py = x + math.cos(turn) * radius * 0.72, y + math.sin(turn) * radius * 0.72
            canvas.ellipse(px, py, radius * 0.4, radius * 0.4, (252, 206, 34))
        canvas.ellipse(x, y, radius * 0.52, radius * 0.52, (102, 62, 28))


def mirror(canvas: Canvas, rng: Random) -> None:
    canvas.gradient(vary((92, 74, 84), rng), (62, 50, 60))
    canvas.ellipse(S / 2, S * 0.8, 124, 58, (212, 214, 222), (236, 240, 244), 3)
    canvas.ellipse(S / 2, S * 0.8, 115, 51, vary((172, 206, 222), rng, 8), (116, 124, 138), 3)
    for offset in (-46, -30):
        canvas.line([(S / 2 + offset - 26, S * 0.92), (S / 2 + offset + 26, S * 0.68)], (216, 236, 244), 5)
    for _ in range(4):
        x, y = rng.uniform(0, S), rng.uniform(6, S * 0.45)
        canvas.polygon(star_points(x, y, 7), (228, 206, 150))


def crowded_street(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) + 16
    x = -rng.uniform(0, 30)
    while x < S:
        width = rng.uniform(62, 84)
        canvas.box(x, 0, x + width, ground, vary(rng.choice([(214, 190, 160), (196, 160, 140), (226, 214, 190)]), rng))
        awning = rng.choice([(206, 62, 58), (58, 140, 92), (232, 178, 62)])
        canvas.polygon([(x + 4, 26), (x + width - 4, 26), (x + width, 46), (x, 46)], awning)
        canvas.box(x + 8, 46, x + width - 8, ground, (92, 106, 122))
        x += width
    clothes = [
        (190, 56, 60),
        (62, 96, 170),
        (240, 190, 70),
        (70, 140, 90),
        (120, 70, 140),
        (230, 230, 226),
        (50, 54, 64),
    ]
    skins = [(238, 200, 168), (198, 146, 108), (126, 84, 60)]
    for i in range(9):
        x = S * (i + rng.uniform(0.1, 0.9)) / 9
        head = rng.uniform(46, 66)
        coat = vary(rng.choice(clothes), rng)
        canvas.box(x - 8, head + 40, x + 8, ground + 8, shade(coat, 0.55))
        canvas.box(x - 14, head + 10, x + 14, head + 56, coat, radius=9)
        canvas.ellipse(x, head, 10, 12, rng.choice(skins))
        canvas.ellipse(x, head - 6, 10, 7, vary((62, 44, 34), rng, 20))
    slab = vary((186, 184, 180), rng)
    canvas.gradient(shade(slab, 1.06), shade(slab, 0.88), ground, S)
    y, step = ground, 14.0
    while y < S:
        canvas.line([(0, y), (S, y)], shade(slab, 0.72), 3)
        y, step = y + step, step * 1.5
    for i in range(-3, 4):
        canvas.line([(S / 2 + i * 34, ground), (S / 2 + i * 92, S)], shade(slab, 0.72), 3)


def dirt_road(canvas: Canvas, rng: Random) -> None:
    ground = _horizon(rng) - 8
    canvas.gradient(vary((136, 190, 232), rng), (226, 232, 226), 0, ground)
    for _ in range(4):
        canvas.ellipse(rng.uniform(0, S), ground, rng.uniform(40, 70), rng.uniform(14, 26), vary((86, 138, 70), rng))
    canvas.gradient(vary((132, 164, 82), rng), (104, 138, 62), ground, S)
    road = vary((156, 112, 70), rng)
    vanish = S / 2 + rng.uniform(-24, 24)
    canvas.polygon([(vanish - 14, ground), (vanish + 14, ground), (S + 46, S), (-46, S)], road)
    for side in (-1, 1):
        track = [(vanish + side * 5, ground), (S / 2 + side * 104, S), (S / 2 + side * 72, S)]
        canvas.polygon(track, shade(road, 0.74))
    for _ in range(26):
        canvas.ellipse(
            rng.uniform(20, S - 20), rng.uniform(ground + 50, S), 3.5, 2.5, shade(road, rng.choice([0.7, 1.3]))
        )


def white_rug(canvas: Canvas, rng: Random) -> None:
    wall = _horizon(rng) - 20
    canvas.gradient(vary((120, 142, 142), rng), (104, 124, 126), 0, wall)
    canvas.box(0, wall - 8, S, wall, (224, 222, 214))
    canvas.gradient(vary((132, 100, 78), rng), (104, 76, 58), wall, S)
    near, far = S * 0.99, wall + 26
    rug = [(36, far), (S - 36, far), (S - 4, near), (4, near)]
    canvas.polygon(rug, (246, 244, 238), (216, 210, 200), 4)
    for _ in range(70):
        y = rng.uniform(far + 6, near - 10)
        edge = 36 - 32 * (y - far) / (near - far)
        x = rng.uniform(edge + 6, S - edge - 6)
        canvas.line([(x, y), (x + rng.uniform(-4, 4), y + 7)], (222, 218, 208), 3)


def backdrop(canvas: Canvas, rng: Random) -> None:
    """A plain studio wall in a pale colour: what a prompt without a place may show."""
    base = (rng.randint(150, 235), rng.randint(150, 235), rng.randint(150, 235))
    colour = blend(base, (206, 206, 206), 0.5)
    canvas.gradient(shade(colour, 1.08), shade(colour, 0.97), 0, S * 0.72)
    canvas.gradient(shade(colour, 0.92), shade(colour, 1.02), S * 0.72, S)


def _flood(canvas: Canvas, rng: Random, waterline: float, colour: Colour, foam: Colour) -> None:
    phase = rng.uniform(0, 6)
    surface = [(x, waterline + 4 * math.sin(x / 15 + phase)) for x in range(0, int(S) + 8, 8)]
    canvas.wash([*surface, (S, S), (0, S)], colour, 0.8)
    canvas.line(surface, foam, 4)


def water_in_front(canvas: Canvas, rng: Random, waterline: float) -> None:
    _flood(canvas, rng, waterline, (26, 100, 176), (176, 222, 246))
    _waves(canvas, rng, waterline, (120, 192, 234), 8)


def milk_in_front(canvas: Canvas, rng: Random, waterline: float) -> None:
    _flood(canvas, rng, waterline, (248, 242, 230), (214, 200, 180))
    _waves(canvas, rng, waterline, (224, 212, 194), 7)


Painter = Callable[[Canvas, Random], None]

# The protocol's wording (after "a {token} {class}") and the place's painter.
SETTINGS: dict[str, Painter] = {
    "in the jungle": jungle,
    "in the snow": snow,
    "on the beach": beach,
    "on a cobblestone street": cobblestone,
    "on top of pink fabric": pink_fabric,
    "on top of a wooden floor": wooden_floor,
    "with a city in the background": city,
    "with a mountain in the background": mountain,
    "with a blue house in the background": blue_house,
    "on top of a purple rug in a forest": rug_in_forest,
    "with a wheat field in the background": wheat_field,
    "with a tree and autumn leaves in the background": autumn_tree,
    "with the Eiffel Tower in the background": eiffel_tower,
    "floating on top of water": water,
    "floating in an ocean of milk": milk,
    "on top of green grass with sunflowers around it": sunflowers,
    "on top of a mirror": mirror,
    "on top of the sidewalk in a crowded street": crowded_street,
    "on top of a dirt road": dirt_road,
    "on top of a white rug": white_rug,
}

# What lies in front of a floating subject, from the waterline (canvas units) down.
FOREGROUNDS: dict[str, Callable[[Canvas, Random, float], None]] = {
    "floating on top of water": water_in_front,
    "floating in an ocean of milk": milk_in_front,
}

# Where the subject sees itself in what it stands on.
REFLECTING = frozenset({"on top of a mirror"})
