"""The loss curve and the trace."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from distgrad.launch.plot import HELD_OUT, TRAIN, loss_svg, sparkline, ticks
from distgrad.launch.trace import ALL_REDUCE, COMPUTE, Trace, merge

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [
    *({"step": step, "loss": 4.0 - step / 100} for step in range(200)),
    {"step": 0, "val_loss": 4.2},
    {"step": 200, "val_loss": 2.1},
    {"sha256": "ab"},
]
BASELINES = {"uniform": 4.6, "bigram": 2.3}


def drawn(*arguments) -> ElementTree.Element:
    return ElementTree.fromstring(loss_svg(*arguments))


def lines(root: ElementTree.Element, colour: str) -> list[list[tuple[float, float]]]:
    found = [e for e in root.iter(f"{SVG}polyline") if e.get("stroke") == colour]
    points = [[p.split(",") for p in e.attrib["points"].split()] for e in found]
    return [[(float(x), float(y)) for x, y in line] for line in points]


def test_the_picture_has_both_curves_and_names_all_lines():
    root = drawn(ROWS, BASELINES, "a <title>")
    raw, smooth = lines(root, TRAIN)
    assert len(raw) == len(smooth) == 200
    assert len(lines(root, HELD_OUT)[0]) == 2
    texts = [e.text for e in root.iter(f"{SVG}text")]
    assert {"a <title>", "uniform 4.60", "bigram 2.30", "held out 2.10"} <= set(texts)
    dashed = [e for e in root.iter(f"{SVG}path") if e.get("stroke-dasharray")]
    assert len(dashed) == len(BASELINES)


def test_a_lower_loss_is_drawn_lower_and_a_later_step_further_right():
    raw = lines(drawn(ROWS, {}, "x"), TRAIN)[0]
    assert raw[0][0] < raw[-1][0]
    assert raw[0][1] < raw[-1][1]  # y of SVG points down


def test_everything_stays_inside_the_picture_and_names_do_not_meet():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "val_loss": 2.0}, {"step": 3, "loss": None}]
    root = drawn(rows, {"a": 2.0, "b": 2.001, "c": 9.0}, "x")
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    named = [e for e in root.iter(f"{SVG}text") if e.get("font-weight") and e.text != "x"]
    heights = sorted(float(e.attrib["y"]) for e in named)
    assert len(heights) == 5
    assert all(b - a >= 14.9 for a, b in pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] < height
    for line in lines(root, TRAIN):
        assert all(0 < x < width and 0 < y < height for x, y in line)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": 1.0}], [{"step": 1, "loss": None}]])
def test_few_rows_give_a_picture_too(rows):
    assert drawn(rows, {}, "x").tag == f"{SVG}svg"


def test_ticks_are_round_and_inside():
    assert ticks(1.53, 4.8, 6) == [2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    assert ticks(0, 0.037, 4) == [0.0, 0.01, 0.02, 0.03]


def test_a_sparkline_is_as_wide_as_asked():
    assert len(sparkline([float(i) for i in range(500)], 30)) == 30
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([float("nan")]) == ""


def test_a_trace_is_one_process_a_rank_with_two_tracks(tmp_path):
    for rank in (0, 1):
        trace = Trace(rank)
        trace.add(COMPUTE, "backward", 1.0, 3.0)
        trace.add(ALL_REDUCE, "bucket 0", 2.0, 4.0)
        trace.save(tmp_path / f"{rank}.json")
    parts = [tmp_path / f"{rank}.json" for rank in (0, 1, 2)]
    assert merge(parts, tmp_path / "trace.json") == 2
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [(e["pid"], e["tid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert spans == [
        (0, 0, "backward", 1e6, 2e6),
        (0, 1, "bucket 0", 2e6, 2e6),
        (1, 0, "backward", 1e6, 2e6),
        (1, 1, "bucket 0", 2e6, 2e6),
    ]
    names = {e["args"]["name"] for e in events if e["name"] in ("process_name", "thread_name")}
    assert names == {"rank 0", "rank 1", COMPUTE, ALL_REDUCE}


def test_communication_is_hidden_where_it_runs_beside_compute():
    trace = Trace(0)
    trace.add(COMPUTE, "forward", 0.0, 2.0)
    trace.add(COMPUTE, "backward", 2.0, 5.0)
    trace.add(ALL_REDUCE, "a", 1.0, 3.0)
    trace.add(ALL_REDUCE, "b", 2.5, 3.5)  # overlaps a: counted once
    trace.add(ALL_REDUCE, "c", 4.0, 7.0)
    assert trace.communication() == (5.5, 3.5)


def test_spans_are_measured_in_every_thread_from_the_aligned_origin(tmp_path):
    trace = Trace(0)
    trace.align()

    def communicate() -> None:
        with trace.span(ALL_REDUCE, "a"):
            pass

    thread = threading.Thread(target=communicate)
    with trace.span(COMPUTE, "b"):
        thread.start()
        thread.join()
    trace.save(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    a, b = sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["name"])
    assert 0 <= b["ts"] <= a["ts"] <= a["ts"] + a["dur"] <= b["ts"] + b["dur"] < 60e6


def test_spans_that_cross_get_rows_of_their_own(tmp_path):
    trace = Trace(rank=0)
    trace.add(COMPUTE, "backward", 0.0, 4.0)
    trace.add(COMPUTE, "waits", 3.0, 4.0)  # lies within: the same row
    trace.add(ALL_REDUCE, "bucket 1", 2.0, 5.0)
    trace.add(ALL_REDUCE, "bucket 0", 1.0, 3.0)
    trace.add(ALL_REDUCE, "bucket 2", 6.0, 7.0)
    trace.save(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    rows = {e["name"]: e["tid"] for e in events if e["ph"] == "X"}
    assert rows == {"backward": 0, "waits": 0, "bucket 0": 1, "bucket 1": 2, "bucket 2": 1}
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {0: "compute", 1: "all-reduce", 2: "all-reduce"}
