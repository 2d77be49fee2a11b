"""The table of docs/experiments/rsicd.md, from the folders that recipes/rsicd/chain.sh leaves.

python recipes/rsicd/table.py [outputs/rsicd]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rewards.scorers.text import bad_ending_rate, mean_length, repetition_rate, vocabulary_size
from scst.evaluation.side_by_side import read_metrics, read_predictions

ROWS = ("base", "sft", "control", "scst")
METRICS = ("cider_d", "bleu_4", "rouge_l", "meteor")


def row(seed: str, name: str, folder: Path, sft_cider: float) -> str:
    """One line: metrics, what the text looks like, and CIDEr-D relative to SFT."""
    metrics = read_metrics(folder)
    captions = [prediction["caption"] for prediction in read_predictions(folder)]
    cider = metrics["cider_d"]["value"]
    low, high = metrics["cider_d"]["ci95"]
    cells = [seed, name, f"{cider:.3f} [{low:.2f}, {high:.2f}]", f"{cider / sft_cider - 1:+.1%}"]
    cells += [f"{metrics[metric]['value']:.3f}" for metric in METRICS[1:]]
    cells += [f"{bad_ending_rate(captions):.1%}", f"{repetition_rate(captions):.1%}"]
    cells += [f"{mean_length(captions):.1f}", str(vocabulary_size(captions)), str(len(set(captions)))]
    return f"| {' | '.join(cells)} |"


def main(root: Path) -> None:
    """Print the table in Markdown, and how long every stage took."""
    header = (
        "seed | model | CIDEr-D [95 %] | against SFT | BLEU-4 | ROUGE-L | METEOR | bad endings | repetition"
    )
    header += " | words | vocabulary | distinct captions"
    print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}")
    seeds = sorted(folder for folder in root.iterdir() if (folder / "sft" / "metrics.json").is_file())
    for seed in seeds:
        sft_cider = read_metrics(seed / "sft")["cider_d"]["value"]
        for name in ROWS:
            if (seed / name / "metrics.json").is_file():
                print(row(seed.name, name, seed / name, sft_cider))
    for seed in seeds:
        records = {name: json.loads((seed / name / "run.json").read_text()) for name in ROWS[1:]}
        times = ", ".join(f"{n} {r['steps']} steps in {r['train_seconds']:.0f} s" for n, r in records.items())
        print(f"\nseed {seed.name}: {times}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/rsicd"))
