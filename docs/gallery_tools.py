"""How the gallery runs the examples: each example's variable `figure` is its picture.

What whole trainings gave is kept in `gallery/`, so that a build runs only examples that have changed since: with
`--smoke` for a look at the text, and before they are committed with the environment variable FULL_EXAMPLES set, which
takes half an hour for all of them.
"""

import os

from sphinx_gallery.scrapers import figure_rst


def arguments(gallery_conf, script_vars):
    return [] if os.environ.get("FULL_EXAMPLES") else ["--smoke"]


def figure_scraper(block, block_vars, gallery_conf):
    figure = block_vars["example_globals"].pop("figure", None)
    if figure is None:
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path)
    return figure_rst([path], gallery_conf["src_dir"])
