"""Text in lines that fit a width."""

from __future__ import annotations

from collections.abc import Iterator

from dtme.viz.sheet import text_width


def wrapped(text: str, width: float, size: float = 8) -> str:
    """A text broken between words, and within a word only where that is wider than the line.

    Args:
        text: What is to be written.
        width: Of a line, in inches.
        size: Of the letters, in points.

    Example:
        >>> wrapped("MT as long as Adapt last block", 0.9).splitlines()
        ['MT as long as', 'Adapt last block']
    """
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines += _pieces(word, width, size)
    return "\n".join(lines)


def _pieces(word: str, width: float, size: float) -> Iterator[str]:
    start = 0
    for end in range(2, len(word) + 1):
        if end - start > 1 and text_width(word[start:end], size) > width:
            yield word[start : end - 1]
            start = end - 1
    yield word[start:]
