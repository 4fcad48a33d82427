"""Charts as inline SVG, drawn by hand with the standard library. Colours and fonts are the page's CSS classes."""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH = 1120


class Box(NamedTuple):
    """A rectangle of a treemap."""

    x: float
    y: float
    width: float
    height: float


class Leaf(NamedTuple):
    """One cell of a treemap: its size decides the area, its share (0 to 1) the colour."""

    name: str
    size: float
    share: float
    note: str


class Span(NamedTuple):
    """One bar of a timeline, in seconds."""

    name: str
    start: float
    end: float
    note: str


def escape(text: object) -> str:
    """Return text that may stand in HTML."""
    return html.escape(str(text), quote=True)


def svg(height: float, content: str, label: str, width: float = WIDTH) -> str:
    """Wrap a drawing; `label` is what a screen reader says."""
    view = f"0 0 {width:.0f} {height:.0f}"
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">{content}</svg>'


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Return one rectangle per size (given from large to small), as square as they get (Bruls et al., 2000)."""
    boxes: list[Box] = []
    remaining, start = box, 0
    scale = box.width * box.height / (sum(sizes) or 1)
    while start < len(sizes):
        side = min(remaining.width, remaining.height)
        end = start + 1
        while end < len(sizes) and _worst(sizes[start : end + 1], side, scale) <= _worst(sizes[start:end], side, scale):
            end += 1
        row, remaining = _lay_row([size * scale for size in sizes[start:end]], remaining)
        boxes += row
        start = end
    return boxes


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    total = sum(row) * scale
    return max(max(side**2 * size * scale / total**2, total**2 / (side**2 * size * scale)) for size in row)


def _lay_row(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    total, placed, offset = sum(areas), [], 0.0
    if box.width >= box.height:
        thickness = total / box.height
        for area in areas:
            placed.append(Box(box.x, box.y + offset, thickness, area / thickness))
            offset += area / thickness
        return placed, Box(box.x + thickness, box.y, max(box.width - thickness, 1e-9), box.height)
    thickness = total / box.width
    for area in areas:
        placed.append(Box(box.x + offset, box.y, area / thickness, thickness))
        offset += area / thickness
    return placed, Box(box.x, box.y + thickness, box.width, max(box.height - thickness, 1e-9))


def treemap(groups: dict[str, list[Leaf]], height: float = 560) -> str:
    """Draw groups of leaves: the area of each is its size, the shade of each leaf its share."""
    order = sorted(groups, key=lambda name: -sum(leaf.size for leaf in groups[name]))
    totals = [sum(leaf.size for leaf in groups[name]) for name in order]
    parts = []
    for name, box in zip(order, squarify(totals, Box(0, 0, WIDTH, height)), strict=True):
        leaves = sorted(groups[name], key=lambda leaf: -leaf.size)
        title = len(leaves) > 1 and box.height > 46 and box.width > 56
        top = 17 if title else 0
        inner = Box(box.x + 1.5, box.y + 1.5 + top, box.width - 3, box.height - 3 - top)
        if inner.width <= 1 or inner.height <= 1:
            continue
        if title:
            parts.append(_label(name, box.x + 4, box.y + 13, box.width - 6, "group"))
        cells = zip(leaves, squarify([leaf.size for leaf in leaves], inner), strict=True)
        parts += [_cell(leaf, cell, "" if title else name) for leaf, cell in cells]
    return svg(height, "".join(parts), "Treemap of the library's modules by lines of code")


def _cell(leaf: Leaf, box: Box, group: str) -> str:
    shade = min(5, int(leaf.share * 6))
    text = leaf.name if not group or leaf.name == group else f"{group}.{leaf.name}"
    label = _label(text, box.x + 4, box.y + 14, box.width - 6, f"on{shade}") if box.height > 18 else ""
    width, height = max(box.width - 1, 0.4), max(box.height - 1, 0.4)
    return (
        f'<g class="cell"><title>{escape(leaf.note)}</title><rect class="shade{shade}" x="{box.x:.1f}" y="{box.y:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}" rx="1.5"/>{label}</g>'
    )


def _label(text: str, x: float, y: float, room: float, kind: str) -> str:
    letters = int(room / 6.4)
    if letters < 3 or (len(text) > letters and letters < 6):
        return ""
    shown = text if len(text) <= letters else f"{text[: letters - 1]}…"
    return f'<text class="small {kind}" x="{x:.1f}" y="{y:.1f}">{escape(shown)}</text>'


def bars(rows: Sequence[tuple[str, float, str]], *, width: float = 540, label: str) -> str:
    """Draw horizontal bars: name, value, and the text at the bar's end."""
    most = max((value for _, value, _ in rows), default=1) or 1
    left, room = 152, width - 152 - 74
    parts = []
    for number, (name, value, told) in enumerate(rows):
        y = number * 24
        length = max(room * value / most, 1)
        parts.append(
            f'<g class="bar"><title>{escape(name)}: {escape(told)}</title>'
            f'<rect class="hit" x="0" y="{y}" width="{width:.0f}" height="24"/>'
            f'<text class="name" x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(_short(name, 22))}</text>'
            f'<path class="mark" d="M{left} {y + 5}h{length - 3:.1f}q3 0 3 3v8q0 3-3 3h-{length - 3:.1f}z"/>'
            f'<text class="value" x="{left + length + 6:.1f}" y="{y + 16}">{escape(told)}</text></g>'
        )
    return svg(len(rows) * 24, "".join(parts), label, width)


