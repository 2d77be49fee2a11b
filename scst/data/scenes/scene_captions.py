"""The two languages of the embedded scenes: annotators in the style of RSICD, and a plain photo register.

An annotator picks a frame of the scene's kind (:data:`FRAMES`, weighted: some wordings are common, some
rare), fills its slots with words for the facts, leaves a detail out here and there, and sometimes slips:
a typo, a double space, a missing full stop, a vague caption. Some images have a caption twice, as
RSICD's have. Frames use these slots:

- ``{N}``: the counted objects (``two white storage tanks``); ``{A}``: the bare noun (``storage tanks``).
- ``{are}``, ``{stand}``: the verb that agrees with them.
- ``{C}``: the companion (``some green trees``); ``{lie}``: its verb and place (``are around``, ``is next
  to``).
- ``{by}``: the companion seen from the objects (``surrounded by many buildings``).
- ``{colour}``, ``{shape}``: adjectives that an annotator may omit; ``{paint}``: the colour, always.
"""

import random
import re
import string

from scst.data.scenes.scene_facts import Scene

TYPO_RATE, DOUBLE_SPACE_RATE, NO_STOP_RATE, VAGUE_RATE, REPEAT_RATE = 0.03, 0.03, 0.04, 0.06, 0.2
COLOUR_RATE, SHAPE_RATE, TAIL_RATE = 0.4, 0.5, 0.1

Weighted = tuple[tuple[int, str], ...]

NOUNS: dict[str, tuple[Weighted, Weighted]] = {  # singular, plural
    "river": (((1, "river"),), ((1, "rivers"),)),
    "bridge": (((1, "bridge"),), ((1, "bridges"),)),
    "port": (((3, "boat"), (1, "ship")), ((3, "boats"), (1, "ships"))),
    "airport": (((3, "plane"), (1, "airplane")), ((3, "planes"), (1, "airplanes"))),
    "dense residential": (((1, "house"),), ((3, "houses"), (2, "buildings"))),
    "house": (((3, "house"), (1, "building")), ((3, "houses"), (1, "buildings"))),
    "storage tank": (((1, "storage tank"),), ((5, "storage tanks"), (1, "tanks"))),
    "tennis court": (((1, "tennis court"),), ((6, "tennis courts"), (1, "courts"))),
    "farmland": (((1, "farmland"),), ((1, "pieces of farmlands"),)),
    "forest": (((1, "tree"),), ((1, "trees"),)),
    "parking": (((1, "car"),), ((5, "cars"), (1, "vehicles"))),
    "baseball field": (((5, "baseball field"), (1, "baseball diamond")), ((1, "baseball fields"),)),
    "beach": (((1, "beach"),), ((1, "beaches"),)),
    "roundabout": (((3, "roundabout"), (1, "traffic circle")), ((1, "roundabouts"),)),
    "pond": (((4, "pond"), (1, "lake")), ((1, "ponds"),)),
    "industrial": (((3, "factory"), (2, "workshop")), ((3, "factories"), (2, "workshops"))),
    "railway station": (((1, "train"),), ((1, "trains"),)),
    "playground": (((3, "playground"), (2, "football field")), ((1, "playgrounds"),)),
}

COMPANIONS: dict[str, tuple[str, Weighted]] = {  # verb, phrases
    "trees": ("are", ((5, "many green trees"), (4, "some green trees"), (1, "trees"))),
    "buildings": ("are", ((5, "many buildings"), (3, "some buildings"), (1, "several buildings"))),
    "road": ("is", ((6, "a road"), (2, "a road with some cars"), (1, "a street"))),
    "bareland": ("is", ((4, "a piece of bareland"), (3, "bareland"), (1, "the bare land"))),
    "meadow": ("is", ((4, "a piece of green meadow"), (2, "green meadow"), (1, "the lawn"))),
}
LIE: dict[str, Weighted] = {
    "beside": ((4, "near"), (3, "next to"), (1, "beside")),
    "sides": ((4, "in two sides of"), (2, "on both sides of")),
    "around": ((4, "around"), (1, "all around")),
}
BY: dict[str, Weighted] = {
    "beside": ((4, "near {C}"), (4, "next to {C}"), (1, "beside {C}")),
    "sides": ((3, "with {C} in two sides of it"), (2, "between {C}")),
    "around": ((6, "surrounded by {C}"), (1, "in the middle of {C}")),
}
COUNT_WORDS: dict[int, Weighted] = {
    1: ((8, "a"), (1, "one")),
    2: ((9, "two"), (1, "a couple of")),
    3: ((6, "three"), (2, "several"), (2, "some")),
    4: ((5, "four"), (4, "several"), (2, "some")),
    6: ((6, "several"), (2, "six"), (2, "some")),
}
MANY: Weighted = ((7, "many"), (2, "lots of"), (1, "a lot of"))
SHAPES = {"wavy": "white", "dense": "dense", "sparse": "sparse", "calm": ""}
COLOURS = {"black": "dark", "gray": "grey"}
TAILS = (" in the picture", " on the ground", " in this area", " here", " in the image", " as we can see")

