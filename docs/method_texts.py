"""The docstring of a method's file as Markdown: idea, formula, symbols, notes. See `make_methods.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

GREEK = (
    *("alpha", "beta", "gamma", "delta", "eta", "theta", "lambda", "mu", "pi", "sigma", "tau", "phi"),
    *("Phi", "Sigma", "Omega"),
)
KNOWN = ("exp", "log", "max", "min", "cos", "tanh")
FUNCTIONS = ("argmax", "argmin", "softmax", "sigmoid", "relu", "tr")
NAMES = ("CE", "BN", "BCE", "LSTM", "MMD", "Var", "Beta", "CCAM", "MaxEnt", "PC")
"""Names of several letters in equations that are no words."""
OPERATORS = {
    **{"<-": r"\leftarrow", "->": r"\to", "<=": r"\le", ">=": r"\ge", "...": r"\ldots", "..": r"\ldots"},
    **{"||": r"\|", "{": r"\{", "}": r"\}", "~": r"\sim", "*": "*"},
    **{sign: sign for sign in "+-/=<>()[]|,;!"},
}
LONGEST = 110
"""Characters of an equation that a page shows as mathematics. Longer ones need line breaks of their own."""
MOST_WORDS = 12

_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>\d+x\d+|\d+-[a-z]+|\d+(?:\.\d+)?(?:e-?\d+)?)"
    r"|(?P<hyphenated>[a-z]+(?:-[a-z]+)+)"
    r"|(?P<code>[a-z]{3,}_[a-z]{3,})"
    r"|(?P<name>[A-Za-z]+\d*(?:x\d+)?)"
    r"|(?P<dot>\.(?!\.)(?= ?[A-Za-z]))"
    r"|(?P<operator><-|->|<=|>=|\.\.\.|\.\.|\|\||[-+*/=<>()\[\]{}|,;~!])"
)
_SUB = re.compile(r"_(?:\{([^{}]*)\}|\(([^()]*)\)|([A-Za-z0-9]+(?:,[a-z0-9]+)?|[+-]))")
_SUP = re.compile(r"\^(?:\{([^{}]*)\}|\(([^()]*)\)|(-?\d+(?:/\d+)?|[A-Za-z]+))")


class UnreadableError(Exception):
    """An equation has a part that is no simple mathematics."""


@dataclass(frozen=True)
class MethodText:
    """Parts of a docstring, each as lines of Markdown."""

    summary: str
    source: list[str]
    idea: list[str]
    formula: list[str]
    symbols: list[str]
    notes: list[str] = field(default_factory=list)


def method_text(docstring: str) -> MethodText:
    """Split a docstring of the house style into its parts.

    A paragraph that begins with "Idea." is the idea. Indented blocks with equations, `(1)  y = f(x)`, are the
    formula. The first indented table has the symbols. The paragraph after the summary is the source, unless
    it is the idea. Everything else is a note, in its order.
    """
    first, *blocks = re.split(r"\n\s*\n", docstring.strip())
    text = MethodText(" ".join(first.split()), [], [], [], [])
    target, before = text.notes, ""
    for number, block in enumerate(blocks):
        if _is_formula(block):
            target, lines = text.formula, equations(block)
        elif block.startswith("    "):
            if _is_table(block) and not text.symbols:
                target = text.symbols
            elif not before.endswith(":"):  # else the block belongs to the paragraph before it
                target = text.notes
            lines = literal(block)
        else:
            target = text.idea if block.startswith("Idea.") else text.notes if number else text.source
            lines = prose(block.removeprefix("Idea.").lstrip())
        target += [*lines, ""]
        before = block
    return text


def _is_formula(block: str) -> bool:
    """Whether an indented block has equations: numbered ones, or one in each line."""
    if re.match(r" {4}(?:\w+=\w+: +)?\(\d+\) ", block):
        return True
    lines = re.sub(r"\n {8,}", " ", block).split("\n")
    return all(line.startswith("    ") and " = " in line for line in lines) and not _is_table(block)


def _is_table(block: str) -> bool:
    """Whether an indented block lists symbols: names and shapes in columns."""
    return bool(re.search(r" {2,}\(.*\)(?: |$)", block, re.M)) and "wsolbench " not in block


def literal(block: str) -> list[str]:
    """Return an indented block as a block of plain text."""
    return ["```text", *(line[4:].rstrip() for line in block.split("\n")), "```"]


def prose(block: str) -> Iterator[str]:
    """Yield a paragraph, and each of its indented entries, `    name   text`, as an item of a list."""
    paragraph, entries = [], []
    for line in block.split("\n"):
        if entry := re.match(r" {4}(\S.*?)(?: {2,}(\S.*))?$", line):
            if entry[2] is None and entries:
                entries[-1][1].append(entry[1])
            else:
                entries.append((entry[1], [entry[2] or ""]))
        elif entries:
            entries[-1][1].append(line.strip())
        else:
            paragraph.append(line)
    if paragraph:  # a line for each sentence; initials of names end none
        yield re.sub(r"(?<=[^\s.][^A-Z\s.]\.) (?=\S)", "\n", escape(" ".join(paragraph)))
    if paragraph and entries:
        yield ""
    for name, words in entries:
        yield f"- **{escape(name)}**: {escape(' '.join(words).strip())}"


def escape(text: str) -> str:
    """Escape what Markdown would read as markup, except code in backticks and bold openings of paragraphs."""
    parts = re.split(r"(`[^`]*`|\*\*[A-Z][^*]*\*\*)", text)
    return "".join(
        part if place % 2 else re.sub(r"([\\*_<>\[\]$~{}|])", r"\\\1", part)
        for place, part in enumerate(parts)
    )


def equations(block: str) -> list[str]:
    """Return the equations of a block as mathematics, or the block as it is if one of them is not simple."""
    joined = re.sub(r"\n {8,}", " ", block)
    lines = [line.strip() for line in joined.split("\n")]
    found: list[str] = []
    try:
        for line in lines:
            number, equation = re.fullmatch(r"(?:\((\d+)\)\s+)?(.*)", line).groups()
            tag = rf" \tag{{{number}}}" if number else ""
            found += ["$$", f"{latex(equation)}{tag}", "$$", ""]
    except UnreadableError:
        return literal(block)
    return found[:-1]


def latex(equation: str) -> str:
    """Return an equation in LaTeX. Words become text.

    Raises `UnreadableError` unless every part is understood.
    """
    if len(equation) > LONGEST or re.search(r"`|\S {3,}\S|\. |<(?=\w)|\w[+-](?=[\s,)])", equation):
        raise UnreadableError(equation)
    made = _convert(equation)
    if len(" ".join(re.findall(r"\\text\{([^}]*)\}", made)).split()) > MOST_WORDS:
        raise UnreadableError(equation)
    return made


def _convert(text: str) -> str:
    """Convert token by token."""
    pieces: list[tuple[bool, str]] = []  # whether it is a word, and what it becomes
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise UnreadableError(text[place:])
        kind, value, place = token.lastgroup, token[0], token.end()
        if kind == "space":
            continue
        if kind == "name" and value == "sqrt" and text[place : place + 1] == "(":
            end = _closing(text, place)
            pieces.append((False, rf"\sqrt{{{_convert(text[place + 1 : end])}}}"))
            place = end + 1
            continue
        before = pieces[-1][1] if pieces else ""
        is_word, made = _piece(kind or "", value, text[place:], before)
        if not is_word:
            made, place = _scripts(made, value, text, place)
        pieces.append((is_word, made))
    return _joined(pieces)


def _piece(kind: str, value: str, rest: str, before: str) -> tuple[bool, str]:
    """Convert one token without its sub- and superscripts. `rest` follows it."""
    if kind == "operator":
        return False, OPERATORS[value]
    if kind == "code":
        if value.partition("_")[0] in (*GREEK, *KNOWN, *FUNCTIONS, "sum", "prod", "mean"):
            raise UnreadableError(value)
        return False, rf"\mathrm{{{value.replace('_', chr(92) + '_')}}}"
    if kind == "dot":
        return False, r"\cdot"
    if kind == "hyphenated" or (kind == "number" and re.search(r"-[a-z]", value)):
        return True, value
    if kind == "number":
        mantissa, _, power = value.partition("e")
        if power:
            factor = "" if mantissa == "1" else rf"{mantissa} \cdot "
            return False, f"{factor}10^{{{power}}}"
        return False, value.replace("x", r" \times ")
    is_bare = not rest[:1] or rest[:1] not in "_^'("
    if value == "o" and is_bare and before and before not in "([=+,":
        return False, r"\circ"
    if value == "a" and re.match(r" (?:[a-z]{2,}|\d+x)", rest):
        if before[-1:] == ",":
            return True, value
        raise UnreadableError(rest)  # an article or a symbol
    if value in GREEK or value in KNOWN:
        return False, rf"\{value}"
    if value in FUNCTIONS:
        return False, rf"\operatorname{{{value}}}"
    if value in ("sum", "prod") and rest[:1] == "_":
        return False, rf"\{value}"
    if value == "mean" and rest[:1] == "_":
        return False, r"\operatorname{mean}"
    if value == "eps":
        return False, r"\varepsilon"
    if len(value) == 1 or re.fullmatch(r"[A-Za-z]\d", value):
        return False, value
    if re.fullmatch(r"d[A-Z]|d[a-z]", value):
        return False, f"d{value[1]}"
    if rest[:1] == "(" and value.isascii():
        return False, rf"\operatorname{{{value}}}"
    if value in NAMES or rest[:1] in ("_", "^"):
        return False, rf"\mathrm{{{value}}}"
    if value.isalpha() and value.islower():
        return True, value
    raise UnreadableError(value)


def _scripts(made: str, value: str, text: str, place: int) -> tuple[str, int]:
    """Add the primes, subscripts and superscripts that follow a token."""
    scripts: set[str] = set()
    while place < len(text):
        if text[place] == "'":
            made, place = made + "'", place + 1
            continue
        for sign, pattern in (("_", _SUB), ("^", _SUP)):
            if found := pattern.match(text, place):
                inner = next(part for part in found.groups() if part is not None)
                if sign in scripts or not (value[-1].isalnum() or value in (")", "|", "]", "||")):
                    raise UnreadableError(text[place:])
                scripts.add(sign)
                made, place = f"{made}{sign}{{{_index(inner)}}}", found.end()
                break
        else:
            if text[place] in "_^":
                raise UnreadableError(text[place:])
            return made, place
    return made, place


def _index(inner: str) -> str:
    """Convert a sub- or superscript: one or two index letters are symbols, longer words are names."""
    if re.fullmatch(r"-?\d+(/\d+)?|[+-]|[A-Za-z]\d?|[abcdijklmnpqrtxyh]{2}|[a-zA-Z],[a-z]{1,2}", inner):
        return inner
    if re.fullmatch(r"[A-Za-z]{2,}", inner):
        return rf"\{inner}" if inner in GREEK else rf"\mathrm{{{inner}}}"
    return _convert(inner).replace(r"\text{ in }", r" \in ")


def _closing(text: str, start: int) -> int:
    """Return the place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise UnreadableError(text)


def _joined(pieces: list[tuple[bool, str]]) -> str:
    """Join the pieces. Words that follow each other become one text."""
    lines: list[str] = []
    words: list[str] = []
    for is_word, made in [*pieces, (False, "")]:
        if is_word:
            words.append(made)
            continue
        if words:
            lines.append(rf"\text{{ {' '.join(words)} }}")
            words = []
        lines.append(made)
    return " ".join(filter(None, lines))
