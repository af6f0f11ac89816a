"""The miniature world: captioned 64x64 scenes of a subject in a place, drawn with Pillow.

Everything is deterministic from a `random.Random`. The words are those of the DreamBooth protocol: subjects are its
classes, places its recontextualisations, and `caption` writes its kind of sentence. Needs Pillow and NumPy only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from PIL import Image

from .drawing import Canvas, Pen, ellipse_points
from .places import FOREGROUNDS, REFLECTING, SETTINGS, backdrop
from .subjects import COLOURS, KINDS, LIVE, MARKS, OUTFITS, PATTERNS, PROPERTIES, Subject, draw_subject

SIZE = 64
SUPERSAMPLING = 4

# Words without a meaning: training sprinkles them before class words, so that none of them is tied to a look
# and fine-tuning can give one ("sks") to a subject.
RARE_TOKENS = ("sks", "xjy", "olis", "pud", "zwx", "hta", "vrk", "qel")


@dataclass(frozen=True)
class Pose:
    """Where and how the subject stands.

    Centre and height as shares of the picture's side, mirrored or not, and `sway` (-1..1): what the subject moves.
    """

    x: float = 0.5
    y: float = 0.57
    height: float = 0.6
    mirror: bool = False
    sway: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One picture: a subject, its pose, a place (a key of `SETTINGS`, or None for a plain wall), at most one property
    and one outfit, and the seed of everything incidental (clouds, leaves, passers-by)."""

    subject: Subject
    setting: str | None = None
    pose: Pose = Pose()
    look: str | None = None
    outfit: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.setting is not None and self.setting not in SETTINGS:
            raise ValueError(f"unknown setting {self.setting!r}; known: {', '.join(SETTINGS)}")


def is_reserved(subject: Subject) -> bool:
    """Whether this mix of colours and pattern is kept out of the training scenes, for individuals.

    One in six of the mixes of two colours and a (not plain) pattern is reserved, by a fixed rule, for every kind.
    """
    if subject.pattern == "plain":
        return False
    names = list(COLOURS)
    mix = names.index(subject.colour) + 3 * names.index(subject.second) + PATTERNS.index(subject.pattern)
    return mix % 6 == 4


def random_subject(rng: Random, kind: str | None = None, colour: str | None = None) -> Subject:
    """A subject that training may show: its mix of colours is never a reserved one."""
    names = list(COLOURS)
    # Live subjects have ten outfits besides, so they come twice as often.
    kind = kind or rng.choices(list(KINDS), [2 if name in LIVE else 1 for name in KINDS])[0]
    while True:
        first = colour or rng.choice(names)
        subject = Subject(
            kind=kind,
            colour=first,
            second=rng.choice([name for name in names if name != first]),
            pattern=rng.choices(PATTERNS, (8, 3, 3, 3, 3))[0],
            trim=rng.choice([name for name in names if name != first]),
            collar=rng.choice([name for name in names if name != first]) if rng.random() < 0.35 else None,
            mark=rng.choice(MARKS) if rng.random() < 0.2 else None,
            mark_colour=rng.choice([name for name in names if name != first]),
            build=(rng.random(), rng.random(), rng.random()),
            tint=(rng.randint(-9, 9), rng.randint(-9, 9), rng.randint(-9, 9)),
        )
        if not is_reserved(subject):
            return subject