OBJECT_FRAMES: Weighted = (
    (5, "{C} {lie} {N}"),
    (4, "{N} {are} {by}"),
    (2, "there {are} {N} {by}"),
    (1, "{N} {by} can be seen"),
    (1, "we can see {N} and {C}"),
)
FRAMES: dict[str, Weighted] = {
    "river": (
        (5, "{C} {lie} a {shape} {colour} river"),
        (3, "a {shape} {colour} river with {C} in two sides of it"),
        (3, "a {colour} river goes through this area"),
        (2, "the {colour} river is {shape} and {C} {lie} it"),
        (2, "a {shape} river divides {C} into two parts"),
        (1, "there is a {shape} river whose water is {paint}"),
    ),
    "bridge": (
        (4, "{N} {are} on a {colour} river with {C} in two sides of it"),
        (4, "{C} {lie} a river with {N} over it"),
        (3, "{N} {are} across the {colour} river"),
        (2, "some cars are on {N} over the river"),
        (2, "the river under the {A} is {paint}"),
        (1, "the {colour} water flows under {N}"),
    ),
    "port": (
        (4, "{N} {are} in a port near {C}"),
        (4, "{N} {are} docked beside the pier in {colour} water"),
        (5, "{C} {lie} a port with {N}"),
        (2, "there {are} {N} in the {colour} water of the port"),
        (2, "{N} {are} neatly parked in a port"),
        (1, "a long pier reaches into the {colour} sea"),
    ),
    "airport": (
        (4, "{N} {are} parked in an airport near {C}"),
        (4, "{N} {are} parked next to a runway in an airport"),
        (5, "{C} {lie} an airport with {N}"),
        (2, "there {are} {N} in the airport"),
        (2, "the airport has {N} and a runway"),
        (1, "the runway is beside the apron where {A} {stand}"),
    ),
    "dense residential": (
        (5, "many houses with {paint} roofs are in a dense residential area"),
        (4, "many buildings and {C} are in a dense residential area"),
        (3, "lots of {colour} houses are arranged in lines"),
        (2, "the dense residential area is full of {colour} houses"),
        (3, "{C} {lie} many {colour} houses"),
        (1, "rows of {A} {stand} close to each other along the streets"),
    ),
    "house": (
        *OBJECT_FRAMES,
        (3, "{N} with {paint} roofs {by}"),
        (1, "it is a sparse residential area with {N}"),
        (1, "someone lives in the {A} with {paint} roofs"),
    ),
    "storage tank": (
        *OBJECT_FRAMES,
        (2, "{N} {are} on the ground {by}"),
        (1, "the {A} {stand} in order"),
        (2, "{N} with shadows {are} {by}"),
    ),
    "tennis court": (
        (3, "{N} {are} arranged neatly and {by}"),
        (5, "{C} {lie} {N}"),
        (3, "{N} {are} {by}"),
        (2, "there {are} {N} {by}"),
        (2, "the {A} {are} {paint}"),
        (1, "the {A} {are} divided by white lines"),
    ),
    "farmland": (
        (4, "{N} {are} together"),
        (5, "{C} {lie} {N}"),
        (3, "many pieces of {shape} {colour} farmlands are neatly placed"),
        (2, "there {are} {N} {by}"),
        (2, "the {paint} farmlands are in {shape} pieces"),
        (1, "the {shape} fields are {paint}"),
    ),
    "forest": (
        (5, "many green trees are in a piece of {shape} forest"),
        (4, "{C} is in the middle of a {shape} forest"),
        (3, "the forest is {shape} and green"),
        (2, "there are many dark green trees and {C} in the {shape} forest"),
        (2, "many trees grow near {C}"),
        (1, "the {shape} trees look like a green carpet"),
    ),
    "parking": (
        (4, "{N} {are} parked in a parking lot near {C}"),
        (4, "{N} {are} neatly parked in a parking lot {by}"),
        (5, "{C} {lie} a parking lot with {N}"),
        (2, "there {are} {N} in the parking lot"),
        (2, "a parking lot is {by}"),
        (1, "the parking lot is marked with white lines"),
    ),
    "baseball field": (
        *OBJECT_FRAMES,
        (2, "{N} with brown infield {by}"),
        (1, "people play on the {A} at weekends"),
        (2, "the {A} {are} made of lawn and sand"),
    ),
    "beach": (
        (5, "{C} {lie} a yellow beach and {colour} ocean"),
        (4, "{shape} waves in {colour} ocean are near a yellow beach"),
        (4, "a yellow beach is between {paint} ocean and {C}"),
        (2, "the {colour} sea is next to the beach"),
        (2, "the beach is between the sea and {C}"),
        (1, "the waves slap the golden sand again and again"),
    ),
    "roundabout": (
        (5, "{C} {lie} a roundabout with green meadow in it"),
        (4, "a roundabout is in the middle of crossroads near {C}"),
        (3, "some cars are on the roundabout surrounded by {C}"),
        (2, "there is a traffic circle with roads and {C}"),
        (2, "the roundabout connects several roads"),
        (1, "the roads meet at a circle"),
    ),
    "pond": (
        *OBJECT_FRAMES,
        (2, "the water of the {A} is {paint}"),
        (1, "a {colour} {A} lies there like a mirror"),
        (2, "the {A} with {paint} water is {by}"),
    ),
    "industrial": (
        (4, "{N} {are} in an industrial area near {C}"),
        (5, "{C} {lie} {N}"),
        (3, "{N} with {paint} roofs {are} in an industrial area"),
        (2, "there {are} {N} {by}"),
        (2, "the roofs of the {A} are {paint}"),
        (1, "it is an industrial area with long {A}"),
    ),
    "railway station": (
        (5, "{C} {lie} a railway station"),
        (4, "{N} {are} in a railway station near {C}"),
        (3, "a railway station with a long {paint} roof is {by}"),
        (2, "there {are} {N} on the railway"),
        (2, "the {paint} roof of the station is beside {N}"),
        (1, "several tracks run along the platform of the station"),
    ),
    "playground": (
        (5, "{C} {lie} a playground with a football field in it"),
        (4, "a {colour} football field is in a playground {by}"),
        (3, "a playground is {by}"),
        (2, "a red track is around the {colour} football field"),
        (2, "the football field is {paint} and {by}"),
        (1, "the playground is made of a {colour} field and a red runway"),
    ),
}
AREAS = {
    "dense residential": "residential area",
    "house": "residential area",
    "storage tank": "storage tank area",
    "parking": "parking lot",
    "industrial": "industrial area",
}
VAGUE = ("this is a {area}", "it is a {area}", "a photo of {area} from the sky", "here is the {area}")

