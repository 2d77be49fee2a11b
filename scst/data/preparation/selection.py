"""Choose one caption of every image, once: the first, one at random, the longest, or the best by a score.

Scores come from outside (CIDEr-D to the sibling captions, CLIPScore to the image): this room knows captions.
"""

from collections.abc import Callable, Iterator, Sequence

from datasets import Dataset

from scst.data.columns import TEXTS
from scst.data.supervision import POLICIES, random_caption
from scst.errors import RecipeError

CaptionScores = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]
"""``(captions, references) -> scores``, as the scorers of rewards/ have it."""
SELECTIONS = ("all", "first", "random", "longest", "clipscore", "consensus")
SCORED = ("clipscore", "consensus")
BATCH = 256  # images scored at a time


def choose_captions(
    references: Sequence[Sequence[str]],
    image_ids: Sequence[str],
    selection: str,
    *,
    seed: int = 0,
    scores: Sequence[Sequence[float]] | None = None,
) -> list[int]:
    """Return the position of the chosen caption of every image.

    Args:
        references: the captions of N images, at least one each.
        image_ids: N ids.
        selection: one of :data:`SELECTIONS`; ``all`` chooses nothing and gives 0.
        seed: of ``random``, and of the draw among captions with equal scores.
        scores: one per caption, for ``clipscore`` and ``consensus``.

    Raises:
        RecipeError: the selection is not known, or wants scores and there are none.
    """
    if selection not in SELECTIONS:
        raise RecipeError(f"unknown caption selection {selection!r}; known are {', '.join(SELECTIONS)}.")
    if selection in SCORED:
        if scores is None:
            raise RecipeError(f"the caption selection {selection!r} wants a score for every caption.")
        scored = zip(references, image_ids, scores, strict=True)
        return [_best(captions, key, values, seed) for captions, key, values in scored]
    rows = zip(references, image_ids, strict=True)
    return [captions.index(POLICIES[selection](captions, key, 0, seed)) for captions, key in rows]


def _best(captions: Sequence[str], image_id: str, scores: Sequence[float], seed: int) -> int:
    highest = max(scores)
    tied = [caption for caption, score in zip(captions, scores, strict=True) if score == highest]
    return list(captions).index(random_caption(tied, image_id, 0, seed))


def sibling_scores(references: Sequence[Sequence[str]], score: CaptionScores) -> list[list[float]]:
    """Return, image-major, the score of every caption against the other captions of its image.

    A caption without siblings gets 0. With CIDEr-D it is the consensus.
    """
    found = [[0.0] * len(captions) for captions in references]
    several = [number for number, captions in enumerate(references) if len(captions) > 1]
    for batch in _batches(several):
        groups = [references[number] for number in batch]
        captions = [caption for group in groups for caption in group]
        values = iter(score(captions, [others for group in groups for others in siblings(group)]))
        for number in batch:
            found[number] = [float(next(values)) for _ in references[number]]
    return found


def siblings(captions: Sequence[str]) -> Iterator[list[str]]:
    """For each caption of an image the others, in order."""
    captions = list(captions)
    return ([*captions[:i], *captions[i + 1 :]] for i in range(len(captions)))


def with_chosen_first(captions: Sequence[str], chosen: int) -> list[str]:
    """The captions, the chosen one moved to the front, the others in their order."""
    return [captions[chosen], *captions[:chosen], *captions[chosen + 1 :]]


def consensus_first(rows: Dataset, score: CaptionScores, seed: int = 0) -> Dataset:
    """Return the rows with the caption of highest consensus first among an image's references.

    Supervision then takes the first caption; rewards and metrics, which do not depend on the order, see all
    of them.
    """
    references = rows["references"][:]
    chosen = choose_captions(
        references, rows["image_id"][:], "consensus", seed=seed, scores=sibling_scores(references, score)
    )
    column = [with_chosen_first(*pair) for pair in zip(references, chosen, strict=True)]
    return rows.remove_columns("references").add_column("references", column, feature=TEXTS)


def _batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    return (numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH))
