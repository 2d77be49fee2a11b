"""How much faster is our reward than pycocoevalcap, and what does METEOR cost?

    python benchmarks/rewards.py
    python benchmarks/rewards.py --captions references.jsonl --repetitions 5 --json FILE

CIDEr-D of N captions against 5 references each, the usual way and ours in turn, in one run:

- scorer: pycocoevalcap's `Cider` on captions that were tokenised before, against our scorer from raw text;
- whole: pycocoevalcap as commonly called, two runs of `PTBTokenizer` (references, captions) and `Cider`,
  against the same call of ours.

Ours uses a table of document frequencies that was built before (its time is listed) and finds the references
of an image counted from the second epoch on; the first visit is listed too. Captions are new in every
repetition, the tokeniser's cache is empty. Both must agree to 1e-9 when they count the same documents.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

SIZES = (8, 64, 384, 5000)
REFERENCES = 5


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--captions", metavar="FILE", help="JSONL of image_id, captions [the embedded scenes]"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="captions in a call"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each way, interleaved [3]")
    parser.add_argument(
        "--meteor", type=int, default=500, metavar="N", help="captions for METEOR; 0: leave it out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there")
    return parser.parse_args(argv)


def read_references(path: str | None) -> list[list[str]]:
    """Five references of every image."""
    if path is None:
        from scst.data.scenes.dataset import scene_rows

        groups = [list(row["references"]) for row in scene_rows("train")]
    else:
        groups = [json.loads(line)["captions"] for line in Path(path).read_text().splitlines()]
    return [(group * REFERENCES)[:REFERENCES] for group in groups]


def new_captions(groups: list[list[str]], size: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Six candidates an image, as in a rollout: references of it or of others with one word replaced."""
    draw = random.Random(seed)
    words = [word for group in groups[:500] for caption in group for word in caption.split()]
    captions, references = [], []
    while len(captions) < size:
        group = draw.choice(groups)
        for _ in range(6):
            caption = draw.choice(draw.choice([group, draw.choice(groups)])).split()
            caption[draw.randrange(len(caption))] = draw.choice(words)
            captions.append(" ".join(caption))
            references.append(group)
    return captions[:size], references[:size]


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock time of a call (Java runs in processes of its own), and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def usual_scorer(captions: list[str], references: list[list[str]]) -> list[float]:
    """pycocoevalcap's scorer on tokenised text."""
    from pycocoevalcap.cider.cider import Cider

    candidates = {i: [caption] for i, caption in enumerate(captions)}
    return list(Cider().compute_score(dict(enumerate(references)), candidates)[1])


