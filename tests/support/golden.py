"""Captions with scores computed by pycocoevalcap itself.

Provenance: pycocoevalcap 1.2 (PTBTokenizer, Bleu(4), Rouge(), Cider(), Meteor()), OpenJDK 17.0.15, run on
exactly these captions; ``(corpus value, values per caption)``.
"""

from scst.metrics.corpus import MetricSettings

TRAINED_ON = MetricSettings(training_captions=["a river goes by .", "several storage tanks are near a road"])
"""Settings with the captions of a training split, for metrics of novelty."""
CAPTIONS = [
    "Two planes are parked next to a long building in an airport.",
    "many buildings and green trees are in a residential area with a",
    "a river, with (some) boats",
    "trees trees trees trees",
    "several storage tanks are near a road",
    "",
]
REFERENCES = [
    [
        "two planes are parked next to a long building in an airport .",
        "some planes are parked near a terminal .",
    ],
    ["many buildings and some green trees are in a dense residential area .", "it is a residential area ."],
    ["several boats are on a river with trees at two sides .", "a river goes through the green forest ."],
    ["many green trees are in a piece of forest .", "it's a piece of green forest ."],
    ["six storage tanks are near a road .", "several tanks beside the road ."],
    ["a desert with many ripples .", "it is a piece of yellow desert ."],
]

EXPECTED = {
    "bleu_1": (
        0.669124401854425,
        [
            0.9999999998333334,
            0.8333333331944446,
            0.5714285712653063,
            0.11809163812620803,
            0.9999999997142859,
            0.0,
        ],
    ),
    "bleu_2": (
        0.6234158887848794,
        [
            0.9999999998295456,
            0.7784989440288245,
            0.43643578034209335,
            4.31209693678441e-09,
            0.9128709289035893,
            0.0,
        ],
    ),
    "bleu_3": (
        0.5855594544377122,
        [
            0.9999999998252527,
            0.6716793860966113,
            0.3364781730427789,
            1.637603373844877e-11,
            0.8735804644631319,
            0.0,
        ],
    ),
    "bleu_4": (
        0.5416124343976084,
        [
            0.9999999998203284,
            0.5094110795424376,
            5.555238066175146e-05,
            1.2001245719779727e-12,
            0.8408964149739164,
            0.0,
        ],
    ),
    "rouge_l": (
        0.5275443928865233,
        [1.0, 0.8333333333333334, 0.3309222423146474, 0.14386792452830188, 0.8571428571428571, 0.0],
    ),
    "cider_d": (
        2.4597353792919168,
        [
            5.668004186971798,
            2.9277329640887695,
            1.3531090684522449,
            0.06482183126245779,
            4.744744224976229,
            0.0,
        ],
    ),
    "meteor": (
        0.3502986136820064,
        [1.0, 0.452325263428972, 0.195967040829672, 0.06685236768802227, 0.4782266001363961, 0.0],
    ),
}

TRAINED = MetricSettings(training_captions=["a river goes by .", "several storage tanks are near a road"])
