"""The HTML page of explanations: words to tap, the region each rests on, curves, models side by side.

One self-contained file without scripts: tapping a word checks a hidden radio button, and the style sheet
shows what belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from scst.data.thumbnails import thumbnail_uri
from scst.explain.explanation import METHODS, Explanation
from scst.explain.faithfulness import FaithfulnessCurve
from scst.explain.overlay import LONGEST_SIDE, overlay
from scst.report import charts, curves
from scst.report.curves import lines
from scst.report.page import html_page

MAP_SIDE = 320  # pixels of a map on the page
SMOOTHING = {
    "integrated_gradients": 0.02
}  # single pixels are noise to the eye; numbers come from the raw map
NOTHING = 0.1  # nats: below, a word would be as probable without the picture

HINTS = {
    "shap": "change of log probability when a segment appears; line: half of the evidence",
    "integrated_gradients": "gradients summed along the way from the hidden picture",
    "grad_cam": "gradient-weighted image features; coarse, often off on transformers",
    "attention_rollout": "where attention leads; not what it did",
}
_STYLE = """
.ex input { position: absolute; opacity: 0; pointer-events: none; }
.words { display: flex; flex-wrap: wrap; gap: .35rem; margin: .6rem 0; }
.words label { padding: .35rem .6rem; border: 1px solid var(--line); border-radius: 1rem; cursor: pointer;
  background: color-mix(in srgb, #ff6000 var(--g), transparent); }
.words label b { font-weight: 400; } .words small { color: var(--soft); }
.view { display: none; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: .4rem; }
figcaption { font-size: .85rem; margin-top: .2rem; } figcaption span { color: var(--soft); display: block; }
.side { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }
.side p { margin: .3rem 0; font-weight: 600; }
.whole { width: min(100%, 20rem); border-radius: .4rem; display: block; }
.scroll { overflow-x: auto; } .hint { font-size: .85rem; color: var(--soft); }
"""


def explanation_page(
    title: str, subtitle: str, image: Image.Image, explanations: Sequence[Explanation]
) -> str:
    """The page as one string; every text in it is escaped.

    Args:
        title, subtitle: heading and the line below.
        image: the picture in its own size.
        explanations: one per model, in the order they are shown.
    """
    parts = [f'<img class="whole" alt="the picture" src="{thumbnail_uri(image, 2 * MAP_SIDE)}">']
    parts += [_comparison(image, explanations)] if len(explanations) > 1 else []
    parts += [_model(number, image, each) for number, each in enumerate(explanations)]
    style = charts.STYLE + curves.STYLE + _STYLE + _rules(explanations)
    return html_page(title, subtitle, "\n".join([*parts, _READING_AID]), style=style)


def _rules(explanations: Sequence[Explanation]) -> str:
    """A checked radio button shows its view and marks its word."""
    rules = []
    for place in range(1, max(len(each.targets) for each in explanations) + 1):
        checked = f".ex > input:nth-of-type({place})"
        rules.append(f"{checked}:checked ~ .views > .view:nth-child({place}) {{ display: block; }}")
        rules.append(
            f"{checked}:checked ~ .words > label:nth-of-type({place}) {{ outline: 2px solid #ff6000; }}"
        )
        rules.append(
            f"{checked}:focus-visible ~ .words > label:nth-of-type({place}) {{ outline: 3px solid; }}"
        )
    return "\n".join(rules)


def _comparison(image: Image.Image, explanations: Sequence[Explanation]) -> str:
    cards = "".join(_side_card(image, each) for each in explanations)
    return f'<h2>Side by side</h2><div class="side">{cards}</div>{comparison_table(explanations)}'


def _side_card(image: Image.Image, explanation: Explanation) -> str:
    method, label = first_method(explanation), escape(explanation.label)
    picture = thumbnail_uri(map_picture(image, explanation, method, explanation.focus, MAP_SIDE), MAP_SIDE)
    name = escape(target_name(explanation, explanation.focus))
    return (
        f'<figure><img alt="{label}" src="{picture}"><figcaption><p>{escape(explanation.caption)}</p>'
        f"<span>{label} · {METHODS[method]}, {name}</span></figcaption></figure>"
    )


def comparison_table(explanations: Sequence[Explanation]) -> str:
    """Faithfulness by method and model."""
    names = [name for name in METHODS if any(name in each.curves for each in explanations)]
    header = "".join(f"<th>{escape(each.label)}</th>" for each in explanations)
    rows = "".join(
        f"<tr><td>{METHODS[name]}</td>"
        + "".join(f'<td class="n">{each.curves[name].faithfulness:+.3f}</td>' for each in explanations)
        + "</tr>"
        for name in names
    )
    gains = "".join(f'<td class="n">{_signed(each.gains[0])}</td>' for each in explanations)
    return (
        f'<div class="scroll"><table><tr><th>faithfulness</th>{header}</tr>{rows}'
        f"<tr><td>what the picture adds (nats)</td>{gains}</tr></table></div>"
    )


def _model(number: int, image: Image.Image, explanation: Explanation) -> str:
    targets = explanation.targets
    buttons = "".join(
        f'<input type="radio" name="m{number}" id="m{number}-{which}"{checked}>'
        for which in targets
        for checked in [" checked" if which == explanation.focus else ""]
    )
    labels = "".join(_word_label(number, explanation, which) for which in targets)
    views = "".join(_view(image, explanation, which) for which in targets)
    return (
        f"<h2>{escape(explanation.label)}</h2>"
        f"<p>“{escape(explanation.caption)}”</p>"
        '<p class="hint">Tap a word: its maps appear. The stronger its colour, the more the picture adds to '
        "its probability (nats).</p>"
        f'<div class="ex">{buttons}<div class="words">{labels}</div><div class="views">{views}</div></div>'
        f"{_curves(explanation)}"
    )


def _word_label(number: int, explanation: Explanation, which: int) -> str:
    gain = explanation.gains[which]
    top = max(explanation.gains[1:].max(), NOTHING)
    strength = 0 if which == 0 else round(45 * float(np.clip(gain / top, 0, 1)))
    return (
        f'<label for="m{number}-{which}" style="--g:{strength}%"><b>'
        f"{escape(target_name(explanation, which))}</b> <small>{_signed(gain)}</small></label>"
    )


def _signed(value: float) -> str:
    """One decimal with its sign; nothing that rounds to zero is called negative."""
    return f"{round(float(value), 1) + 0.0:+.1f}"


def target_name(explanation: Explanation, which: int) -> str:
    """The word, or what stands for all of them."""
    return explanation.words[which - 1] if which else "whole caption"


def _view(image: Image.Image, explanation: Explanation, which: int) -> str:
    figures = "".join(
        f'<figure><img alt="{METHODS[name]}" src="'
        f'{thumbnail_uri(map_picture(image, explanation, name, which, MAP_SIDE), MAP_SIDE)}">'
        f"<figcaption>{METHODS[name]}<span>{HINTS[name]}</span></figcaption></figure>"
        for name in METHODS
        if name in explanation.heat
    )
    sentence = f'<p class="hint">{_sentence(explanation, which)}</p>'
    return f'<div class="view">{sentence}<div class="maps">{figures}</div></div>'


def _sentence(explanation: Explanation, which: int) -> str:
    gain, seen, unseen = (
        explanation.gains[which],
        explanation.logprobs[which],
        explanation.hidden_logprobs[which],
    )
    name = escape(target_name(explanation, which))
    if which == 0:
        ratio = times(gain)
        return f"The picture makes the caption {ratio} times as probable as it is with everything hidden."
    chances = f"probability {np.exp(seen):.2f} with the picture, {np.exp(unseen):.2f} with it hidden"
    if gain < NOTHING:
        return (
            f"“{name}”: {chances}. It rests on the words before it, not on the picture; the maps show little."
        )
    return f"“{name}”: {chances}."


def times(gain: float) -> str:
    """A ratio of probabilities from its natural logarithm, for people: 0.0183, 2.62, 11,300 or 10^12."""
    if abs(gain) > 14:
        return f"10^{gain / np.log(10):.0f}"
    ratio = float(f"{np.exp(gain):.3g}")
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:g}"


def map_picture(
    image: Image.Image, explanation: Explanation, method: str, which: int, side: int = LONGEST_SIDE
) -> Image.Image:
    """The overlay of one map; the first method's carries the outline of the main region."""
    heat = explanation.heat[method][which]
    if method == "attention_rollout":
        heat = heat - heat.min()  # every patch gets some attention; differences are what can be seen
    region = explanation.main_region(which) if method == first_method(explanation) else None
    return overlay(image, heat, region, smooth=SMOOTHING.get(method, 0.0), side=side)


def first_method(explanation: Explanation) -> str:
    """The method whose map decides a word's region."""
    return next(name for name in METHODS if name in explanation.heat)


def _curves(explanation: Explanation) -> str:
    plots = "".join(_plot(METHODS[name], curve) for name, curve in explanation.curves.items())
    gap = _completeness(explanation)
    name = escape(target_name(explanation, explanation.focus))
    return f'<h3>Deletion and insertion ({name})</h3><div class="plots">{plots}</div>{gap}'


def _plot(title: str, curve: FaithfulnessCurve) -> str:
    """Both curves of a method, probability per token over the share of the picture, and their areas."""
    points = {
        name: list(zip(curve.shares.tolist(), values.tolist(), strict=True))
        for name, values in (("deletion", curve.deletion), ("insertion", curve.insertion))
    }
    chart = lines(points, title=title, horizontal="share of the picture", from_zero=True, last_values=False)
    areas = f"insertion {curve.insertion_area:.3f} - deletion {curve.deletion_area:.3f}"
    return f'<div>{chart}<span class="soft">faithfulness {curve.faithfulness:+.3f} = {areas}</span></div>'


def _completeness(explanation: Explanation) -> str:
    if explanation.focus not in explanation.completeness:
        return ""
    total, expected = explanation.completeness[explanation.focus]
    return (
        f'<p class="hint">Completeness of Integrated Gradients: attributions sum to {total:.4f}; the log '
        f"probability rises by {expected:.4f}.</p>"
    )


_READING_AID = """
<h2>How to read this</h2>
<p>Orange speaks for the words, blue against them. A map says what this model's probability of these
words depends on, compared with a picture in which everything is hidden; it does not say that the words are
right.</p>
<p>Deletion (blue) hides the most important segments first: the sooner the probability falls, the better the
map. Insertion (orange, dashed) shows them first: the sooner it rises, the better. Faithfulness is the area
between the two, insertion minus deletion; a random order has 0 on average.</p>
"""
