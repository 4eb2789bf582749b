"""docs/method_texts.py: which part of a docstring goes where, and which equations become mathematics."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCSTRING = """Blur: average the map.

A. Author, B. Author, "A title", VENUE 2020. Released code: a/b.

Idea. Maps are rough. So M_c is averaged, by `size`:

    size=1   nothing
    size=3   neighbours

    paper   name      shape
    M_c     maps      (B, K, h, w)

    (1)  M_c = sum_k w_k^c f_k
    (2)  L = CE(S, y) +
         alpha L_RA

Departures
    (1)        The mean, not the
               sum.
    recipe     CAM's.
"""


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import method_texts

    return method_texts


def test_every_part_of_a_docstring_has_its_place(texts: ModuleType) -> None:
    text = texts.method_text(DOCSTRING)
    assert text.summary == "Blur: average the map."
    assert text.source == ['A. Author, B. Author, "A title", VENUE 2020.\nReleased code: a/b.', ""]
    assert text.idea[0] == r"Maps are rough." + "\n" + r"So M\_c is averaged, by `size`:"
    assert text.idea[2:6] == ["```text", "size=1   nothing", "size=3   neighbours", "```"]
    assert text.symbols[1:3] == ["paper   name      shape", "M_c     maps      (B, K, h, w)"]
    assert text.formula == [
        "$$",
        r"M_{c} = \sum_{k} w_{k}^{c} f_{k} \tag{1}",
        "$$",
        "",
        "$$",
        r"L = \operatorname{CE} ( S , y ) + \alpha L_{\mathrm{RA}} \tag{2}",
        "$$",
        "",
    ]
    assert text.notes == [
        "Departures",
        "",
        "- **(1)**: The mean, not the sum.",
        "- **recipe**: CAM's.",
        "",
    ]


@pytest.mark.parametrize(
    ("equation", "expected"),
    [
        ("F'_t = sigmoid(F_t)", r"F'_{t} = \operatorname{sigmoid} ( F_{t} )"),
        ("eta = exp(-theta D_ij)", r"\eta = \exp ( - \theta D_{ij} )"),
        ("c <- mean of F over the pixels", r"c \leftarrow \text{ mean of } F \text{ over the pixels }"),
        ("z = sqrt(tr Sigma) + 1e-5", r"z = \sqrt{\operatorname{tr} \Sigma} + 10^{-5}"),
        ("z = p_i o p_j", r"z = p_{i} \circ p_{j}"),
        ("s = max_{j in Omega} x_j", r"s = \max_{j \in \Omega} x_{j}"),
        ("z = w f, a 1x1 convolution", r"z = w f , \text{ a } 1 \times 1 \text{ convolution }"),
    ],
)
def test_a_simple_equation_becomes_mathematics(texts: ModuleType, equation: str, expected: str) -> None:
    assert " ".join(texts.latex(equation).split()) == expected


@pytest.mark.parametrize(
    "equation",
    [
        "v+ = mean of P X",  # a sign that is part of a name
        "r = gamma <w, F>",  # brackets that are comparisons elsewhere
        "M = `maps`",
        "o = tanh(S h). Sides stay",  # two sentences
        "k a steps",  # an article or a symbol
        "L = x            which is",  # a remark in a column of its own
        "L = " + " + ".join(["x"] * 60),
    ],
)
def test_anything_else_keeps_the_whole_block_as_it_is(texts: ModuleType, equation: str) -> None:
    with pytest.raises(texts.UnreadableError):
        texts.latex(equation)
    block = f"    (1)  y = x\n    (2)  {equation}"
    assert texts.equations(block) == ["```text", "(1)  y = x", f"(2)  {equation}", "```"]


def test_no_word_of_a_docstring_is_lost(texts: ModuleType) -> None:
    text = texts.method_text(DOCSTRING)
    page = "\n".join([text.summary, *text.source, *text.idea, *text.symbols, *text.notes])
    for word in ("Author", "rough", "neighbours", "shape", "sum.", "recipe", "VENUE"):
        assert word in page
