"""A self-contained HTML report of an evaluation: no scripts, no outside files, readable on a phone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rewards.scorers.text import bad_ending_rate, has_bad_ending, mean_length, words
from scst.evaluation.comparison import Comparison, ranking_metric
from scst.evaluation.samples import ScoredSamples, spread_indices
from scst.evaluation.training_log import TrainingStage
from scst.evaluation.training_section import rewards_section, training_section
from scst.metrics.bootstrap import MetricResult
from scst.metrics.corpus import Corpus
from scst.metrics.paired import MetricDifference
from scst.metrics.suite import METRICS
from scst.report import charts, curves, parts
from scst.report.page import MOST_TABS, html_page, tabs
from scst.report.parts import SMALL, Pictures, card, cards, number_cell, shown, table

_LONGEST = 30  # words: the last bar of the histogram
_MOST_ENDINGS = 100
_HEADLINES = ("cider_d", "bleu_4")
_COARSER = {"bleu_1", "bleu_2", "bleu_3"}  # say less about a caption than BLEU-4


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        title, subtitle: heading and the line below, e.g. model, prompt and decoding.
        corpus: captions, references, images and ids, N each.
        results: metrics by name.
        stages: the training runs behind the adapter.
        samples: greedy and sampled captions of some images.
        sampled_from: their distribution in words.
        comparison: with another evaluation.
        examples: best and worst captions by each metric, and captions that changed most, so many of each.
        rows: of the table of captions. Together they bound the size of the page, whatever N is.
    """

    title: str
    subtitle: str
    corpus: Corpus
    results: Mapping[str, MetricResult]
    stages: Sequence[TrainingStage] = ()
    samples: Sequence[ScoredSamples] = ()
    sampled_from: str = ""
    comparison: Comparison | None = None
    examples: int = 6
    rows: int = 40

    def image_id(self, i: int) -> str:
        """The id of image i, as text."""
        return str(self.corpus.image_ids[i]) if self.corpus.image_ids else str(i)


def report_html(report: Report) -> str:
    """The page as one string; every text in it is escaped, and sections without content are left out."""
    pictures = Pictures(report.corpus.images or (), report.corpus.image_ids or ())
    found = {
        "Metrics": _metrics(report),
        "Comparison": _comparison(report, pictures),
        "Best and worst captions": _extremes(report, pictures),
        "Greedy and sampled captions": _samples(report, pictures),
        "Bad endings": _bad_endings(report),
        "Words per caption": _lengths(report),
        "Learning curves": training_section(report.stages),
        "Rewards": rewards_section(report.stages),
        "Captions": _captions(report, pictures),
    }
    sections = {heading: content for heading, content in found.items() if content}
    links = "".join(f'<a href="#{_anchor(heading)}">{heading}</a>' for heading in sections)
    body = "\n".join(
        f'<section id="{_anchor(heading)}"><h2>{heading}</h2>\n{content}</section>'
        for heading, content in sections.items()
    )
    style = charts.STYLE + curves.STYLE + parts.STYLE
    return html_page(report.title, report.subtitle, f"<nav>{links}</nav>\n{body}", style=style)


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _metrics(report: Report) -> str:
    corpus, results = report.corpus, report.results
    numbers = [
        (f"{len(corpus.captions):,}", "images"),
        *((f"{results[name].value:.3f}", METRICS[name].title) for name in _HEADLINES if name in results),
        (f"{mean_length(corpus.captions):.1f}", "words per caption"),
        (f"{100 * bad_ending_rate(corpus.captions):.1f} %", "bad endings"),
    ]
    rows = [
        f"<tr><td>{escape(METRICS[name].title)}</td>{number_cell(f'{result.value:.4f}')}"
        f"{number_cell(f'{result.ci95[0]:.4f} to {result.ci95[1]:.4f}')}</tr>"
        f'<tr class="s"><td colspan="3"><code>{escape(result.signature)}</code></td></tr>'
        for name, result in results.items()
    ]
    return charts.key_figures(numbers) + table(("metric", "value", "95 % interval"), rows)


def _comparison(report: Report, pictures: Pictures) -> str:
    """Values side by side, and the captions that changed most in both directions."""
    found = report.comparison
    if found is None:
        return ""
    heads = ("metric", "before", "now", "difference", "95 % interval", "p", "test", "images")
    rows = [_difference_row(name, difference) for name, difference in found.differences.items()]
    return (
        f'<p class="note">before: {escape(found.name)}; now: this evaluation. The interval is that of '
        "the difference (paired bootstrap over images); p is two-sided, by a permutation test below 200 "
        "images; images are those that both are judged on.</p>"
        f"{table(heads, rows)}{_changes(report, found, pictures)}"
    )


