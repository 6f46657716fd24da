"""Sphinx configuration of the documentation: ``make docs`` builds it with warnings as errors."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import sb3_plasticity

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_scripts"))

from generate_pages import generate_pages  # noqa: E402  (a script beside this file)

project = "sb3_plasticity"
author = "sb3_plasticity contributors"
copyright = author
release = sb3_plasticity.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_scripts", "agent", "**.ipynb_checkpoints"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"sb3_plasticity {release}"

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
# The tutorials are notebooks in Markdown; they are executed anew at every build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
# The inventories of other projects need a network: without one, references into them stay plain text.
intersphinx_mapping: dict[str, tuple[str, str | None]] = {}
nitpicky = False


def setup(app: Sphinx) -> None:
    """Write the pages that the code itself describes: one for each environment and one for each mitigation."""
    generate_pages(HERE)
