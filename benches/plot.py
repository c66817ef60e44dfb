"""Plots as SVG: ratios, a bar per alternative and row, with the range over the rounds; and shares by a count."""

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


def shares(title, note, lines):
    """`lines`: (name, [(count, share)]). Counts lie on a logarithmic axis, with 0 before 1; the share of
    1 is drawn."""
    top, tall = 60 + 18 * len(lines), 300
    counts = sorted({count for _, points in lines for count, _ in points})
    most = max(1.2, *(share for _, points in lines for _, share in points))
    width = max(1, len(counts) - 1)

    def x(count):
        return 70 + counts.index(count) / width * WIDTH

    def y(share):
        return top + tall - share / most * tall
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 130}" height="{top + tall + 50}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/><text x="12" y="22" font-size="15">{escape(title)}</text>',
           f'<text x="12" y="40" fill="#555" font-size="11">{escape(note)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="60" y1="{y(share):.1f}" x2="{WIDTH + 80}" y2="{y(share):.1f}" '
                   f'stroke="{"#222" if share in (0, 1) else "#ddd"}"/>'
                   f'<text x="54" y="{y(share) + 4:.1f}" text-anchor="end">{share:g}</text>')
    for count in counts:
        out.append(f'<text x="{x(count):.1f}" y="{top + tall + 20}" text-anchor="middle">{count:,}</text>')
    for n, (name, points) in enumerate(lines):
        colour = COLOURS[n % 5]
        path = " ".join(f"{x(count):.1f},{y(share):.1f}" for count, share in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(count):.1f}" cy="{y(share):.1f}" r="3" fill="{colour}"/>' for count, share in points]
        out.append(f'<rect x="70" y="{50 + 18 * n}" width="10" height="10" fill="{colour}"/>'
                   f'<text x="84" y="{59 + 18 * n}">{escape(name)}</text>')
    return "\n".join(out + ["</svg>", ""])


def course(title, note, lines):
    """`lines`: (name, [(second, value)]), over time, from zero."""
    top, tall = 60 + 18 * len(lines), 300
    last = max(second for _, points in lines for second, _ in points)
    most = max(value for _, points in lines for _, value in points)
    step = 10 ** math.floor(math.log10(most))
    step = step if most / step >= 3 else step / 4

    def x(second):
        return 80 + second / last * WIDTH

    def y(value):
        return top + tall - value / most * tall
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 130}" height="{top + tall + 50}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="white"/><text x="12" y="22" font-size="15">{escape(title)}</text>',
           f'<text x="12" y="40" fill="#555" font-size="11">{escape(note)}</text>']
    for n in range(int(most / step) + 1):
        out.append(f'<line x1="76" y1="{y(n * step):.1f}" x2="{WIDTH + 80}" y2="{y(n * step):.1f}" '
                   f'stroke="{"#ddd" if n else "#222"}"/><text x="70" y="{y(n * step) + 4:.1f}" '
                   f'text-anchor="end">{n * step:,.0f}</text>')
    for second in range(0, int(last) + 1, max(1, int(last) // 6)):
        out.append(f'<text x="{x(second):.1f}" y="{top + tall + 20}" text-anchor="middle">{second} s</text>')
    for n, (name, points) in enumerate(lines):
        colour = COLOURS[n % 5]
        dashes = ' stroke-dasharray="5 3"' if n >= 3 else ""
        path = " ".join(f"{x(second):.1f},{y(value):.1f}" for second, value in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
                   f'<rect x="80" y="{50 + 18 * n}" width="10" height="10" fill="{colour}"/>'
                   f'<text x="94" y="{59 + 18 * n}">{escape(name)}</text>')
    return "\n".join(out + ["</svg>", ""])