def usual_whole(captions: list[str], references: list[list[str]]) -> list[float]:
    """pycocoevalcap as its own `COCOEvalCap` calls it."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates = {i: [{"caption": caption}] for i, caption in enumerate(captions)}
    groups = {i: [{"caption": text} for text in group] for i, group in enumerate(references)}
    groups, candidates = PTBTokenizer().tokenize(groups), PTBTokenizer().tokenize(candidates)
    return usual_scorer(
        [candidates[i][0] for i in range(len(captions))], [groups[i] for i in range(len(captions))]
    )


def check_equal(captions: list[str], references: list[list[str]]) -> float:
    """Largest difference when both count the batch; refuses to go on above 1e-9."""
    from rewards.scorers.cider import CiderD
    from rewards.scorers.document_frequencies import DocumentFrequencies

    ours = CiderD(DocumentFrequencies.from_references(references, eos="omitted")).scores(captions, references)
    theirs = usual_whole(captions, references)
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if worst > 1e-9:
        raise RuntimeError(f"CIDEr-D differs from pycocoevalcap by {worst}")
    return worst


def measure_size(groups: list[list[str]], table: Any, size: int, repetitions: int) -> dict[str, Any]:
    """Best times of every way for one number of captions, and their ratios."""
    from rewards.scorers.cider import CiderD
    from rewards.scorers.tokenizer import tokenize

    times: dict[str, list[float]] = {
        "usual_scorer": [],
        "usual_whole": [],
        "ours": [],
        "ours_first_visit": [],
    }
    for repetition in range(repetitions):
        captions, references = new_captions(groups, size, seed=repetition)
        tokens = [" ".join(tokenize(c)) for c in captions]
        reference_tokens = [[" ".join(tokenize(r)) for r in group] for group in references]
        scorer = CiderD(table)
        ways = {
            "usual_scorer": lambda t=tokens, r=reference_tokens: usual_scorer(t, r),
            "usual_whole": lambda c=captions, r=references: usual_whole(c, r),
            "ours_first_visit": lambda c=captions, r=references, s=scorer: s.scores(c, r),
            "ours": lambda c=captions, r=references, s=scorer: s.scores(c, r),
        }
        for name, way in ways.items():
            tokenize.__wrapped__.cache_clear()
            times[name].append(seconds(way)[0])
    best = {name: min(values) for name, values in times.items()}
    return {
        "captions": size,
        "largest_difference": check_equal(captions, references) if size <= 500 else None,
        "ratio_scorer": best["usual_scorer"] / best["ours"],
        "ratio_whole": best["usual_whole"] / best["ours"],
        "ratio_scorer_first_visit": best["usual_scorer"] / best["ours_first_visit"],
        "us_per_caption": {name: 1e6 * value / size for name, value in best.items()},
        "all_seconds": times,
    }


def measure_memory(groups: list[list[str]], table: Any, images: int = 1000) -> dict[str, float]:
    """Megabytes of Python memory of a scorer: for its table, and for the references of 1,000 images."""
    from rewards.scorers.cider import CiderD

    tracemalloc.start()
    scorer = CiderD(table)
    for_table = tracemalloc.get_traced_memory()[0]
    some = groups[:images]
    scorer.scores(["a"] * len(some), some)
    for_references = tracemalloc.get_traced_memory()[0] - for_table
    tracemalloc.stop()
    return {"mb_table": for_table / 1e6, "mb_per_1000_images": for_references / 1e6 * 1000 / len(some)}


def measure_meteor(groups: list[list[str]], size: int) -> dict[str, float]:
    """Start and throughput of METEOR: one long-lived process of ours, against pycocoevalcap's `Meteor`."""
    from pycocoevalcap.meteor.meteor import Meteor

    from rewards.scorers.meteor import MeteorService
    from rewards.scorers.tokenizer import tokenize

    captions, references = new_captions(groups, size, seed=0)
    tokens = [" ".join(tokenize(c)) for c in captions]
    reference_tokens = [[" ".join(tokenize(r)) for r in group] for group in references]
    usual = Meteor()
    usual_time, _ = seconds(lambda: usual.compute_score({0: reference_tokens[0]}, {0: [tokens[0]]}))
    candidates = {i: [caption] for i, caption in enumerate(tokens)}
    usual_all, (_, theirs) = seconds(
        lambda: usual.compute_score(dict(enumerate(reference_tokens)), candidates)
    )
    with MeteorService() as service:
        start, _ = seconds(lambda: service.scores(captions[:1], references[:1]))
        ours_all, ours = seconds(lambda: service.scores(captions, references))
    if list(ours) != list(theirs):
        raise RuntimeError("METEOR differs from pycocoevalcap's")
    return {
        "captions": size,
        "seconds_to_first_answer": start,
        "seconds_to_first_answer_usual": usual_time,
        "captions_per_s": size / ours_all,
        "captions_per_s_usual": size / usual_all,
        "ratio_meteor": usual_all / ours_all,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write."""
    options = parse(argv)
    from rewards.scorers.document_frequencies import DocumentFrequencies

    groups = read_references(options.captions)
    building, table = seconds(lambda: DocumentFrequencies.from_references(groups, eos="emitted"))
    print(f"document frequencies of {len(groups)} images, {len(table.counts)} n-grams: {building:.2f} s")
    results = []
    for size in options.sizes:
        result = measure_size(groups, table, size, options.repetitions)
        results.append(result)
        print(
            f"{size:5} captions: {result['us_per_caption']['ours']:6.1f} us a caption, "
            f"{result['ratio_scorer']:5.0f}x the scorer, {result['ratio_whole']:5.0f}x tokenizer + scorer, "
            f"{result['ratio_scorer_first_visit']:5.0f}x the scorer on the first visit"
        )
    record = {"sizes": results, "memory": measure_memory(groups, table), "seconds_building_table": building}
    print("memory: " + ", ".join(f"{name} {value:.1f}" for name, value in record["memory"].items()))
    if options.meteor:
        record["meteor"] = measure_meteor(groups, options.meteor)
        print("METEOR: " + ", ".join(f"{name} {value:.2f}" for name, value in record["meteor"].items()))
    if options.json:
        from benchmarks.record import circumstances, write

        command = " ".join(["python", "benchmarks/rewards.py", *(argv or sys.argv[1:])])
        write(options.json, {"command": command} | circumstances() | record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
