"""The page in a real browser: headless Chromium, which is asked for nothing but the page itself."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic
from PIL import Image
from robustode.bench.records.headline import Headline
from robustode.bench.records.record import Record
from robustode.bench.report import report
from robustode.bench.report.figures import Picture

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Page = playwright.Page
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def made() -> list[Record]:
    """Two datasets; on digits a failed cell, a recipe of its own, a check known to fail, and audits.

    One of its models gives no answer for some samples.

    On mnist nobody was audited; on digits one flag, one that is explained, and one row that nobody asked.
    """
    failures = {("node", "fgsm-l2", 0.5): synthetic.FAILURE}
    threats = ("gaussian", "fgsm-linf", "pgd-linf", "fgsm-l2")
    models = ("resnet", "node", "h-node", "ch-node")
    records = synthetic.records(models, samples=60, threats=threats, failures=failures)
    other = {"name": "adversarial", "epochs": 9}
    records += [
        dataclasses.replace(r, cell=dataclasses.replace(r.cell, recipe=other))
        for r in synthetic.records(("sodef",), samples=60, threats=threats)
    ]
    found = {
        ("h-node", "determinism"): ("flag", ""),
        ("ch-node", "zero-gradients"): ("flag", "tanh saturates"),
    }
    records += synthetic.audits(models, found=found)
    records = synthetic.without_answers(records, ("sodef",))
    return records + synthetic.records(("node", "anode"), samples=60, threats=threats, dataset="mnist")


def drawn() -> list[Picture]:
    """Pictures as the report draws them, in name and kind; what is in them is tested elsewhere."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40"><path d="M0 0L80 40"/></svg>'
    kinds = [
        ("accuracy", "", "Accuracy against strength"),
        ("heatmap", "", "Accuracy at the reported strengths"),
    ]
    kinds += [("examples", model, f"Examples: {model}") for model in ("node", "ch-node")]
    return [
        Picture(
            name=f"{dataset}-{kind}{label and '-'}{label}",
            dataset=dataset,
            kind=kind,
            label=label,
            title=title,
            alt=title,
            svg=svg,
            png=b"",
        )
        for dataset in ("digits", "mnist")
        for kind, label, title in kinds
    ]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    headline = Headline(
        preset="quick",
        title="Tried",
        reported={"gaussian": 0.2, "linf": 0.1, "l2": 0.5},
        rank="linf",
        audits=list(synthetic.CHECKS),
    )
    folder = synthetic.write(tmp_path_factory.mktemp("browser"), made(), headline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_all", lambda *_, render: drawn)
        return report.write_report(folder).page.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    path = os.environ.get("ROBUSTODE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser found ({', '.join(NAMES)}); on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # A root without user namespaces, as in a container, cannot have the sandbox.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclasses.dataclass
class Opened:
    """A page, and what went wrong on it: errors said, and addresses asked for."""

    page: Page
    errors: list[str]
    asked: list[str]


@pytest.fixture
def opened(browser, address, request) -> Iterator[Opened]:
    options = {"viewport": WIDE, "color_scheme": "light", "reduced_motion": "reduce"}
    context = browser.new_context(**(options | getattr(request, "param", {})))
    context.set_default_timeout(10_000)
    errors: list[str] = []
    asked: list[str] = []

    def only_the_page(route) -> None:
        if route.request.url.partition("#")[0] == address or route.request.url.startswith("data:"):
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    context.route("**/*", only_the_page)
    page = context.new_page()
    page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield Opened(page, errors, asked)
    context.close()
    assert (errors, asked) == ([], [])


@pytest.fixture
def page(opened) -> Page:
    return opened.page


def board(page: Page, dataset: str = "digits"):
    return page.locator(f"table.ranking[data-dataset={dataset}]")


def models(page: Page, dataset: str = "digits") -> list[str]:
    return board(page, dataset).locator("tbody tr:visible th a").all_inner_texts()


def column(page: Page, name: str, dataset: str = "digits") -> list[str]:
    """The first line of each shown cell of one column."""
    heads = board(page, dataset).locator("thead tr:last-child th")
    at = heads.evaluate_all("(all, name) => all.findIndex((head) => head.dataset.name === name)", name)
    rows = board(page, dataset).locator("tbody tr:visible")
    return rows.evaluate_all(
        "(rows, at) => rows.map((row) => row.children[at].innerText.split('\\n')[0])", at
    )


def press(page: Page, name: str) -> None:
    board(page).locator(f"thead th[data-name='{name}'] button").click()


# --- the leaderboard ----------------------------------------------------------------------------


def test_a_heading_sorts_both_ways_and_blanks_stay_last(page):
    press(page, "clean")
    down = column(page, "clean")
    assert list(map(float, down)) == sorted(map(float, down), reverse=True)
    press(page, "clean")
    assert list(map(float, column(page, "clean"))) == sorted(map(float, down))
    assert board(page).locator("th[data-name=clean]").get_attribute("aria-sort") == "ascending"
    for _ in range(2):
        press(page, "l2@0.5")
        shown = column(page, "l2@0.5")
        assert shown[-1] == ""
        assert "" not in shown[:-1]
    assert models(page)[-1] == "node"
    press(page, "model")
    assert models(page) == sorted(models(page))


def ranks(page: Page) -> list[int]:
    return [int(rank.removeprefix("=")) for rank in column(page, "rank")]


def test_the_ranking_threat_is_chosen_on_the_page(page):
    first, order = ranks(page), models(page)
    page.select_option("#rank-by", "gaussian@0.2")
    assert ranks(page)[0] == 1
    assert ranks(page) == sorted(ranks(page))
    complete = [float(value) for value in column(page, "gaussian@0.2")[:-1]]
    for part in (complete[:3], complete[3:]):
        assert part == sorted(part, reverse=True)
    assert models(page)[3] == "h-node", "audits flag it; a row that nobody audited stands among the others"
    assert models(page)[-1] == "node", "a row with a failed cell stands below the complete ones"
    assert "Gaussian, σ = 0.2" in page.inner_text("#state")
    assert board(page).locator("thead th.chosen").get_attribute("data-name") == "gaussian@0.2"
    page.select_option("#rank-by", "linf@0.1")
    assert (ranks(page), models(page)) == (first, order)


def test_equal_values_share_a_rank_where_the_records_tell_no_more(page):
    page.evaluate("DATA.ranks = {}")
    cells = "document.querySelectorAll('table.ranking[data-dataset=digits] tbody td[class*=fraction]')"
    page.evaluate(f"{cells}.forEach((cell) => {{ cell.dataset.sort = '0.5'; }})")
    page.select_option("#rank-by", "clean")
    assert column(page, "rank") == ["=1", "=1", "=1", "4", "5"]
    assert "by value" in page.inner_text("#state")


def test_ranks_of_the_records_go_before_those_by_value(page):
    page.evaluate("DATA.ranks = { digits: { clean: [1, 1, 3, 4, null] }, mnist: { clean: [1, 2] } }")
    page.select_option("#rank-by", "clean")
    assert column(page, "rank") == ["=1", "=1", "3", "4", ""]
    assert "McNemar" in page.inner_text("#state")


def test_filters(page):
    everything = models(page)
    page.fill("#find", "H-NO")
    assert set(models(page)) == {"h-node", "ch-node"}
    assert models(page, "mnist") == []
    page.fill("#find", "")
    page.select_option("#recipe", "adversarial")
    assert models(page) == ["sodef"]
    assert page.inner_text("#state").startswith("1 of 7 rows")
    page.select_option("#recipe", "")
    page.select_option("#flag", "incomplete")
    assert models(page) == ["node"]
    page.select_option("#flag", "expected")
    assert models(page) == ["resnet"]
    page.select_option("#flag", "audit")
    assert models(page) == ["h-node"]
    page.select_option("#flag", "unaudited")
    assert models(page) == ["sodef"]
    page.select_option("#flag", "-")
    assert models(page) == ["ch-node"]
    page.select_option("#flag", "")
    page.select_option("#dataset", "mnist")
    assert not board(page).is_visible()
    assert not page.locator("figure[data-explorer=digits]").is_visible()
    assert set(models(page, "mnist")) == {"node", "anode"}
    page.select_option("#dataset", "")
    assert models(page) == everything


def test_what_audits_come_to_stands_beside_the_name(page):
    badges = dict(zip(models(page), column(page, "audits"), strict=True))
    assert badges["h-node"] == "4 passed, 1 flagged"
    assert badges["ch-node"] == "4 passed, 1 explained"
    assert badges["sodef"].startswith("not audited")
    assert board(page).locator("td[title*='flagged: determinism']").count() == 1
    assert board(page).locator("td[title*='explained: zero-gradients (tanh saturates)']").count() == 1
    assert set(column(page, "audits", "mnist")) == {"not audited"}


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [("h-node", "flag", "determinism"), ("ch-node", "explained flag", "Expected: tanh saturates")],
)
def test_a_sheet_lists_every_check_with_its_plot(page, name, verdict, words):
    board(page).locator("tbody th a").get_by_text(name, exact=True).click()
    table = page.locator("#sheet table.audits")
    table.wait_for()
    assert table.locator("tbody tr").count() == 7, "four that ask the model, three that read records"
    (line,) = [
        line for line in table.locator("tbody tr").all() if line.get_by_text(verdict, exact=True).count()
    ]
    assert words in line.inner_text()
    page.locator("#sheet details.plots summary").click()
    image = page.locator("#sheet details.plots img").first
    image.scroll_into_view_if_needed()
    assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 340
    assert "One of the samples says" in str(image.get_attribute("alt"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_ink_of_a_plot_is_seen_on_its_card(page, theme):
    while page.inner_text("#theme") != f"Theme: {theme}":
        page.click("#theme")
    board(page).locator("tbody th a").get_by_text("h-node", exact=True).click()
    page.locator("#sheet details.plots summary").click()
    picture = Image.open(io.BytesIO(page.locator("#sheet details.plots img").first.screenshot())).convert("L")
    levels = np.asarray(picture)
    paper = float(np.median(levels))
    assert (paper > 200) == (theme == "light")
    assert float(np.abs(levels - paper).max()) > 130, "text and lines stand out"


def test_the_threat_filter_leaves_its_columns_and_those_of_no_threat(page):
    heads = board(page).locator("thead tr:last-child th:visible")
    page.select_option("#threat", "l2")
    names = heads.evaluate_all("(all) => all.map((head) => head.dataset.name)")
    assert {"rank", "model", "clean", "l2@0.5", "parameters"} <= set(names)
    assert not {"gaussian@0.2", "linf@0.1"} & set(names)
    spans = board(page).locator("tr.groups > :visible").evaluate_all("(all) => all.map((one) => one.colSpan)")
    assert (
        sum(spans) == len(names) == board(page).locator("tbody tr").first.locator(":scope > :visible").count()
    )
    page.select_option("#threat", "")
    assert {"gaussian@0.2", "linf@0.1"} <= set(heads.evaluate_all("(all) => all.map((h) => h.dataset.name)"))


def test_heading_and_first_columns_stay_in_sight(page):
    page.set_viewport_size({"width": 700, "height": 420})
    page.add_style_tag(content=".board { max-height: 260px !important }")
    scroll = page.locator(".board").first
    scroll.evaluate("(box) => box.scrollTo(220, 120)")
    box = scroll.bounding_box()
    name = board(page).locator("tbody th").nth(2).bounding_box()
    head = board(page).locator("thead").bounding_box()
    assert 0 <= name["x"] - box["x"] < 70
    assert abs(head["y"] - box["y"]) <= 2


# --- sheets and comparison ------------------------------------------------------------------------


def test_a_row_opens_the_sheet_of_its_model(page):
    board(page).locator("tbody tr", has_text="ch-node").locator("td").nth(2).click()
    sheet = page.locator("#sheet")
    sheet.locator(".u-wrap").first.wait_for()
    assert sheet.locator("#sheet-title").inner_text() == "ch-node"
    text = sheet.inner_text()
    for part in ("Certificates", "fixed_step", "gamma = 0.5", "60 samples, 1 seed"):
        assert part in text
    assert "robustode run --preset quick --models ch-node --seeds 1" in text
    assert "eprint        = {2106.00001}" in text
    titles = sheet.locator(".chart h4").all_inner_texts()
    assert titles == ["Attacks in ℓ∞", "Attacks in ℓ₂", "Gaussian noise"]
    lines = sheet.get_by_role("list", name="Lines of attacks in ℓ∞").get_by_role("listitem")
    assert lines.all_inner_texts() == ["Worst case ℓ∞", "FGSM ℓ∞", "PGD ℓ∞"]
    dashes = lines.locator("line").evaluate_all("(all) => all.map((l) => l.getAttribute('stroke-dasharray'))")
    assert len(set(dashes)) == 3, "no two kinds of line look alike"
    assert sheet.locator("figure img").first.evaluate("(image) => image.complete && image.naturalWidth > 0")
    numbers = sheet.locator(".numbers tbody tr", has_text="PGD ℓ∞").all_inner_texts()
    assert len(numbers) == 5
    assert all("\t60\t1" in line for line in numbers)
    sheet.locator(".close").click()
    assert not sheet.is_visible()
    assert "#" not in page.url


def test_an_address_opens_a_sheet_and_back_closes_it(page):
    link = board(page).locator("tbody th a", has_text="resnet")
    anchor = link.get_attribute("href")
    link.click()
    page.locator("#sheet .u-wrap").first.wait_for()
    assert page.url.endswith(str(anchor))
    page.go_back()
    page.locator("#sheet").wait_for(state="hidden")
    page.goto(page.url.partition("#")[0] + str(anchor))
    page.locator("#sheet[open]").wait_for()
    page.reload()
    page.locator("#sheet .u-wrap").first.wait_for()
    assert "batch-independence" in page.inner_text("#sheet")


def test_a_failure_stands_on_the_sheet_and_is_a_gap_in_the_numbers(page):
    board(page).locator("tbody th a", has_text="node").last.click()
    page.locator("#sheet .u-wrap").first.wait_for()
    assert page.inner_text("#sheet-title") == "node"
    assert synthetic.FAILURE in page.inner_text("#sheet")
    numbers = page.locator("#sheet .numbers tbody tr").all_inner_texts()
    (line,) = [line for line in numbers if line.startswith("FGSM ℓ₂\tε = 0.5")]
    assert line.split("\t")[2] == "–"


def test_models_are_compared_on_one_chart(page):
    tray = page.locator("#tray")
    assert not tray.is_visible()
    for name in ("resnet", "ch-node"):
        board(page).locator("tr", has=page.get_by_label(f"Compare {name}", exact=True)).locator(
            "input"
        ).check()
        assert tray.is_visible()
    assert not page.locator("#sheet").is_visible(), "ticking a row does not open it"
    page.click("#tray-open")
    panel = page.locator("#compare")
    panel.locator(".u-wrap").wait_for()
    assert set(panel.locator(".legend li").all_inner_texts()) == {"resnet", "ch-node"}
    assert panel.locator(".chart h4").inner_text() == "Worst case ℓ∞"
    values = panel.get_by_role("region", name="Value").inner_text()
    for value in column(page, "linf@0.1"):
        assert (value in values) == (value in (at(page, "resnet"), at(page, "ch-node")))
    page.select_option("#compare-threat", label="Gaussian noise")
    panel.locator(".chart h4", has_text="Gaussian noise").wait_for()
    assert panel.locator(".uplot").count() == 1
    assert len(panel.locator("table").last.locator("tbody tr").all()) == 2 * 5
    panel.locator(".u-over").hover(position={"x": 200, "y": 60})
    tip = panel.locator(".tip").inner_text()
    assert "σ = " in tip
    assert "n = 60, 1 seed" in tip
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    page.click("#tray-clear")
    assert not tray.is_visible()


def at(page: Page, name: str) -> str:
    return column(page, "linf@0.1")[models(page).index(name)]


def test_models_of_two_datasets_are_not_compared(page, address):
    ids = page.locator("table.ranking tbody tr").evaluate_all("(rows) => rows.map((row) => row.dataset.id)")
    digits, mnist = [i for i in ids if "digits" in i], [i for i in ids if "mnist" in i]
    page.goto(f"{address}#compare={digits[0]},{mnist[0]}")
    assert not page.locator("#compare").is_visible()
    page.goto(f"{address}#compare={digits[0]},{mnist[0]},{digits[1]}")
    page.locator("#compare[open]").wait_for()
    assert page.locator("#compare .legend li").count() == 2
    assert "1 model of another dataset" in page.inner_text("#compare")


def test_the_figure_comes_alive_and_its_models_are_switched(page):
    figure = page.locator("figure[data-explorer=digits]")
    static = figure.locator("img")
    figure.scroll_into_view_if_needed()
    figure.locator(".u-wrap").first.wait_for()
    assert not static.is_visible()
    assert static.get_attribute("src").startswith("data:image/svg+xml")
    button = figure.get_by_role("button", name="ch-node", exact=True)
    canvas = "(one) => one.querySelector('canvas').toDataURL()"
    before = figure.locator(".plot").first.evaluate(canvas)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    page.wait_for_function(
        "(was) => document.querySelector('.explorer canvas').toDataURL() !== was", arg=before
    )


YELLOW = """(plot) => {
  const { width, height } = plot.querySelector("canvas");
  const copy = Object.assign(document.createElement("canvas"), { width, height });
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(plot.querySelector("canvas"), 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    count += data[i + 3] > 80 && data[i] - data[i + 2] > 120 && data[i + 1] > 150;
  }
  return count;
}"""


def test_samples_without_an_answer_are_seen_in_charts_and_numbers(page):
    figure = page.locator("figure[data-explorer=digits]")
    figure.scroll_into_view_if_needed()
    figure.locator(".u-wrap").first.wait_for()
    charts = figure.locator(".chart")
    assert charts.locator(".silent").all_inner_texts() == ["no answer: counts as broken"] * charts.count()
    plot = charts.first.locator(".plot")
    with_band = plot.evaluate(YELLOW)
    assert with_band > 100
    figure.get_by_role("button", name="sodef", exact=True).click()
    page.wait_for_function(f"(plot) => ({YELLOW})(plot) < {with_band // 10}", arg=plot.element_handle())
    for name, said in (("sodef", True), ("resnet", False)):
        board(page).locator("tbody th a", has_text=name).click()
        sheet = page.locator("#sheet")
        sheet.locator(".u-wrap").first.wait_for()
        heads = sheet.locator(".numbers thead th").all_inner_texts()
        assert ("No answer (%)" in heads) == said
        assert (sheet.locator(".silent").count() > 0) == said
        numbers = [line.split("\t") for line in sheet.locator(".numbers tbody tr").all_inner_texts()]
        assert all(len(line) == len(heads) for line in numbers)
        if said:
            shares = [float(line[heads.index("No answer (%)")] or 0) for line in numbers]
            assert 0 < max(shares) <= 100
            sheet.locator(".u-over").first.hover(position={"x": 200, "y": 60})
            assert "no answer" in sheet.locator(".tip").first.inner_text()
        sheet.locator(".close").click()


@pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_everything_can_be_read(page):
    assert page.locator("figure[data-explorer=digits] img").is_visible()
    assert not page.locator("#controls").is_visible()
    assert not page.locator("input.compare").first.is_visible()
    page.locator("details.sheet summary", has_text="ch-node").first.click()
    assert "robustode run --preset quick --models ch-node --seeds 1" in page.inner_text("#models")


# --- light, dark, keyboard, narrow ------------------------------------------------------------------


def background(page: Page) -> list[int]:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}], indirect=True)
def test_dark_follows_the_system_and_the_button_overrules_it(page):
    assert max(background(page)) < 60
    for theme, light in (("light", True), ("dark", False), ("auto", False)):
        page.click("#theme")
        assert page.inner_text("#theme") == f"Theme: {theme}"
        assert (min(background(page)) > 200) == light
    page.click("#theme")
    page.reload()
    assert min(background(page)) > 200, "the choice is kept"


