"""The page in a real browser: slider, keys and menus, without a message on the console."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from journey.components import EVALUATIONS
from journey.evaluation.rows import select
from journey.pipeline.images import ImageSet
from journey.report.page import (
    MOST_RANKED,
    NUM_SHOWN,
    PageMethod,
    PageTrajectories,
    RankedImages,
    page_contents,
    page_html,
    rank_candidates,
    rank_images,
    sprite_sheets,
)

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NEEDED = {
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
}  # programs, and the Debian packages they are in


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, installed where that is allowed."""
    lacking = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if lacking and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        subprocess.run(
            ["apt-get", "install", "-y", "--no-install-recommends", *lacking],
            capture_output=True,
            check=False,
        )
    for program, package in NEEDED.items():
        if not shutil.which(program):
            pytest.skip(f"needs {program}: apt-get install {package}")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tiny):
    """Yield the page of the tiny run: steps 600 and 200, four queries, four methods."""
    browser.get("about:blank")
    browser.get((tiny[0] / "reports/smoke/index.html").absolute().as_uri() + "#query=0&t=600")
    yield browser
    assert browser.get_log("browser") == [], "nothing on the console"


def shown(page, name):
    """Return sheet and tile of an element, and its text alternative."""
    tile = page.find_element(By.CSS_SELECTOR, name)
    background = [
        tile.value_of_css_property(f"background-{part}") for part in ("image", "position")
    ]
    return (*background, tile.get_attribute("aria-label"))


def press(page, *keys):
    page.find_element(By.TAG_NAME, "body").send_keys(*keys)


SIDES = ("first", "second")
TILES = ("#x_t", "#x0_hat", "#first .proponents .tile", "#first .opponents .tile")


def test_keys_change_every_picture(page):
    begin = [shown(page, name) for name in TILES]
    assert page.find_element(By.ID, "where").text.startswith("t = 600")
    press(page, Keys.ARROW_RIGHT)
    assert page.find_element(By.ID, "where").text.startswith("t = 200")
    for before, name in zip(begin, TILES, strict=True):
        assert shown(page, name) != before, name
    press(page, Keys.ARROW_LEFT)
    assert [shown(page, name) for name in TILES] == begin
    page.find_element(By.CSS_SELECTOR, "#queries input").send_keys(Keys.ARROW_RIGHT)
    assert shown(page, "#x_t")[0] != begin[0][0], "another query has another sheet"
    assert "query 1 at t = 600" in shown(page, "#x_t")[2]
    assert "#query=1&t=600&first=journey&second=trak" in page.current_url


def test_keys_of_scrolling_scroll_and_those_of_the_slider_change_the_step(page):
    before = [shown(page, name) for name in TILES]
    press(page, Keys.END)
    WebDriverWait(page, 5).until(lambda page: page.execute_script("return scrollY") > 0)
    press(page, Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.HOME)
    assert [shown(page, name) for name in TILES] == before
    page.find_element(By.ID, "step").send_keys(Keys.ARROW_UP)
    assert "query 0 at t = 200" in shown(page, "#x_t")[2]


def test_the_address_has_the_state_and_the_player_goes_to_the_end(page):
    address = page.current_url
    button = page.find_element(By.ID, "play")
    button.click()
    where = page.find_element(By.ID, "where")
    WebDriverWait(page, 10).until(lambda _: button.text == "Play" and "t = 200" in where.text)
    page.execute_script("location.hash = 'query=2&t=600&first=pixel&second=nothing'")
    WebDriverWait(page, 5).until(lambda _: "t = 600" in where.text)
    assert "query 2 at t = 600" in shown(page, "#x_t")[2]
    chosen = [Select(page.find_element(By.CSS_SELECTOR, f"#{side} select")) for side in SIDES]
    assert [one.first_selected_option.text for one in chosen] == ["pixel", "trak"]
    assert address != page.current_url


def test_a_training_image_lists_the_queries_and_steps_that_it_influences(page):
    item = page.find_element(By.CSS_SELECTOR, "#first .proponents li")
    name = item.find_element(By.TAG_NAME, "i").text
    item.find_element(By.TAG_NAME, "button").click()
    view = page.find_element(By.ID, "image")
    assert name in view.text
    row = view.find_element(By.CSS_SELECTOR, "tr:has([aria-label='Go to query 0'])")
    assert row.find_element(By.CSS_SELECTOR, "td.for").text == "1", "the strongest at t = 600"
    assert f"image={name.replace('/', '%2F')}" in page.current_url
    view.find_element(By.XPATH, "//button[text()='Close']").click()
    assert not view.is_displayed()


