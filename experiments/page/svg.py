"""A figure as SVG that can stand inside an HTML page."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


def inline_svg(figure: Figure, name: str) -> str:
    """An `<svg>` element: no prologue, no metadata, the same text for the same figure.

    Letters are drawn as outlines, so the picture needs no font. It takes the width of what it stands in; `aria-hidden`,
    since the page says in words what it shows.

    Args:
        figure: Any figure.
        name: What the element's ids begin with: ids of one page must differ.

    Example:
        >>> from matplotlib.figure import Figure
        >>> inline_svg(Figure((1, 1)), "empty")[:41]
        '<svg aria-hidden="true" focusable="false"'
    """
    written = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": name, "svg.image_inline": True}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = written.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    referred = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    text = re.sub(r' id="([^"]+)"', lambda id_: f' id="{name}-{id_[1]}"' if id_[1] in referred else "", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    ElementTree.fromstring(text)  # a figure that would break the page is an error here
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