def _difference_row(name: str, found: MetricDifference) -> str:
    numbers = (f"{found.values[0]:.4f}", f"{found.values[1]:.4f}", f"{found.difference:+.4f}")
    interval = f"{found.ci95[0]:+.4f} to {found.ci95[1]:+.4f}"
    p_value = "-" if math.isnan(found.p_value) else f"{found.p_value:.3f}"
    last = (interval, p_value, found.test, f"{found.judged:,}")
    cells = "".join(map(number_cell, (*numbers, *last)))
    return f"<tr><td>{escape(METRICS[name].title)}</td>{cells}</tr>"


def _changes(report: Report, found: Comparison, pictures: Pictures) -> str:
    changes = found.changes
    order = sorted(range(len(changes)), key=lambda i: -changes[i])
    panels = {
        "risen most": [i for i in order[: report.examples] if changes[i] > 0],
        "fallen most": [i for i in order[::-1][: report.examples] if changes[i] < 0],
    }
    if not order:
        return ""
    risen, fallen = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    same = sum(a == b for a, b in zip(found.captions, report.corpus.captions, strict=True))
    title = METRICS[found.metric].title
    filled = {
        name: cards([_changed_card(report, found, i, pictures) for i in indices])
        or '<p class="note">none</p>'
        for name, indices in panels.items()
    }
    return (
        f"<h3>Captions that changed most, by {escape(title)}</h3><p>{risen:,} captions score higher than "
        f"before, {fallen:,} lower; {same:,} are the same words.</p>{tabs('changes', filled)}"
    )


def _changed_card(report: Report, found: Comparison, i: int, pictures: Pictures) -> str:
    corpus = report.corpus
    texts = f'<p class="was">before: {shown(found.captions[i])}</p><p>now: {shown(corpus.captions[i])}</p>'
    score = f"{found.changes[i]:+.3f} · {escape(report.image_id(i))}"
    return card(pictures.tag(i), texts, score, corpus.references[i])


def _extremes(report: Report, pictures: Pictures) -> str:
    """The best and the worst captions by a metric of choice."""
    panels = {METRICS[name].title: _extremes_by(report, name, pictures) for name in rankings(report.results)}
    if not panels:
        return ""
    hint = "Tap a metric. Scores are those of single captions; BLEU and METEOR are not means of them."
    return f'<p class="note">{hint}</p>{tabs("metric", panels)}'


def rankings(results: Mapping[str, MetricResult]) -> list[str]:
    """Quality metrics that have scores per caption, CIDEr-D first; no more than there are tabs."""
    first = ranking_metric({name: result.per_caption for name, result in results.items()})
    coarser = _COARSER if "bleu_4" in results else set()
    others = [
        name
        for name, result in results.items()
        if METRICS[name].direction == 1 and any(v is not None for v in result.per_caption)
        if name not in coarser | {first}
    ]
    return [first, *others][:MOST_TABS] if first else []