def test_only_images_below_zero_are_called_opponents(page):
    for side in SIDES:
        section = page.find_element(By.ID, side)
        scores = section.find_elements(By.CSS_SELECTOR, ".opponents b")
        below = all(score.text.startswith("−") for score in scores)
        title = section.find_element(By.CLASS_NAME, "title-opponents").text
        assert title == "Opponents" if below else title.startswith("Lowest scores")


def test_the_scores_shown_can_be_saved(page):
    lines = page.execute_script("return csv()").splitlines()
    assert lines[0] == "query,t,method,setting,side,rank,image,label,score"
    first = page.find_element(By.CSS_SELECTOR, "#first .proponents li i").text
    assert re.match(rf"query 0,600,journey,damping λ = [\d.]+,highest,1,{first},", lines[1])
    shown_scores = 2 * NUM_SHOWN * 4 * (2 + 1 + 2 + 2)  # queries; steps of journey, trak, …
    assert len(lines) == 1 + shown_scores


def test_the_slider_changes_the_step_and_marks_it(page):
    slider = page.find_element(By.ID, "step")
    page.execute_script(
        "arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", slider
    )
    before = shown(page, "#x0_hat")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert shown(page, "#x0_hat") != before
    marks = [
        mark.get_attribute("data-step")
        for mark in page.find_elements(By.CSS_SELECTOR, ".curve .here")
    ]
    assert marks == ["200"]
    assert slider.get_attribute("aria-valuetext") == "t = 200"


def test_two_methods_are_side_by_side_with_scores_ids_and_labels(page):
    names = [
        option.text
        for option in Select(page.find_element(By.CSS_SELECTOR, "#second select")).options
    ]
    assert names == ["journey", "trak", "pixel", "random"]
    Select(page.find_element(By.CSS_SELECTOR, "#second select")).select_by_visible_text("pixel")
    first, second = (page.find_element(By.ID, side) for side in ("first", "second"))
    assert first.location["y"] == second.location["y"]
    items = second.find_elements(By.CSS_SELECTOR, ".proponents li")
    texts = [item.find_element(By.TAG_NAME, "b").text for item in items]
    scores = [float(text.replace("−", "-")) for text in texts]
    assert len(scores) == NUM_SHOWN
    assert scores == sorted(scores, reverse=True)
    assert all(re.search(r"\ndigits/\d+$", item.text) for item in items)
    text = page.find_element(By.CSS_SELECTOR, ".curve ul").text
    assert re.search(r"^journey −?\d+ \[−?\d+, −?\d+\]$", text, re.MULTILINE), "as on the terminal"
    assert "journey" in page.find_element(By.ID, "trust").text
    assert "pixel" in text
    assert "ceiling, these models" in text


def menu(page, side, kind):
    return Select(page.find_element(By.CSS_SELECTOR, f"#{side} .{kind}"))


def test_another_setting_shows_its_own_images_and_lds(page, tiny):
    result = json.loads((tiny[0] / "reports/smoke/result.json").read_text())
    scores = np.load(
        tiny[0] / "artifacts" / result["cache_keys"]["scores"]["journey"] / "scores.npy"
    )
    shown_first = result["candidates"]["journey"].index(result["shown"]["journey"])
    settings = menu(page, "first", "candidate")
    texts = [option.text for option in settings.options]
    assert [text.endswith(", used by the evaluation") for text in texts] == [
        i == shown_first for i in range(5)
    ]
    for i, option in enumerate(texts):
        settings.select_by_visible_text(option)
        best = page.find_element(By.CSS_SELECTOR, "#first .proponents b").text
        assert float(best) == pytest.approx(scores[i, 0, 0].max(), rel=0.01)
        (row,) = [
            row
            for row in result["candidate_rows"]
            if (row["method"], row["candidate"], row.get("step")) == ("journey", i, 600)
        ]
        text = page.find_element(By.ID, "trust").text
        value = f"{100 * row['value']:z.0f}".replace("-", "−")
        assert re.search(rf"journey( \(damping λ = [\d.]+\))? {value} \[", text), text
    assert "first-setting=damping+%CE%BB+%3D+100" in page.current_url
    keys = ("target", "value", "low", "high")
    rows = [
        [row[key] for key in keys]
        for row in select(result["candidate_rows"], method="journey", candidate=shown_first)
    ]
    shown_rows = select(
        result["rows"], method="journey", quantity="query_centred", score_transform="shown"
    )
    assert rows == [[row[key] for key in keys] for row in shown_rows]