def columns(counts: Sequence[tuple[str, int]], *, width: float = 540, height: float = 230, label: str) -> str:
    """Draw a histogram: the name of each bin and its count."""
    most = max((count for _, count in counts), default=1) or 1
    step, floor = width / max(len(counts), 1), height - 24
    parts = [f'<line class="axis" x1="0" y1="{floor}" x2="{width:.0f}" y2="{floor}"/>']
    for number, (name, count) in enumerate(counts):
        tall = (floor - 20) * count / most
        x, middle = number * step, number * step + step / 2
        parts.append(
            f'<g class="bar"><title>{escape(name)}: {count:,}</title>'
            f'<rect class="hit" x="{x:.1f}" y="0" width="{step:.1f}" height="{height:.0f}"/>'
            f'<rect class="mark" x="{x + 2:.1f}" y="{floor - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}"/>'
            f'<text class="value" x="{middle:.1f}" y="{floor - tall - 5:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text class="name" x="{middle:.1f}" y="{height - 7:.0f}" text-anchor="middle">{escape(name)}</text></g>'
        )
    return svg(height, "".join(parts), label, width)


def import_wheel(names: Sequence[str], weights: dict[str, int], edges: Sequence[tuple[str, str]]) -> str:
    """Draw modules on a circle and a curve for each import; a touched module shows only its own."""
    size, radius = 800.0, 312.0
    middle = size / 2
    turn = {name: 2 * math.pi * number / len(names) - math.pi / 2 for number, name in enumerate(names)}
    at: Callable[[str, float], tuple[float, float]] = lambda name, far: (  # noqa: E731 - two lines below it is clear
        middle + far * math.cos(turn[name]),
        middle + far * math.sin(turn[name]),
    )
    parts = []
    for source, target in edges:
        (x1, y1), (x2, y2) = at(source, radius), at(target, radius)
        bend = f"{middle + (x1 + x2 - size) * 0.12:.1f} {middle + (y1 + y2 - size) * 0.12:.1f}"
        parts.append(
            f'<path class="edge" data-from="{escape(source)}" data-to="{escape(target)}" '
            f'd="M{x1:.1f} {y1:.1f}Q{bend} {x2:.1f} {y2:.1f}"/>'
        )
    most = max(weights.values(), default=1) or 1
    for name in names:
        (x, y), (tx, ty) = at(name, radius), at(name, radius + 20)
        degrees, anchor = math.degrees(turn[name]), "start"
        if math.cos(turn[name]) < 0:
            degrees, anchor = degrees + 180, "end"
        dot = 3.5 + 10 * math.sqrt(weights[name] / most)
        parts.append(
            f'<g class="module" tabindex="0" data-name="{escape(name)}">'
            f"<title>{escape(name)}: imported by {weights[name]} modules</title>"
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{dot:.1f}"/>'
            f'<text class="name" text-anchor="{anchor}" dominant-baseline="middle" '
            f'transform="translate({tx:.1f} {ty:.1f}) rotate({degrees:.1f})">{escape(name)}</text></g>'
        )
    return svg(size, "".join(parts), "Which of the most used modules imports which", size)


def timeline(spans: Sequence[Span], failures: Sequence[tuple[float, str]]) -> str:
    """Draw when each task ran, one lane per slot; failures are marked by a cross at their second."""
    lanes: list[float] = []
    placed = []
    for span in sorted(spans, key=lambda span: span.start):
        lane = next((number for number, free in enumerate(lanes) if free <= span.start), len(lanes))
        if lane == len(lanes):
            lanes.append(0.0)
        lanes[lane] = span.end
        placed.append((lane, span))
    end = max([span.end for span in spans] + [second for second, _ in failures] + [0.1])
    left, scale = 56.0, (WIDTH - 76) / end
    height = len(lanes) * 34 + 34.0
    parts = []
    for tick in ticks(end):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - 26:.0f}"/>')
        parts.append(f'<text class="name" x="{x:.1f}" y="{height - 8:.0f}" text-anchor="middle">{tick:g} s</text>')
    parts += [f'<text class="name" x="0" y="{lane * 34 + 20}">slot {lane + 1}</text>' for lane in range(len(lanes))]
    for lane, span in placed:
        x, width = left + span.start * scale, max((span.end - span.start) * scale - 2, 2)
        label = _label(span.name, x + 5, lane * 34 + 20, width - 6, "onmark")
        parts.append(
            f'<g class="bar"><title>{escape(span.note)}</title>'
            f'<rect class="mark" x="{x:.1f}" y="{lane * 34 + 3}" width="{width:.1f}" height="26" rx="3"/>{label}</g>'
        )
    for second, note in failures:
        x = left + second * scale
        parts.append(
            f'<g class="fault"><title>{escape(note)}</title><circle cx="{x:.1f}" cy="{height - 30:.0f}" r="9"/>'
            f'<path d="M{x - 4:.1f} {height - 34:.0f}l8 8m0-8l-8 8"/></g>'
        )
    return svg(height, "".join(parts), "When each task ran")


def ticks(end: float) -> list[float]:
    """Return round numbers from 0 to `end`, about eight of them."""
    rough = end / 8
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(number * step, 6) for number in range(int(end / step) + 1)]


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"…{text[-letters + 1 :]}"
