"""The page in a browser: it renders, its figures equal report.json, and it loads nothing."""

import base64
import io
import json
import time

import pytest
from browsing import violations
from PIL import Image
from synthetic import COMMAND, STAGES, synthetic_run, thumbnail

from edgeship.toolkit.report import formatting, render
from edgeship.toolkit.report.gather import gather


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    folders = synthetic_run(root / "run", images=800)
    gathered = gather(
        folders,
        recipe={"name": "synthetic", "quantize": {"observer": "mse"}},
        stages=STAGES,
        command=COMMAND,
        max_drop_pp=1.0,
        min_speedup=1.5,
    )
    render.write(gathered, root, thumbnails=thumbnail)
    return root, json.loads((root / "report.json").read_text())


def visit(browser, root, *, width=1280, dark=False):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    for log in ("browser", "performance"):
        browser.get_log(log)  # forget what was before
    browser.get((root / "report.html").as_uri())


def draw_all(browser):
    """Open every part and scroll through, as a reader would; every chart is then drawn."""
    browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    browser.execute_script("document.querySelectorAll('.plot').forEach(plot => plot.scrollIntoView())")
    for _ in range(100):
        waiting = browser.execute_script(
            "const plots = [...document.querySelectorAll('.plot')];"
            "const left = plots.filter(plot => !plot.querySelector('.main-svg'));"
            "if (left.length) left[0].scrollIntoView({ block: 'center' }); return left.length"
        )
        if not waiting:
            return
        time.sleep(0.05)
    pytest.fail(f"{waiting} charts were not drawn")


def picture(browser):
    return Image.open(io.BytesIO(base64.b64decode(browser.get_screenshot_as_base64()))).convert("RGB")


def traces(browser, name):
    return browser.execute_script(
        "return document.querySelector(`[data-chart='${arguments[0]}']`).data.map("
        "({ name, x, y, error_x, marker }) => ({ name, x, y, error_x, marker }))",
        name,
    )


def test_no_console_message_and_no_request_but_the_page_itself(browser, report):
    visit(browser, report[0])
    draw_all(browser)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [address for address in asked if not address.startswith("data:")] == [
        (report[0] / "report.html").as_uri()
    ]


def test_it_opens_in_under_two_seconds(browser, report):
    took = []
    for _ in range(3):
        visit(browser, report[0])
        took.append(
            browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        )
    assert 0 < min(took) < 2000


def test_the_table_shows_the_figures_of_report_json(browser, report):
    visit(browser, report[0])
    shown = browser.execute_script(
        "const rows = [...document.querySelectorAll('table.variants tr[data-variant]')];"
        "return Object.fromEntries(rows.map(row =>"
        "[row.dataset.variant, Object.fromEntries([...row.querySelectorAll('[data-key]')].map(cell =>"
        "[cell.dataset.key, cell.innerText.trim()]))]))"
    )
    assert set(shown) == {v["name"] for v in report[1]["variants"]}
    for v in report[1]["variants"]:
        assert shown[v["name"]]["top1"] == formatting.percent(v["top1"])
        if v["latency_ms"]:
            assert shown[v["name"]]["p50"] == formatting.milliseconds(v["latency_ms"]["p50"])
        if v["drop_pp"] is not None:
            assert shown[v["name"]]["drop_pp"] == formatting.points(v["drop_pp"])
            assert shown[v["name"]]["drop_ci95_pp"] == formatting.bracket(v["drop_ci95_pp"])


def test_charts_hold_the_figures_of_report_json(browser, report):
    visit(browser, report[0])
    draw_all(browser)
    points = {(t["x"][0], t["y"][0]) for t in traces(browser, "tradeoff")}
    assert points == {
        (v["latency_ms"]["p50"], 100 * v["top1"]) for v in report[1]["variants"] if v["latency_ms"]
    }
    drops = {t["name"]: t["x"][0] for t in traces(browser, "drop")}
    for v in report[1]["variants"]:
        if v["name"] == "openvino-int8-pruned":
            assert drops["OpenVINO INT8, pruned"] == v["drop_pp"]
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart=\"drop\"] .scatterlayer .point')].length"
    )
    assert drawn == 4


