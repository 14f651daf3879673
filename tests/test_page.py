"""The page of a validation: well-formed, self-contained, complete, and right about what the limits say."""

import copy
import html.parser
import re

import matplotlib
import pytest
import torch
from validation_sample import entry, operand, row, validation

from fp8sim import recipes
from fp8sim.analysis import page, verdicts

VOID = {"meta", "br", "wbr", "hr", "img", "input", "link", "col", "base"}
HOSTILE = """<script>alert(1)</script>&amp;"'>$\\frac{1}$ {{ 7*7 }}"""


class Page(html.parser.HTMLParser):
    """A parsed page: tags, attributes, text, and the cells of every table row; refuses tags that do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[str, list[str], list[str]]] = []  # id of the section, texts, classes
        self.titles: list[str] = []
        self.words: list[str] = []
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs).get("id", "")
        if tag == "tr":
            self.rows.append((self.section, [], []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")
            self.rows[-1][2].append(dict(attrs).get("class") or "")
        if tag == "title":
            self.titles.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another tag"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][1][-1] += data
        if self.open[-1:] == ["title"]:
            self.titles[-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def row(self, section: str, first: str) -> tuple[list[str], list[str]]:
        """Texts and classes of the one row of a section that starts with `first`."""
        found = [(texts, classes) for at, texts, classes in self.rows if at == section and texts[0].strip() == first]
        assert len(found) == 1, f"{len(found)} rows start with {first!r}"
        return found[0]


@pytest.fixture(scope="module")
def data():
    arithmetic = [row(), row("cuda.cast e4m3", "NOT CHECKED", compared=0, detail="no CUDA device")]
    return validation([entry(), entry("fp8_naive", scale=1e-5, decides=False)], arithmetic)


@pytest.fixture(scope="module")
def made(data):
    return page.html(data)


def test_page_is_well_formed_and_has_unique_ids(made):
    assert made.startswith("<!DOCTYPE html>")
    ids = [attrs["id"] for _, attrs in Page(made).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_parser_finds_what_does_not_balance():
    for broken in ("<p><b></p></b>", "<p>", "</p>"):
        with pytest.raises(AssertionError):
            Page(broken)


def test_page_loads_nothing(made):
    """No script, and no reference that leaves the page: only to an id in it."""
    tags = Page(made).tags
    assert not {tag for tag, _ in tags} & {
        "script",
        "link",
        "img",
        "image",
        "iframe",
        "object",
        "embed",
        "base",
        "foreignobject",
    }
    ids = {attrs.get("id") for _, attrs in tags}
    for _, attrs in tags:
        assert not {"src", "srcset", "data", "action", "background", "poster"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "xlink:href"):
            assert name not in attrs or (attrs[name][0] == "#" and attrs[name][1:] in ids)
    assert not re.search(r"@import|https?:|url\((?!#)", made)


PLATEAU = {"input": 31.5, "weight": 31.5, "grad_output": 25.5}


def figure_cells(o):
    """The texts of one operand's cells at one step."""
    shares = [page.percent(o[key]) for key in ("zeroed", "subnormal", "clipped")]
    distance = page.number(o["sqnr"] - PLATEAU[o["operand"]], "+z.1f")
    zeros = page.percent(o["zeros"] / o["elements"])
    return [page.number(o["sqnr"]), distance, *shares, page.percent(o["gain"], 3), zeros]


def test_every_operand_has_its_row_and_figures(data, made):
    seen = Page(made)
    for i, recipe in enumerate(data["scaling"], 1):
        first, last = ({(o["operand"], o["layer"]): o for o in look["operands"]} for look in recipe["looks"])
        wanted = [
            [layer, *figure_cells(first[kind, layer]), *figure_cells(last[kind, layer])]
            for kind in PLATEAU
            for layer in ("block0.up", "block1.up")
        ]
        assert [texts for section, texts, _ in seen.rows if section == f"recipe-{i}" and len(texts) == 15][1:] == wanted


