"""Ground truth that a method reads besides the labels of its training images, as records state it.

A record without `method.supervision` is of a method that reads no more than these labels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

UsedFor = Literal["training", "prediction"]


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Which ground truth a method reads, and when.

    >>> Supervision(boxes=True, used_for="prediction").to_json()
    {'labels': False, 'boxes': True, 'masks': False, 'used_for': 'prediction'}
    """

    labels: bool = False
    """Whether class labels are read."""
    boxes: bool = False
    """Whether boxes are read. With `masks`, these are the boxes of images without a mask."""
    masks: bool = False
    """Whether masks are read."""
    used_for: UsedFor
    """`training`: it is that of the images in `training.dataset`. `prediction`: that of evaluated images."""

    def __str__(self) -> str:
        """Return what tables show, for instance "boxes in training".

        >>> str(Supervision(labels=True, boxes=True, used_for="training"))
        'boxes in training'
        >>> str(Supervision(masks=True, used_for="prediction"))
        'masks of the evaluated images'
        """
        names = [name for name in ("boxes", "masks") if getattr(self, name)]
        where = "in training" if self.used_for == "training" else "of the evaluated images"
        return f"{' and '.join(names) or 'labels'} {where}"

    def to_json(self) -> dict[str, Any]:
        """Return the `supervision` of a record's method."""
        return asdict(self)

    @classmethod
    def of_prediction(cls, shown: Collection[str]) -> Supervision:
        """Return that of a method which reads `boxes`, `masks` or both of each evaluated image."""
        return cls(boxes="boxes" in shown, masks="masks" in shown, used_for="prediction")

    @classmethod
    def parse(cls, value: Any) -> Supervision | None:
        """Read the `supervision` of a record's method, or None if there is none.

        Older records have a text in its place. Raises `ValueError` for anything else.
        """
        if value is None:
            return None
        if isinstance(value, str):
            return cls(
                labels="training images" in value,
                boxes="box" in value,
                masks="mask" in value,
                used_for="prediction" if "evaluated images" in value else "training",
            )
        expected = [item.name for item in fields(cls)]
        if (
            not isinstance(value, Mapping)
            or sorted(value) != sorted(expected)
            or not all(isinstance(value[name], bool) for name in expected[:-1])
            or value["used_for"] not in get_args(UsedFor)
        ):
            raise ValueError(
                f"method has supervision {value!r}; expected labels, boxes and masks, each true or false, "
                f"and used_for: {' or '.join(get_args(UsedFor))}"
            )
        return cls(**value)
