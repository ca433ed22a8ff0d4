"""Rendered reports: figures equal the data, text is escaped, and no file is loaded."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from synthetic import CLASSES, COMMAND, STAGES, synthetic_run, thumbnail

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.results import LatencySummary
from edgeship.toolkit.report import formatting, paired_analysis, render
from edgeship.toolkit.report.gather import gather
from edgeship.toolkit.report.verdict import STAMPS, files_to_ship

EVIL = [
    "<script>alert(1)</script>",
    "a|b",
    "</script><img src=x>",
    "@blue",
    "{{ 7 * 7 }}",
    '"quoted"',
    "&amp;",
]


def report_of(folders, **gates):
    return gather(folders, recipe={"name": "synthetic", "quantize": {"effort": "max"}}, stages=STAGES,
                  command=COMMAND, **gates)  # fmt: skip


@pytest.fixture
def report(run):
    return report_of(run, max_drop_pp=1.0, min_speedup=1.5)


def test_what_is_written_reads_back_equal(run, report, tmp_path):
    render.write(report, tmp_path / "out", thumbnails=thumbnail, evaluated=run["evaluate"])
    assert render.load(tmp_path / "out") == report
    assert render.load(tmp_path / "out" / "report.json") == report
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json", "report.md", "report.html", "junit.xml", "predictions.npz",
    }  # fmt: skip


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused_with_a_hint(report, tmp_path, schema):
    render.write(report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**content, "schema": schema}))
    with pytest.raises(DataError, match=rf"has schema {schema}, expected schema 1") as caught:
        render.load(tmp_path)
    assert "run the recipe again" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "variants": 3}', '{"schema": 1']
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError):
        render.load(tmp_path)


def test_a_folder_without_a_report_is_refused_with_a_hint(tmp_path):
    with pytest.raises(DataError, match=r"no report\.json") as caught:
        render.load(tmp_path)
    assert "--out" in caught.value.hint


def test_a_field_of_a_later_version_is_no_obstacle(report, tmp_path):
    render.write(report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    content["variants"][0]["from_the_future"] = 1
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert render.load(tmp_path) == report


def test_markdown_has_one_row_per_variant_and_the_outcome_of_every_gate(report):
    text = render.markdown(report)
    for v in report.variants:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {v.name} |")]
        assert row.count("|") == 12
        assert formatting.percent(v.top1) in row
    assert "| tensorrt-int8 |" in text
    assert "not measured | not measured | not measured" in text
    outcomes = ("✅ passed: ", "❌ MISSED: ", "⚠️ undecided: ", "➖ not judged: ")
    assert sum(text.count(outcome) for outcome in outcomes) == len(report.gates)
    assert COMMAND in text


def test_junit_fails_skips_and_passes_as_the_gates_do(report):
    suite = ElementTree.fromstring(render.junit(report)).find("testsuite")
    outcome = {(c.get("classname"), c.get("name")): [child.tag for child in c] for c in suite}
    assert len(outcome) == int(suite.get("tests")) == len(report.gates) == 6
    assert int(suite.get("failures")) == len(report.missed)
    for gate in report.gates:
        expected = {True: [], False: ["failure"], None: ["skipped"]}[gate.passed]
        assert outcome[gate.variant, gate.name] == expected


def test_the_terminal_table_goes_to_stdout_with_every_variant_and_gate(report, capsys):
    render.terminal(report)
    out, err = capsys.readouterr()
    assert err == ""
    for v in report.variants:
        (row,) = [line for line in out.splitlines() if line.split()[:1] == [v.name]]
        assert formatting.percent(v.top1) in row
    assert "simulated: simulation" in out
    marks = ("✓ passed", "✗ MISSED", "! undecided", "○ not judged")
    assert (
        sum(out.count(f"{mark} {gate.name} {gate.variant}:") for mark in marks for gate in report.gates) == 6
    )


def test_a_graph_that_ships_in_place_of_an_engine_says_so(report, capsys):
    render.terminal(report)
    for text in (capsys.readouterr().out, render.markdown(report), render.html(report)):
        assert text.count("11.3 MB graph") == 1  # TensorRT's, which was not built here
        assert "the device builds an engine" in text
    built = replace(report, variants=tuple(v for v in report.variants if v.runs_here))
    render.terminal(built)
    for text in (capsys.readouterr().out, render.markdown(built), render.html(built)):
        assert "builds its engine" not in text


def test_the_page_asks_no_network_for_anything(report):
    page = render.html(report)
    own = page.replace(page[page.index("/**\n* plotly.js") : page.rindex("<script>")], "")
    assert re.findall(r"(?:src|href)=[\"'](?!#|data:)", own) == []
    assert "url(" not in own
    assert "default-src 'none'" in page


def test_names_from_data_are_escaped_everywhere(tmp_path):
    report = report_of(synthetic_run(tmp_path / "run", classes=EVIL), max_drop_pp=1.0)
    evil = replace(
        report,
        missing=("<script>alert(2)</script>",),
        findings=({"severity": "warning", "what": "<b>bold</b>", "hint": "<i> and `edgeship <u>`"},),
        command="edgeship run '<script>alert(3)</script>'",
        variants=tuple(replace(v, note="<script>alert(4)</script>") for v in report.variants),
    )
    page = render.html(evil)
    assert not re.search(r"<script>alert|<img src=x>|<b>bold", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "&lt;i&gt; and <code>edgeship &lt;u&gt;</code>" in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    labels = figures["classes-openvino-int8"]["data"][0]["y"]
    assert set(labels) == {
        name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for name in EVIL
    }
    assert "<script>" not in render.markdown(evil).split("```")[0]  # a fenced command stays as it is
    ElementTree.fromstring(render.junit(evil))


def test_pictures_are_those_of_the_flipped_images_and_small(run, report):
    asked = []

    def large(index):
        asked.append(index)
        return thumbnail(index)

    page = render.html(report, thumbnails=large)
    indices = {f.image for v in report.variants if v.paired for f in v.paired.flips}
    assert sorted(asked) == sorted(indices)
    assert page.count("data:image/") >= len(indices)


def test_an_image_that_cannot_be_read_leaves_its_place_empty(report):
    def broken(index):
        raise DataError(f"image {index} is gone", hint="")

    assert "no picture" in render.html(report, thumbnails=broken)
    assert "no picture" in render.html(report, thumbnails=lambda _: b"no image")


def test_without_any_figure_the_page_still_says_so():
    page = render.html(gather({}, recipe="nothing", stages=[]))
    assert "The run has no INT8 or FP16 variant" in page
    assert "No latency was measured" in page
    assert "Missing: evaluate: not run" in page


def test_a_thousand_classes_and_fifty_thousand_images_stay_under_15_mb(run, report):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 50_000)

    def guess():
        wrong = rng.random(50_000) < 0.3
        return paired_analysis.Predictions(
            np.where(wrong, rng.integers(0, 1000, 50_000), labels), rng.random(50_000)
        )

    names = [f"n{i:08d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(50_000)]
    paired = paired_analysis.compare("onnxruntime-fp32", guess(), guess(), labels, names)
    photo = np.asarray(Image.effect_noise((256, 256), 90))  # noise: the worst a picture compresses

    def noise(index):
        import io

        stream = io.BytesIO()
        Image.fromarray(np.roll(photo, index, 0)).convert("RGB").save(stream, "PNG")
        return stream.getvalue()

    large = replace(
        report,
        data=replace(report.data, classes=tuple(f"a class of the thousand, number {i}" for i in range(1000))),
        variants=tuple(replace(v, paired=paired if v.paired else None) for v in report.variants),
    )
    assert len(paired.classes) == 1000
    assert len(render.html(large, thumbnails=noise).encode()) < 15e6


def test_what_a_latency_was_measured_under():
    one = LatencySummary(batch=1, p50=1.0, p90=1.0, p99=1.0, mean=1.0, runs=1, threads=1)
    assert formatting.conditions(one) == "batch 1, 1 thread, 1 run"
    assert (
        formatting.conditions(replace(one, batch=None, threads=2, runs=50))
        == "batch unknown, 2 threads, 50 runs"
    )


def test_numbers_are_rendered_as_people_read_them():
    assert formatting.percent(0.83842) == "83.84 %"
    assert formatting.points(-0.004) == "0.00 pp"
    assert formatting.points(0.2, (-0.1, 0.5)) == "0.20 pp [−0.10, 0.50]"
    assert [formatting.three(x) for x in (0.0123, 1.234, 12.34, 123.4)] == ["0.012", "1.23", "12.3", "123"]
    assert (formatting.size(11_300_000), formatting.count(1_814_000_000)) == ("11.3 MB", "1.81 G")
    assert formatting.whole(50_000) == "50\u202f000"
    assert (formatting.p_value(1e-9), formatting.p_value(0.25)) == ("< 0.001", "0.250")
    assert (
        formatting.percent(None) == formatting.milliseconds(None) == formatting.times(None) == "not measured"
    )
    assert formatting.label(CLASSES, 3) == "cat"
    assert formatting.label(CLASSES, 99) == "class 99"


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_leaves_columns_out_by_name_and_cuts_no_figure(report, capsys, monkeypatch, width):
    monkeypatch.setattr(render, "WIDE", width)
    render.terminal(report)
    out = capsys.readouterr().out
    table, _, rest = out.partition("not shown at this width: ")
    assert "…" not in out
    assert max(len(line) for line in table.splitlines()) <= width
    left_out = rest.splitlines()[0].split(", ")
    assert left_out[0] == "MACs" and not set(left_out) & {"variant", "drop, pp [95 %]", "p50", "accuracy"}
    for v in report.variants:
        (row,) = [line for line in table.splitlines() if line.split()[:1] == [v.name]]
        if v.drop_pp is not None:
            assert f"{formatting.signed(v.drop_pp)} {formatting.bracket(v.drop_ci95_pp)}" in row


def test_an_accuracy_that_was_not_measured_is_not_called_measured(report, capsys):
    timed = tuple(
        replace(v, images=0, top1=None, drop_pp=None, drop_ci95_pp=None, agreement=None, paired=None)
        for v in report.variants
        if v.latency_ms
    )
    render.terminal(replace(report, variants=timed))
    rows = [line for line in capsys.readouterr().out.splitlines() if " ms " in line and "fp32" in line]
    assert rows and all(row.rstrip().endswith("–") for row in rows)
    assert 'class="kind measured">measured' not in render.html(replace(report, variants=timed))


def test_the_drop_has_one_sign_and_one_figure_everywhere(report, capsys):
    """Check the sign of a loss in table, sentence, gate, Markdown, page, charts and JSON: positive."""
    row = next(v for v in report.variants if v.name == "openvino-int8-pruned")
    assert row.drop_pp > 0 > row.top1 - report.variants[0].top1
    figure = formatting.points(row.drop_pp, row.drop_ci95_pp)
    render.terminal(report)
    terminal, page = capsys.readouterr().out, render.html(report)
    assert f"top-1 drop {figure}, allowed 1 pp" in terminal
    for text in (render.markdown(report), page):
        assert text.count(figure) >= 2
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    bars = {bar["name"]: bar["x"] for bar in figures["drop"]["data"]}
    assert bars[formatting.title(row)] == [row.drop_pp]
    lost = sum(c.images * (c.top1_reference - c.top1) for c in row.paired.classes)
    assert lost / row.images == pytest.approx(row.drop_pp / 100)


def test_the_table_of_layers_names_what_each_figure_is(report):
    content = {
        "images": 12,
        "layers": [{"name": "conv1", "kind": "Convolution", "sqnr_db": 41.0, "alone_sqnr_db": 52.5,
                    "float_sqnr_db": 31.0, "drop_db": 0.25, "reverted": False}],
    }  # fmt: skip
    page = render.html(replace(report, details={**report.details, "sensitivity": {"openvino": content}}))
    row = page[page.index('<th scope="row">conv1</th><td>Convolution</td><td class="n">41.0') :].split(
        "</tr>"
    )[0]
    assert re.findall(r"([\d.]+) dB", row) == ["41.0", "52.5", "0.25"]
    headings = page[: page.index(row)].rpartition("<thead>")[2]
    assert (
        headings.index("all layers quantized")
        < headings.index("this layer alone quantized")
        < headings.index("alone in float")
    )
    assert "Measured on 12 calibration images (SQNR of the logits there: 30.8 dB)" in page


def test_the_verdicts_are_the_same_in_json_markdown_page_and_terminal(report, capsys, tmp_path):
    render.write(report, tmp_path)
    render.terminal(report)
    terminal = " ".join(capsys.readouterr().out.split())
    stored = json.loads((tmp_path / "report.json").read_text())["verdicts"]
    assert [each["target"] for each in stored] == ["openvino", "tensorrt"]
    for each in stored:
        sentence = " ".join(each["sentence"].split())
        assert sentence in terminal
        assert f"{STAMPS[each['level']]}: **{each['sentence']}**" in render.markdown(report)
        assert f"{formatting.target(each['target'])}: {STAMPS[each['level']]}" in render.html(report)


def test_the_terminal_ends_with_each_verdict_and_its_file(report, capsys, tmp_path):
    render.terminal(report, tmp_path)
    lines = " ".join(capsys.readouterr().out.split())
    last = lines[lines.index("✓ PASS") if "✓ PASS" in lines else lines.rindex("NEEDS MORE DATA") :]
    files = files_to_ship(report)
    assert files and all(f": {tmp_path / file}" in lines for file in files.values())
    levels = {each.target: each.level for each in report.verdicts}
    assert lines.count("file to ship: ") == list(levels.values()).count("pass")
    assert "gate" not in last.lower()
    page = render.html(report)
    for each in report.verdicts:
        card = page[page.index(f'<li class="verdict {each.level}">') :].partition("</li>")[0]
        assert STAMPS[each.level].startswith(("PASS", "NEEDS MORE DATA", "FAIL"))
        assert STAMPS[each.level] in card
    assert [f"<code>{file}</code>" in page for file in files.values()] == [True] * len(files)
    failed = replace(report, verdicts=tuple(replace(each, level="fail") for each in report.verdicts))
    assert files_to_ship(failed) == {}


def test_a_table_wider_than_the_terminal_without_every_expendable_column_is_one_block_per_row(
    capsys, monkeypatch
):
    monkeypatch.setattr(render, "WIDE", 30)
    columns = ("variant", "drop, pp [95 %]", "p50", "agree")
    render.print_table(
        columns, [("openvino-int8", "0.00 [−0.62, 0.62]", "0.072 ms", "")], expendable=("p50",)
    )
    lines = capsys.readouterr().out.split("\n")
    assert lines[1] == "openvino-int8" and lines[4] == "  p50: 0.072 ms"
    assert " ".join(" ".join(lines[2:4]).split()) == "drop, pp [95 %]: 0.00 [−0.62, 0.62]"
    assert all(len(line) <= 30 for line in lines)
