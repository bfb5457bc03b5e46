"""Sphinx configuration: the Markdown guides, the options of the commands, and an API reference from the docstrings.

`make docs` builds the site into build/docs. The source folder is the top of the repository, so that links
between README, docs and datasets work on the site, in a checkout and on GitHub.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rga_reid import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # command_help

project = "rga-reid"
author = "the authors of rga-reid"
version = release = __version__
language = "en"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "command_help"]
root_doc = "docs/index"
include_patterns = ["*.md", "datasets/README.md", "docs/**.md", "docs/**.rst"]
exclude_patterns = [".*", "benchmarks", "build", "configs", "demo", "dist", "rga_reid", "runs", "tests"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # the docstrings of torch and Lightning are not repeated
autodoc_class_signature = "mixed"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True

html_theme = "alabaster"
html_show_copyright = False
html_title = f"rga-reid {__version__}"
html_theme_options = {"page_width": "1200px", "fixed_sidebar": True, "show_powered_by": False}
html_additional_pages = {"index": "redirect.html"}  # hosts look for the first page above docs/
html_copy_source = html_show_sourcelink = False
templates_path = ["templates"]
html_static_path = ["static"]

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")


def literal_equations(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Turn indented lines above the sections of a docstring into literal blocks: equations keep their columns."""
    end = next((number for number, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    for number in range(end - 1, 0, -1):
        begins = lines[number].startswith("    ") and not lines[number - 1].strip()
        above = next((line for line in reversed(lines[:number]) if line.strip()), "")
        if begins and not above.startswith(" "):
            lines[number:number] = ["::", ""]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", literal_equations, priority=400)  # before napoleon's
