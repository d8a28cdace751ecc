"""A report's page: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
pre {{ background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; line-height: 1.35; }}
img {{ max-width: 100%; }} .failed {{ color: #a00; }} td, th {{ padding: 0 1.5rem .2rem 0; text-align: left; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def as_picture(figure: Figure) -> str:
    """A figure as HTML."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Words in rows below a head, as HTML."""
    lines = ["".join(f"<th>{html.escape(word)}</th>" for word in head)]
    lines += ["".join(f"<td>{html.escape(word)}</td>" for word in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
