"""The page of a result: one valid file that loads nothing, where hostile text stays text and every number is there."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import bench_sample
import pytest
from PIL import Image

from safelight.measure.results import Result
from safelight.report import bench_pictures, bench_plots, html, markup

VOID = {"meta", "img", "input", "wbr", "br", "link"}


class Walk(HTMLParser):
    """Every element with its attributes; raises where tags do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> where </{self.open[-1]}> is due"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return " ".join(data for tag, data in self.texts if tag not in ("script", "style"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bench_sample.draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def page(folder):
    return html.page(bench_sample.result(), folder)


@pytest.fixture(scope="module")
def walk(page):
    return Walk(page)


# -- one valid file ----------------------------------------------------------------------------------------------------


def test_tags_balance_and_ids_are_unique(walk):
    assert walk.open == []
    ids = [attributes["id"] for _, attributes in walk.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_to_an_element(walk):
    ids = {attributes.get("id") for _, attributes in walk.elements}
    links = [attributes["href"].removeprefix("#") for attributes in walk.of("a")]
    named = [name for _, a in walk.elements for name in (a.get("aria-labelledby") or "").split()]
    assert {*links, *named} <= ids


def test_nothing_is_loaded_from_anywhere(page, walk):
    for _, attributes in walk.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), attributes
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_every_picture_and_every_control_has_words(walk):
    assert all(attributes.get("alt") for attributes in walk.of("img"))
    assert all(attributes.get("aria-label") for attributes in walk.of("input"))
    assert all(attributes.get("aria-labelledby") for attributes in walk.of("svg"))


def test_only_the_page_s_own_script_may_run(page, walk):
    import base64
    import hashlib

    allowed = re.search(r"script-src '(sha256-[^']+)'", page)[1]
    scripts = [data for tag, data in walk.texts if tag == "script"]
    hashes = [f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}" for text in scripts]
    assert hashes.count(allowed) == 1
    assert not [name for _, attributes in walk.elements for name in attributes if name.startswith("on")]


# -- hostile text ------------------------------------------------------------------------------------------------------


def test_a_prompt_cannot_break_out(page, walk):
    assert "<script>alert" not in page
    assert page.count("</script>") == len(walk.of("script")) == 2
    assert page.count("</title>") == 1 + len([one for one in walk.elements if one[0] == "title"]) - 1
    assert bench_sample.PROMPTS[0] in walk.text()


def test_quotes_and_other_scripts_stay_as_they_are_in_attributes(walk):
    alts = [attributes["alt"] for attributes in walk.of("img")]
    for prompt in bench_sample.PROMPTS:
        assert f"plain, seed 7: {prompt}" in alts or f"plain, seed 8: {prompt}" in alts


def test_the_json_is_whole_and_cannot_end_its_element(page):
    text = re.search(r'<script type="application/json" id="result"[^>]*>(.*?)</script>', page, re.DOTALL)[1]
    assert Result.from_json(text) == bench_sample.result()
    assert not re.search("[<>&\u2028\u2029]", text)


@pytest.mark.parametrize(
    "hostile", ["</script>", "<!--<script>", "]]>", "\u2028\u2029", "\"'\\", "\ud83c\udf4e", "$title"]
)
def test_embedded_json_reads_back(hostile):
    text = markup.embedded_json(json.dumps({"prompt": hostile}, ensure_ascii=False))
    assert json.loads(text)["prompt"] == hostile
    assert "<" not in text


def test_a_hostile_model_name_command_and_environment_stay_text(folder):
    bad = '"><img src=x onerror=alert(1)>'
    result = replace(
        bench_sample.result(),
        model=bad,
        when=bad,
        command=("safelight", bad),
        environment={bad: bad},
        request={bad: bad},
    )
    walk = Walk(html.page(result, folder))
    assert not [attributes for attributes in walk.of("img") if attributes.get("src") == "x"]
    assert bad in walk.text()


# -- what it says ------------------------------------------------------------------------------------------------------


def test_plain_is_the_first_row(walk):
    rows = [attributes for tag, attributes in walk.elements if tag == "tr" and attributes.get("role") == "row"]
    assert rows[1].get("class") == "first"


def test_sections_come_in_reading_order(walk):
    sections = [attributes["id"] for attributes in walk.of("section")]
    assert sections == [*html.TITLES]


@pytest.mark.parametrize(
    "said",
    [
        "2.38 x",
        "predicted 310 ms (-8 %)",
        "Failed: DoesNotApply: first-block-cache needs a transformer",
        "13 of 20 steps took the cached features",
        "needs torchao >= 0.10: pip install torchao",
        "seed 9: seams at the borders of tiles",
        "without: vae-tiling",
        "not measured",
        "AMD EPYC 7B13",
    ],
)
def test_it_is_said(walk, said):
    assert said in " ".join(walk.text().split())


