"""Reads the tables of five papers from their plain text: tab-separated rows beside a caption "Table N. ...".

What each column holds is written down here a second time, so that rows, columns and digits of the files are
compared with the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsolbench.records.published import PublishedNumber

Fields = Mapping[str, str]

LABEL: Fields = {"": "label"}
"""A column whose text names the row; an empty cell repeats the one above."""

MARK: Fields = {"": "mark"}
"""A column of check marks; a marked one adds its heading to the row's name."""

_CHECKED = {"✓", "checkmark", "1"}  # the text of one table has 1 for a check mark
_UNCHECKED = {"", "✗", "X"}
_NO_VALUE = {"-", "_", "—"}


@dataclass(frozen=True)
class Cell:
    """A value of a table: where it stands, what it is of, and its digits."""

    row: int
    label: str
    fields: Fields
    value: str

    def differences(self, number: PublishedNumber) -> list[str]:
        expected = {"row": self.row, "label": self.label, "value": self.value, **self.fields}
        where = f"{number.paper}, {number.table}, row {self.row}, {self.label}"
        return [
            f"{where}: {name} is {getattr(number, name)!r} in the file, {text!r} in the paper"
            for name, text in expected.items()
            if getattr(number, name) != text
        ]


@dataclass(frozen=True)
class Table:
    """How a table is laid out: `head` lines, then rows; the columns by their headings, upper and lower joined
    by " / "."""

    paper: str
    number: int
    head: int
    columns: Mapping[str, Fields]
    common: Fields
    rows: Mapping[str, Fields] = field(default_factory=dict)  # what only the row's name says
    below: bool = False  # whether the table stands below its caption

    @property
    def name(self) -> str:
        return f"Table {self.number}"

    def lines(self, text: str) -> list[list[str]]:
        """Cells of the lines of this table."""
        lines = text.splitlines()
        captions = [
            place for place, line in enumerate(lines) if line.lstrip().startswith(f"Table {self.number}. ")
        ]
        assert len(captions) == 1, f"{self.paper} has {len(captions)} captions of {self.name}"
        step = 1 if self.below else -1
        place = captions[0] + step
        while not lines[place].strip():
            place += step
        found = []
        while 0 <= place < len(lines) and "\t" in lines[place]:
            found.append([clean(cell) for cell in lines[place].split("\t")])
            place += step
        return found[::step]

    def cells(self, text: str) -> Iterator[Cell]:
        """Every value of the table, row by row."""
        lines = self.lines(text)
        assert headings(lines[: self.head]) == list(self.columns), (
            f"{self.paper}, {self.name}: {headings(lines[: self.head])}"
        )
        above = [""] * len(self.columns)
        for row, line in enumerate(lines[self.head :], start=1):
            names, values = [], []
            for place, (cell, (heading, content)) in enumerate(zip(line, self.columns.items(), strict=True)):
                if content == LABEL:
                    above[place] = cell or above[place]
                    names.append(above[place])
                elif content == MARK:
                    assert cell in _CHECKED | _UNCHECKED, (
                        f"{self.paper}, {self.name}, row {row}: {cell!r} is no mark"
                    )
                    names += [heading] if cell in _CHECKED else []
                elif cell not in _NO_VALUE:
                    values.append((content, cell))
            label = ", ".join(names)
            for content, value in values:
                yield Cell(row, label, {**self.common, **self.rows.get(label, {}), **content}, value)

    def differences(self, text: str, numbers: Sequence[PublishedNumber]) -> list[str]:
        """What numbers, in the order of their file, and the text do not share."""
        cells = list(self.cells(text))
        mine = [number for number in numbers if number.paper == self.paper and number.table == self.name]
        found = [
            difference
            for cell, number in zip(cells, mine, strict=False)
            for difference in cell.differences(number)
        ]
        if len(cells) != len(mine):
            found.append(
                f"{self.paper}, {self.name}: {len(mine)} numbers in the file, {len(cells)} in the paper"
            )
        return found


def clean(cell: str) -> str:
    """The text of a cell without citations, typesetting and spaces around what is in brackets."""
    cell = re.sub(r"</?b>|\s*\[\d+\]|[$^{}]", "", cell).replace("\\times", "x").replace("\\", "")
    return re.sub(r"(?<=\d) x (?=\d)|(?<=\() | (?=\))", lambda match: match[0].strip(), cell).strip()


