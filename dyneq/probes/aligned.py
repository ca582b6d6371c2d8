"""Tables of text for printed results."""

from collections.abc import Sequence


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines, the first column to the left, the others to the right, indented by two.

    Args:
        head: Headings.
        rows: Cells, as many as headings in every row.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{c:<{w}}" if not i else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *rows]
    ]


def some(which: Sequence[int], samples: int) -> str:
    """Return ``3 of 64 samples (0, 16, 46)``; of long lists the first six."""
    listed = ", ".join(map(str, which[:6])) + (", ..." if len(which) > 6 else "")
    return f"{len(which)} of {samples} samples ({listed})"
