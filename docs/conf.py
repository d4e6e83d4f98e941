"""Sphinx configuration: the examples are the tutorials, and every page builds with warnings as errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import inventories

import condgen

project = "condgen"
author = "The condgen developers"
copyright = "2026, The condgen developers"
version = release = condgen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_gallery.gen_gallery",
    "settings_table",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 2
html_theme = "furo"
html_title = "condgen"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore_regex = [  # of others without an inventory here, bases that are no one's business, and cut-off generics
    ("py:class", r"(jaxtyping|huggingface_hub)\..*"),
    ("py:class", r"condgen\..*\.(Averaged|Carried|Checked|Flowing|LogisticLevels|Mixture|Row|Scaled)"),
    ("py:(class|obj)", r".*\[.*"),
]
intersphinx_mapping = inventories.mapping()
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
default_role = "literal"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_attr_annotations = False
suppress_warnings = ["config.cache"]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("gallery_tools.figure_scraper",),
    "reset_argv": "gallery_tools.arguments",
    "reset_modules": (),
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
}
