"""A picture of ``fs3 bench io``: one panel per operation and depth, as SVG, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .io import Line

_PANEL_W, _PANEL_H = 300, 210
_LEFT, _TOP, _GAP_X, _GAP_Y, _LEGEND_W = 70, 64, 34, 58, 150
_INK, _FAINT, _GRID = "#22303c", "#6b7783", "#e4e8ec"
_LIMITS = {
    "memcpy": "#b9c0c7",
    "bare tcp": "#8f99a3",
    "bare file": "#a78f6d",
    "empty fuse": "#c9a3b4",
    "bare rdma": "#b7a1d6",
}
_FRONTS = {"native": "#1b6ca8", "batch": "#0f9d76", "ring": "#d1495b", "fuse": "#8a4fbf"}
_DASHES = {"": "", "tcp": "", "local": "6 3", "rdma": "2 3"}


def as_svg(lines: Sequence[Line], title: str) -> str:
    """Bytes per second (logarithmic) over the size of an I/O."""
    operations = list(dict.fromkeys(line.operation for line in lines))
    depths = sorted({line.depth for line in lines})
    sizes = sorted({line.size for line in lines})
    whos = list(dict.fromkeys((line.front, line.transport) for line in lines))
    whos.sort(key=lambda who: who[0] in _FRONTS)  # which are drawn last, and lie on top
    rates = [line.gb_per_s for line in lines if line.gb_per_s > 0]
    low = math.floor(math.log10(min(rates)))
    high = math.ceil(math.log10(max(rates)))
    scale = _Scale(low, max(high, low + 1), sizes)
    parts = [_text(_LEFT - 40, 26, title, size=15, weight="600")]
    parts.append(
        _text(
            _LEFT - 40,
            44,
            "bytes per second over the size of an I/O; thin and pale: limits",
            fill=_FAINT,
        )
    )
    for row, operation in enumerate(operations):
        for column, depth in enumerate(depths):
            x = _LEFT + column * (_PANEL_W + _GAP_X)
            y = _TOP + 16 + row * (_PANEL_H + _GAP_Y)
            cell = [ln for ln in lines if ln.operation == operation and ln.depth == depth]
            parts += _panel(x, y, f"{operation}, {depth} at once", cell, whos, scale, column == 0)
    width = _LEFT + len(depths) * (_PANEL_W + _GAP_X) + _LEGEND_W
    height = _TOP + 16 + len(operations) * (_PANEL_H + _GAP_Y)
    parts += _legend(width - _LEGEND_W + 6, _TOP + 26, whos)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="11">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    )
    return head + "\n".join(parts) + "</svg>\n"


class _Scale:
    """From sizes and rates to places within a panel."""

    def __init__(self, low: int, high: int, sizes: Sequence[int]) -> None:
        self.low, self.high = low, high  # powers of ten of GB/s
        self.sizes = sizes

    def x(self, size: int) -> float:
        """Sizes at equal distances."""
        return _PANEL_W * (self.sizes.index(size) + 0.5) / len(self.sizes)

    def y(self, gb_per_s: float) -> float:
        """From the top."""
        share = (math.log10(max(gb_per_s, 10**self.low)) - self.low) / (self.high - self.low)
        return _PANEL_H * (1 - share)


def _panel(
    x: int,
    y: int,
    title: str,
    lines: Sequence[Line],
    whos: Sequence[tuple[str, str]],
    scale: _Scale,
    labelled: bool,
) -> list[str]:
    parts = [f'<g transform="translate({x},{y})">', _text(0, -8, title, weight="600")]
    for power in range(scale.low, scale.high + 1):
        at = scale.y(10**power)
        parts.append(f'<line x1="0" y1="{at:.1f}" x2="{_PANEL_W}" y2="{at:.1f}" stroke="{_GRID}"/>')
        if labelled:
            parts.append(_text(-8, at + 4, _rate(10**power), anchor="end", fill=_FAINT))
    parts += [
        _text(scale.x(size), _PANEL_H + 16, _size(size), anchor="middle", fill=_FAINT)
        for size in scale.sizes
    ]
    for who in whos:
        places = [
            (scale.x(line.size), scale.y(line.gb_per_s))
            for line in sorted(lines, key=lambda line: line.size)
            if (line.front, line.transport) == who
        ]
        if places:
            parts += _curve(who, places)
    return [*parts, "</g>"]


def _style(who: tuple[str, str]) -> tuple[str, float, str]:
    """Colour, width, dashes."""
    front, transport = who
    if front in _FRONTS:
        return _FRONTS[front], 2.0, _DASHES.get(transport, "")
    return _LIMITS.get(front, "#999999"), 1.6, ""


def _curve(who: tuple[str, str], places: Sequence[tuple[float, float]]) -> list[str]:
    color, width, dashes = _style(who)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    radius = 3 if who[0] in _FRONTS else 2
    return [
        f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"{dash}/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}"/>' for x, y in places),
    ]


def _legend(x: int, y: int, whos: Sequence[tuple[str, str]]) -> list[str]:
    parts = []
    for number, who in enumerate(whos):
        at = y + 20 * number
        parts += _curve(who, [(x, at), (x + 26, at)])
        parts.append(_text(x + 34, at + 4, " ".join(who).strip()))
    return parts


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 11,
    weight: str = "400",
    fill: str = _INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
        f' font-weight="{weight}" fill="{fill}">{escape(text)}</text>'
    )


def _rate(gb_per_s: float) -> str:
    for unit, factor in (("GB/s", 1.0), ("MB/s", 1e3), ("KB/s", 1e6)):
        if gb_per_s * factor >= 1:
            return f"{gb_per_s * factor:.0f} {unit}"
    return f"{gb_per_s * 1e9:.0f} B/s"


def _size(length_bytes: int) -> str:
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if length_bytes >= factor:
            return f"{length_bytes / factor:g} {unit}"
    return f"{length_bytes} B"