PLAIN_PLACES: dict[str, tuple[str, str]] = {  # place, objects
    "river": ("a stream", ""),
    "bridge": ("a waterway", "crossing"),
    "port": ("a harbour", "vessel"),
    "airport": ("an airfield", "jet"),
    "dense residential": ("a housing estate", ""),
    "house": ("a villa", "home"),
    "storage tank": ("an oil depot", "cylinder"),
    "tennis court": ("a racket club", "pitch"),
    "farmland": ("a farm", "plot"),
    "forest": ("a woodland", ""),
    "parking": ("a car park", ""),
    "baseball field": ("a ball park", "sector"),
    "beach": ("a seashore", ""),
    "roundabout": ("a rotary", "arm"),
    "pond": ("a pool", ""),
    "industrial": ("a plant", "hall"),
    "railway station": ("a rail terminal", "carriage"),
    "playground": ("a stadium", ""),
}
PLAIN_COMPANIONS = {
    "trees": "woods",
    "buildings": "blocks",
    "road": "tarmac",
    "bareland": "dirt",
    "meadow": "turf",
}
PLAIN_SIDES = {"beside": "on one edge", "sides": "on opposite edges", "around": "on every edge"}


def human_captions(scene: Scene, seed: int, n: int = 5) -> list[str]:
    """What ``n`` annotators write about a scene; the same for the same ``(scene, seed, n)``.

    Raises:
        ValueError: if ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"a scene needs at least one caption, got n={n}")
    rng = random.Random(f"human {seed}")
    captions = [_annotate(scene, rng) for _ in range(n)]
    if n > 1 and rng.random() < REPEAT_RATE:
        source, target = rng.sample(range(n), 2)
        captions[target] = captions[source]
    return captions


def plain_caption(scene: Scene, seed: int) -> str:
    """The register of pretraining: ``a photo of an airfield, 2 jets, mainly white, blocks on one edge``."""
    rng = random.Random(f"plain {seed}")
    place, noun = PLAIN_PLACES[scene.kind]
    number = "many" if scene.count > 6 else str(scene.count)
    objects = f"{number} {noun}{'s' if scene.count > 1 else ''}" if noun else ""
    manner = " ".join(word for word in (scene.shape, "mainly", scene.colour) if word)
    sides = f"{PLAIN_COMPANIONS[scene.companion]} {PLAIN_SIDES[scene.arrangement]}"
    parts = [part for part in (objects, manner, sides) if part]
    if rng.random() < 0.25:
        parts.pop(rng.randrange(len(parts)))
    return ", ".join([f"{rng.choice(('a photo of', 'a snapshot of'))} {place}", *parts])


def _annotate(scene: Scene, rng: random.Random) -> str:
    """One caption with its slips."""
    if rng.random() < VAGUE_RATE:
        text = rng.choice(VAGUE).format(area=AREAS.get(scene.kind, scene.kind))
    else:
        text = _fill(_pick(FRAMES[scene.kind], rng), scene, rng)
        text += rng.choice(TAILS) if rng.random() < TAIL_RATE else ""
    words = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(text.split())).split()
    if rng.random() < TYPO_RATE:
        _misspell(words, rng)
    if rng.random() < DOUBLE_SPACE_RATE:
        at = rng.randrange(1, len(words))
        words[at] = " " + words[at]
    return " ".join(words) + ("" if rng.random() < NO_STOP_RATE else " .")


def _fill(frame: str, scene: Scene, rng: random.Random) -> str:
    """Put words for the facts into a frame's slots."""
    singular, plural = NOUNS[scene.kind]
    noun = _pick(singular if scene.count == 1 else plural, rng)
    colour = _sometimes(COLOUR_RATE, COLOURS.get(scene.colour, scene.colour), rng)
    shape = _sometimes(SHAPE_RATE, SHAPES.get(scene.shape, scene.shape), rng)
    number = _pick(COUNT_WORDS.get(scene.count if scene.count != 5 else 6, MANY), rng)
    verb, phrases = COMPANIONS[scene.companion]
    slots = {
        "A": noun,
        "N": f"{number} {colour} {noun}"
        if "{colour}" not in frame and "{paint}" not in frame
        else f"{number} {noun}",
        "C": _pick(phrases, rng),
        "are": "is" if scene.count == 1 else "are",
        "stand": "stands" if scene.count == 1 else "stand",
        "lie": f"{verb} {_pick(LIE[scene.arrangement], rng)}",
        "by": _pick(BY[scene.arrangement], rng),
        "colour": colour,
        "paint": COLOURS.get(scene.colour, scene.colour),
        "shape": shape,
    }
    text = string.Formatter().vformat(frame, (), slots)
    return string.Formatter().vformat(text, (), slots)  # {by} itself holds {C}


def _pick(weighted: Weighted, rng: random.Random) -> str:
    """One phrase, by weight."""
    return rng.choices([phrase for _, phrase in weighted], [weight for weight, _ in weighted])[0]


def _sometimes(rate: float, word: str, rng: random.Random) -> str:
    """The word, at a rate, or nothing."""
    return word if rng.random() < rate else ""


def _misspell(words: list[str], rng: random.Random) -> None:
    """Swap or drop a letter inside one longer word, in place."""
    longer = [index for index, word in enumerate(words) if len(word) > 4]
    if not longer:
        return
    index = rng.choice(longer)
    word, at = words[index], rng.randrange(1, len(words[index]) - 2)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    words[index] = rng.choice((swapped, word[:at] + word[at + 1 :]))
