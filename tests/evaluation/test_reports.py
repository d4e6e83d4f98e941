"""The page of an evaluation: self-contained, well-formed, escaped, and looked at in a browser."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from condgen.evaluation import figures
from condgen.evaluation.records import Measure
from condgen.evaluation.report import CARDS, best, comparison_page, comparison_table, number, page, title
from condgen.evaluation.verdict import judge_measures
from condgen.io.pictures import png

NAMES = ("basophil", "<script>alert(1)</script>", "neutrophil")
VOID = {"meta", "link", "br", "img"}


def content(**changes):
    """An evaluation as `evaluation.json` holds it."""
    per_class = dict(zip(NAMES, (0.9, None, 0.4), strict=True))
    floor = dict.fromkeys(NAMES, 0.95)
    measures = {
        "label_accuracy": Measure(
            0.7, per_class, 0.96, (0.68, 0.72), floor, better="higher", meaning="True.", reason="few"
        ),
        "fid": Measure(12.0, floor=1.0, interval=(11.0, 13.0), meaning="Near."),
        "diversity": Measure(0.8, floor=1.0, better="floor", meaning="Varied."),
        "bits_per_dimension": Measure(None, reason="no density & no bits", meaning="Bits."),
    }
    verdict = judge_measures(measures)
    base = {
        "format": 1,
        "condgen": "0",
        "date": "2026-11-23",
        "name": "runs/<b>mine</b>",
        "data": {"name": "cells", "image_shape": [3, 28, 28], "class_names": list(NAMES)},
        "settings": {"images": 1712, "seed": 0},
        "seconds": 12.3,
        "judge": {"test_accuracy": 0.96},
        "model": {"parameters": 1, "description": "ConditionalVAE <&>"},
        "verdict": {
            "answer": verdict.answer,
            "headline": verdict.headline,
            "findings": [vars(finding) for finding in verdict.findings],
        },
        "groups": [{"title": "All", "text": "Everything.", "measures": list(measures)}],
        "measures": {name: measure.to_json() for name, measure in measures.items()},
        "usefulness": {"rows": [{"arm": "real", "accuracy": "0.9 ± 0.1"}], "notes": ["a <note>"]},
        "privacy": {"pairs": [{"generated": 3, "training": 17, "distance": 0.5, "ratio": 0.1}]},
        "warnings": ["few <images>"],
        "include_real": False,
    }
    return {**base, **changes}


def pictures():
    points = [
        {"name": name, "precision": 0.5, "recall": 0.2, "floor_precision": 0.9, "floor_recall": None} for name in NAMES
    ]
    drawn = {
        "samples": figures.latent_kl([1.0]),
        "confusion": figures.confusion(np.arange(9).reshape(3, 3), NAMES),
        "precision_recall": figures.precision_recall(points),
        "latents": figures.latent_kl([0.1] * 128),
        "copies": figures.latent_kl([1.0]),
    }
    return {name: png(figure) for name, figure in drawn.items()}


class Reader(HTMLParser):
    """Checks that tags close in order, and collects what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.tags = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class TestPage:
    def test_it_is_well_formed_and_needs_nothing_else(self):
        text = page(content(), pictures())
        reader = Reader(text)
        assert reader.references
        assert all(reference.startswith("data:") for reference in reader.references)
        assert "://" not in text
        assert "script" not in reader.tags
        assert reader.tags.count("img") == 5

    def test_what_users_wrote_is_text(self):
        text = page(content(), pictures())
        assert "<script>" not in text
        assert "<b>mine" not in text
        assert "&lt;script&gt;" in text
        assert "a &lt;note&gt;" in text
        assert "few &lt;images&gt;" in text

    def test_a_missing_value_shows_its_reason(self):
        text = page(content(), {})
        assert "no density &amp; no bits" in text
        assert "\N{EN DASH}" in text

    @pytest.mark.slow
    def test_missing_parts_are_left_out(self):
        bare = page(content(usefulness=None, privacy=None, model=None), {})
        for heading in ("Confusion", "Near copies", "Reconstructions", "What a classifier learns", "The model"):
            assert heading not in bare
            assert heading in page(content(), pictures()) or heading == "Reconstructions"
        Reader(bare)

    def test_it_says_whether_real_images_are_shown(self):
        assert "No real image is shown" in page(content(), pictures())
        shown = page(content(include_real=True), {**pictures(), "real": pictures()["samples"]})
        assert "No real image" not in shown
        assert "<h2>Real images</h2>" in shown

    def test_one_sight_is_the_verdict_pictures_and_five_numbers(self):
        """The rest is folded: at most 800 words, whatever was found."""

        class Unfolded(HTMLParser):
            inside, summary, words = 0, False, 0

            def handle_starttag(self, tag, attrs):
                self.inside += tag in ("details", "style")
                self.summary = self.summary or tag == "summary"

            def handle_endtag(self, tag):
                self.inside -= tag in ("details", "style")
                self.summary = self.summary and tag != "summary"

            def handle_data(self, data):
                if not self.inside or (self.summary and self.inside == 1):
                    self.words += len(data.split())

        finding = {"severity": "bad", "title": "Blurred", "text": "word " * 60}
        verdict = {"answer": "no", "headline": "Not these.", "findings": [finding] * 12}
        measures = {name: {**content()["measures"]["fid"], "meaning": "word " * 40} for name in CARDS}
        group = {"title": "All", "text": "word " * 80, "measures": list(measures)}
        much = {"verdict": verdict, "measures": measures, "groups": [group] * 9, "warnings": ["word " * 50] * 9}
        text = page(content(**much), pictures())
        reader = Unfolded()
        reader.feed(text)
        assert 240 < reader.words <= 800  # four findings of sixty words are not folded
        assert text.count('class="card"') == 5
        assert "8 more" in text

    @pytest.mark.parametrize("answer", ["yes", "not yet", "no", "unknown"])
    def test_every_answer_has_its_look(self, answer):
        text = page(content(verdict={"answer": answer, "headline": "So.", "findings": []}), {})
        kind = re.search(r'<section class="verdict ([\w-]+)"', text)[1]
        assert f".{kind}" in text


