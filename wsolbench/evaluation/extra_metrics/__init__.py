"""Metrics that are computed on request (`--extra-metrics`), one file each.

Their names reach `wsolbench.metrics.catalog` through the entry point `wsolbench.metrics`, as those of any
other package do. Listing them imports none of the files.
"""

from __future__ import annotations

from wsolbench.metrics.catalog import ExtraMetricInfo, MetricInfo


def extra_metrics() -> list[ExtraMetricInfo]:
    """Return the extra metrics of this package."""
    return [
        ExtraMetricInfo(
            name="size-strata",
            implementation=f"{__name__}.size_strata:SizeStrata",
            infos=tuple(
                MetricInfo(
                    name=f"max_box_acc_{stratum}",
                    title=f"MaxBoxAcc, {stratum}",
                    needs="boxes",
                    summary=f"MaxBoxAcc of {stratum} objects ({share} of the image), at the threshold of all",
                )
                for stratum, share in (
                    ("small", "< 10 %"),
                    ("medium", "10 to 30 %"),
                    ("large", "30 % or more"),
                )
            ),
        ),
        ExtraMetricInfo(
            name="pointing-game",
            implementation=f"{__name__}.pointing_game:PointingGame",
            infos=(
                MetricInfo(
                    name="pointing_game",
                    title="Pointing game",
                    needs="masks or boxes",
                    summary="the highest pixel of the map lies on the object",
                ),
                MetricInfo(
                    name="pointing_game_15px",
                    title="Pointing game, 15 px",
                    needs="masks or boxes",
                    summary="the highest pixel lies on the object or within 15 pixels of it (IJCV 2018)",
                ),
                MetricInfo(
                    name="energy_on_object",
                    title="Energy on object",
                    needs="masks or boxes",
                    summary="share of the sum of the map that lies on the object (Score-CAM)",
                ),
            ),
        ),
        ExtraMetricInfo(
            name="mask-overlap",
            implementation=f"{__name__}.mask_overlap:MaskOverlap",
            infos=(
                MetricInfo(
                    name="miou",
                    title="mIoU",
                    needs="masks",
                    summary="mean of the IoU of object and background, pixels pooled over the data set",
                ),
                MetricInfo(
                    name="dice",
                    title="Dice",
                    needs="masks",
                    summary="mean over images of the Dice coefficient",
                ),
            ),
        ),
        ExtraMetricInfo(
            name="insertion-deletion",
            implementation=f"{__name__}.insertion_deletion:InsertionDeletion",
            infos=(
                MetricInfo(
                    name="insertion",
                    title="Insertion",
                    needs="labels",
                    summary="area under the score of the true class while a blurred image is restored",
                ),
                MetricInfo(
                    name="deletion",
                    title="Deletion",
                    needs="labels",
                    better="lower",
                    summary="area under the score of the true class while pixels are removed",
                ),
            ),
        ),
    ]