def test_everything_is_reached_by_keyboard(page):
    reached, first = [], models(page)[0]
    for _ in range(80):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        reached.append(name)
        if name == first:
            break
    assert {"theme", "find", "rank-by", "threat", "flag", "Clean"} <= set(reached)
    assert reached[-1] == first
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus is seen"
    page.keyboard.press("Enter")
    page.locator("#sheet .u-wrap").first.wait_for()
    assert page.evaluate("document.querySelector('#sheet').contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.locator("#sheet").wait_for(state="hidden")
    page.wait_for_function("name => document.activeElement.textContent === name", arg=first)  # it comes back
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert page.locator("#tray").is_visible()
    page.focus("thead th[data-name=clean] button")
    page.keyboard.press("Enter")
    assert board(page).locator("th[data-name=clean]").get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("opened", [{"viewport": NARROW}], indirect=True)
def test_a_narrow_screen_scrolls_down_only(page):
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    figure = page.locator("figure[data-explorer=digits]")
    figure.scroll_into_view_if_needed()
    figure.locator(".u-wrap").first.wait_for()
    assert page.evaluate(fits)
    board(page).locator("tbody th a").first.click()
    page.locator("#sheet .u-wrap").first.wait_for()
    assert page.locator("#sheet").evaluate("(panel) => panel.scrollWidth <= panel.clientWidth")
    assert page.locator("#sheet .u-wrap").first.bounding_box()["width"] <= NARROW["width"]
    page.keyboard.press("Escape")
    for box in board(page).locator("input.compare").all()[:2]:
        box.check()
    page.click("#tray-open")
    page.locator("#compare .u-wrap").wait_for()
    assert page.locator("#compare").evaluate("(panel) => panel.scrollWidth <= panel.clientWidth")
    assert page.evaluate(fits)


# --- safety and accessibility -----------------------------------------------------------------------


def test_what_leaves_the_page_is_seen(browser, address, tmp_path):
    """The guard of these tests works: a page that asks for something is caught."""
    asked = []
    context = browser.new_context()
    context.route("**/*", lambda route: (asked.append(route.request.url), route.abort()))
    page = context.new_page()
    page.set_content("<img src='https://example.org/x.png'>")
    page.wait_for_timeout(50)
    context.close()
    assert asked == ["https://example.org/x.png"]


def test_a_script_that_comes_in_with_a_record_does_not_run(browser, address, tmp_path):
    text = Path(address.removeprefix("file://")).read_text(encoding="utf-8")
    attack = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    target = tmp_path / "page.html"
    target.write_text(text.replace("<main>", f"<main>{attack}", 1), encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    page.goto(target.as_uri())
    assert page.title() == "Tried"
    assert page.locator("#state").inner_text() != "", "the page's own script does"
    context.close()


@pytest.mark.parametrize(
    ("opened", "rules"),
    [({"color_scheme": "light"}, {}), ({"color_scheme": "dark"}, {"runOnly": ["color-contrast"]})],
    indirect=["opened"],
    ids=["light", "dark"],
)
def test_axe_finds_nothing_serious(page, rules):
    driver = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    axe = driver.Axe()
    page.locator("figure[data-explorer=digits]").scroll_into_view_if_needed()
    page.locator(".explorer .u-wrap").first.wait_for()
    assert serious(axe.run(page, options=rules)) == []
    board(page).locator("tbody th a").first.click()
    page.locator("#sheet .u-wrap").first.wait_for()
    assert serious(axe.run(page, context="#sheet", options=rules)) == []
    page.keyboard.press("Escape")
    for box in board(page).locator("input.compare").all()[:2]:
        box.check()
    page.click("#tray-open")
    page.locator("#compare .u-wrap").wait_for()
    assert serious(axe.run(page, context="#compare", options=rules)) == []


def serious(results) -> list[str]:
    assert results.response["passes"], "it looked at something"
    return [
        f"{found['id']}: {node['html'][:200]} {node['failureSummary']}"
        for found in results.response["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]
