"""Formulas of the documentation as MathML: browsers draw it by themselves, so that a page loads no script."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(content, **_):
    """Called by mkdocs for every page."""
    return FORMULA.sub(_formula, content)


def _formula(match):
    return convert(
        html.unescape(match[2]), display="block" if match[1] == "div" else "inline"
    )
