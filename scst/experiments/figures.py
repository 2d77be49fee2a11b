"""Figures of a matrix as PNG: bars per metric, lines of an ablation, what other prompts cost."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scst.experiments.results import Robustness, Row, Value
from scst.experiments.tables import decoding_texts, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222"]
"""Paul Tol's bright scheme: told apart by colour-blind readers too."""
WIDTH, DPI = 6.4, 150  # inches and pixels per inch: legible on a phone
MOST_UPRIGHT = 24  # bars; more of them lie
ROOM = 66  # letters below upright bars, one beside the other
DrawnFigure = tuple[str, str]
"""File name and caption."""


def draw_figures(
    rows: Sequence[Row],
    robustness: Sequence[Robustness],
    metrics: Sequence[str],
    main: str | None,
    folder: Path,
) -> list[DrawnFigure]:
    """Draw everything that the rows have numbers for.

    Args:
        rows: of the table.
        robustness: of the main metric.
        metrics: each gets bars.
        main: metric of the ablations.
        folder: where the PNG files go; figures of an earlier table are removed.

    Returns:
        File names and captions, the ablations first.
    """
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    # names of models and prompts are texts: a "$" in them begins no formula
    with rc_context({"text.parse_math": False}):
        return _drawn(rows, robustness, metrics, main, folder)


def _drawn(
    rows: Sequence[Row],
    robustness: Sequence[Robustness],
    metrics: Sequence[str],
    main: str | None,
    folder: Path,
) -> list[DrawnFigure]:
    letters = prompt_letters(rows)
    legend = prompt_legend(letters)
    figures = []
    if main:
        figures += _ablations(rows, main, folder)
        figures += _length_ablation(rows, main, letters, folder)
    if main and robustness:
        caption = f"{title_of(main)} with every prompt over that with the training prompt. {legend}"
        figures.append((_robustness(robustness, letters, main, folder), caption))
    for metric in metrics:
        if any(metric in row.values for row in rows):
            figures.append((_bars(rows, metric, letters, folder), f"{title_of(metric)}. {legend}".strip()))
    return figures


def prompt_letters(rows: Sequence[Row]) -> dict[str, str]:
    """Prompt -> A, B, ...; the prompt itself would not fit below a bar."""
    prompts = list(dict.fromkeys(row.cell.prompt for row in rows))
    return {prompt: chr(65 + i) if i < 26 else f"P{i + 1}" for i, prompt in enumerate(prompts)}


def prompt_legend(letters: Mapping[str, str]) -> str:
    """What the letters stand for; nothing with one prompt."""
    if len(letters) < 2:
        return ""
    return "Prompts: " + "; ".join(f"{letter}: “{prompt}”" for prompt, letter in letters.items()) + "."


