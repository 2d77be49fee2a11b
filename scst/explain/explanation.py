"""Every explanation of one caption of one image under one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from scst.errors import RecipeError
from scst.explain.attention import attention_rollout
from scst.explain.attribution_target import AttributionTarget
from scst.explain.faithfulness import FaithfulnessCurve, faithfulness_curve
from scst.explain.gradients import grad_cam, integrated_gradients
from scst.explain.segments import Occluder, cut_into_segments, hidden_picture, segment_means
from scst.explain.shapley import segment_shapley_values
from scst.models.prompts import PromptEncoder

METHODS = {
    "shap": "SHAP on segments",
    "integrated_gradients": "Integrated Gradients",
    "grad_cam": "Grad-CAM",
    "attention_rollout": "Attention rollout",
}
"""Name -> title, in the order of presentation: the first one present decides a word's region."""


@dataclass(frozen=True)
class Settings:
    """How explanations are computed.

    Attributes:
        methods: names in :data:`METHODS`.
        num_segments: about how many segments the picture is cut into.
        permutations: random orders of the Shapley estimate.
        ig_steps: quadrature steps of Integrated Gradients.
        curve_steps: points of the deletion and insertion curves.
        occlusion: what stands in place of hidden parts (:func:`scst.explain.segments.hidden_picture`).
        batch_size: pictures at a time.
        seed: of the random orders.
    """

    methods: Sequence[str] = tuple(METHODS)
    num_segments: int = 40
    permutations: int = 12
    ig_steps: int = 32
    curve_steps: int = 20
    occlusion: str = "blur"
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise RecipeError(f"methods: expected some of {', '.join(METHODS)}; got {list(self.methods)}")
        for name in ("num_segments", "permutations", "ig_steps", "curve_steps", "batch_size"):
            least = 2 if name == "num_segments" else 1
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Explanation:
    """What was found out about one caption.

    Attributes:
        label: which model it is of.
        caption: the text.
        words: W words.
        targets: those that have maps: 0 is the whole caption, 1 ... W are its words.
        focus: the target of the curves: the chosen word, or the whole caption (0).
        logprobs: (1 + W,) log probabilities of the caption and its words, given the picture.
        hidden_logprobs: (1 + W,) the same, given the picture with every segment hidden.
        picture: (H, W, 3) what the model sees.
        segments: (H, W) segment numbers.
        heat: method -> target -> (H, W) map.
        importance: method -> target -> (S,) the map by segment.
        curves: method -> deletion and insertion of the focus.
        completeness: target -> (sum of its Integrated Gradients, the difference that it should equal).
    """

    label: str
    caption: str
    words: list[str]
    targets: list[int]
    focus: int
    logprobs: np.ndarray
    hidden_logprobs: np.ndarray
    picture: np.ndarray
    segments: np.ndarray
    heat: dict[str, dict[int, np.ndarray]]
    importance: dict[str, dict[int, np.ndarray]]
    curves: dict[str, FaithfulnessCurve]
    completeness: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def gains(self) -> np.ndarray:
        """(1 + W,) nats by which seeing the picture makes caption and words more probable."""
        return self.logprobs - self.hidden_logprobs

    def main_region(self, target: int, share: float = 0.5) -> np.ndarray:
        """(H, W) bool: the fewest segments with a share of the positive mass of the first method's map."""
        method = next(name for name in METHODS if name in self.importance)
        sizes = np.bincount(self.segments.ravel())
        mass = np.clip(self.importance[method][target], 0, None) * sizes
        if mass.sum() == 0:
            return np.zeros(self.segments.shape, dtype=bool)
        order = np.argsort(-mass, kind="stable")  # equal segments in their order: the same region every time
        needed = int(np.searchsorted(mass[order].cumsum(), share * mass.sum())) + 1
        return np.isin(self.segments, order[:needed])