def _extremes_by(report: Report, name: str, pictures: Pictures) -> str:
    per_caption = report.results[name].per_caption
    scores = {i: score for i, score in enumerate(per_caption) if score is not None}
    order = sorted(scores, key=lambda i: -scores[i])
    count = min(report.examples, (len(order) + 1) // 2)  # no caption is both
    best, worst = order[:count], order[max(count, len(order) - count) :][::-1]

    def shelf(indices: Sequence[int]) -> str:
        return cards([_scored_card(report, i, scores[i], pictures) for i in indices])

    return f"<h3>Best</h3>{shelf(best)}<h3>Worst</h3>{shelf(worst)}"


def _scored_card(report: Report, i: int, score: float, pictures: Pictures) -> str:
    corpus = report.corpus
    line = f"{score:.3f} · {escape(report.image_id(i))}"
    return card(pictures.tag(i), f"<p>{shown(corpus.captions[i])}</p>", line, corpus.references[i])


def _samples(report: Report, pictures: Pictures) -> str:
    """The greedy caption of some images beside a few that were sampled."""
    if not report.samples:
        return ""
    greedy = [found.greedy_score for found in report.samples]
    drawn = [score for found in report.samples for score in found.scores]
    best = [max(found.scores) for found in report.samples]
    means = [sum(values) / len(values) for values in (greedy, drawn, best)]
    return (
        f'<p class="note">{len(greedy)} images, spread evenly; {escape(report.sampled_from)}; behind each '
        f"caption its CIDEr-D. On average: greedy {means[0]:.3f}, sampled {means[1]:.3f}, the best sample of "
        f"each image {means[2]:.3f}.</p>{''.join(_sampled(found, pictures) for found in report.samples)}"
    )


def _sampled(found: ScoredSamples, pictures: Pictures) -> str:
    counted = Counter(found.samples)
    scores = dict(zip(found.samples, found.scores, strict=True))
    rows = [
        f"<tr><td><b>{shown(found.greedy)}</b> (greedy)</td>{number_cell(f'{found.greedy_score:.3f}')}</tr>"
    ]
    for text in sorted(counted, key=lambda text: -scores[text]):
        times = f" (×{counted[text]})" if counted[text] > 1 else ""
        rows.append(f"<tr><td>{shown(text)}{times}</td>{number_cell(f'{scores[text]:.3f}')}</tr>")
    return f'<div class="pair"><div>{pictures.tag(found.index)}</div><table>{"".join(rows)}</table></div>'


def _bad_endings(report: Report) -> str:
    """Captions that stop on a word that cannot be the last, and how many there are."""
    corpus = report.corpus
    bad = [i for i, caption in enumerate(corpus.captions) if has_bad_ending(caption)]
    human = [text for group in corpus.references for text in group]
    cut = None if corpus.ended_by_eos is None else sum(not ended for ended in corpus.ended_by_eos)
    told = "" if cut is None else f" The length limit cut {cut:,} captions."
    share = 100 * len(bad) / len(corpus.captions)
    summary = (
        f"<p>{len(bad):,} of {len(corpus.captions):,} captions ({share:.1f} %) end on an article, a "
        f"preposition, a conjunction or the like; of the references "
        f"{100 * bad_ending_rate(human):.1f} %.{told}</p>"
    )
    if not bad:
        return summary
    listed = bad[:_MOST_ENDINGS]
    items = "".join(f"<li>{_ending(report, i)}</li>" for i in listed)
    count = "all" if len(listed) == len(bad) else f"the first {len(listed)} of {len(bad):,}"
    return f'{summary}<details open><summary>{count}</summary><ul class="examples">{items}</ul></details>'


def _ending(report: Report, i: int) -> str:
    corpus = report.corpus
    start, _, last = corpus.captions[i].rstrip(" .,;:!?").rpartition(" ")
    cut = corpus.ended_by_eos is not None and not corpus.ended_by_eos[i]
    note = f"{report.image_id(i)}{', cut by the length limit' if cut else ''}"
    return f'{escape(start)} <mark>{escape(last)}</mark> <span class="soft">{escape(note)}</span>'


def _lengths(report: Report) -> str:
    captions = report.corpus.captions
    human = [text for group in report.corpus.references for text in group]
    chart = charts.histogram(
        _word_counts(human),
        _word_counts(captions),
        last=_LONGEST,
        label="words per caption",
        names=("references", "captions"),
    )
    means = f"{mean_length(captions):.1f} words on average, references {mean_length(human):.1f}."
    return f"<p>{means}</p>{chart}"


def _word_counts(captions: Sequence[str]) -> Counter[int]:
    return Counter(len(words(caption)) for caption in captions)


def _captions(report: Report, pictures: Pictures) -> str:
    """A table of captions, spread evenly over the dataset."""
    corpus, names = report.corpus, rankings(report.results)[:4]
    indices = spread_indices(len(corpus.captions), report.rows)
    heads = ("image", "caption", "references", *(METRICS[name].title for name in names))
    rows = [_caption_row(report, i, names, pictures) for i in indices]
    note = f"{len(indices)} of {len(corpus.captions):,}, spread evenly; all of them are in predictions.jsonl."
    return f'<p class="note">{note}</p>{table(heads, rows, wide=True)}'


def _caption_row(report: Report, i: int, names: Sequence[str], pictures: Pictures) -> str:
    corpus = report.corpus
    scores = (report.results[name].per_caption[i] for name in names)
    cells = "".join(number_cell("-" if score is None else f"{score:.3f}") for score in scores)
    references = "<br>".join(escape(text) for text in dict.fromkeys(corpus.references[i]))
    return (
        f'<tr><td>{pictures.tag(i, SMALL)}<span class="soft">{escape(report.image_id(i))}</span></td>'
        f'<td>{shown(corpus.captions[i])}</td><td class="soft">{references}</td>{cells}</tr>'
    )