def headings(head: Sequence[Sequence[str]]) -> list[str]:
    """Heading of each column: of the upper lines the last that is not empty up to there, of the lowest its
    own cell."""
    width = max(map(len, head))
    rows = [[*line, *[""] * (width - len(line))] for line in head]
    upper = [
        [next((cell for cell in reversed(line[: place + 1]) if cell), "") for place in range(width)]
        for line in rows[:-1]
    ]
    return [" / ".join(cell for cell in column if cell) for column in zip(*upper, rows[-1], strict=True)]


def read_texts(folder: Path) -> dict[str, str]:
    """Text of each paper, by key."""
    return {paper: (folder / name).read_text(encoding="utf-8") for paper, name in FILES.items()}


FILES = {
    "spa": "spa_cvpr2021.txt",
    "where-to-look": "where_to_look_wacv2021.txt",
    "lio": "lio_cvpr2020.txt",
    "ssanet": "ssanet_2020.txt",
    "focus-discriminate": "focus_discriminate_2019.txt",
}

_CUB = {"dataset": "cub", "split": "test"}
_CARS = {"dataset": "cars", "split": "test"}
_AIRCRAFT = {"dataset": "aircraft", "split": "test"}
_ILSVRC = {"dataset": "ilsvrc", "split": "test"}
_COCO = {"dataset": "coco", "split": "val"}
_CLS = {"metric": "top1_cls", "unit": "percent"}
_TOP1 = {"metric": "top1_loc", "unit": "percent"}
_GT = {"metric": "gt_known", "unit": "percent"}
_V2 = {"metric": "max_box_acc_v2_as_printed", "unit": "percent"}

_ERRORS = {
    "Loc Err. / Top-1": {"metric": "top1_loc"},
    "Loc Err. / Top-5": {"metric": "top5_loc"},
    "Loc Err. / Gt-Known": {"metric": "gt_known"},
}
_AP = {"AP": "", "AP_50": "50", "AP_75": "75", "AP_S": "_small", "AP_M": "_medium", "AP_L": "_large"}


def _spa() -> Iterator[Table]:
    error = {"unit": "percent_error"}
    compared = {"Methods": LABEL, "Backbone": LABEL, **_ERRORS}
    yield Table("spa", 1, 2, compared, {**_ILSVRC, **error})
    yield Table("spa", 2, 2, compared, {**_CUB, **error})
    scores = {
        "Peak-IoU": {"metric": "peak_iou", "unit": "percent", "split": "val-masks"},
        "Peak-T": {"metric": "peak_t", "unit": "level_0_255", "split": "val-masks"},
        "GT-Known": {"metric": "gt_known", "unit": "percent", "split": "val-masks"},
    }
    columns = {"Methods": LABEL, "SEM": MARK, "SCG": MARK, **scores}
    yield Table("spa", 3, 1, columns, {"dataset": "ilsvrc", "backbone": "inception_v3"})
    kinds = {"M-Ins": "error_m_ins", "Part": "error_part", "More": "error_more"}
    shares = {
        f"{heading} / {kind}": {**data, "metric": metric}
        for heading, data in (("ILSVRC(%)", _ILSVRC), ("CUB-2011-200(%)", _CUB))
        for kind, metric in kinds.items()
    }
    yield Table("spa", 4, 2, {"Methods": LABEL, **shares}, error)
    modules = {"Methods": LABEL, "SCG": MARK, "RAM": MARK, **_ERRORS}
    yield Table("spa", 5, 2, modules, {**_ILSVRC, **error})
    yield Table("spa", 6, 2, modules, {**_CUB, **error})


def _where_to_look() -> Iterator[Table]:
    paper = "where-to-look"
    yield Table(paper, 1, 1, {"Method": LABEL, "Top-1 Loc": _TOP1, "Top-1 Clas": _CLS}, _CUB)
    yield Table(paper, 2, 1, {"Method": LABEL, "Top-1 Loc": _TOP1, "GT-Loc": _GT}, _ILSVRC)
    yield Table(paper, 3, 1, {"Method": LABEL, "Top-1 Clas (in %)": _CLS}, _ILSVRC)
    yield Table(
        paper,
        4,
        1,
        {"Method": LABEL, "CUB-200-2011": _CUB, "ILSVRC 2016": _ILSVRC},
        {**_V2, "backbone": "vgg16"},
    )
    columns = {"CAAM": MARK, "SSAM": MARK, "L_at_fuse": MARK, "Top-1 Loc": _TOP1, "GT-Loc": _GT}
    yield Table(paper, 5, 1, columns, {**_ILSVRC, "backbone": "vgg16"})
    columns = {
        f"{heading} / {kind}": {**data, **metric}
        for heading, data in (("CUB-200-2011", _CUB), ("ILSVRC 2016", _ILSVRC))
        for kind, metric in (("Top-1 Loc", _TOP1), ("GT-Loc", _GT))
    }
    yield Table(paper, 6, 2, {"Patch / Size": LABEL, **columns}, {"backbone": "resnet50"})


