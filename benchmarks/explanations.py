"""Does a map lie on the only object in the picture? By method and occlusion; trained and with random weights.

    python benchmarks/explanations.py --json FILE               (twenty scenes; some minutes on one thread)
    python benchmarks/explanations.py --scenes 5

A tank, court, house, pond or plane stands alone on grass, in one of four corners, 64 x 64 pixels. The
embedded base model captions it, and the map of the whole caption is asked for the share of its positive mass
on the object. Chance is the object's share of the area; random weights are the other thing to be above.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

if not __package__:  # run by path: benchmarks/ would come first, and its rewards.py hide the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

OCCLUSIONS = ("blur", "mean", "gray", "black")


def measure(count: int, steps: int, permutations: int) -> dict[str, dict[str, list[float]]]:
    """Weights -> method and occlusion -> share of the mass on the object, one per scene."""
    from rich.progress import track

    from scst.evaluation.captioning import caption_images
    from scst.models.base_checkpoint import EMBEDDED_MODEL
    from scst.models.pretrained import load_model
    from scst.models.processors import load_processor
    from tests.support.objects import LIMIT, PAINTERS, PLACES, PROMPT, one_object, with_random_weights

    model, processor = load_model(EMBEDDED_MODEL, quantization="none"), load_processor(EMBEDDED_MODEL)
    models = {"trained": model, "random": with_random_weights(model)}
    scenes = [one_object(painter, *place) for place in PLACES[:4] for painter in PAINTERS][:count]
    images = [scene.image for scene in scenes]
    captions = caption_images(model, processor, images, PROMPT, "greedy", max_new_tokens=LIMIT)
    shares: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for scene, caption in track(list(zip(scenes, captions, strict=True)), "scenes", transient=True):
        for name, each in models.items():
            for row, share in shares_of(each, processor, scene, caption.text, steps, permutations).items():
                shares[name].setdefault(row, []).append(share)
    return shares | {"area": {"chance": [float(scene.mask.mean()) for scene in scenes]}}


def shares_of(model, processor, scene, caption: str, steps: int, permutations: int) -> dict[str, float]:
    """Shares of one scene's maps."""
    import numpy as np

    from scst.explain.attention import attention_rollout
    from scst.explain.gradients import grad_cam, integrated_gradients
    from scst.explain.shapley import segment_shapley_values
    from tests.support.objects import occluder_of, share_on, target_of

    target = target_of(model, processor, scene.image, caption)
    maps = {"grad_cam": grad_cam(target, 0), "attention_rollout": attention_rollout(target)[0]}
    for occlusion in OCCLUSIONS:
        occluder = occluder_of(target, occlusion)
        segments = occluder.segments.numpy()
        values = segment_shapley_values(target, occluder, permutations=permutations, batch_size=16)[0]
        maps[f"shap, {occlusion}"] = (values / np.bincount(segments.ravel()))[segments]
        maps[f"integrated_gradients, {occlusion}"] = integrated_gradients(
            target, 0, occluder.hidden, steps=steps, batch_size=16
        )[0]
    return {name: share_on(scene.mask, heat) for name, heat in maps.items()}


def print_table(shares: dict[str, dict[str, list[float]]]) -> None:
    """Mean and median by row."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"positive mass on the object (its area: {np.mean(shares['area']['chance']):.2f})")
    for column in ("map", "mean", "median", "random weights"):
        table.add_column(column, justify="left" if column == "map" else "right")
    for row, values in sorted(shares["trained"].items()):
        random = np.mean(shares["random"][row])
        table.add_row(row, f"{np.mean(values):.2f}", f"{np.median(values):.2f}", f"{random:.2f}")
    Console().print(table)


def main() -> int:
    """Measure, print, and record when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20, help="of twenty")
    parser.add_argument("--steps", type=int, default=16, help="of Integrated Gradients")
    parser.add_argument("--permutations", type=int, default=3, help="of the Shapley estimate")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import torch

    from scst.data.files import write_json
    from scst.training.run_folder.run_record import versions

    torch.set_num_threads(1)
    shares = measure(options.scenes, options.steps, options.permutations)
    print_table(shares)
    if options.json:
        sizes = {name: value for name, value in vars(options).items() if name != "json"}
        rounded = json.loads(json.dumps(shares), parse_float=lambda text: round(float(text), 4))
        date = time.strftime("%Y-%m-%d")
        write_json(options.json, {"date": date, "sizes": sizes, "versions": versions(), "shares": rounded})
    return 0


if __name__ == "__main__":
    sys.exit(main())
