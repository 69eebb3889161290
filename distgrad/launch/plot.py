"""Curves as SVG, written by hand so that they need no package: losses, bandwidths, efficiencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 132, 52, 52  # margins around the plot; names of lines at the right
TRAIN, HELD_OUT, REFERENCE = "#2f6fb5", "#d1495b", "#6b7280"
COLOURS = (TRAIN, HELD_OUT, "#2a9d6f", "#b8860b", REFERENCE)
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
    frame = _loss_frame(train + tail, list(baselines.values()))
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
        parts += [_dot(frame, point, HELD_OUT) for point in tail]
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


class Axis:
    """Numbers from ``low`` to ``high`` along a side of the picture.

    Args:
        label: stands beside the axis.
        written: makes the text of a mark.
    """

    def __init__(
        self, label: str, low: float, high: float, written: Callable[[float], str] = "{:g}".format
    ) -> None:
        self.label, self.low, self.high, self.written = label, low, high, written

    def share(self, value: float) -> float:
        """Return where ``value`` lies, as a part of the axis."""
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        """Return about six round numbers."""
        return ticks(self.low, self.high, 6)


class LogAxis(Axis):
    """Positive numbers of which equal ratios are equally far apart.

    Example:
        >>> LogAxis("ranks", 1, 10_000).marks()
        [1.0, 10.0, 100.0, 1000.0, 10000.0]
    """

    def share(self, value: float) -> float:
        """Return where ``value`` lies, as a part of the axis."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def marks(self) -> list[float]:
        """Return the powers of ten."""
        first = math.ceil(math.log10(self.low) - 1e-9)
        last = math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]


class BytesAxis(LogAxis):
    """Numbers of bytes, marked at powers of two.

    Example:
        >>> axis = BytesAxis("bytes", 2**10, 2**20, human_bytes)
        >>> [axis.written(mark) for mark in axis.marks()]
        ['1 KB', '4 KB', '16 KB', '64 KB', '256 KB', '1 MB']
    """

    def marks(self) -> list[float]:
        """Return every second power of two."""
        first, last = math.ceil(math.log2(self.low)), math.floor(math.log2(self.high))
        return [2.0**power for power in range(first, last + 1, 2)]


def human_bytes(count: float) -> str:
    """Return a number of bytes in the unit that fits.

    Example:
        >>> human_bytes(1536), human_bytes(4 * 2**20)
        ('1.5 KB', '4 MB')
    """
    power = min(3, max(0, int(math.log2(count)) // 10)) if count >= 1 else 0
    return f"{count / 2 ** (10 * power):g} {('bytes', 'KB', 'MB', 'GB')[power]}"


def curves_svg(
    curves: Mapping[str, Points], dots: Mapping[str, Points], title: str, x: Axis, y: Axis
) -> str:
    """Return the picture of named curves; the ``dots`` are single points, in colours that follow.

    Points that are not within the axes are left out.
    """
    frame = _Frame(x, y)
    parts, labels = [_head(title), *_axes(frame)], []
    for i, (name, points) in enumerate({**curves, **dots}.items()):
        colour = COLOURS[i % len(COLOURS)]
        inside = [p for p in points if frame.shows(p)]
        if not inside:
            continue
        if name in curves:
            parts.append(_line(frame, inside, colour, width=2.2, opacity=1))
        parts += [_dot(frame, point, colour) for point in inside if name in dots]
        labels.append((inside[-1][1], name, colour))
    return "\n".join([*parts, *_names(frame, labels), "</svg>"]) + "\n"


class _Frame:
    """The plane of the plot: data on one side, pixels on the other."""

    def __init__(self, across: Axis, up: Axis) -> None:
        self.across, self.up = across, up

    def x(self, value: float) -> float:
        return round(LEFT + self.across.share(value) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - TOP - BOTTOM), 1)

    def shows(self, point: tuple[float, float]) -> bool:
        x, y = point
        return self.across.low <= x <= self.across.high and self.up.low <= y <= self.up.high


def _loss_frame(points: Points, levels: list[float]) -> _Frame:
    steps = [x for x, _ in points] or [0.0, 1.0]
    losses = [y for _, y in points] + levels or [0.0, 1.0]
    low, high = min(losses), max(losses)
    room = 0.06 * (high - low) or 0.5
    across = Axis("step", min(0.0, *steps), max(*steps, 1.0))
    return _Frame(across, Axis("loss", low - room, high + room))


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
    for value in frame.up.marks():
        y = frame.y(value)
        parts.append(f"<path d='M{LEFT} {y}H{right}' stroke='#e5e7eb'/>")
        parts.append(_text(LEFT - 9, y + 4, frame.up.written(value), "end"))
    for value in frame.across.marks():
        x = frame.x(value)
        parts.append(f"<path d='M{x} {bottom}v5' stroke='#9ca3af'/>")
        parts.append(_text(x, bottom + 20, frame.across.written(value), "middle"))
    middle = (TOP + bottom) / 2
    parts.append(f"<path d='M{LEFT} {TOP}V{bottom}H{right}' fill='none' stroke='#9ca3af'/>")
    parts.append(_text((LEFT + right) / 2, HEIGHT - 12, frame.across.label, "middle"))
    turned = f"<g transform='translate(18 {middle}) rotate(-90)'>"
    return [*parts, turned + _text(0, 0, frame.up.label, "middle") + "</g>"]


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


def _dot(frame: _Frame, point: tuple[float, float], colour: str) -> str:
    x, y = frame.x(point[0]), frame.y(point[1])
    place, paint = f"cx='{x:g}' cy='{y:g}' r='3.4'", f"fill='#ffffff' stroke='{colour}'"
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