def _lio() -> Iterator[Table]:
    columns = {
        "Method": LABEL,
        "Accuracy (%) / CUB": _CUB,
        "Accuracy (%) / CAR": _CARS,
        "Accuracy (%) / AIR": _AIRCRAFT,
    }
    yield Table("lio", 1, 2, columns, _CLS)
    columns = {"Method": LABEL, "Top-1 err.": {"metric": "top1_cls"}, "Top-5 err.": {"metric": "top5_cls"}}
    yield Table("lio", 2, 1, columns, {**_ILSVRC, "unit": "percent_error", "backbone": "resnet50"})
    scores = {
        f"{heading} / {sign}": {"metric": f"{kind}_ap{end}"}
        for heading, kind in (("Object Detection", "box"), ("Semantic Segmentation", "mask"))
        for sign, end in _AP.items()
    }
    yield Table("lio", 3, 2, {"Method": LABEL, **scores}, {**_COCO, "unit": "ap"})
    columns = {"Method": LABEL, "Accuracy (%) / CUB": _CUB, "Accuracy (%) / CAR": _CARS}
    yield Table("lio", 4, 2, columns, {**_CLS, "backbone": "resnet50"})
    positives = {f"# Positive Images / {count}": {"method": f"LIO[P={count}]"} for count in (1, 3, 5)}
    yield Table(
        "lio",
        5,
        2,
        {"Dataset": LABEL, **positives},
        {**_CLS, "backbone": "resnet50"},
        rows={"CUB": _CUB, "CAR": _CARS},
    )


def _ssanet() -> Iterator[Table]:
    for number, other, split in ((1, "Rotated input", "test-rotated"), (2, "Reduced input", "test-reduced")):
        columns = {"Method": LABEL, "Original input": {"split": "test"}, other: {"split": split}}
        yield Table("ssanet", number, 1, columns, {**_CUB, **_CLS, "backbone": "resnet50"}, below=True)
    for number in (3, 4, 5):
        yield Table(
            "ssanet",
            number,
            1,
            {"Method": LABEL, "Top-1": {}},
            {**_CUB, **_CLS, "backbone": "resnet50"},
            below=True,
        )
    columns = {"Method": LABEL, "Backbone": LABEL, "Aux": MARK, "Fusion": LABEL, "Top-1": _CLS}
    yield Table("ssanet", 6, 1, columns, _CUB, below=True)
    for number, data in ((7, _AIRCRAFT), (8, _CARS)):
        yield Table(
            "ssanet", number, 1, {"Method": LABEL, "Backbone": LABEL, "Top-1": _CLS}, data, below=True
        )


def _focus_discriminate() -> Iterator[Table]:
    paper = "focus-discriminate"
    data = {"Birds": _CUB, "Aircraft": _AIRCRAFT, "Cars": _CARS}
    yield Table(
        paper,
        1,
        2,
        {"Method": LABEL, **{f"Accuracy (%) on / {name}": fields for name, fields in data.items()}},
        _CLS,
    )
    yield Table(paper, 2, 1, {"Method": LABEL, "Accuracy (%)": _CLS}, _CUB)


TABLES = [*_spa(), *_where_to_look(), *_lio(), *_ssanet(), *_focus_discriminate()]

