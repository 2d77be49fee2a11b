"""The data report as one HTML page; every text of the dataset in it is escaped."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from scst.data.preparation.data_report import SUMMARY_TITLES, DataReport
from scst.data.preparation.inspection import Example
from scst.data.preparation.statistics import (
    FUNCTION_WORDS,
    SHOWN,
    category_counts,
    count_captions,
    equal_images,
    seen_in_training,
    top_words,
)
from scst.data.preview import reasons_by_kind
from scst.report.charts import STYLE, bars, histogram, key_figures, legend, word_cloud
from scst.report.page import html_page

LONGEST = 30  # words; the last bar of the histogram
AGREEMENT_TITLES = {"bleu_4": "BLEU-4", "meteor": "METEOR", "cosine": "cosine of sentence embeddings"}


def report_html(report: DataReport, title: str) -> str:
    """The page; every text of the dataset in it is escaped."""
    sections = [
        ("What to know", _findings(report)),
        ("Splits", _splits(report)),
        ("Cleaning", _steps(report)),
        ("Chosen captions", _selection(report)),
        ("Caption lengths", _lengths(report)),
        ("Words", _words(report)),
        ("Repeated captions and images", _repeats(report)),
        ("Agreement between the captions of an image", _agreement(report)),
        ("Degenerate captions and unusable examples", _degenerate(report)),
        ("Categories", _categories(report)),
        ("Contact sheet", _contact_sheet(report)),
    ]
    body = _key_figures(report) + "".join(
        f"<h2>{escape(name)}</h2>\n{content}\n" for name, content in sections if content
    )
    subtitle = f"{report.dataset} · changed: {', '.join(report.prepared.changed_splits)} · fingerprint "
    return html_page(f"Data report: {title}", subtitle + report.fingerprint[:12], body, style=STYLE)


def _key_figures(report: DataReport) -> str:
    after = report.prepared.after
    captions = sum(len(e.references) for e in after)
    words = len({word for found in report.splits.values() for word in found.frequencies})
    sizes = {e.size for e in after}
    size = "{} × {}".format(*next(iter(sizes))) if len(sizes) == 1 else f"{len(sizes)} sizes"
    numbers = [
        (f"{len(after):,}", "images"),
        (f"{captions:,}", "captions"),
        (f"{captions / max(1, len(after)):.2f}", "captions per image"),
        (f"{words:,}", "distinct words"),
        (size, "pixels"),
    ]
    return key_figures(numbers)


def _findings(report: DataReport) -> str:
    """What somebody should know before training, the worst first."""
    prepared, found = report.prepared, []
    if report.inspected.bad:
        found.append(f"{len(report.inspected.bad):,} examples cannot be used and were left out.")
    if prepared.emptied:
        found.append(
            f"Cleaning left {len(prepared.emptied):,} images without a caption; they are not in the new "
            f"dataset: {_some(prepared.emptied)}."
        )
    for split, (seen, total) in seen_in_training(prepared.before, report.train_split).items():
        found.append(
            f"{seen:,} of {total:,} captions of {split or 'no split'} ({_percent(seen, total)}) stand word "
            f"for word in {report.train_split}: a model that only remembers sentences can score on them."
        )
    alone = report.before.distinct_per_image[1]
    found.append(
        f"{alone:,} of {report.before.images:,} images ({_percent(alone, report.before.images)}) have one "
        "caption only, however often it is repeated."
    )
    left = sum(report.after.degenerate.values())
    if left:
        found.append(
            f"{left:,} captions describe nothing (see below); the step drop-degenerate leaves them out."
        )
    groups = equal_images(prepared.before)
    if groups:
        found.append(
            f"The same picture under several ids ({len(groups):,} times): "
            f"{_some([' = '.join(group) for group in groups])}."
        )
    if prepared.repeated_images:
        found.append(f"Left out as copies of another image: {_some(prepared.repeated_images)}.")
    return '<ul class="findings">' + "".join(f"<li>{escape(text)}</li>" for text in found) + "</ul>"


def _splits(report: DataReport) -> str:
    header = ["split", *(SUMMARY_TITLES[name] for name in SUMMARY_TITLES)]
    rows = [
        [name or "(none)", *map(_number, found.summary().values())] for name, found in report.splits.items()
    ]
    return _table(header, rows)


def _steps(report: DataReport) -> str:
    if not report.prepared.steps:
        return ""
    rows = [
        [step.name, *map(_number, (step.changed, step.dropped, step.captions, step.vocabulary))]
        for step in report.prepared.steps
    ]
    before, after = report.before, report.after
    note = (
        f'<p class="note">In {escape(", ".join(report.prepared.changed_splits))}: {before.captions:,} '
        f"captions became {after.captions:,}, {before.vocabulary:,} distinct words {after.vocabulary:,} "
        f"({_change(before.vocabulary, after.vocabulary)}).</p>"
    )
    table = _table(["step", "changed", "left out", "captions left", "distinct words left"], rows)
    return table + note + _step_examples(report) + _synonyms(report)


def _step_examples(report: DataReport) -> str:
    """Before (struck out) and after, for steps that did anything."""
    parts = []
    for step in (step for step in report.prepared.steps if step.examples):
        lines = "".join(
            f"<li><s>{escape(old)}</s><br>{escape(new) or '<em>left out</em>'}</li>"
            for old, new in step.examples
        )
        parts.append(f"<h3>{escape(step.name)}</h3><ul>{lines}</ul>")
    if not parts:
        return ""
    return f'<details class="examples"><summary>examples of every step</summary>{"".join(parts)}</details>'


def _synonyms(report: DataReport) -> str:
    if not report.synonyms:
        return ""
    counts = report.before.frequencies
    pairs = sorted(report.synonyms.items(), key=lambda pair: -counts[pair[0]])
    shown = ", ".join(f"{escape(rare)} → <b>{escape(to)}</b>" for rare, to in pairs)
    return (
        f"<details><summary>{len(pairs):,} rare words were mapped, the most frequent first</summary>"
        f"<p>{shown}</p></details>"
    )


def _selection(report: DataReport) -> str:
    prepared = report.prepared
    if prepared.selection == "all":
        return ""
    rows = [(f"caption {number + 1}", prepared.chosen[number], None) for number in sorted(prepared.chosen)]
    chosen = [e for e in prepared.after if e.split in prepared.changed_splits]
    first = count_captions([replace(e, references=e.references[:1]) for e in chosen])
    text = (
        f"By <b>{escape(prepared.selection)}</b>. The chosen captions have {first.mean_length:.2f} words on "
        f"average (all: {report.before.mean_length:.2f}) and {first.vocabulary:,} distinct words; "
        f"{first.distinct:,} of {first.captions:,} are different. Which one it was:"
    )
    return f"<p>{text}</p>{bars(rows)}"


def _lengths(report: DataReport) -> str:
    before = None if report.unchanged else report.before.lengths
    chart = histogram(before, report.after.lengths, last=LONGEST, label="words per caption")
    text = (
        f"Mean {report.before.mean_length:.2f} words before, {report.after.mean_length:.2f} after; from "
        f"{min(report.before.lengths, default=0)} to {max(report.before.lengths, default=0)} before, from "
        f"{min(report.after.lengths, default=0)} to {max(report.after.lengths, default=0)} after."
    )
    return f"{chart}<p>{text}</p>"


def _words(report: DataReport) -> str:
    before, after = report.before.frequencies, report.after.frequencies
    per_mille = [1000 / max(1, sum(counts.values())) for counts in (after, before)]
    words = top_words(before)
    was = [None if report.unchanged else before[word] * per_mille[1] for word in words]
    rows = [(word, after.get(word, 0) * per_mille[0], old) for word, old in zip(words, was, strict=True)]
    cloud = word_cloud({word: n for word, n in after.items() if word not in FUNCTION_WORDS})
    rare = sum(count == 1 for count in after.values())
    missing = '<p class="note">The word cloud wants the package wordcloud: pip install "scst[report]".</p>'
    return (
        f'<div class="two"><div><h3>{SHOWN} most frequent words, per 1,000 words</h3>{_legend(report)}'
        f"{bars(rows, digits=1)}</div>"
        f"<div><h3>After</h3>{cloud or missing}"
        f'<p class="note">Without function words. {rare:,} of {len(after):,} words occur once.</p>'
        "</div></div>"
    )


def _repeats(report: DataReport) -> str:
    before, after = report.before, report.after
    numbers = sorted({*before.distinct_per_image, *after.distinct_per_image})
    rows = [
        (
            f"{number} different",
            after.distinct_per_image[number],
            _was(report, before.distinct_per_image[number]),
        )
        for number in numbers
    ]
    repeated = [(text, count, None) for text, count in before.most_repeated if count > 1]
    text = (
        f"{before.captions - before.distinct:,} of {before.captions:,} captions are exact copies of another, "
        f"{before.repeated_in_image:,} of them within their own image; after: "
        f"{after.captions - after.distinct:,} of {after.captions:,}, {after.repeated_in_image:,} within."
    )
    return (
        f'<p>{text}</p><div class="two"><div><h3>Images by different captions</h3>{_legend(report)}'
        f"{bars(rows)}</div><div><h3>Most repeated, before</h3>{bars(repeated)}</div></div>"
    )


def _agreement(report: DataReport) -> str:
    if not report.agreement and not report.not_measured:
        return ""
    rows, charts = [], []
    for name, found in report.agreement.items():
        title = AGREEMENT_TITLES.get(name, name)
        rows.append([title, f"{found.mean:.3f}", f"{found.distinct_mean:.3f}", f"{found.distinct_images:,}"])
        tenths: dict[int, int] = {}
        for value in found.per_image:
            tenth = min(10, max(0, int(value * 10 + 1e-6)))  # BLEU of equal captions is 1 - 1e-9
            tenths[tenth] = tenths.get(tenth, 0) + 1
        bar_rows = [(f"{n / 10:.1f}", tenths.get(n, 0), None) for n in range(11)]
        charts.append(f"<div><h3>{escape(title)}, images by mean from</h3>{bars(bar_rows)}</div>")
    images = max((found.images for found in report.agreement.values()), default=0)
    header = ["each caption against its siblings", "mean", "different captions only", "of images"]
    table = _table(header, rows) if rows else ""
    missing = "".join(
        f'<p class="note">{escape(AGREEMENT_TITLES.get(name, name))} was not measured: {escape(reason)}</p>'
        for name, reason in report.not_measured.items()
    )
    return (
        f"<p>Of {images:,} images drawn at random from all splits, captions as they were. A repeated caption "
        "agrees with itself, so the second column leaves repeats out. BLEU-4 and METEOR take the siblings as "
        "references, the cosine is the mean over them.</p>"
        f'{table}{missing}<div class="two">{"".join(charts)}</div>'
    )


def _degenerate(report: DataReport) -> str:
    before, after = report.before, report.after
    kinds = [
        (kind, after.degenerate[kind], _was(report, count)) for kind, count in before.degenerate.most_common()
    ]
    reasons = [(kind, count, None) for kind, count in reasons_by_kind(report.inspected.bad).items()]
    parts = []
    if kinds:
        rows = [[key, repr(caption), kind] for key, caption, kind in before.degenerate_examples]
        parts += [f"{_legend(report)}{bars(kinds)}", _table(["image", "caption", "why"], rows)]
    if reasons:
        parts += [f"<h3>Examples left out</h3>{bars(reasons)}"]
    if report.inspected.blank_captions:
        parts += [f"<p>{report.inspected.blank_captions:,} blank captions beside others were removed.</p>"]
    return "".join(parts) or "<p>None.</p>"


def _categories(report: DataReport) -> str:
    counts = category_counts(report.prepared.after, report.categories, report.inspected.features)
    if not counts:
        return ""
    return bars([(name, count, None) for name, count in counts.most_common(60)])


def _contact_sheet(report: DataReport) -> str:
    before = {e.image_id: e for e in report.prepared.before}
    after = {e.image_id: e for e in report.prepared.after}
    cards = [
        _card(picture, before[image_id], after.get(image_id))
        for image_id, picture in report.inspected.thumbnails.items()
        if image_id in before
    ]
    note = '<p class="note">A random sample. Bold: the first caption; struck out: captions that are gone.</p>'
    return f'{note}<div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(picture: str, before: Example, after: Example | None) -> str:
    texts = list(dict.fromkeys(after.references)) if after else []
    gone = [text for text in dict.fromkeys(before.references) if text not in texts]
    first = f"<p>{escape(texts[0])}</p>" if texts else "<p><em>left out</em></p>"
    items = [*(escape(text) for text in texts[1:]), *(f"<s>{escape(text)}</s>" for text in gone)]
    listed = f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""
    split = escape(f"{before.image_id} · {before.split}")
    return (
        f'<div class="card"><img loading="lazy" alt="{escape(before.image_id)}" src="{picture}"><div>{first}'
        f'<span class="soft">{split}</span>{listed}</div></div>'
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls by itself on a narrow screen."""

    def cell(text: Any) -> str:
        return f'<td class="n">{escape(str(text))}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'


def _was(report: DataReport, value: float) -> float | None:
    return None if report.unchanged else value


def _legend(report: DataReport) -> str:
    return "" if report.unchanged else legend()


def _number(value: float) -> str:
    return f"{value:,}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _change(before: int, after: int) -> str:
    return f"{100 * (after - before) / max(1, before):+.1f} %"


def _some(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
