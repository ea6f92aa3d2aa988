"""What the site needs beside its pages: formulas as MathML, which browsers show, and docstrings that griffe reads."""

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **unused: Any) -> str:
    """Return a page with its formulas in place of their LaTeX; mkdocs calls this."""
    del unused
    return FORMULA.sub(_formula, content)


def _formula(match: re.Match) -> str:
    tag, bracket, latex = match.groups()
    shown = convert(html.unescape(latex), display="inline" if bracket == "(" else "block")
    return f'<{tag} class="formula">{shown}</{tag}>'


class Sections(griffe.Extension):
    """Words the sections of docstrings as griffe knows them."""

    def on_object(self, *, obj: griffe.Object, **unused: Any) -> None:
        """Change one docstring; griffe calls this."""
        del unused
        if obj.docstring:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            text = re.sub(r"\nRaises:\n    Nothing\b", "\nRaises nothing", text)
            obj.docstring.value = re.sub(r"\bsee `(\w+)`", r"see [`\1`][funcconv.\1]", text)