def test_every_operand_has_its_histogram(data, made):
    titles = [title for title in Page(made).titles if ", step " in title]
    for recipe in data["scaling"]:
        for look in recipe["looks"]:
            for o in look["operands"]:
                low, high = min(map(int, o["exponents"])), max(map(int, o["exponents"])) + 1
                start = f"{o['layer']} {o['operand']}, step {look['step']}: |x| from 2^{low} to 2^{high}"
                assert sum(title.startswith(start) for title in titles) >= 1, start
    assert len(titles) == 2 * 2 * 6


def test_every_row_of_operations_and_kernels_appears(made):
    seen = Page(made)
    assert seen.row("arithmetic", "linear")[0][3:6] == ["1,234,567", "0", "PASS"]
    assert seen.row("arithmetic", "cuda.cast e4m3")[0][3:] == ["–", "–", "NOT CHECKED", "no CUDA device"]


def test_every_policy_and_version_is_named(data, made):
    seen = Page(made)
    for recipe in data["scaling"]:
        plain = recipe["recipe"]
        for gemm in recipes.GEMM_OPERANDS:
            for key in ("first", "second"):
                assert plain[gemm][key] in seen.text
        others = {key: value for key, value in plain.items() if key not in recipes.GEMM_OPERANDS and key != "name"}
        for key, value in page.flatten(others):
            assert f"{key} {', '.join(value) or 'none' if isinstance(value, list) else value}" in seen.text
    for part in ("run", "text", "environment"):
        for key, value in page.flatten(data[part]):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            assert seen.row("policies", key)[0] == [key, text]


def test_sentence_names_what_decides_and_when(made):
    assert "Nearest to a limit: block1.up input at step 50, 0.1 dB below the plateau." in Page(made).text


def test_answers_take_the_worst_of_what_decides(data):
    broken = copy.deepcopy(data)
    assert "PASS 1. Does the scaling rule hold? PASS: unit_scaled_fp8. Baselines" in Page(page.html(data)).text
    broken["scaling"][1]["verdict"] = "FAIL"
    assert "PASS 1. Does" in Page(page.html(broken)).text, "a baseline decides nothing"
    broken["scaling"][0]["verdict"] = "FAIL"
    broken["arithmetic"][0]["verdict"] = "FAIL"
    text = Page(page.html(broken)).text
    assert "FAIL 1. Does" in text
    assert "FAIL 2. Do" in text


def colours(data, layer, recipe=1, at=2):
    """(sqnr, zeroed, clipped) classes at both steps of the `at`-th operand kind of a layer."""
    found = [
        c for section, texts, c in Page(page.html(data)).rows if section == f"recipe-{recipe}" and texts[0] == layer
    ]
    words = [next((v for v in ("pass", "warn", "fail") if v in c.split()), "") for c in found[at]]
    return [(words[start], words[start + 2], words[start + 4]) for start in (1, 8)]


def test_cells_take_the_colour_of_their_verdict(data):
    """Gradients around 1e-5 lie below e5m2: far below the plateau, zeroed judged before training only."""
    assert colours(data, "block0.up", recipe=1) == [("pass", "pass", "pass"), ("pass", "", "pass")]
    assert colours(data, "block0.up", recipe=2) == [("fail", "warn", "pass"), ("fail", "", "pass")]


def test_limits_are_those_of_verdicts(data, monkeypatch):
    monkeypatch.setattr(verdicts, "ZEROED_PASS", 1.5)
    assert colours(data, "block0.up", recipe=2)[0] == ("fail", "pass", "pass")
    assert "under 150 % at step 0" in Page(page.html(data)).text


def test_hostile_text_is_escaped(data):
    hostile = copy.deepcopy(data)
    hostile["text"]["name"] = HOSTILE
    hostile["environment"]["device"] = HOSTILE
    hostile["arithmetic"][0] |= {"name": HOSTILE, "detail": HOSTILE}
    changed = hostile["scaling"][0]
    changed["recipe"]["name"] = HOSTILE
    changed["decisive"] |= {"subject": HOSTILE, "reason": HOSTILE}
    for look in changed["looks"]:
        look["gradients"] = {HOSTILE: look["gradients"]["up"]}
        for o in look["operands"]:
            o["layer"] = HOSTILE if o["layer"] == "block0.up" else o["layer"]
    seen = Page(page.html(hostile))
    assert "script" not in {tag for tag, _ in seen.tags}
    assert HOSTILE + " input, step 0" in " ".join(seen.titles)
    assert seen.text.count(HOSTILE) > 20


