"""A figure of matplotlib as a smaller SVG that looks the same, for embedding in the page. No torch.

Groups and names that nothing refers to are dropped, equal styles and equal texts are written once, and
coordinates are rounded to a tenth of a point; points of a line that then change nothing are dropped.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from html import escape
from itertools import count
from xml.etree.ElementTree import Element, SubElement, fromstring

from PIL import Image

SVG = "http://www.w3.org/2000/svg"
TOLERANCE = 0.6
"""How far a dropped point may lie from the line between its neighbours, in tenths of a point."""
_REFERENCE = re.compile(r"(?:(?<=url\(#)|(?<=^#))[^)]+")
_LETTER = "scale(0.015625)"  # 64 units of a letter are one unit of its text
_PNG = "data:image/png;base64,"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
GLYPH_SCALE = 1 / 16
"""Of the units of a letter: a hundredth of its size stays exact."""
_COMMAND = re.compile(r"([MLQCzZ])([^MLQCzZ]*)")
_LENGTHS = ("x", "y", "width", "height")
_REFERRING = ("href", "clip-path", "style")


def compact_svg(svg: bytes) -> bytes:
    """Rewrite an SVG that matplotlib made; the same bytes give the same bytes, none give none.

    Parameters
    ----------
    svg
        Paths of commands M, L, Q, C and z in absolute coordinates, no text elements.
    """
    if not svg:
        return b""
    root = _plain(fromstring(svg))
    _name_anew(root)
    _unwrap(root)
    _share_styles(root)
    _share_texts(root)
    root.set("xmlns", SVG)
    return _written(root).encode()


def _plain(element: Element) -> Element:
    """The same without namespaces, metadata and space between elements, its numbers rounded."""
    found = Element(element.tag.rpartition("}")[2])
    letter = element.get("transform") == _LETTER
    for name, value in element.items():
        name = name.rpartition("}")[2]
        if name == "d":
            value = _path(value, GLYPH_SCALE if letter else 10)
        elif letter and name == "transform":
            value = f"scale({1 / (64 * GLYPH_SCALE)})"
        elif name == "href" and value.startswith(_PNG):
            value = _grey(value)
        elif name == "transform":
            value = re.sub(r"translate\(([^)]*)\)", lambda part: f"translate({_rounded(part[1])})", value)
        elif name in _LENGTHS and not value.endswith("pt"):
            value = _rounded(value)
        found.set(name, value)
    found.text = element.text if found.tag == "style" else None
    found.extend(_plain(child) for child in element if not child.tag.endswith("metadata"))
    return found


def _rounded(text: str) -> str:
    return _NUMBER.sub(lambda number: _tenths(round(10 * float(number[0]))), text)


def _tenths(value: int) -> str:
    sign, (whole, rest) = "-" if value < 0 else "", divmod(abs(value), 10)
    return f"{sign}{whole or ('' if rest else 0)}{f'.{rest}' if rest else ''}"


def _grey(address: str) -> str:
    """An image without colours as one of a single channel; another as it is."""
    image = Image.open(io.BytesIO(base64.b64decode(address[len(_PNG) :]))).convert("RGBA")
    red, green, blue, alpha = image.split()
    if not (red.tobytes() == green.tobytes() == blue.tobytes() and alpha.getextrema() == (255, 255)):
        return address
    found = io.BytesIO()
    red.save(found, "PNG", optimize=True)
    return _PNG + base64.b64encode(found.getvalue()).decode("ascii")


def _path(text: str, scale: float) -> str:
    """A path with coordinates rounded to 1 / scale, each relative to the one before."""
    write = _tenths if scale == 10 else str
    words: list[str] = []
    x = y = start_x = start_y = 0
    line: list[tuple[int, int]] = []

    def relative(points: list[tuple[int, int]]) -> str:
        parts = [write(each) for point in points for each in (point[0] - x, point[1] - y)]
        return "".join(part if part.startswith("-") or not i else f" {part}" for i, part in enumerate(parts))

    def draw_line() -> None:
        nonlocal x, y
        for point in _thinned([(x, y), *line])[1:]:
            words.append(f"l{relative([point])}")
            x, y = point
        line.clear()

    for command, numbers in _COMMAND.findall(text):
        flat = [round(scale * float(number)) for number in _NUMBER.findall(numbers)]
        points = list(zip(flat[::2], flat[1::2], strict=True))
        if command == "L":
            line += points
            continue
        draw_line()
        if command in "zZ":
            words.append("z")
            x, y = start_x, start_y
            continue
        words.append(f"{command.lower()}{relative(points)}")
        x, y = points[-1]
        if command == "M":
            start_x, start_y = x, y
    draw_line()
    return "".join(words)


def _thinned(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Drop what lies on the line between its neighbours, as Douglas and Peucker do (1973)."""
    chosen, spans = {0, len(points) - 1}, [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        (x0, y0), (x1, y1) = points[first], points[last]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        far, at = TOLERANCE, 0
        for i in range(first + 1, last):
            dx, dy = points[i][0] - x0, points[i][1] - y0
            ahead = dx * (x1 - x0) + dy * (y1 - y0)
            beside = 0 <= ahead <= length * length and length > 0
            away = abs(dx * (y1 - y0) - dy * (x1 - x0)) / length if beside else TOLERANCE + abs(dx) + abs(dy)
            if away > far:
                far, at = away, i
        if at:
            chosen.add(at)
            spans += [(first, at), (at, last)]
    return [points[i] for i in sorted(chosen)]


def _name_anew(root: Element) -> None:
    """Short names for what is referred to, none for the rest."""
    used = [r for e in root.iter() for name in _REFERRING for r in _REFERENCE.findall(e.get(name) or "")]
    names = dict(zip(dict.fromkeys(used), (f"i{n}" for n in count()), strict=False))
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in names:
            element.set("id", names[name])
        for attribute in _REFERRING:
            if value := element.get(attribute):
                element.set(attribute, _REFERENCE.sub(lambda found: names.get(found[0], found[0]), value))


def _unwrap(element: Element) -> None:
    """Put the children of groups that say nothing in their place; drop what is empty."""
    found: list[Element] = []
    for child in element:
        _unwrap(child)
        if child.tag in ("g", "defs") and not len(child):
            continue
        found += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = found


def _share_styles(root: Element) -> None:
    """Write a style that several elements have once, as a class."""
    styles = Counter(style for element in root.iter() if (style := element.get("style")))
    names = {style: f"c{n}" for n, (style, times) in enumerate(styles.most_common()) if times > 1}
    for element in root.iter():
        style = element.get("style")
        if style in names:
            del element.attrib["style"]
            element.set("class", names[style])
        elif style:
            element.set("style", _tight(style))
    sheet = root.find(".//style")
    if sheet is not None:
        rules = "".join(f".{name}{{{_tight(style)}}}" for style, name in names.items())
        sheet.attrib.clear()
        sheet.text = _tight(sheet.text or "") + rules


def _tight(style: str) -> str:
    return re.sub(r"\s*([:;{}])\s*", r"\1", style.strip()).removesuffix(";")


def _share_texts(root: Element) -> None:
    """Write a text of the same letters, size and style once and refer to it where it comes again."""
    groups: dict[str, list[Element]] = {}
    for element in root.iter("g"):
        letters = [child for child in element if child.tag == "use"]
        if len(letters) > 1 and "translate" in (element.get("transform") or ""):
            groups.setdefault("".join(map(_written, letters)), []).append(element)
    defined: dict[int, Element] = {}
    shared = SubElement(root, "defs")
    for n, same in enumerate(groups.values()):
        for element in same if len(same) > 1 else ():
            letters = [child for child in element if child.tag == "use"]
            if element is same[0]:
                defined[n] = SubElement(shared, "g", id=f"w{n}")
                defined[n].extend(letters)
            element[:] = [child for child in element if child.tag != "use"]
            element.append(Element("use", href=f"#w{n}"))
    if not len(shared):
        root.remove(shared)


def _written(element: Element) -> str:
    name = element.tag
    attributes = "".join(f" {key}='{escape(value)}'" for key, value in element.items())
    inside = escape(element.text or "", quote=False) + "".join(map(_written, element))
    return f"<{name}{attributes}>{inside}</{name}>" if inside else f"<{name}{attributes}/>"