def test_two_settings_of_a_method_are_compared(page):
    menu(page, "second", "name").select_by_visible_text("journey")
    assert page.find_element(By.ID, "overlap").text == ""
    settings = menu(page, "second", "candidate")
    (other, *_) = [o.text for o in settings.options if "used by" not in o.text]
    settings.select_by_visible_text(other)
    assert f"Shared by journey and journey ({other})" in page.find_element(By.ID, "overlap").text
    colours = page.execute_script("return parts(data.curves[0].lines).chosen.length")
    assert colours == 2, "each has its own curve"


def test_the_scores_of_the_step_and_of_the_final_sample_are_alternatives(page):
    targets = menu(page, "first", "target")
    assert [option.text for option in targets.options] == ["step", "final sample"]
    targets.select_by_visible_text("final sample")  # which makes Journey-TRAK TRAK
    assert menu(page, "first", "name").first_selected_option.text == "trak"
    assert "one score for all steps" in page.find_element(By.CSS_SELECTOR, "#first .scope").text
    assert "; of the final sample " in page.find_element(By.ID, "trust").text


def test_every_picture_has_a_text_alternative(page):
    for image in page.find_elements(By.TAG_NAME, "img"):
        assert image.get_attribute("alt")
    tiles = page.find_elements(By.CSS_SELECTOR, ".large, .methods .tile, #strip, #queries input")
    assert len(tiles) == 3 + 2 * 2 * NUM_SHOWN + 1 + 4
    assert all(tile.get_attribute("aria-label") for tile in tiles)


def test_a_phone_does_not_scroll_sideways(page):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide, window = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    first, second = (page.find_element(By.ID, side).location["y"] for side in ("first", "second"))
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= window == 390
    assert first < second


def frames_of(page, script, *arguments):
    """Return the frames of a GIF whose bytes a script makes. [frame, H, W, 3]"""
    script = (
        f"{BASE64} const bytes = {script}; return bytes.then ? bytes.then(base64) : base64(bytes)"
    )
    file = io.BytesIO(base64.b64decode(page.execute_script(script, *arguments)))
    return np.stack(
        [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(Image.open(file))]
    )


BASE64 = "const base64 = (b) => btoa(Array.from(b, (c) => String.fromCharCode(c)).join(''));"


def test_the_trajectory_can_be_saved_as_gif(page):
    uri = page.execute_script("return data.queries[state.query].sheet")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))
    frames = frames_of(page, "trajectoryGif()")
    assert frames.shape == (3, 256, 256, 3), "two steps, and the final sample"
    np.testing.assert_array_equal(frames[0, ::32, ::32], sheet[8:, :8])
    np.testing.assert_array_equal(frames[1, ::32, ::32], sheet[8:, 8:])
    np.testing.assert_array_equal(frames[0], frames[0, ::32, ::32].repeat(32, 0).repeat(32, 1))


def test_a_gif_is_exact_up_to_256_colours_and_near_beyond(page):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 32, 32, 4))
    pixels[0] = pixels[0].reshape(-1, 4)[random.integers(0, 256, (32, 32))]  # at most 256 colours
    frames = frames_of(page, "gif(arguments[0], 32, 32)", pixels.reshape(2, -1).tolist())
    np.testing.assert_array_equal(frames[0, ::8, ::8], pixels[0, ..., :3])
    error = np.abs(frames[1, ::8, ::8].astype(int) - pixels[1, ..., :3])
    assert 0 < error.max() <= 32, "noise of 1024 colours has five levels or more of each channel"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(page, scheme):
    package = pytest.importorskip("axe_core_python")
    axe = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    dark = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    page.find_element(By.CSS_SELECTOR, "#first .proponents button").click()  # an image's view too
    page.set_script_timeout(120)
    found = page.execute_script(f"{axe}; return axe.run()")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert {"color-contrast", "select-name"} <= {rule["id"] for rule in found["passes"]}
    barriers = [
        (rule["id"], node["html"]) for rule in found["violations"] for node in rule["nodes"]
    ]
    assert barriers == []


