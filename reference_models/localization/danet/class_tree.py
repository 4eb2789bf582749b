"""A class tree with two levels above the classes: parents (families) and roots (orders).

As a file it is a CSV with the columns `label,parent,root`, one line for each class: `label` is the class's
index from 0, the others are any names. Further columns, such as the class's name, are ignored.

    label,parent,root,name
    0,Diomedeidae,Procellariiformes,Black-footed Albatross
    1,Diomedeidae,Procellariiformes,Laysan Albatross
    2,Alcidae,Charadriiformes,Crested Auklet
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsolbench.datasets.formats.tables import bad_line, csv_rows, parse_int
from wsolbench.exceptions import DataError


@dataclass(frozen=True)
class ClassTree:
    """Parent and root of each class, both counted from 0.

    Raises `DataError` unless both are given for the same classes, each index up to the largest is used, and
    each parent has one root.
    """

    parents: tuple[int, ...]
    roots: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.roots):
            raise DataError(
                f"a tree with parents of {len(self.parents)} classes and roots of {len(self.roots)}; "
                "expected both of all classes"
            )
        for what, indices in (("parents", self.parents), ("roots", self.roots)):
            if set(indices) != set(range(len(set(indices)))):
                raise DataError(
                    f"{what} of the class tree are {sorted(set(indices))}; expected every number from 0 to "
                    "the largest"
                )
        above: dict[int, int] = {}
        for parent, root in zip(self.parents, self.roots, strict=True):
            if above.setdefault(parent, root) != root:
                raise DataError(
                    f"parent {parent} of the class tree has the roots {above[parent]} and {root}; expected "
                    "one"
                )


def read_tree(path: Path) -> ClassTree:
    """Read the tree of a CSV file. Names are numbered in the order of the classes.

    Raises `DataError` naming file and line.
    """
    # Read and check each line.
    names: dict[int, tuple[str, str]] = {}
    root_of: dict[str, str] = {}
    for line, row in csv_rows(path, ("label", "parent", "root")):
        label = parse_int(row["label"], path, line, "label")
        if label < 0 or label in names:
            raise bad_line(path, line, "each class once, counted from 0", f"label {label}")
        if not row["parent"] or not row["root"]:
            raise bad_line(path, line, "a parent and a root", "an empty field")
        if root_of.setdefault(row["parent"], row["root"]) != row["root"]:
            raise bad_line(
                path,
                line,
                f"{root_of[row['parent']]!r}, the root that parent {row['parent']!r} has above",
                repr(row["root"]),
            )
        names[label] = (row["parent"], row["root"])
    # Every class must have a line.
    missing = sorted(set(range(max(names, default=0) + 1)) - set(names))
    if missing:
        raise DataError(
            f"{path} has no line for label {missing[0]}; expected one for each class from 0 to "
            f"{max(names, default=0)}"
        )
    # Number the names in the order of the classes.
    ordered = [names[label] for label in range(len(names))]
    parents, roots = (
        {name: number for number, name in enumerate(dict.fromkeys(column))}
        for column in zip(*ordered, strict=True)
    )
    return ClassTree(
        tuple(parents[parent] for parent, _ in ordered), tuple(roots[root] for _, root in ordered)
    )


def consecutive_groups(classes: int, size: int) -> ClassTree:
    """Group consecutive classes by about `size`, and the groups again by about `size`.

    There are at least two groups on each level if there are enough items.

    >>> consecutive_groups(7, 3)
    ClassTree(parents=(0, 0, 0, 1, 1, 2, 2), roots=(0, 0, 0, 0, 0, 1, 1))
    """

    def split(items: int) -> list[int]:
        groups = min(items, max(2, -(-items // size)))
        return [item * groups // items for item in range(items)]

    parents = split(classes)
    above = split(max(parents) + 1)
    return ClassTree(tuple(parents), tuple(above[parent] for parent in parents))
