"""Settings of Sphinx for the book; docs/build.py prepares its source."""

import html
import re

from latex2mathml.converter import convert

project, author, copyright = "mmgen", "The mmgen authors", "2026 onwards, the mmgen authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme, html_title, html_static_path, html_css_files = "furo", "mmgen", ["static"], ["book.css"]
html_copy_source, html_show_sourcelink = False, False
nb_execution_mode, nb_merge_streams = "off", True
myst_enable_extensions, myst_heading_anchors = ["dollarmath"], 4
autodoc_member_order, autodoc_typehints = "bysource", "none"
autodoc_default_options = {"members": True, "show-inheritance": True, "imported-members": False}
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository that are no pages
    "myst.header",
    "mystnb.unknown_mime_type",
    "misc.highlighting_failure",
    "image.not_readable",  # images in the text outputs of report notebooks
]


def plain(text: str) -> str:
    "A docstring's line as reStructuredText: `code` stays code, everything else is literal."
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(f"``{p.strip('`')}``" if i % 2 else re.sub(r"([*_|\\`])", r"\\\1", p) for i, p in enumerate(parts))


def docments_in_docstring(app, what, name, thing, options, lines):
    "Appends the parameters of a function, with the comments beside them (fastcore's docments)."
    from fastcore.docments import docments, empty

    lines[:] = [plain(line) for line in lines]
    if what not in ("function", "method", "class"):
        return
    try:
        described = docments(thing, full=True, args_kwargs=True)
    except (AttributeError, OSError, SyntaxError, TypeError, ValueError):
        return
    rows = [(n, d.docment) for n, d in described.items() if n not in ("self", "return") and d.docment]
    returns = described.get("return")
    if rows or (returns is not None and returns.docment):
        lines.append("")
    one_line = lambda text: plain(" ".join(text.split()))
    lines.extend(f":param {n}: {one_line(text)}" for n, text in rows)
    if returns is not None and returns.docment and returns.docment is not empty:
        lines.append(f":returns: {one_line(returns.docment)}")


def mathml(latex: str, display: str) -> str:
    "MathML, which browsers render without scripts or fonts from the network."
    tag = re.search(r"\\tag\{(.*?)\}", latex)
    plain = re.sub(r"\\tag\{.*?\}", "", latex).replace(r"\arg\min", r"\operatorname{arg\,min}")
    try:
        formula = convert(plain.strip(), display=display)
    except Exception:  # a formula that the converter cannot read stays as it is written
        return f"<code>{html.escape(latex)}</code>"
    return formula + (f'<span class="tag">({html.escape(tag.group(1))})</span>' if tag else "")


def visit_inline(self, node):
    from docutils import nodes

    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self, node):
    from docutils import nodes

    self.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.connect("autodoc-process-docstring", docments_in_docstring)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))


html_math_renderer = "mathml"