def individual(seed: int, kind: str | None = None) -> Subject:
    """A subject with fixed, unusual features: a reserved mix of colours, a mark, and a collar if it can wear one.

    No training scene shows its mix. The same seed gives the same individual.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    rng = Random(f"individual {seed}")
    names = list(COLOURS)
    kind = kind or rng.choice(list(KINDS))
    while True:
        first, second, third, fourth = rng.sample(names, 4)
        subject = Subject(
            kind=kind,
            colour=first,
            second=second,
            pattern=rng.choice(PATTERNS[1:]),
            trim=third,
            collar=third if kind in LIVE else None,
            mark=rng.choice(MARKS),
            mark_colour=fourth,
            build=(rng.random(), rng.random(), rng.random()),
            tint=(rng.randint(-9, 9), rng.randint(-9, 9), rng.randint(-9, 9)),
        )
        if is_reserved(subject):
            return subject


def random_pose(rng: Random, outfit: str | None = None, floating: bool = False) -> Pose:
    """A pose with the subject whole in the picture, hat included, at 53 to 72 percent of its height."""
    height = rng.uniform(0.53, 0.62) if outfit else rng.uniform(0.58, 0.72)
    lowest = 0.96 - height / 2
    low, high = (0.47, 0.55) if floating else (0.53, 0.66)
    if outfit:
        low, high = low + 0.06, high + 0.04
    y = min(lowest, rng.uniform(low, high))
    return Pose(0.5 + rng.uniform(-0.13, 0.13), y, height, rng.random() < 0.5, rng.uniform(-1, 1))


def random_scene(
    rng: Random,
    subject: Subject | None = None,
    setting: str | None = None,
    look: str | None = None,
    outfit: str | None = None,
    plain: bool = False,
) -> Scene:
    """A scene of the training distribution; what is given is kept, the rest is drawn. `plain` leaves out properties and
    outfits that are not given."""
    subject = subject or random_subject(rng)
    if setting is None and (rng.random() < 0.94):
        setting = rng.choice(list(SETTINGS))
    if not plain and look is None and outfit is None:
        if subject.kind in LIVE and rng.random() < 0.5:
            outfit = rng.choice(OUTFITS)
        elif rng.random() < 0.2:
            look = rng.choice(PROPERTIES)
    pose = random_pose(rng, outfit, setting in FOREGROUNDS)
    return Scene(subject, setting, pose, look, outfit, rng.getrandbits(32))


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw a scene as an RGB picture of size x size, from a drawing four times as large.

    Raises ValueError for a size outside 16..1024.
    """
    if not 16 <= size <= 1024:
        raise ValueError(f"the side of a picture is 16 to 1024 pixels, got {size}")
    rng = Random(scene.seed)
    canvas = Canvas(size * SUPERSAMPLING)
    painter = SETTINGS[scene.setting] if scene.setting else backdrop
    painter(canvas, rng)
    pose, subject = scene.pose, scene.subject
    units = canvas.pixels / canvas.k
    scale = pose.height * units / 2
    x, y = pose.x * units, pose.y * units
    ground = y + 0.95 * scale
    drop_seed = rng.random()

    def put(pen: Pen) -> None:
        draw_subject(canvas, pen, subject, Random(drop_seed), pose.sway, scene.look, scene.outfit)

    if scene.setting in REFLECTING:
        below = canvas.image.copy()
        put(Pen(canvas, x, ground + 0.9 * scale, scale, pose.mirror, upside_down=True))
        canvas.replace(Image.blend(below, canvas.image, 0.45))
    elif scene.setting not in FOREGROUNDS:
        shadow = ellipse_points(x, ground, scale * 0.84, scale * 0.13)
        canvas.wash(shadow, (0, 0, 0), 0.3)
        if scene.look == "wet":
            canvas.ellipse(x, ground + 2, scale * 0.98, scale * 0.17, (120, 190, 236), (70, 146, 210), 3)
    put(Pen(canvas, x, y, scale, pose.mirror))
    if scene.setting in FOREGROUNDS:
        FOREGROUNDS[scene.setting](canvas, rng, y + 0.52 * scale)
    return canvas.image.reduce(SUPERSAMPLING)


def _article(phrase: str) -> str:
    word = phrase.split()[0]
    return "an" if word[0] in "aeiou" and word not in RARE_TOKENS else "a"


def _colour_words(subject: Subject, two: bool, pattern: bool) -> str:
    if subject.pattern == "plain":
        return subject.colour
    words = f"{subject.colour} and {subject.second}" if two else subject.colour
    return f"{words} {subject.pattern}" if pattern else words