def explain_caption(
    model: torch.nn.Module,
    processor: Any,
    image: Image.Image,
    caption: str,
    *,
    prompt: str,
    max_new_tokens: int = 32,
    settings: Settings | None = None,
    word: str | int | None = None,
    label: str = "model",
    progress: Callable[[int], None] | None = None,
) -> Explanation:
    """Explain a caption: the whole of it, and every word or one of them.

    Args:
        model: a captioning model, with or without adapter, frozen and in evaluation mode.
        processor: its processor.
        image: the picture.
        caption: the text to explain, usually what the model says of the picture.
        prompt: the instruction.
        max_new_tokens: the caption is cut to so many tokens.
        settings: methods and their effort.
        word: its text or its place from 1; None for every word.
        label: name of the model in results.
        progress: called at every forward pass with its number of pictures.

    Raises:
        DataError: when the caption has no words.
        RecipeError: when it does not have the chosen word, or a method does not suit the model's family.
    """
    settings = settings or Settings()
    _check_methods(processor, settings.methods)
    target = AttributionTarget(
        model, processor, image, prompt, caption, max_new_tokens=max_new_tokens, progress=progress
    )
    focus = 0 if word is None else target.find_word(word)
    targets = list(range(target.num_targets)) if word is None else [0, focus]
    picture = target.picture()
    segments = cut_into_segments(picture, settings.num_segments)
    hidden = _as_pixels(target, hidden_picture(picture, settings.occlusion))
    maps = _Maps(target, Occluder(target.pixels, hidden, segments), targets, settings)
    heat = {name: getattr(maps, name)() for name in METHODS if name in settings.methods}
    importance = {name: maps.by_segment(found) for name, found in heat.items()}
    curves = {name: maps.curve(focus, found[focus]) for name, found in importance.items()}
    with torch.no_grad():
        seen, unseen = target.logprobs(torch.cat([target.pixels, hidden])).double().cpu().numpy()
    texts = [each.text for each in target.words]
    return Explanation(
        label, caption, texts, targets, focus, seen, unseen, picture, segments, heat, importance, curves,
        maps.completeness,
    )  # fmt: skip


def _check_methods(processor: Any, methods: Sequence[str]) -> None:
    family = PromptEncoder.of(processor).family
    no_patches = (
        family.tokens_are_grid and not family.tokens_are_patches
    )  # without a grid nothing is explained
    if "attention_rollout" in methods and no_patches:
        others = ", ".join(method for method in METHODS if method != "attention_rollout")
        raise RecipeError(
            "explain: attention_rollout follows attention from words to patches, but the image tokens of "
            f"this family are no patches of its vision tower; give methods: [{others}]"
        )


def pictures_to_see(settings: Settings, num_targets: int) -> int:
    """About how many pictures the model will look at, for a progress bar."""
    each = {
        "shap": settings.permutations * settings.num_segments,
        "integrated_gradients": num_targets * (settings.ig_steps + 2),
        "grad_cam": num_targets,
        "attention_rollout": 1,
    }
    curves = len(settings.methods) * 2 * (settings.curve_steps + 1)
    return 2 + curves + sum(each[name] for name in settings.methods)


class _Maps:
    """The maps of one caption: a method per name in :data:`METHODS`, each giving target -> (H, W)."""

    def __init__(self, target: AttributionTarget, occluder: Occluder, targets: list[int], settings: Settings):
        self.target, self.occluder = target, occluder
        self.targets, self.settings = targets, settings
        self.completeness: dict[int, tuple[float, float]] = {}

    def by_segment(self, maps: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Target -> (S,) means of its map over segments."""
        segments = self.occluder.segments.cpu().numpy()
        return {which: segment_means(found, segments) for which, found in maps.items()}

    def curve(self, which: int, importance: np.ndarray) -> FaithfulnessCurve:
        """Deletion and insertion of a target, by the importance of segments."""
        limits = {"steps": self.settings.curve_steps, "batch_size": self.settings.batch_size}
        return faithfulness_curve(self.target, self.occluder, which, importance, **limits)

    def shap(self) -> dict[int, np.ndarray]:
        values = segment_shapley_values(
            self.target,
            self.occluder,
            permutations=self.settings.permutations,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
        )
        segments = self.occluder.segments.cpu().numpy()
        density = values / np.bincount(segments.ravel())  # by pixel: the map's sum is the value's
        return {which: density[which][segments] for which in self.targets}

    def integrated_gradients(self) -> dict[int, np.ndarray]:
        maps = {}
        for which in self.targets:
            maps[which], total, expected = integrated_gradients(
                self.target,
                which,
                self.occluder.hidden,
                steps=self.settings.ig_steps,
                batch_size=self.settings.batch_size,
            )
            self.completeness[which] = total, expected
        return maps

    def grad_cam(self) -> dict[int, np.ndarray]:
        return {which: grad_cam(self.target, which) for which in self.targets}

    def attention_rollout(self) -> dict[int, np.ndarray]:
        maps = attention_rollout(self.target)
        return {which: maps[which] for which in self.targets}


def _as_pixels(target: AttributionTarget, picture: np.ndarray) -> torch.Tensor:
    """A picture (H, W, 3) as (1, 3, H, W) preprocessed pixels."""
    colours = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    return target.to_pixels(colours.to(target.pixels))
