"""A plot of ratios as SVG: a bar per alternative and row, with the range over the rounds."""

import math
import statistics
from xml.sax.saxutils import escape

COLOURS = ["#4e79a7", "#f28e2b", "#76b7b2", "#b07aa1", "#59a14f"]
LEFT, WIDTH, BAR, GAP = 250, 520, 12, 14


def ratios(title, note, rows):
    """`rows`: (name, [(alternative, sorted ratios)]). The axis is logarithmic, from the smallest power
    of two below to the smallest above, and 1 is drawn."""
    values = [v for _, bars in rows for _, r in bars for v in r]
    low = min(-1, math.floor(math.log2(min(values))))
    high = max(1, math.ceil(math.log2(max(values))))
    names = [name for name, _ in rows[0][1]]

    def x(value):
        return LEFT + (math.log2(value) - low) / (high - low) * WIDTH
    top = 74
    height = top + sum(len(bars) * BAR + GAP for _, bars in rows) + 40
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 90}" height="{height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/><text x="12" y="22" font-size="15">{escape(title)}</text>',
           f'<text x="12" y="40" fill="#555" font-size="11">{escape(note)}</text>']
    for n, name in enumerate(names):
        out.append(f'<rect x="{LEFT + n * 120}" y="50" width="10" height="10" fill="{COLOURS[n % 5]}"/>'
                   f'<text x="{LEFT + n * 120 + 14}" y="59">against {escape(name)}</text>')
    for power in range(low, high + 1):
        at = x(2.0 ** power)
        stroke = "#222" if power == 0 else "#ddd"
        out.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{height - 30}" stroke="{stroke}"/>'
                   f'<text x="{at:.1f}" y="{height - 14}" text-anchor="middle">{2.0 ** power:g}</text>')
    y = top
    for row, bars in rows:
        middle = y + len(bars) * BAR / 2 + 4
        out.append(f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(row)}</text>')
        for n, (_, r) in enumerate(bars):
            median = statistics.median(r)
            a, b = sorted((x(1), x(median)))
            line = y + BAR / 2
            out.append(f'<rect x="{a:.1f}" y="{y + 1}" width="{b - a:.1f}" height="{BAR - 2}" fill="{COLOURS[n % 5]}"/>'
                       f'<line x1="{x(r[0]):.1f}" y1="{line}" x2="{x(r[-1]):.1f}" y2="{line}" stroke="#222"/>'
                       f'<text x="{max(x(r[-1]), x(1)) + 4:.1f}" y="{y + 10}" font-size="10">{median:.2f}</text>')
            y += BAR
        y += GAP
    return "\n".join(out + ["</svg>", ""])