_METHODS = {
    "spa": {
        "Ours": "SPA",
        "VGG16": "CAM[SPA baseline]",
        "VGG16, SCG": "SPA[SCG only]",
        "VGG16, RAM": "SPA[RAM only]",
        "VGG16, SCG, RAM": "SPA",
        "InceptionV3": "CAM[SPA baseline]",
        "InceptionV3, SCG": "SPA[SCG only]",
        "InceptionV3, RAM": "SPA[RAM only]",
        "InceptionV3, SCG, RAM": "SPA",
    },
    "where-to-look": {
        "Ours": "WhereToLook",
        "CCAM": "NL-CCAM",
        "HaS-32": "HaS[patch=32]",
        "CAAM, SSAM": "WhereToLook[CAAM+SSAM]",
        "CAAM, L_at_fuse": "WhereToLook[CAAM+Lat_fuse]",
        "SSAM, L_at_fuse": "WhereToLook[SSAM+Lat_fuse]",
        "CAAM, SSAM, L_at_fuse": "WhereToLook",
        "16": "WhereToLook[patch=16]",
        "32": "WhereToLook[patch=32]",
        "44": "WhereToLook[patch=44]",
        "56": "WhereToLook[patch=56]",
        "Mixed": "WhereToLook[patch=mixed]",
    },
    "lio": {
        "CoSeq (+BBox)": "CoSeq[+BBox]",
        "FCAN (+BBox)": "FCAN[+BBox]",
        "ResNet-50 Baseline": "ResNet-50",
        "LIO/ResNet-50 (7x7)": "LIO[7x7]",
        "LIO/ResNet-50 (14x14)": "LIO[14x14]",
        "LIO/ResNet-50 (28x28)": "LIO[28x28]",
        "LIO/ResNet-50 (multi-stage)": "LIO[multi-stage]",
        "ResNet-50-C4": "Mask R-CNN",
        "LIO/ResNet-50-C4": "Mask R-CNN+LIO",
        "ResNeXT-101-FPN": "Mask R-CNN",
        "LIO/ResNeXT-101-FPN": "Mask R-CNN+LIO",
        "SCL": "LIO[SCL only]",
        "OEL": "LIO[OEL only]",
        "LIO": "LIO[7x7]",
        "LIO w/ GM": "LIO[GT mask]",
    },
    "ssanet": {
        "NTSNet": "NTS-Net",
        "RACNN": "RA-CNN",
        "MACNN": "MA-CNN",
        "ResNet-50(P)": "SSANET[P]",
        "ResNet-50(P) + MAC": "SSANET[P+MAC]",
        "ResNet-50(P) + MAC + OPM": "SSANET[P+MAC+OP]",
        "ResNet-50(P) + MAC + DSM": "SSANET[P+MAC+DSM]",
        "ResNet-50(P) + MAC + OP + DSM": "SSANET",
        **{
            module: f"SSANET[P+MAC+{module}]"
            for module in ("GMP", "GAP", "OP", "SPPNet", "FPN", "DSM(fixed)", "DSM(1)", "DSM")
        },
    },
    "focus-discriminate": {
        "Ours": "FocusDiscriminate",
        "Bilinear-CNN": "B-CNN",
        "Res-Net50": "ResNet-50",
        "NTS-Net (image level only)": "NTS-Net[image level only]",
        "Ours (image level only)": "FocusDiscriminate[image level only]",
        "Ours (without max-pooling)": "FocusDiscriminate[no max-pooling]",
        "Ours (hybrid + max-pooling)": "FocusDiscriminate",
    },
}
_BACKBONES = {
    "VGG-19": "VGG19",
    r"VGG": "vgg16",
    r"InceptionV3": "inception_v3",
    r"GoogLe[Nn]et": "GoogLeNet",
    r"ResNet50-SE": "ResNet50-SE",
    r"ResNet-50-C4": "resnet50_c4",
    r"ResNeXT-101-FPN": "ResNeXt101-FPN",
    r"ResNet-101": "ResNet101",
    r"DenseNet-161": "DenseNet161",
    r"Res-?Net-?50": "resnet50",
}
_BACKBONE_PART = {
    "spa": r", (VGG16|InceptionV3|GoogLeNet)$",
    "where-to-look": r"^(InceptionV3|GoogLeNet|VGG|ResNet50(-SE)?)-|-(VGG|ResNet50)$",
    "ssanet": r", (VGG-|ResNet-|DenseNet-|GoogLe).*",
}


def named_by(paper: str, label: str) -> tuple[str, str | None]:
    """Method and backbone that the name of a row means; None where it names no backbone."""
    method = re.sub(_BACKBONE_PART.get(paper, "^$"), "", label)
    backbone = next((backbone for pattern, backbone in _BACKBONES.items() if re.search(pattern, label)), None)
    return _METHODS[paper].get(method, method.replace(", ", "+")), backbone
