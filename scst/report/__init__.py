"""Pages and their charts: self-contained HTML without scripts, readable on a phone, in light and dark.

What does not belong here: measuring. A page is made of what other rooms have found.

page.py       the shell of every page, pictures, tabs
parts.py      pieces of sections: cards, tables, cells
charts.py     large numbers, histogram, bars, word cloud
curves.py     lines over a common axis
svg.py        matplotlib to inline SVG in the page's colours
data_page.py  the data report
"""