def _new_figure(height: float) -> tuple[Figure, Axes]:
    """An empty figure, so many inches high, with one pair of axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 11}):  # no pyplot: it keeps figures alive and looks for a screen
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.add_subplot()


def _setting_label(setting: tuple[str, str, int], rows: Sequence[Row], letters: Mapping[str, str]) -> str:
    """Label of a setting: only what differs between settings."""
    prompt, decoding, limit = setting
    parts = [letters[prompt]] if len(letters) > 1 else []
    parts += [decoding] if len({row.cell.decoding for row in rows}) > 1 else []
    limits_vary = len({(row.cell.decoding, row.cell.max_new_tokens) for row in rows}) > len(
        {row.cell.decoding for row in rows}
    )
    parts += [f"{limit} tokens"] if limits_vary else []
    return "\n".join(parts)


def _error(value: Value) -> tuple[float, float]:
    """Lengths of the whiskers; none where the interval is not known."""
    if value.low is None or value.high is None:
        return 0.0, 0.0
    return max(0.0, value.value - value.low), max(0.0, value.high - value.value)


def _bars(rows: Sequence[Row], metric: str, letters: Mapping[str, str], folder: Path) -> str:
    """Models side by side, grouped by prompt and decoding; lying where there are many."""
    there = [row for row in rows if metric in row.values]
    models = list(dict.fromkeys(row.cell.model.name for row in there))
    settings = list(dict.fromkeys(row.setting for row in there))
    lying = len(there) > MOST_UPRIGHT or len(settings) == 1
    height = max(2.4, 0.24 * len(there) + 1.2) if lying else 3.6
    figure, axes = _new_figure(height)
    size = 0.8 / (1 if len(settings) == 1 else len(models))
    for number, model in enumerate(models):
        mine = [row for row in there if row.cell.model.name == model]
        places = [
            number if len(settings) == 1 else settings.index(row.setting) + (number + 0.5) * size - 0.4
            for row in mine
        ]
        values = [row.values[metric] for row in mine]
        errors = list(zip(*map(_error, values), strict=True))
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": model}
        style |= {"error_kw": {"elinewidth": 1, "capsize": 2, "ecolor": "#444"}}
        heights = [value.value for value in values]
        if lying:
            axes.barh(places, heights, height=size, xerr=errors, **style)
        else:
            axes.bar(places, heights, width=size, yerr=errors, **style)
    names = models if len(settings) == 1 else [_setting_label(s, there, letters) for s in settings]
    _name_ticks(axes, [textwrap.fill(n, 28) if "\n" not in n else n for n in names], title_of(metric), lying)
    if len(settings) > 1 and len(models) > 1:
        _legend_above(figure, axes)
    return _save(figure, folder, metric)


def _name_ticks(axes: Axes, names: Sequence[str], metric: str, lying: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if lying:
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(metric)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    else:
        room = ROOM // len(names)
        wrapped = ["\n".join(textwrap.fill(line, room) for line in name.split("\n")) for name in names]
        axes.set_xticks(range(len(names)), wrapped)
        axes.set_ylabel(metric)


def _robustness(
    robustness: Sequence[Robustness], letters: Mapping[str, str], metric: str, folder: Path
) -> str:
    """Ratios as bars, a group per prompt; hatched where the model was trained on the prompt."""
    decodings = decoding_texts(robustness)
    prompts = [p for p in letters if any(p in entry.ratios for entry in robustness)]
    figure, axes = _new_figure(3.6)
    size = 0.8 / len(robustness)
    for number, entry in enumerate(robustness):
        label = entry.model if len(set(decodings)) == 1 else f"{entry.model}, {decodings[number]}"
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "width": size, "edgecolor": "white"}
        for prompt, ratio in entry.ratios.items():
            place = prompts.index(prompt) + (number + 0.5) * size - 0.4
            trained = entry.was_trained_on and prompt not in entry.unseen
            axes.bar(place, ratio, hatch="///" if trained else None, **style)
        axes.bar(0, 0, color=style["color"], label=label)
    axes.bar(0, 0, color="white", edgecolor="#444", hatch="///", label="trained on")
    axes.axhline(1.0, color="#444", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(prompts)), [letters[prompt] for prompt in prompts])
    axes.set_xlabel("prompt")
    axes.set_ylabel(f"{title_of(metric)} / training prompt's")
    _legend_above(figure, axes)
    return _save(figure, folder, "prompt-robustness")


def _ablations(rows: Sequence[Row], metric: str, folder: Path) -> list[DrawnFigure]:
    """A figure per grid with a numeric key: that key on the x axis, a line per combination of the others."""
    figures = []
    for family in dict.fromkeys(row.cell.model.family for row in rows):
        mine = [row for row in rows if row.cell.model.family == family and metric in row.values]
        for key in _numeric_keys(mine)[:1]:
            lines: dict[str, list[tuple[float, Value]]] = {}
            for row in mine:
                others = [f"{k}={v}" for k, v in row.cell.model.varied.items() if k != key]
                settings = _setting_label(row.setting, mine, prompt_letters(mine)).split("\n")
                name = " ".join(part for part in [*others, *settings] if part)
                lines.setdefault(name, []).append((row.cell.model.values[key], row.values[metric]))
            name = _lines(lines, key, metric, folder, f"ablation-{family}")
            figures.append(
                (name, f"{title_of(metric)} of {family} by {key}. {prompt_legend(prompt_letters(mine))}")
            )
    return figures


def _numeric_keys(rows: Sequence[Row]) -> list[str]:
    """Keys of a grid with more than one number, the one with most values first."""
    values: dict[str, set[Any]] = {}
    for row in rows:
        for key, value in row.cell.model.values.items():
            values.setdefault(key, set()).add(value if isinstance(value, Real) else None)
    numeric = [k for k, found in values.items() if len(found) > 1 and None not in found]
    return sorted(
        (k for k in numeric if True not in values[k] or len(values[k]) > 2), key=lambda k: -len(values[k])
    )


def _length_ablation(
    rows: Sequence[Row], metric: str, letters: Mapping[str, str], folder: Path
) -> list[DrawnFigure]:
    """The metric by length limit, when more than one was tried with one decoding."""
    lines: dict[str, list[tuple[float, Value]]] = {}
    for row in (row for row in rows if metric in row.values):
        parts = [row.cell.model.name, letters[row.cell.prompt] if len(letters) > 1 else ""]
        parts += [row.cell.decoding] if len({r.cell.decoding for r in rows}) > 1 else []
        name = " ".join(part for part in parts if part)
        lines.setdefault(name, []).append((row.cell.max_new_tokens, row.values[metric]))
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return []
    name = _lines(lines, "max_new_tokens", metric, folder, "ablation-max_new_tokens")
    return [(name, f"{title_of(metric)} by length limit. {prompt_legend(letters)}".strip())]


def _lines(
    lines: Mapping[str, Sequence[tuple[float, Value]]], key: str, metric: str, folder: Path, name: str
) -> str:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _new_figure(3.6)
    places = sorted({place for points in lines.values() for place, _ in points})
    apart = 0.012 * (places[-1] - places[0])  # so that whiskers do not cover each other
    for number, (label, points) in enumerate(lines.items()):
        ordered = sorted(points, key=lambda point: point[0])
        errors = list(zip(*(_error(value) for _, value in ordered), strict=True))
        axes.errorbar(
            [place + apart * (number - (len(lines) - 1) / 2) for place, _ in ordered],
            [value.value for _, value in ordered],
            yerr=errors,
            color=COLOURS[number % len(COLOURS)],
            linestyle=["-", "--", ":"][number // len(COLOURS) % 3],
            marker="o",
            capsize=2,
            linewidth=1.5,
            label=label or None,
        )
    axes.set_xticks(places)
    axes.set_xlabel(key)
    axes.set_ylabel(title_of(metric))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if any(lines):
        _legend_above(figure, axes)
    return _save(figure, folder, name)


def _legend_above(figure: Figure, axes: Axes) -> None:
    """Put the legend above the axes, and make the figure taller when it has more than two lines."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 38 else 2 if max(map(len, labels)) > 14 else 3
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, math.ceil(len(labels) / columns) - 2))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


def _save(figure: Figure, folder: Path, name: str) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = "".join(c if c.isalnum() or c in "-_" else "-" for c in name) + ".png"
    figure.savefig(folder / file, dpi=DPI)
    return file
