"""Draw collapsed stacks as a flame graph (Brendan Gregg, The Flame Graph, CACM 59(6), 2016), callers above callees."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from html import escape

from itwinai.profiling.collapsed_stacks import Frame, read_stacks

_WIDTH = 1200.0
_ROW = 17
_TITLE = 30
_LETTER = 6.7  # width of a letter of 11 pixels
_NARROWEST = 0.5

# Light colors, so that black letters can be read on all of them; a package has the same in every drawing.
_OWN = "#F4A582"  # of code that is not installed: the user's
_COLORS = ("#FDDBC7", "#FEE090", "#D9EF8B", "#ABD9E9", "#92C5DE", "#C2A5CF", "#E0C2A2", "#D9D9D9")


@dataclass
class _Node:
    samples: int = 0
    callees: dict[Frame, _Node] = field(default_factory=dict)


def flame_graph(collapsed: str, title: str) -> str:
    """Return a drawing of stacks, as the text of an SVG that needs no script and scales with the page.

    The width of a box is its share of the samples. Its color stands for a package; red is code that is not installed,
    which is mostly the user's. Callees stand in the order of their names, not of time. Pointing at a box shows its
    function, file and share. Boxes that are too narrow to be seen are left out.

    Args:
        collapsed: the stacks.
        title: what they are of.
    """
    root = _tree(collapsed)
    boxes = []
    depth = 0
    scale = _WIDTH / max(root.samples, 1)
    pending = [(root, 0.0, 0)]
    while pending:
        node, left, row = pending.pop()
        for frame in sorted(node.callees):
            callee = node.callees[frame]
            width = callee.samples * scale
            if width >= _NARROWEST:
                boxes.append(_box(frame, callee.samples / root.samples, left, row, width))
                pending.append((callee, left, row + 1))
                depth = max(depth, row + 1)
            left += width
    height = _TITLE + depth * _ROW + 5
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height}" width="100%" '
        'font-family="monospace" font-size="11">\n'
        f'<text x="4" y="19" font-size="13">{escape(title)}: {root.samples} samples</text>\n'
        + "".join(boxes)
        + "</svg>\n"
    )


def _tree(collapsed: str) -> _Node:
    root = _Node()
    for frames, count in read_stacks(collapsed):
        root.samples += count
        node = root
        for frame in frames:
            node = node.callees.setdefault(frame, _Node())
            node.samples += count
    return root


def _box(frame: Frame, share: float, left: float, row: int, width: float) -> str:
    top = _TITLE + row * _ROW
    package = frame.package
    color = _COLORS[zlib.crc32(package.encode()) % len(_COLORS)] if package else _OWN
    letters = int((width - 4) / _LETTER)
    label = frame.name if len(frame.name) <= letters else frame.name[: max(letters - 1, 0)] + "…"
    text = f'<text x="{left + 2:.1f}" y="{top + 12}">{escape(label)}</text>' if letters > 2 else ""
    return (
        f"<g><title>{escape(f'{frame.name} ({frame.place}) {share:.1%}')}</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_ROW - 1}" fill="{color}" rx="1"/>{text}</g>\n'
    )