class TestComparison:
    def test_the_best_of_a_row_is_marked(self):
        low, high, real = ({"better": better, "floor": 1.0, "overall": 2.0} for better in ("lower", "higher", "floor"))
        worse = 3.0
        assert best([low, {**low, "overall": worse}]) == [0]
        assert best([high, {**high, "overall": worse}]) == [1]
        assert best([{**real, "overall": 0.5}, {**real, "overall": 1.2}, real]) == [1]
        assert best([low, None]) == []
        assert best([low, low]) == []
        assert best([low, {**low, "overall": None}]) == []

    def test_runs_of_different_data_stand_side_by_side(self):
        one, other = content(name="one"), content(name="other", measures={"only": content()["measures"]["fid"]})
        rows = comparison_table([one, other])
        assert rows[0].cells == ["measure", "better", "real images", "one", "other"]
        assert ["Only", "lower", "1.00", "\N{EN DASH}", "12.0"] in [row.cells for row in rows]
        text = comparison_page([one, other])
        Reader(text)
        with pytest.raises(ValueError, match="at least one"):
            comparison_table([])

    def test_the_winner_is_bold_on_the_page(self):
        better = content(name="b")
        better["measures"]["fid"] = {**better["measures"]["fid"], "overall": 2.0}
        text = comparison_page([content(name="a"), better])
        assert '<td class="n best">2.00</td>' in text
        assert "*" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)


def test_numbers_and_titles():
    assert number(-0.5) == "-0.500"
    assert number(12345.6) == "12,346"
    assert title("synthetic_macro_f1", {}) == "Synthetic: macro-F1"
    assert title("membership_auc", {}) == "Membership AUC"
    assert title("fid", {"title": "Mine"}) == "Mine"


def test_figures_of_many_classes_and_of_one():
    for classes in (1, 40):
        names = [f"a class with a rather long name, number {k}" for k in range(classes)]
        assert png(figures.confusion(np.eye(classes, dtype=np.int64), names))
        points = [
            {"name": name, "precision": 0.5, "recall": 0.5, "floor_precision": 1.0, "floor_recall": 1.0}
            for name in names
        ]
        assert png(figures.precision_recall(points))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["page", "comparison"])
def test_a_browser_opens_it_from_disk_without_a_word(browser, tmp_path, width, scheme, kind):
    text = (
        page(content(), pictures()) if kind == "page" else comparison_page([content(name=f"run {k}") for k in range(6)])
    )
    file = tmp_path / "evaluation.html"
    file.write_text(text, encoding="utf-8")
    view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(file.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert view.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll in their own box
    assert view.locator(".verdict").first.is_visible()
    assert view.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    view.close()
