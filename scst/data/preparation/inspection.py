"""Reading a dataset once, in order: what is kept of every row, and what cannot be used.

Text, hash and size stay in memory, and a sample of small pictures for the report; other pixels do not.
"""

import heapq
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from PIL import Image

from scst.data.images import IMAGE_FORMATS, ImageProbe, decode_image, image_bytes, probe_image
from scst.data.preparation.streams import Row, RowStream
from scst.data.splits import seeded_hash
from scst.data.thumbnails import thumbnail_uri
from scst.data.validate import BadExample, text_problem

IMAGES_AT_ONCE = 64
THREADS = 4  # decoding releases the interpreter's lock

Advance = Callable[[int], None]
"""Called with how many rows were done since the last call."""


@dataclass(frozen=True)
class Example:
    """What is kept of a row: everything but its pixels.

    Attributes:
        row: its place in the stream.
        references: its captions, blank ones removed.
        content_hash: sha256 of the encoded image.
        size: width and height of the image.
    """

    row: int
    image_id: str
    references: list[str]
    split: str
    columns: Mapping[str, Any]
    content_hash: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Inspected:
    """The outcome of reading a dataset once.

    Attributes:
        examples: the good ones, in order.
        bad: the others.
        blank_captions: removed from good ones.
        thumbnails: small pictures (``data:`` addresses) of a seeded sample, by image id.
        features: of the source's further columns.
    """

    examples: list[Example]
    bad: list[BadExample]
    blank_captions: int
    thumbnails: dict[str, str]
    features: dict[str, Any] = field(default_factory=dict)


def inspect(
    stream: RowStream, *, thumbnails: int = 0, seed: int = 0, advance: Advance | None = None
) -> Inspected:
    """Read every row once: check its text, decode its image, keep text, hash and size.

    Args:
        stream: the rows.
        thumbnails: how many images, drawn by a hash of their ids, are kept as small pictures.
        seed: of that draw.
        advance: told about progress.
    """
    examples, bad, blank = [], [], 0
    sample = _ThumbnailSample(thumbnails, seed)
    first_row: dict[str, int] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reported by probe_image
        for batch in _batches(enumerate(stream)):
            texts = [text_problem(number, row.image_id, row.references, first_row) for number, row in batch]
            probes = pool.map(lambda pair, text: _probe(pair[1], text), batch, texts)
            for (number, row), (probe, size) in zip(batch, probes, strict=True):
                if probe.problem is not None:
                    bad.append(BadExample(row.image_id or f"row {number}", probe.problem))
                    continue
                references = [caption for caption in row.references if caption.strip()]
                blank += len(row.references) - len(references)
                examples.append(
                    Example(
                        number, row.image_id, references, row.split, row.columns, probe.content_hash, size
                    )
                )
                sample.offer(row)
            if advance:
                advance(len(batch))
    return Inspected(examples, bad, blank, sample.pictures(), dict(stream.features))


def _probe(row: Row, text: str | None) -> tuple[ImageProbe, tuple[int, int]]:
    probe = ImageProbe("", text) if text else probe_image(row.image)
    if probe.problem is not None:
        return probe, (0, 0)
    with Image.open(io.BytesIO(image_bytes(row.image)), formats=IMAGE_FORMATS) as image:
        return probe, image.size


class _ThumbnailSample:
    """The images with the smallest seeded hashes: the same sample in whatever order rows come."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._heap: list[tuple[int, str, str]] = []

    def offer(self, row: Row) -> None:
        rank = -int(seeded_hash(self.seed, f"thumbnail:{row.image_id}")[:12], 16)
        if self.size and (len(self._heap) < self.size or rank > self._heap[0][0]):
            picture = thumbnail_uri(decode_image(image_bytes(row.image)))
            heapq.heappush(self._heap, (rank, row.image_id, picture))
            if len(self._heap) > self.size:
                heapq.heappop(self._heap)

    def pictures(self) -> dict[str, str]:
        return {image_id: picture for _, image_id, picture in sorted(self._heap, reverse=True)}


def image_scores(
    stream: RowStream,
    examples: Sequence[Example],
    score: Callable[[list[str], list[Any], list[str]], Sequence[float]],
    advance: Advance | None = None,
) -> list[list[float]]:
    """Scores of every caption with its image, a few images in memory at a time.

    Args:
        stream: the rows that the examples came from.
        examples: in the order of their rows.
        score: ``(captions, PIL images, image ids) -> scores``.
    """
    of_row = {example.row: number for number, example in enumerate(examples)}
    found: list[list[float]] = [[] for _ in examples]
    wanted = (pair for pair in enumerate(stream) if pair[0] in of_row)
    for batch in _batches(wanted):
        captions, images, ids = [], [], []
        for number, row in batch:
            picture = decode_image(image_bytes(row.image)).convert("RGB")
            references = examples[of_row[number]].references
            captions += references
            images += [picture] * len(references)
            ids += [row.image_id] * len(references)
        values = iter(score(captions, images, ids))
        for number, _ in batch:
            example = examples[of_row[number]]
            found[of_row[number]] = [float(next(values)) for _ in example.references]
        if advance:
            advance(len(batch))
    return found


def _batches(rows: Iterable[tuple[int, Row]]) -> Iterable[list[tuple[int, Row]]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, IMAGES_AT_ONCE)):
        yield batch