def test_the_speed_section_holds_what_was_measured(browser, report):
    visit(browser, report[0])
    draw_all(browser)
    shown = browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('#speed tr[data-variant]')].map(row =>"
        "[row.dataset.variant, Object.fromEntries([...row.querySelectorAll('[data-key]')].map(cell =>"
        "[cell.dataset.key, cell.innerText.trim()]))]))"
    )
    timed = {v["name"]: v for v in report[1]["variants"] if v["latency_ms"]}
    assert shown == {
        name: {
            "end_to_end_ms": formatting.milliseconds(v["end_to_end_ms"]),
            "resident_bytes": formatting.size(v["resident_bytes"]),
            "memory_bytes": formatting.size(v["memory_bytes"]),
        }
        for name, v in timed.items()
    }
    rates = {t["name"]: dict(zip(t["x"], t["y"], strict=True)) for t in traces(browser, "throughput")}
    assert rates["OpenVINO INT8"] == {
        int(b): ips for b, ips in timed["openvino-int8"]["batch_throughput"].items()
    }
    times = {t["name"]: dict(zip(t["y"], t["x"], strict=True)) for t in traces(browser, "layers-openvino")}
    audit = timed["openvino-int8"]["audit"]
    assert times["OpenVINO INT8"] == {layer["name"]: layer["time_ms"] for layer in audit if layer["time_ms"]}


def test_choosing_an_activation_draws_its_histogram(browser, report):
    visit(browser, report[0])
    draw_all(browser)
    name, last = list(report[1]["details"]["quantize"]["openvino"]["activations"].items())[-1]
    browser.execute_script(
        "const choice = document.querySelector('select[data-for=\"activations\"]');"
        "choice.value = arguments[0]; choice.dispatchEvent(new Event('change'))",
        name,
    )
    bars, low, high, *_ = traces(browser, "activations")
    assert sum(bars["y"]) == sum(last["counts"])
    assert (low["x"][0], high["x"][0]) == pytest.approx((-128 * last["scale"], 127 * last["scale"]))


def test_the_gallery_shows_the_right_pictures(browser, report):
    visit(browser, report[0])
    browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    colours = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        Promise.all([...document.querySelectorAll('.gallery li')].map(async item => {
          const image = item.querySelector('img');
          await image.decode();
          const canvas = document.createElement('canvas');
          canvas.width = canvas.height = 1;
          canvas.getContext('2d').drawImage(image, 0, 0, 1, 1);
          return [Number(item.dataset.image), [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data]];
        })).then(done);
        """
    )
    expected = [
        flip["image"]
        for v in report[1]["variants"]
        if v["precision"] == "int8"
        for flip in v["paired"]["flips"]
    ]
    assert [image for image, _ in colours] == expected
    for image, (red, green, blue, _) in colours:  # the synthetic picture's colour encodes its index
        assert abs(red - image % 256) <= 4
        assert abs(green - image // 256) <= 4
        assert abs(blue - 128) <= 4


def test_dark_mode_is_dark_charts_included(browser, report):
    visit(browser, report[0])
    light = picture(browser).getpixel((5, 5))
    visit(browser, report[0], dark=True)
    draw_all(browser)
    dark = picture(browser).getpixel((5, 5))
    assert min(light) > 230
    assert max(dark) < 40
    ink = browser.execute_script("return document.querySelector('.plot').layout.font.color")
    assert ink == browser.execute_script(
        "return getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()"
    )
    assert int(ink[1:3], 16) > 200


def test_a_phone_needs_no_sideways_scrolling(browser, report):
    visit(browser, report[0], width=390)
    draw_all(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    chart = browser.execute_script("return document.querySelector('[data-chart=\"drop\"] svg').clientWidth")
    assert 300 < chart <= 390


def test_print_is_light_and_complete(browser, report):
    visit(browser, report[0], dark=True)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    closed, undrawn, ink = browser.execute_script(
        "return [document.querySelectorAll('details:not([open])').length,"
        "[...document.querySelectorAll('.plot')].filter(plot => !plot.querySelector('.main-svg')).length,"
        "document.querySelector('.plot').layout.font.color]"
    )
    assert (closed, undrawn) == (0, 0)
    assert int(ink[1:3], 16) < 80
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") > 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(browser, report, axe, dark):
    visit(browser, report[0], dark=dark)
    browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    # A chart is one picture with a text alternative: scanning the SVG inside takes a quarter minute.
    assert violations(browser, axe, excluded=".plot > *") == []


def test_the_keyboard_reaches_the_verdict_first(browser, report):
    from selenium.webdriver.common.keys import Keys

    visit(browser, report[0])
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("href").endswith("#verdict")
