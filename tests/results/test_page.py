"""A report's page and an evaluation's in a real Chromium: light, dark, narrow, printed."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from upath import UPath

from results.evaluate import compared
from results.record import SearchRecord
from results.report.evaluated import Asked, write_evaluation_page
from results.report.material import Search as Material
from results.report.page import write_page
from tests.made_searches import Search, add, leave_outputs
from tests.results import browser
from tests.results.test_evaluate import bounds, evaluated, labels_of, made_classifier
from tests.trainable.made_outputs import make_outputs, with_folds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.chromium() is None, reason="there is no Chromium"),
]

TEXTS = """
[...document.querySelectorAll("svg")].map(svg =>
  [...svg.querySelectorAll('g[id*="-text_"]')].map(text => {
    const box = text.getBoundingClientRect();
    const frame = svg.getBoundingClientRect();
    return { id: text.id, x0: box.left, x1: box.right, y0: box.top, y1: box.bottom,
      inside: box.left >= frame.left - 1 && box.right <= frame.right + 1 &&
              box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1 };
  }).filter(box => box.x1 > box.x0 && box.y1 > box.y0))
"""
"""Boxes of the words in each picture: matplotlib gives each text a group of its own."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of picture, of trials that were told, not trained."""
    search = Search(tmp_path_factory.mktemp("runs") / "asked")
    for number in range(24):
        architecture = ("two_heads", "two_models")[number % 2]
        search.tell(
            "PRUNED" if number % 5 == 3 else "COMPLETE", baseline=number < 2,
            architecture=architecture, lr=10 ** (-4 + number / 12), score=0.3 + number / 60,
            seen_super=0.9 - number / 99, unseen_super=0.4 + number / 60,
            seen_sub=0.8 - number / 99, unseen_sub=0.3 + number / 60,
        )  # fmt: skip
    for seed, trial in itertools.product((1, 2), (22, 21)):
        search.tell(architecture=("two_heads", "two_models")[trial % 2],
                    lr=10 ** (-4 + trial / 12), seed=seed, repeat_of=trial,
                    score=0.6 + seed / 50 + trial / 1000)  # fmt: skip
    add(search, 0, 90, 0.2)
    add(search, 30, 200, 0.25)
    leave_outputs(search, 22, with_folds(make_outputs(num=400)))
    other = Search(search.folder.parent / "</script><b>other")
    other.tell(score=0.5)
    files = write_page([read_as(search, "asked & <i>told</i>"), read_as(other, "</script><b>o")])
    return Path(str(files[0]))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation's page, with every kind of picture, of answers that were made up."""
    images, out = (tmp_path_factory.mktemp(name) for name in ("images", "evaluation"))
    outputs = make_outputs(num=300)
    labels = labels_of(outputs)
    for name in labels.images:
        Image.new("RGB", (8, 8), "teal").save(images / name)
    found = evaluated(made_classifier(), outputs, labels)
    asked = Asked(model="asked & <i>told</i>", images=str(images), labels="truth --csv.csv",
                  stored_size=8, told="</script><b>told")  # fmt: skip
    table = compared(found, bounds(0.2, 0.4))
    return Path(str(write_evaluation_page(UPath(out), asked, found, table)[0]))


def read_as(search: Search, name: str) -> Material:
    """Return a search whose name is one that would break a page that does not escape."""
    record = SearchRecord(**{**vars(search.record), "name": name})
    return Material(UPath(search.folder), record)


def overlapping(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return which boxes cover each other by over a pixel both ways."""
    return [
        (a["id"], b["id"])
        for a, b in itertools.combinations(boxes, 2)
        if min(a["x1"], b["x1"]) - max(a["x0"], b["x0"]) > 1
        and min(a["y1"], b["y1"]) - max(a["y0"], b["y0"]) > 1
    ]


def test_pages_open_without_errors_and_every_picture_is_there(
    page: Path, evaluation: Path, tmp_path: Path
) -> None:
    with browser.open_browser(tmp_path / "profile") as chromium:
        for shown, (width, dark) in itertools.product(
            (evaluation, page), ((1100, False), (1100, True), (390, False))
        ):
            is_report = shown == page
            chromium.open(shown, width=width, dark=dark)
            assert chromium.problems == []
            size = chromium.run("[document.documentElement.scrollWidth, innerWidth]")
            assert size[0] <= size[1] == width
            missing = """[...document.querySelectorAll("figure")].filter(each =>
                !each.querySelector("svg") || !each.querySelector("figcaption").textContent.trim()
                || [...each.querySelectorAll("svg")].some(svg => svg.clientWidth < 200)
            ).map(each => each.id)"""
            assert chromium.run(missing) == []
            background = chromium.run("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(255, 255, 255)") != dark
            pictures = chromium.run(TEXTS)
            assert len(pictures) > (20 if is_report else 12)
            assert all(len(boxes) > 3 for boxes in pictures)
            assert [pair for boxes in pictures for pair in overlapping(boxes)] == []
            assert [box["id"] for boxes in pictures for box in boxes if not box["inside"]] == []
            assert (
                chromium.run("document.querySelectorAll('h1 i, td b, dd i, .warn b').length") == 0
            )
            title = chromium.run("document.querySelector('h1').textContent")
            assert title.endswith("asked & <i>told</i>")
            wide = """[...document.querySelectorAll(".panel.wide")].map(
                each => each.closest("figure").id)"""
            assert {*chromium.run(wide)} <= {"confusion", "parallel"}, "others fit a phone"
            narrow = """[...document.querySelectorAll(".cards td")].filter(each =>
                each.getBoundingClientRect().right > innerWidth).map(each => each.outerHTML)"""
            assert chromium.run(narrow) == []
        for shown in (page, evaluation):
            chromium.open(shown, width=688)  # of A4 within its margins
            chromium.print_as_screen()
            wide = """[...document.querySelectorAll("body *")].filter(each => !each.closest("svg")
                && each.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"""
            assert chromium.run(wide) == []
        chromium.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").stat().st_size > 100_000


def test_slider_moves_its_line_and_says_what_a_threshold_gives(page: Path, tmp_path: Path) -> None:
    move = """(() => {
      const box = document.querySelector("[data-slider]"), input = box.querySelector("input");
      const line = box.parentElement.querySelector("svg > line:last-of-type");
      const before = [line.getAttribute("x1"), box.querySelector("output").textContent];
      input.value = input.max;
      input.dispatchEvent(new Event("input"));
      return [before, [line.getAttribute("x1"), box.querySelector("output").textContent]];
    })()"""
    with browser.open_browser(tmp_path / "profile") as chromium:
        chromium.open(page)
        (before, said_before), (after, said) = chromium.run(move)
        assert chromium.problems == []
    assert float(after) > float(before)
    assert said_before.startswith("τ ")
    assert "known called novel" in said
    share = float(said.partition("known called novel ")[2].partition("%")[0])
    assert share > 90, "the highest threshold rejects all but the best known images"