def test_what_was_not_measured_is_said_and_never_0(folder):
    result = bench_sample.result()
    bare = replace(result, plans=tuple(replace(plan, rounds=(), quality=None, predicted=None) for plan in result.plans))
    text = Walk(html.page(bare, folder)).text()
    assert "No plan ran to its end" in text
    assert "Seconds: not measured." in text
    assert "Memory over time: not measured." in text
    assert "The pictures' quality was not measured." in text
    assert "0 MiB" not in text


def test_each_chart_is_drawn_for_every_width_and_shown_in_one(page, walk):
    assert len(walk.of("svg")) == 3 * len(bench_plots.WIDTHS)
    assert page.count("@container (") == len(bench_plots.WIDTHS)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pairs_are_the_worst_of_each_plan_first(folder):
    album = bench_pictures.album(bench_sample.result(), folder)
    auto = [pair.figures["lpips"] for pair in album.pairs if pair.plan.name == "auto"]
    assert auto == sorted(auto, reverse=True)
    assert len(album.pairs) == 8
    assert album.missing == ()


def test_at_most_twelve_pairs_are_embedded_and_the_choice_is_said(tmp_path):
    result, folder = bench_sample.result(), bench_sample.draw(tmp_path)
    many = [replace(result.plans[1], name=f"plan {i}") for i in range(7)]
    album = bench_pictures.album(replace(result, plans=(result.plain, *many)), folder)
    assert len(album.pairs) == 7
    assert album.chosen == "7 of 28 pairs: by lpips the worst of each plan."


def test_a_pair_has_no_figure_of_the_whole_set(folder):
    album = bench_pictures.album(bench_sample.result(), folder)
    assert all("frechet" not in pair.figures for pair in album.pairs)


def test_large_pictures_are_made_smaller(tmp_path):
    folder, result = bench_sample.draw(tmp_path, side_px=900), bench_sample.result()
    one = replace(result.plans[1], pictures=result.plans[1].pictures[:1])
    (pair,) = bench_pictures.album(replace(result, plans=(result.plain, one)), folder).pairs
    assert (pair.plain.width, pair.planned.height, pair.difference.width) == (768, 768, 768)


def test_equal_pictures_have_a_black_difference(folder):
    album = bench_pictures.album(bench_sample.result(), folder)
    equal = next(pair for pair in album.pairs if pair.plan.name == "auto" and pair.seed == 7)
    assert equal.largest == 0
    assert max(pair.largest for pair in album.pairs) * album.factor > 100


def test_a_picture_that_is_gone_broken_or_elsewhere_is_said(tmp_path):
    folder = bench_sample.draw(tmp_path / "run")
    (folder / "auto/0.png").unlink()
    (folder / "auto/1.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(folder / "auto/2.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    result = bench_sample.result()
    outside = [{**one, "path": "../secret.png"} if i == 3 else one for i, one in enumerate(result.plans[1].pictures)]
    result = replace(result, plans=(result.plain, replace(result.plans[1], pictures=tuple(outside))))
    album = bench_pictures.album(result, folder)
    said = " ".join(album.missing)
    assert album.pairs == ()
    assert "auto/0.png is not there" in said
    assert "auto/1.png cannot be read" in said
    assert "auto/2.png has another size than plain's" in said
    assert "../secret.png lies outside of the results' folder" in said
    assert "lies outside" in Walk(html.page(result, folder)).text()


def test_without_a_folder_the_page_has_no_pictures_and_says_so():
    walk = Walk(html.page(bench_sample.result(), None))
    assert walk.of("img") == []
    assert "The pictures' folder was not given." in walk.text()


# -- a real browser ----------------------------------------------------------------------------------------------------


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_in_chromium_the_page_runs_and_nothing_leaves_its_width(page, tmp_path, width):
    told = (
        "<script>document.title = [document.documentElement.scrollWidth <= innerWidth, "
        'getComputedStyle(document.querySelector(".ab")).getPropertyValue("--cut"), '
        '[...document.querySelectorAll("svg.chart")].filter(one => one.getClientRects().length).length].join(";")'
        "</script>"
    )
    # the page's policy would refuse this script too
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    framed = open_page.replace("</body>", f"{told}</body>")
    (tmp_path / "page.html").write_text(framed, encoding="utf-8")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    command = [browser(), *options, f"--window-size={width},900", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "<title>true;50%;3</title>" in found.stdout