def describe(
    scene: Scene,
    token: str | None = None,
    colour: bool = True,
    two: bool = False,
    pattern: bool = False,
    mark: bool = False,
) -> str:
    """A sentence in the protocol's wording ("a red cat in the snow"), with what is asked for.

    `token` stands before the class word. `two` names the second colour, `pattern` the pattern, `mark` the mark.
    """
    subject = scene.subject
    words = [scene.look] if scene.look else []
    if colour:
        words.append(_colour_words(subject, two, pattern))
    if token:
        words.append(token)
    words.append(subject.kind)
    phrase = " ".join(words)
    phrase = f"{_article(phrase)} {phrase}"
    if mark and subject.mark:
        phrase += f" with a {subject.mark_colour} {subject.mark}"
    if scene.outfit:
        phrase += f" {scene.outfit}"
    return f"{phrase} {scene.setting}" if scene.setting else phrase


def caption(scene: Scene, rng: Random) -> str:
    """A training caption: the protocol's wording with parts left out at random, and now and then a rare token."""
    said = replace(
        scene,
        setting=scene.setting if rng.random() < 0.92 else None,
        look=scene.look if rng.random() < 0.95 else None,
        outfit=scene.outfit if rng.random() < 0.95 else None,
    )
    text = describe(
        said,
        token=rng.choice(RARE_TOKENS) if rng.random() < 0.2 else None,
        colour=rng.random() < 0.78,
        two=rng.random() < 0.6,
        pattern=rng.random() < 0.6,
        mark=rng.random() < 0.6,
    )
    start = rng.random()
    return f"a photo of {text}" if start < 0.55 else f"a picture of {text}" if start < 0.62 else text


def instance_scenes(subject: Subject, count: int = 5, seed: int = 0) -> list[Scene]:
    """Scenes of one subject as a user would photograph it: different ordinary places, no outfit, no property.

    Raises ValueError where there are not `count` such places.
    """
    rng = Random(f"instances {seed}")
    places = [name for name in SETTINGS if name not in FOREGROUNDS and name not in REFLECTING]
    if not 1 <= count <= len(places):
        raise ValueError(f"{count} instance pictures asked for; 1 to {len(places)} are possible, each in its own place")
    return [random_scene(rng, subject, place, plain=True) for place in rng.sample(places, count)]


def heldout_scenes(subject: Subject, seen: list[Scene], count: int = 15, seed: int = 0) -> list[Scene]:
    """Scenes of the same subject in places that the instance pictures do not show."""
    rng = Random(f"heldout {seed}")
    used = {scene.setting for scene in seen}
    places = [name for name in SETTINGS if name not in used]
    rng.shuffle(places)
    return [random_scene(rng, subject, places[i % len(places)], plain=True) for i in range(count)]


def write_pictures(scenes: list[Scene], folder: Path, size: int = SIZE, captions: bool = False) -> None:
    """Render scenes to 01.png, 02.png, ... in a new or existing folder; with `captions` a metadata.jsonl beside them.

    Its lines have the keys `file_name`, `text` (the protocol's sentence without colours), `description` (with them),
    `setting` and `kind`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, scene in enumerate(scenes, 1):
        name = f"{i:02d}.png"
        render(scene, size).save(folder / name)
        row = {
            "file_name": name,
            "text": describe(scene, colour=False),
            "description": describe(scene, two=True, pattern=True, mark=True),
            "setting": scene.setting,
            "kind": scene.subject.kind,
        }
        lines.append(json.dumps(row))
    if captions and lines:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def contact_sheet(pictures: list[Image.Image], columns: int, zoom: int = 2, gap: int = 2) -> Image.Image:
    """Pictures of one size in rows of `columns`, enlarged without smoothing."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


__all__ = [
    "COLOURS",
    "KINDS",
    "LIVE",
    "MARKS",
    "OUTFITS",
    "PATTERNS",
    "PROPERTIES",
    "RARE_TOKENS",
    "SETTINGS",
    "SIZE",
    "Pose",
    "Scene",
    "Subject",
    "caption",
    "contact_sheet",
    "describe",
    "heldout_scenes",
    "individual",
    "instance_scenes",
    "is_reserved",
    "random_pose",
    "random_scene",
    "random_subject",
    "render",
    "write_pictures",
]
