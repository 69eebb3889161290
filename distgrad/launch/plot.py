"""The loss curve of a run as SVG, written by hand so that it needs no package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 132, 52, 52  # margins around the plot; names of lines at the right
TRAIN, HELD_OUT, REFERENCE = "#2f6fb5", "#d1495b", "#6b7280"
FONT = "font-family='Helvetica, Arial, sans-serif'"
SMOOTHING = 40  # the bold train curve averages over 2 / SMOOTHING of the steps

Points = list[tuple[float, float]]


def loss_svg(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], title: str) -> str:
    """Return the picture of the losses in ``rows`` of ``metrics.jsonl``.

    Args:
        rows: with ``step`` and ``loss`` or ``val_loss``; others are left out.
        baselines: losses of simple models by name, drawn as dashed lines.
        title: stands above the picture.
    """
    train, tail = _points(rows, "loss"), _points(rows, "val_loss")
    frame = _Frame(train + tail, list(baselines.values()))
    labels = [(value, f"{name} {value:.2f}", REFERENCE) for name, value in baselines.items()]
    parts = [_head(title), *_axes(frame)]
    parts += [_dashed(frame, value) for value in baselines.values()]
    if train:
        smooth = _smoothed(train)
        parts.append(_line(frame, train, TRAIN, width=1, opacity=0.3))
        parts.append(_line(frame, smooth, TRAIN, width=2.2, opacity=1))
        labels.append((smooth[-1][1], f"train {smooth[-1][1]:.2f}", TRAIN))
    if tail:
        parts.append(_line(frame, tail, HELD_OUT, width=2.2, opacity=1))
        parts += [_dot(frame, point) for point in tail]
        labels.append((tail[-1][1], f"held out {tail[-1][1]:.2f}", HELD_OUT))
    return "\n".join([*parts, *_names(frame, labels), "</svg>"]) + "\n"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return ``values`` as one line of blocks, high ones tall.

    Example:
        >>> sparkline([4.0, 3.0, 2.0, 1.0])
        '█▆▃▁'
    """
    blocks = "▁▂▃▄▅▆▇█"
    shown = [v for v in values if math.isfinite(v)]
    if not shown:
        return ""
    if len(shown) > width:
        shown = [shown[i * (len(shown) - 1) // (width - 1)] for i in range(width)]
    low, high = min(shown), max(shown)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((v - low) * scale)] for v in shown)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about as many as asked for.

    Example:
        >>> ticks(0, 600, 6)
        [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
    """
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * f for f in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


class _Frame:
    """The plane of the plot: data on one side, pixels on the other."""

    def __init__(self, points: Points, levels: list[float]) -> None:
        steps = [x for x, _ in points] or [0.0, 1.0]
        losses = [y for _, y in points] + levels or [0.0, 1.0]
        self.x0, self.x1 = min(0.0, *steps), max(*steps, 1.0)
        low, high = min(losses), max(losses)
        room = 0.06 * (high - low) or 0.5
        self.y0, self.y1 = low - room, high + room

    def x(self, step: float) -> float:
        share = (step - self.x0) / (self.x1 - self.x0)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, loss: float) -> float:
        share = (loss - self.y0) / (self.y1 - self.y0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    found = [(row.get("step"), row.get(key)) for row in rows]
    numbers = [(x, y) for x, y in found if isinstance(x, int) and isinstance(y, int | float)]
    return [(float(x), float(y)) for x, y in numbers if math.isfinite(y)]


def _smoothed(points: Points) -> Points:
    """Return the running mean; the window shrinks at the start, where the loss falls fast."""
    half = max(1, len(points) // SMOOTHING)
    curve = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i)
        near = points[i - reach : i + reach + 1]
        curve.append((step, sum(y for _, y in near) / len(near)))
    return curve


def _head(title: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' "
        f"width='{WIDTH}' height='{HEIGHT}' role='img' aria-label='{escape(title)}'>\n"
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>\n"
        + _text(LEFT, 30, title, "start", "#111827", 16, bold=True)
    )


def _axes(frame: _Frame) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(frame.y0, frame.y1, 6):
        y = frame.y(value)
        parts.append(f"<path d='M{LEFT} {y}H{right}' stroke='#e5e7eb'/>")
        parts.append(_text(LEFT - 9, y + 4, f"{value:g}", "end"))
    for value in ticks(frame.x0, frame.x1, 6):
        x = frame.x(value)
        parts.append(f"<path d='M{x} {bottom}v5' stroke='#9ca3af'/>")
        parts.append(_text(x, bottom + 20, f"{value:g}", "middle"))
    middle = (TOP + bottom) / 2
    parts.append(f"<path d='M{LEFT} {TOP}V{bottom}H{right}' fill='none' stroke='#9ca3af'/>")
    parts.append(_text((LEFT + right) / 2, HEIGHT - 12, "step", "middle"))
    turned = f"<g transform='translate(18 {middle}) rotate(-90)'>"
    return [*parts, turned + _text(0, 0, "loss", "middle") + "</g>"]


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str,
    fill: str = "#4b5563",
    size: int = 12,
    bold: bool = False,
) -> str:
    weight = " font-weight='bold'" if bold else ""
    return (
        f"<text x='{x:g}' y='{y:g}' {FONT} font-size='{size}'{weight} fill='{fill}' "
        f"text-anchor='{anchor}'>{escape(text)}</text>"
    )


def _line(frame: _Frame, points: Points, colour: str, width: float, opacity: float) -> str:
    path = " ".join(f"{frame.x(step):g},{frame.y(loss):g}" for step, loss in points)
    return (
        f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width:g}' "
        f"stroke-opacity='{opacity:g}' stroke-linejoin='round'/>"
    )


def _dot(frame: _Frame, point: tuple[float, float]) -> str:
    x, y = frame.x(point[0]), frame.y(point[1])
    place, paint = f"cx='{x:g}' cy='{y:g}' r='3.4'", f"fill='#ffffff' stroke='{HELD_OUT}'"
    return f"<circle {place} {paint} stroke-width='2'/>"


def _dashed(frame: _Frame, value: float) -> str:
    path = f"M{LEFT} {frame.y(value):g}H{WIDTH - RIGHT}"
    return f"<path d='{path}' stroke='{REFERENCE}' stroke-dasharray='6 5'/>"


def _names(frame: _Frame, labels: list[tuple[float, str, str]]) -> list[str]:
    """Return the names of the lines at their right ends, moved apart where they would meet."""
    gap = 15.0
    labels = sorted(labels, reverse=True)
    heights: list[float] = []
    for value, _, _ in labels:
        y = frame.y(value) + 4
        heights.append(max(y, heights[-1] + gap) if heights else y)
    floor = HEIGHT - BOTTOM + 4.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], floor)
        floor = heights[i] - gap
    x = WIDTH - RIGHT + 10
    return [
        _text(x, y, text, "start", colour, bold=True)
        for y, (_, text, colour) in zip(heights, labels, strict=True)
    ]