def test_nothing_is_fetched(tiny):
    text = (tiny[0] / "reports/smoke/index.html").read_text()
    text = re.sub(r'<a href="https://arxiv.org/[^"]*">', "", text)  # fetched by a click alone
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", text)


def colourful(steps: int, queries: int, side: int) -> tuple[PageTrajectories, ImageSet]:
    """Return trajectories and training images of noise, which no format compresses."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, steps, queries, 3, side, side), np.float32)
    images = random.integers(0, 256, (2000, 3, side, side), np.uint8)
    ids = tuple(f"image/{i}" for i in range(len(images)))
    train = ImageSet(images, np.zeros(len(images), np.int64), None, ids, ("<noise>",))
    return PageTrajectories(
        tuple(range(1000 - 20, 1000 - 20 - 20 * steps, -20)), *x, x[1, -1]
    ), train


def test_a_hundred_queries_at_fifty_steps_stay_below_thirty_megabytes(browser, tmp_path):
    trajectories, train = colourful(steps=50, queries=100, side=32)
    random = np.random.default_rng(1)
    shape = (50, 100, 2 * NUM_SHOWN)
    methods = {}
    for i in range(4):
        rankings = []
        for j in range(5):
            rows = random.integers(0, len(train), shape)
            values = random.standard_normal(shape, np.float32)
            rankings.append(RankedImages(rows, values, f"λ = {j}"))
        methods[f"method{i}"] = PageMethod(rankings)
    assert 4 * 4 * rankings[0].rows.size <= MOST_RANKED, "as many as a page of any size may have"
    path = tmp_path / "index.html"
    path.write_text(
        page_html("large", "noise", page_contents(trajectories, methods, train, {}), [])
    )
    assert path.stat().st_size < 30e6
    browser.get(path.as_uri() + "#t=0")
    assert browser.find_element(By.ID, "where").text == "t = 0 (50 of 50)"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(
    ("experiment", "titles"),
    [
        ("digits", ["Query-centred LDS × 100 of the scores shown"]),
        ("planted", ["Recall of duplicates, %", "Median rank of a duplicate"]),
        (
            "emergence",
            ["P(class of the final sample | x_t)", "Share of the query's class in the top 50"],
        ),
        (
            "images",
            [
                "Query-centred LDS × 100, loss at x̂0_t",
                "Query-centred LDS × 100, loss at x_t itself",
                "Query-centred LDS × 100, distance from the original image",
                "Query-centred LDS × 100, projection on the original image",
                "Query-centred LDS × 100, class loss of the image",
            ],
        ),
        ("counterfactual", []),
    ],
)
def test_curves_of_a_result_are_lines_over_its_steps(experiment, titles):
    result = json.loads((EXPERIMENTS / experiment / "result.json").read_text())
    if experiment == "digits" and "primary" not in result:  # of the former protocol
        titles = ["LDS × 100"]
    names = {evaluation.name: evaluation for evaluation in EVALUATIONS}
    curves = names[result["settings"]["evaluation"]["name"]]().curves(result)
    assert list(curves) == titles
    for rows in curves.values():
        by_method = {
            row["method"]: [
                other["step"]
                for other in rows
                if other["method"] == row["method"] and "step" in other
            ]
            for row in rows
        }
        assert "random" in by_method or "pixels" in by_method
        assert all(steps == result["steps"] for steps in by_method.values())


def test_the_first_and_last_images_follow_the_scores():
    scores = np.array([[[0.1, 0.9, -0.5, 0.4]]])
    ranked = rank_images(scores, "")
    assert ranked.rows.tolist() == [[[1, 3, 0, 2, 2, 0, 3, 1]]]
    assert ranked.scores.tolist() == [[[0.9, 0.4, 0.1, -0.5, -0.5, 0.1, 0.4, 0.9]]]


def test_equal_scores_are_ranked_by_row():
    scores = np.random.default_rng(0).integers(0, 4, (2, 3, 40)).astype(np.float32)
    ranked = rank_images(scores, "")
    order = np.argsort(-scores, axis=-1, kind="stable")
    np.testing.assert_array_equal(ranked.rows[..., :5], order[..., :5])
    np.testing.assert_array_equal(ranked.rows[..., 5:], order[..., :-6:-1])


def test_a_variant_is_no_ceiling_and_the_most_typical_sample_is_first():
    trajectories, train = colourful(steps=1, queries=3, side=4)
    final = trajectories.final.copy()
    final[2] = train.images[0] / 127.5 - 1
    rows = []
    for name in ("a", "a-x-1", "ceiling, these models", "chance"):
        rows.append({"method": name, "step": 980, "value": 1.0, "low": 0.0, "high": 2.0})
    ranked = {"a": PageMethod([rank_images(np.zeros((1, 3, 2000)), "")])}
    trajectories = replace(trajectories, final=final)
    contents = page_contents(trajectories, ranked, train, {"LDS": rows}, ["a-x-1"])
    kinds = [line["kind"] for line in contents["curves"][0]["lines"]]
    assert kinds == ["method", "variant", "ceiling", "reference"]
    assert contents["lead"] == 2


def test_other_settings_have_fewer_images_where_the_page_would_be_too_large():
    scores = {"a": np.zeros((21, 100, 100, 5)), "b": np.zeros((1, 100, 100, 5))}
    settings = {"a": [str(i) for i in range(21)], "b": [""]}
    rankings = rank_candidates(scores, settings, {"a": 3, "b": 0})
    places = [ranked.rows.shape[-1] for ranked in rankings["a"]]
    assert places == [4] * 3 + [2 * NUM_SHOWN] + [4] * 17
    assert rankings["b"][0].rows.shape[-1] == 2 * NUM_SHOWN


def test_injected_duplicates_of_the_query_are_marked(browser, tmp_path):
    trajectories, train = colourful(steps=1, queries=2, side=4)
    scores = np.zeros((1, 2, len(train)), np.float32)
    scores[0, :, [10, 11, 12]] = 1.0
    methods = {"pixel": PageMethod([rank_images(scores, "")])}
    duplicates = np.array([[10, 12], [11, 13]])
    contents = page_contents(trajectories, methods, train, {}, duplicates=duplicates)
    path = tmp_path / "index.html"
    path.write_text(page_html("planted", "", contents, []))
    for query, marked in enumerate((["10", "12"], ["11"])):
        browser.get("about:blank")
        browser.get(f"{path.as_uri()}#query={query}")
        items = browser.find_elements(By.CSS_SELECTOR, "#first .proponents li:has(em)")
        assert [item.find_element(By.TAG_NAME, "i").text for item in items] == [
            f"image/{row}" for row in marked
        ]
        assert items[0].text.endswith("duplicate of the query")


def test_an_emergence_curve_is_on_the_axes_of_the_shares():
    result = json.loads((EXPERIMENTS / "emergence/result.json").read_text())
    names = {evaluation.name: evaluation for evaluation in EVALUATIONS}
    probabilities, shares = names["emergence"]().curves(result).values()
    pixels = [row["value"] for row in select(probabilities, method="pixels")]
    title = "P(class of the final sample | x_t)"
    assert [row["value"] for row in select(shares, method=title)] == pixels


def test_markup_in_names_is_text(tmp_path):
    trajectories, train = colourful(steps=1, queries=1, side=4)
    trajectories = replace(trajectories, prompts=("</script><b>",))
    text = page_html("<i>", "", page_contents(trajectories, {}, train, {}), [])
    assert text.count("</script>") == 2
    assert "<title>&lt;i&gt;" in text


def test_sheets_have_every_picture_in_its_place():
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(2, 2).repeat(3, 3) * 50
    uris = sprite_sheets(pictures, columns=2, rows=2)
    sheets = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in uris
    ]
    np.testing.assert_array_equal(sheets[0], np.kron([[0, 50], [100, 150]], np.ones((2, 3))))
    np.testing.assert_array_equal(sheets[1], np.kron([[200, 0]], np.ones((2, 3))))
