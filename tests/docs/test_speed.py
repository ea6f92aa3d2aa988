"""The page on speed and the figures of the README are what the result files give."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import choice, picture
from benchmarks.report import page
from benchmarks.report.markdown import number
from benchmarks.report.records import facts, load
from benchmarks.timing import quartiles

AGAIN = f"Run `{page.COMMAND}`."


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a result file, and a folder for them."""

    def write(name, tables, **about):
        (tmp_path / f"{name}.json").write_text(json.dumps({"device": "cpu"} | about | {"tables": tables}))
        return tmp_path

    return write


def convolutions(**ratios):
    """Return the table of convolutions for ratios to lax; each takes 4 ms."""
    return {"conv, against lax": {row: {"ms": 4.0, "times faster": ratio} for row, ratio in ratios.items()}}


def row(text, name):
    """Return the cells of the only row of a page with this name."""
    (line,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    return line.split(" | ")


def test_the_page_is_written_from_the_results():
    assert page.page(*load(page.RESULTS), choice.results()) == page.PAGE.read_text(), AGAIN


def test_the_readme_is_written_from_the_results():
    text = page.README.read_text()
    assert page.rewritten(text, page.readme_blocks(load(page.RESULTS)[0])) == text, AGAIN


def test_the_table_of_ready_made_networks_is_written_from_the_results():
    text = page.ZOO.read_text()
    assert page.rewritten(text, page.zoo_blocks(load(page.RESULTS)[0])) == text, AGAIN


def test_the_readme_has_ten_rows():
    table = page.readme_blocks(load(page.RESULTS)[0])["table"]
    assert len(re.findall(r"^\| ", table, re.MULTILINE)) == 11  # with the head


def test_the_picture_is_drawn_from_the_results():
    result = page.pictured(load(page.RESULTS)[0])
    assert picture.shown(result).encode() in page.PICTURE.read_bytes(), AGAIN


def test_the_picture_says_what_it_shows(tmp_path):
    table = {"LeNet": {"flax": 2.0, "torch": 0.5}, "3-d": {"flax": 4.0, "torch": 3.0, "lax": 1.0}}
    result = {"device": "cpu", "jax": "1.0", "tables": dict.fromkeys(picture.TITLES, table)}
    picture.draw(result, tmp_path / "speed.png")
    drawn = (tmp_path / "speed.png").read_bytes()
    assert picture.libraries(result) == ["flax", "torch"]
    assert picture.shown(result).encode() in drawn
    table["3-d"]["torch"] = 3.5
    assert picture.shown(result).encode() not in drawn


def test_no_results_give_a_page(tmp_path):
    text = page.page(*load(tmp_path))
    assert text.startswith("# Speed")
    assert "|" not in text
    assert page.readme_blocks([])["headline"] == ""


def test_a_missing_row_is_a_dash(folder):
    folder("convolutions-cpu-jax0.9.1", convolutions(stem=1.25, strided=3.0), jax="0.9.1")
    text = page.page(*load(folder("convolutions-cpu-jax0.10.0", convolutions(stem=26.04), jax="0.10.0")))
    assert row(text, "stem 7x7, stride 2, 4x224x224x3") == ["1.2 / 26"]  # the newer version comes last
    assert row(text, "3x3, stride 2, 8x56x56x64") == ["3.0 / -"]
    assert row(text, "convolution") == ["2", "1.9 / 26", "0 / 0", "0 / 0", "1.2 / 26", "not recorded"]


def test_options_have_a_section_of_their_own(folder):
    folder("pools-cpu-jax1.0", {"value of a pool, against lax": {"max 2": {"times faster": 2.0}}}, jax="1.0")
    about = {"jax": "1.0", "processor": "Fast 3000", "cores": 2, "XLA_FLAGS": "", "date": "2026-11-28"}
    places, records = load(folder("convolutions-cpu-avx2-jax1.0", convolutions(stem=2.0), **about))
    text = page.page(places, records)
    assert re.findall(r"^## (CPU.*)$", text, re.MULTILINE) == ["CPU", "CPU (avx2)"]
    assert row(text, "CPU (avx2)") == ["1.0", "Fast 3000", "2", "not recorded", "none", "2026-11-28"]
    assert row(text, "max 2") == ["2.0"]
    assert "the CPU (avx2) in float32, with jax 1.0 (2026-11-28)" in page.readme_blocks(places)["table"]


def test_rows_that_are_slower_than_lax_are_named(folder):
    text = page.page(
        *load(folder("convolutions-tpu-jax1.0", convolutions(a=0.5, b=0.91, c=0.88), device="v9", jax="1.0"))
    )
    slower = text.partition("## When to use lax instead")[2]
    assert row(slower, "a") == ["convolution", "2.0", "4.0", "0.50"]
    assert row(slower, "c") == ["convolution", "3.5", "4.0", "0.88"]
    assert "| b |" not in slower
    assert row(text, "convolution")[:4] == ["3", "0.74", "3", "2"]


def test_many_slower_rows_are_counted(folder):
    rows = {f"row{i}": 0.5 + i / 100 for i in range(20)}
    text = page.page(*load(folder("convolutions-cpu-jax1.0", convolutions(**rows), jax="1.0")))
    assert "5 more rows lose 1.4 ms or less each." in text


def test_the_gain_from_tuning_is_shown(folder):
    table = {"LeNet": {"funcconv, ms": 10.0, "lax": 2.0}}
    text = page.page(*load(folder("networks-cpu-jax1.0", {"training step": table}, jax="1.0")))
    assert "The gain from `fc.tune` was not recorded." in text
    table["LeNet"]["tuned"] = 0.8
    text = page.page(*load(folder("networks-cpu-jax1.0", {"training step": table}, jax="1.0")))
    assert "was not recorded" not in text
    assert "How many times as fast a network becomes with the forms" in text
    assert re.findall(r"^\| LeNet \| (.*) \|$", text, re.MULTILINE) == ["10 | 2.0", "1.2"]


def test_the_spread_is_shown(folder):
    tables = convolutions(stem=2.0)
    tables["conv, against lax"]["stem"] |= quartiles([1.8, 2.0, 2.0, 2.2, 4.0], [1.0] * 5)
    text = page.page(*load(folder("convolutions-cpu-jax1.0", tables, jax="1.0")))
    assert row(text, "convolution")[-1] == "±5 %"


def test_streams_and_deep_networks_are_shown(folder):
    streams = {"us a sample": 31.25, "times real time": 2.0, "times as long as the whole": 5.0}
    folder("streams-cpu-jax1.0", {"a sample of a stream": {"16 layers, chunks of 1": streams}}, jax="1.0")
    deep = {"tracing and compiling, s": 0.5, "program, kB": 57.0, "temporary memory, MB": 27.0, "first init, s": 0.6}
    tables = {"the gradient of a deep network": {"8 blocks, repeat": deep}}
    text = page.page(*load(folder("scaling-cpu-jax1.0", tables, jax="1.0")))
    assert row(text, "16 layers, chunks of 1") == ["31.2", "2.00", "5.00"]
    assert row(text, "8 blocks, repeat") == ["0.500", "57.0", "27.0", "0.600"]


def test_ready_made_networks_are_shown(folder):
    assert "not measured" in page.zoo_blocks([])["training steps"]
    table = {"training step of a ready-made network": {"lenet(), 64x28x28x1": {"funcconv, ms": 4.0, "flax": 1.5}}}
    places, _ = load(folder("zoo-cpu-jax1.0", table, jax="1.0"))
    assert row(page.zoo_blocks(places)["training steps"], "lenet(), 64x28x28x1") == ["4.0", "1.5"]


def test_a_gpu_record_may_lack_parts(tmp_path):
    record = {"device": "NVIDIA X", "jax": "1.0", "note": "Old choices.", "parts": {"rows": {}, "laws": {}}}
    record["parts"]["rows"] = {
        "reported: filter bank": {"lax, ms": 3.0, "times faster than lax": 0.5, "tuned, times faster than lax": 2.0},
        "random: 8x8": {"lax, ms": 0.1, "times faster than lax": 1.0},
        "stopped": {"error": "no memory"},
    }
    (tmp_path / "gpu-nvidia-x-jax1.0.json").write_text(json.dumps(record))
    text = page.page(*load(tmp_path))
    assert "**Note.** Old choices." in text
    assert "The part `rows` stopped early: no memory" in text
    assert "1 of all 2 rows" in text
    shown, slower = re.findall(r"^\| filter bank \| (.*) \|$", text, re.MULTILINE)
    assert shown == "3.0 | 0.50 | 2.0"
    assert slower == "reported | 3.0 | 6.0 | 0.50"
    assert "Whole networks" not in text


def test_markers_are_needed_once():
    with pytest.raises(ValueError, match="<!-- speed: table -->"):
        page.rewritten("# A page", {"table": "new"})
    text = "<!-- speed: table -->\nold\n<!-- end of speed: table -->"
    assert page.rewritten(text, {"table": r"\1 new"}) == text.replace("old", "\\1 new")


@pytest.mark.parametrize(
    ("x", "shown"),
    [(0.996, "1.0"), (0.0213, "0.021"), (9.96, "10"), (27.6, "28"), (506, "510"), (1.25, "1.2"), (0, "0")],
)
def test_numbers_have_two_digits(x, shown):
    assert number(x) == shown


def test_what_one_file_says_is_not_said_of_the_others():
    assert facts([{"cores": 2}, {"cores": 2}], "cores") == "2"
    assert facts([{"cores": 2}, {}, {}], "cores") == "2; not recorded in 2 of 3 files"
    assert facts([{}], "cores") == "not recorded"
