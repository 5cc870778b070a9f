"""How `make docs` builds the site: offline, warnings are errors."""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import dtme

project = "dtme"
author = "the dtme contributors"
copyright = author  # sphinx's own name
version = release = dtme.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb"}  # a page without a kernel in its head is a plain page
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["toc.empty_glob"]  # a page that the index names by a pattern may be absent

nb_execution_mode = "force"  # a notebook shows what this version prints
nb_execution_timeout = 100  # seconds for a cell; each notebook stays under two minutes
nb_execution_raise_on_error = True
nb_merge_streams = True  # what a cell prints stands together

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a data class are described once, in its docstring
default_role = "code"  # docstrings put names in single backquotes

html_theme = "furo"
html_title = "dtme"
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
html_math_renderer = "mathml"
html_show_copyright = False


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Equations become MathML, which browsers draw themselves: no script, no font, nothing to fetch or to store."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
