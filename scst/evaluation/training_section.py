"""The report's part about training: learning curves of every stage, and what its rewards did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from scst.evaluation.training_log import TrainingStage
from scst.metrics.suite import METRICS
from scst.report.curves import lines
from scst.report.parts import number_cell, table

_STAGE_TITLES = {"sft": "Supervised stage (SFT)", "scst": "Self-critical stage (SCST)"}
_CHARTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("loss", {"training": "loss", "held-out": "eval_loss"}),
    ("reward", {"sampled": "reward_sampled", "greedy": "reward_greedy", "held-out": "eval_reward"}),
    ("advantage (reward minus baseline)", {"mean": "advantage_mean", "deviation": "advantage_std"}),
    ("KL from the SFT policy", {"KL": "kl"}),
    ("entropy of a token (nats)", {"entropy": "entropy"}),
    ("words per sampled caption", {"words": "caption_length"}),
    ("faults of sampled captions", {"bad endings": "bad_ending_rate", "repetitions": "repetition_rate"}),
    (
        "faults of held-out captions",
        {"bad endings": "eval_bad_ending_rate", "repetitions": "eval_repetition_rate"},
    ),
    ("learning rate", {"learning rate": "learning_rate"}),
)
"""Title -> line -> name in the log."""
_ENDS = 0.1  # share of the steps that "first" and "last" of a table are the mean of


def training_section(stages: Sequence[TrainingStage]) -> str:
    """Learning curves of all stages, a chart per question; "" when nothing was logged."""
    return "".join(_stage(stage) for stage in stages if stage.log)


def _stage(stage: TrainingStage) -> str:
    charts = [
        _chart(stage, title, names) for title, names in (*_CHARTS[:3], *_validation(stage), *_CHARTS[3:])
    ]
    last = max(entry["step"] for entry in stage.log)
    return (
        f"<h3>{escape(_STAGE_TITLES.get(stage.name, stage.name))}</h3>"
        f'<p class="note">{escape(str(stage.folder))} · {last:,.0f} steps · in brackets the last value</p>'
        f'<div class="plots">{"".join(charts)}</div>'
    )


def _validation(stage: TrainingStage) -> list[tuple[str, Mapping[str, str]]]:
    """A chart for each metric of quality that was measured on held-out images."""
    logged = dict.fromkeys(name.removeprefix("eval_") for entry in stage.log for name in entry)
    return [
        (f"held-out {METRICS[name].title}", {METRICS[name].title: f"eval_{name}"})
        for name in logged
        if name in METRICS and METRICS[name].direction == 1
    ]


def _chart(stage: TrainingStage, title: str, names: Mapping[str, str]) -> str:
    """Lines of what the stage logged at least twice."""
    found = {label: stage.series(name) for label, name in names.items()}
    return lines({label: points for label, points in found.items() if len(points) > 1}, title=title)


def rewards_section(stages: Sequence[TrainingStage]) -> str:
    """Mean of every reward and its share of the advantages over the steps; "" without an SCST stage."""
    return "".join(_rewards(stage) for stage in stages if stage.rewards)


def _rewards(stage: TrainingStage) -> str:
    rows = [_reward_row(stage, name) for name in stage.rewards]
    means = (_chart(stage, f"{name}, mean", {"sampled": f"reward_{name}"}) for name in stage.rewards)
    shares = (
        _chart(stage, f"{name}, share of the advantages", {"share": f"advantage_share_{name}"})
        for name in stage.rewards
    )
    return (
        f'<p class="note">{escape(str(stage.folder))}: the reward as its function gave it, for sampled '
        "captions, and how much of the advantages it makes up after weight and normalisation; means over the "
        "first and over the last tenth of the run. A share near 0 is not being optimised.</p>"
        f"{table(('reward', 'first', 'last', 'share, first', 'share, last'), rows)}"
        f'<div class="plots">{"".join(means)}{"".join(shares)}</div>'
    )


def _reward_row(stage: TrainingStage, name: str) -> str:
    value, share = (_ends(stage.series(key)) for key in (f"reward_{name}", f"advantage_share_{name}"))
    cells = [f"{each:.3f}" for each in value] + [f"{100 * each:.0f} %" for each in share]
    return f"<tr><td>{escape(name)}</td>{''.join(map(number_cell, cells or ['-'] * 4))}</tr>"


def _ends(points: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Means of the first and of the last tenth; () without points."""
    values = [value for _, value in points]
    count = max(1, round(_ENDS * len(values)))
    return tuple(sum(part) / len(part) for part in (values[:count], values[-count:])) if values else ()