def test_all_zero_operand_shows_its_reason(data):
    zero = copy.deepcopy(data)
    zero["scaling"][0]["looks"][1]["operands"][5] |= operand("block1.up", "grad_output", "e5m2", torch.zeros(512))
    seen = Page(page.html(zero))
    texts, classes = next((t, c) for s, t, c in seen.rows if s == "recipe-1" and "all zero" in t)
    assert texts[0] == "block1.up"
    assert texts[8:] == ["all zero", "100.00"]
    assert "fail" in classes[8]
    assert "block1.up grad_output, step 50: all zero" in seen.titles


def test_null_figures_render(data):
    nulls = copy.deepcopy(data)
    changed = nulls["scaling"][0]
    changed["losses"][10:] = [None] * 40
    changed["worst"] = dict.fromkeys(changed["worst"])
    changed["decisive"] |= {"value": None, "margin": None}
    changed["looks"][1]["loss"] = None
    changed["looks"][1]["gradients"]["up"] = {"cosine": None, "gain": None}
    changed["looks"][1]["operands"][0] |= {"sqnr": None, "gain": None, "nonfinite": 3}  # an infinite error
    changed["looks"][1]["operands"][1] |= {"sqnr": None, "exact": True, "gain": 0.0}
    del changed["looks"][1]["operands"][2]
    seen = Page(page.html(nulls))
    rows = [
        (texts, classes) for section, texts, classes in seen.rows if section == "recipe-1" and "block0.up" in texts[0]
    ]
    assert rows[0][0][0] == "block0.upstep 50: 3 of 512 elements are not finite"
    assert (rows[0][0][8], rows[0][1][8]) == ("−inf", "n gap fail")
    assert (rows[1][0][8], rows[1][1][8]) == ("exact", "n gap pass")
    assert rows[2][0][8:] == ["not seen"]
    assert seen.row("recipe-1", "up")[0][3:] == ["–", "–"]
    assert seen.row("recipe-1", "up")[1][3] == "n gap fail"
    assert "not finite" in next(texts for _, texts, _ in seen.rows if "unit_scaled_fp8" in texts[1:2])


def test_empty_validation_renders():
    text = Page(page.html(validation([], []))).text
    assert "NOT CHECKED 1. Does the scaling rule hold? No recipe was run that decides this." in text
    assert "NOT CHECKED 2. Do operations and kernels" in text
    assert "Nothing was compared." in text


def test_recipe_without_casts_renders():
    bare = entry("unit_scaled")
    for look in bare["looks"]:
        look["operands"] = []
    assert "It casts no operand." in Page(page.html(validation([bare], [row()]))).text


def test_a_full_run_stays_small():
    """Five recipes with thirty operands each make well under 1.5 MB."""
    full = validation([entry(blocks=10) for _ in range(5)], [row()] * 8)
    assert len(page.html(full).encode()) < 1_000_000


def test_page_depends_on_the_data_alone(data, made):
    """Nor does it leave anything behind in matplotlib's settings, which are the user's."""
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        assert page.html(data) == made
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 2, "–"), (0.0, 2, "0"), (1.0, 2, "100.00"), (0.0123, 2, "1.23"), (4e-5, 2, "<0.01"), (5.1e-5, 2, "0.01"),
        (-0.25, 3, "−25.000"), (-1e-6, 3, "<0.001"),
    ],
)  # fmt: skip
def test_percent(value, digits, text):
    assert page.percent(value, digits) == text


def test_number_and_power():
    assert [page.number(v) for v in (None, -0.01, -3.25, 31.46)] == ["–", "0.0", "−3.2", "31.5"]
    assert [page.power(e) for e in (-16, 0, 9)] == ["2⁻¹⁶", "2⁰", "2⁹"]
