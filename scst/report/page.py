"""The shell of every HTML report: one self-contained file, no scripts, readable on a phone, light or dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #666; --fill: #3a78c2; }
@media (prefers-color-scheme: dark) { :root { --soft: #a6a6a6; } }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .5rem .3rem 0; border-bottom: 1px solid var(--line); }
tr:has(+ .s) td { border: 0; padding-bottom: 0; } .s td { padding-top: 0; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
code, .soft { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.card img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; }
.card div { padding: .6rem .8rem; } .card p { margin: .2rem 0; font-weight: 600; }
.card ul { margin: .4rem 0 0; padding-left: 1.1rem; color: var(--soft); font-size: .9rem; }
svg { width: 100%; height: auto; }
.tabs { position: relative; } .tabs > input { position: absolute; left: 0; margin: 0; opacity: 0;
  pointer-events: none; }
.tabs > label { display: inline-block; padding: .35rem .7rem; margin: 0 .35rem .5rem 0; cursor: pointer;
  border: 1px solid var(--line); border-radius: 1rem; } .panels > * { display: none; }
"""
MOST_TABS = 8
# No script and nothing from elsewhere, even where text of data should ever reach a page unescaped. Fonts
# in the page are allowed for the browser's own: Chromium draws some of its controls with one.
_POLICY = (
    "default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
{body}
</body>
</html>
"""


def html_page(title: str, subtitle: str, body: str, *, style: str = "") -> str:
    """A whole page: title and subtitle are escaped, ``body`` is HTML, ``style`` CSS after the common one."""
    return _PAGE.format(
        policy=_POLICY,
        title=escape(title),
        subtitle=escape(subtitle),
        style=STYLE + _tab_rules() + style,
        body=body,
    )


def tabs(group: str, panels: Mapping[str, str]) -> str:
    """Panels of which one is seen: its label was tapped, which checks a hidden radio button; no script.

    Args:
        group: name of the radio buttons, its own for every set of tabs on a page.
        panels: label -> HTML, at most ``MOST_TABS``; labels are escaped, the first one is open.
    """
    if len(panels) > MOST_TABS:
        raise ValueError(f"expected at most {MOST_TABS} tabs, got {len(panels)}")
    buttons = "".join(
        f'<input type="radio" name="{group}" id="{group}-{place}"{"" if place else " checked"}>'
        f'<label for="{group}-{place}">{escape(label)}</label>'
        for place, label in enumerate(panels)
    )
    contents = "".join(f"<div>{content}</div>" for content in panels.values())
    return f'<div class="tabs">{buttons}<div class="panels">{contents}</div></div>'


def _tab_rules() -> str:
    """A checked radio button shows its panel and marks its label."""
    rules = []
    for place in range(1, MOST_TABS + 1):
        button = f".tabs > input:nth-of-type({place})"
        rules.append(f"{button}:checked ~ .panels > :nth-child({place}) {{ display: block; }}")
        rules.append(f"{button}:checked + label {{ outline: 2px solid var(--fill); }}")
        rules.append(f"{button}:focus-visible + label {{ outline: 3px solid; }}")
    return "\n".join(rules) + "\n"
