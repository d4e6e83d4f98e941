"""Sphinx configuration: the examples are the tutorials, and every page builds with warnings as errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import condgen

project = "condgen"
author = "The condgen developers"
copyright = "2026, The condgen developers"
version = release = condgen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "settings_table",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 2
html_theme = "furo"
html_title = "condgen"
exclude_patterns = ["_build"]
autodoc_typehints = "none"
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
