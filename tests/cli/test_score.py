"""`wsolbench score`: anybody's maps, and every way in which they can be wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

IDS = [f"test/{index:02d}.png" for index in range(9)]


@pytest.fixture
def maps(birds: Path, tmp_path: Path) -> Path:
    """Maps that are the masks, slightly spread out: stored with 24 x 24 pixels."""
    folder = tmp_path / "maps"
    for image_id in IDS:
        mask = Image.open(birds / "masks" / image_id).resize((24, 24), Image.Resampling.BILINEAR)
        path = folder / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(mask, dtype=np.float32) / 255)
    return folder


def score(run, birds: Path, maps: Path, *more: object):
    return run(
        "score", "--maps", maps, "--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", *more
    )


def the_record(folder: Path = Path("results/measured")) -> dict:
    (path,) = folder.rglob("*.json")
    return json.loads(path.read_text())


def metric(record: dict, name: str) -> dict:
    return next(m for m in record["metrics"] if m["name"] == name)


def test_good_maps_score_well_and_leave_a_record(run, birds: Path, maps: Path) -> None:
    result = score(run, birds, maps, "--name", "mine", "--save-scores")
    assert result.code == 0, result.err
    assert "MaxBoxAccV2" in result.out
    record = the_record()
    assert record["method"]["name"] == "mine"
    assert metric(record, "gt_known")["value"] == 1.0
    assert metric(record, "peak_iou")["value"] > 0.8
    assert metric(record, "top1_cls")["reason"] == "no predicted labels"
    assert len(list(Path("results/measured").rglob("*.scores.npz"))) == 1
    assert not list(Path("results/measured").glob(".work/*"))


def test_thresholds_that_cannot_be_transferred_are_told(run, birds: Path, maps: Path) -> None:
    result = score(run, birds, maps)
    assert result.code == 0, result.err
    told = [line for line in result.err.splitlines() if line.startswith("val ")]
    assert told == [
        f"val      {maps} lacks maps or labels of val: thresholds are not transferred, as with --no-transfer"
    ]
    assert "val " not in score(run, birds, maps, "--no-transfer").err


def test_png_maps_and_predictions_from_elsewhere(run, birds: Path, maps: Path, tmp_path: Path) -> None:
    for image_id in IDS:
        stored = maps / f"{image_id}.npy"
        Image.fromarray((np.load(stored) * 65535).astype(np.uint16)).save(maps / image_id)
        stored.unlink()
    rows = [f"{image_id},{index % 3},{(index + 1) % 3}" for index, image_id in enumerate(IDS)]
    (tmp_path / "labels.csv").write_text("image,rank1,rank2\n" + "\n".join(rows) + "\n")
    result = score(run, birds, maps, "--predictions", tmp_path / "labels.csv")
    assert result.code == 0, result.err
    assert metric(the_record(), "top1_loc")["value"] == 1.0


def test_a_missing_map_is_refused_unless_partial_is_allowed(run, birds: Path, maps: Path) -> None:
    (maps / "test/03.png.npy").unlink()
    refused = score(run, birds, maps)
    assert refused.code == 2
    assert "1 of 9 images have no map" in refused.err
    assert "test/03.png" in refused.err
    assert "--allow-partial" in refused.err
    assert not Path("results").exists() or not list(Path("results").rglob("*.json"))
    allowed = score(run, birds, maps, "--allow-partial")
    assert allowed.code == 0, allowed.err
    assert the_record()["dataset"]["without_map"] == 1
    assert the_record()["dataset"]["images"] == 8


def pickled(path: Path) -> None:
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:150])


def with_nan(path: Path) -> None:
    np.save(path, np.full((4, 4), np.nan))


def with_inf(path: Path) -> None:
    np.save(path, np.full((4, 4), np.inf))


def with_three_dimensions(path: Path) -> None:
    np.save(path, np.zeros((3, 4, 4)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, "pickle"),
        (truncated, "cannot be read"),
        (with_nan, "NaN"),
        (with_inf, "Inf"),
        (with_three_dimensions, "shape (3, 4, 4)"),
    ],
)
def test_a_broken_map_is_named_and_nothing_is_written(
    run, birds: Path, maps: Path, spoil, message: str
) -> None:
    spoil(maps / "test/05.png.npy")
    result = score(run, birds, maps)
    assert result.code == 2
    assert message in result.err
    assert "05.png" in result.err
    assert "Traceback" not in result.err
    assert not list(Path("results/measured").glob("birds/*.json"))


def test_a_constant_map_is_scored(run, birds: Path, maps: Path) -> None:
    np.save(maps / "test/05.png.npy", np.full((4, 4), 0.5))
    assert score(run, birds, maps).code == 0
    assert metric(the_record(), "gt_known")["value"] == pytest.approx(8 / 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--protocol", "wsolevol"), "did you mean 'wsoleval'"),
        (("--protocol-set", "component=all"), "did you mean 'components'"),
        (("--protocol-set", "components=most"), "expected one of 'all', 'largest', 'union'"),
        (("--split", "tset"), "did you mean 'test'"),
        (("--fixed-tau", "7"), "7"),
        (("--protocol-set", "taus=many"), "taus=many"),
        (("--predictions", "nowhere.csv"), "nowhere.csv"),
        (("--limit", "0"), "--limit"),
    ],
)
def test_a_wrong_option_is_explained(
    run, birds: Path, maps: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = score(run, birds, maps, *arguments)
    assert result.code == 2
    assert message in result.err


def test_unknown_names_give_the_nearest(run, birds: Path, maps: Path) -> None:
    result = run("score", "--maps", maps, "--dataset", "csvfoldr", "--data-root", birds)
    assert result.code == 2
    assert "did you mean 'csvfolder'" in result.err
    result = run("scor")
    assert result.code == 2
    assert "did you mean 'score'" in result.err


def test_a_read_only_results_folder_is_refused_before_the_work(
    run, birds: Path, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:  # what every file in such a folder meets, but for root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("wsolbench.system.files.tempfile.TemporaryFile", refuse)
    result = score(run, birds, maps, "--out", tmp_path / "closed")
    assert result.code == 2
    assert "cannot write" in result.err
    assert "Permission denied" in result.err
    assert not list((tmp_path / "closed").iterdir())


def test_a_results_folder_that_is_a_file_is_refused(run, birds: Path, maps: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = score(run, birds, maps, "--out", tmp_path / "file" / "results")
    assert result.code == 2
    assert "cannot write" in result.err


def test_a_protocol_variant_is_named_in_record_and_path(run, birds: Path, maps: Path) -> None:
    changes = (
        "--protocol-set",
        "components=union",
        "--protocol-set",
        "deltas=0.5,0.9",
        "--protocol-set",
        "taus=0.1",
    )
    assert score(run, birds, maps, *changes).code == 0
    protocol = the_record()["protocol"]
    assert protocol["name"] == "wsoleval+components=union,deltas=0.5,0.9,taus=0.1"
    assert protocol["deltas"] == [0.5, 0.9]


def test_boxes_are_written_as_coco_reads_them(run, birds: Path, maps: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert (
        run("export", "--dataset", "csvfolder", "--data-root", birds, "--split", "test", "--out", "coco").code
        == 0
    )
    result = score(run, birds, maps, "--save-boxes", tmp_path / "found/boxes.json")
    assert result.code == 0, result.err
    assert "boxes.json (9)" in result.out
    truth = COCO("coco/annotations/instances_test.json")
    found = truth.loadRes(str(tmp_path / "found/boxes.json"))
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    assert (precision == 1.0).all()  # as GT-known of the same boxes
    for image_id, image in truth.imgs.items():
        (box,) = found.imgToAnns[image_id]
        stored = np.load(maps / f"test/{image['file_name']}.npy")
        assert box["score"] == stored.max()
        assert box["category_id"] == truth.imgToAnns[image_id][0]["category_id"]


def test_boxes_have_the_predicted_label_and_the_number_of_the_whole_split(
    run, birds: Path, maps: Path, tmp_path: Path
) -> None:
    rows = [f"{image_id},{(index + 1) % 3},{index % 3}" for index, image_id in enumerate(IDS)]
    (tmp_path / "labels.csv").write_text("image,rank1,rank2\n" + "\n".join(rows) + "\n")
    result = score(
        run,
        birds,
        maps,
        "--limit",
        "3",
        "--predictions",
        tmp_path / "labels.csv",
        "--save-boxes",
        "boxes.json",
    )
    assert result.code == 0, result.err
    found = json.loads(Path("boxes.json").read_text())
    assert [row["image_id"] for row in found] == [1, 5, 9]
    assert [row["category_id"] for row in found] == [(index + 1) % 3 + 1 for index in (0, 4, 8)]


def test_boxes_need_true_boxes_and_all_parts(run, birds: Path, maps: Path) -> None:
    assert "leave out --shard" in score(run, birds, maps, "--save-boxes", "boxes.json", "--shard", "1/2").err
    rows = [line.split(",") for line in (birds / "annotations.csv").read_text().splitlines()]
    (birds / "annotations.csv").write_text("\n".join(",".join([*row[:5], *row[9:]]) for row in rows) + "\n")
    refused = score(run, birds, maps, "--save-boxes", "boxes.json")
    assert refused.code == 2
    assert "no ground-truth boxes" in refused.err


def test_maps_of_the_whole_image_under_a_centre_crop(run, birds: Path, maps: Path) -> None:
    refused = score(run, birds, maps, "--crop-maps")
    assert refused.code == 2
    assert "no centre crop" in refused.err
    cut = score(run, birds, maps, "--crop-maps", "--protocol", "bas")
    assert cut.code == 0, cut.err
    assert metric(the_record(), "gt_known")["value"] == 1.0
    assert "cut to the centre crop" in the_record()["method"]["maps"]
    assert "taken for maps of the centre crop" not in cut.err


def test_a_protocol_that_crops_says_what_it_takes_the_maps_for(run, birds: Path, maps: Path) -> None:
    """Unless maps.json states what they cover."""
    told = (
        "maps     taken for maps of the centre crop, because protocol 'bas' compares on the central 224 x 224"
    )
    found = score(run, birds, maps, "--protocol", "bas")
    assert found.code == 0, found.err
    assert told in found.err
    assert "add --crop-maps" in found.err
    assert told not in score(run, birds, maps).err
    (maps / "maps.json").write_text('{"view": "center_crop"}')
    assert told not in score(run, birds, maps, "--protocol", "bas", "--out", "other").err


def large(birds: Path, maps: Path, count: int = 200) -> None:
    """More test images and maps than a chunk holds; every map is right."""
    rows = ["image,label,split,width,height,x0,y0,x1,y1"]
    for index in range(count):
        values = np.zeros((24, 24), dtype=np.float32)
        values[4:16, 5:20] = 1
        rows.append(f"many/{index:03d}.jpg,{index % 3},test,48,48,10,8,40,32")
        (maps / "many").mkdir(exist_ok=True)
        np.save(maps / f"many/{index:03d}.jpg.npy", values)
    (birds / "annotations.csv").write_text("\n".join(rows) + "\n")


def test_maps_that_change_between_shards_are_noticed(run, birds: Path, maps: Path) -> None:
    """Whichever map changes, also with its size and its times kept, the shards are of two runs."""
    large(birds, maps)
    assert score(run, birds, maps, "--shard", "1/2", "--out", "shards").code == 0
    for index in (1, 2, 5):
        path = maps / f"many/{index:03d}.jpg.npy"
        times = path.stat()
        np.save(path, np.eye(24, dtype=np.float32))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = score(run, birds, maps, "--shard", "2/2", "--out", "shards")
    merged = run("merge", "shards", "--out", "merged")
    assert merged.code == 2
    assert "source" in second.err + merged.err
    assert not list(Path("merged").rglob("*.json"))
    assert score(run, birds, maps, "--out", "fresh").code == 0
    assert metric(the_record(Path("fresh")), "gt_known")["value"] == pytest.approx(197 / 200)


def test_maps_that_change_while_they_are_scored_are_noticed(
    run, birds: Path, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsolbench.maps.folder_source import FolderSource

    identity = FolderSource.identity

    def and_change(self: FolderSource, ids):
        digest = identity(self, ids)
        np.save(maps / "test/07.png.npy", np.eye(24, dtype=np.float32))
        return digest

    monkeypatch.setattr(FolderSource, "identity", and_change)
    result = score(run, birds, maps)
    assert result.code == 2
    assert "07.png.npy has changed while the maps were being scored" in result.err
    assert not list(Path("results/measured").glob("birds/*.json"))


def test_a_map_of_two_images_is_refused_also_when_one_of_them_is_not_scored(
    run, birds: Path, maps: Path
) -> None:
    rows = (birds / "annotations.csv").read_text()
    (birds / "annotations.csv").write_text(rows + "test/08.jpg,0,test,48,48,1,1,9,9,test/08.png\n")
    Image.new("RGB", (48, 48)).save(birds / "images/test/08.jpg")
    (maps / "test/08.png.npy").rename(maps / "test/08.npy")
    for more in ((), ("--limit", "2"), ("--allow-partial",)):
        result = score(run, birds, maps, *more)
        assert result.code == 2
        assert "08.npy would be the map of two images, 'test/08.png' and 'test/08.jpg'" in result.err


@pytest.mark.parametrize("sizes", [True, False])
def test_a_partial_score_is_of_the_images_that_have_all_they_need(
    run, birds: Path, maps: Path, sizes: bool
) -> None:
    if not sizes:
        rows = [line.split(",") for line in (birds / "annotations.csv").read_text().splitlines()]
        (birds / "annotations.csv").write_text(
            "\n".join(",".join([*row[:3], *row[5:9]]) for row in rows) + "\n"
        )
    (maps / "test/03.png.npy").unlink()
    (birds / "images/test/05.png").unlink()
    refused = score(run, birds, maps)
    assert refused.code == 2
    allowed = score(run, birds, maps, "--allow-partial")
    assert allowed.code == 0, allowed.err
    data = the_record()["dataset"]
    assert data["without_map"] == 1
    assert data.get("without_file") == (None if sizes else 1)  # with its size an image is not needed
    assert data["images"] == (8 if sizes else 7)
    assert "test/03.png" in allowed.err


def test_predictions_with_another_separator_and_encoding_are_read(run, birds: Path, maps: Path) -> None:
    rows = "\r\n".join(
        ["image;rank1", *(f"{image_id};{index % 3}" for index, image_id in enumerate(IDS)), "", ""]
    )
    Path("labels.csv").write_bytes(rows.encode("utf-16"))
    assert score(run, birds, maps, "--predictions", "labels.csv").code == 0
    assert metric(the_record(), "top1_cls")["value"] == 1.0


def test_predictions_may_name_the_images_as_maps_may(run, birds: Path, maps: Path, tmp_path: Path) -> None:
    rows = [f"./{image_id.removesuffix('.png')},{index % 3}" for index, image_id in enumerate(IDS)]
    (tmp_path / "labels.csv").write_text("Image,Rank1\n" + "\n".join(rows) + "\n")
    result = score(run, birds, maps, "--predictions", tmp_path / "labels.csv")
    assert result.code == 0, result.err
    assert metric(the_record(), "top1_loc")["value"] == 1.0


@pytest.mark.parametrize("name", ["labels.csv", "maps/predictions.csv"])
def test_a_named_file_of_predictions_without_any_is_refused(
    run, birds: Path, maps: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("image,rank1\n")
    result = score(run, birds, maps, "--predictions", tmp_path / name)
    assert result.code == 2
    assert "has a header and no predictions" in result.err


@pytest.mark.parametrize("name", ["", " "])
def test_a_name_without_letters_is_refused(run, birds: Path, maps: Path, name: str) -> None:
    result = score(run, birds, maps, "--name", name)
    assert result.code == 2
    assert f"--name is {name!r}" in result.err


def test_maps_of_another_data_set_are_refused(run, birds: Path, maps: Path) -> None:
    (maps / "maps.json").write_text('{"dataset": "cub"}')
    result = score(run, birds, maps)
    assert result.code == 2
    assert "were made on data set 'cub', but 'birds' is scored" in result.err


def test_a_folder_without_any_map_of_the_images_says_what_it_holds(run, birds: Path, maps: Path) -> None:
    for path in maps.rglob("*.npy"):
        path.rename(maps / path.name)
    (maps / "test").rmdir()
    result = score(run, birds, maps)
    assert result.code == 2
    assert "found 00.png.npy, 01.png.npy and more; expected test/00.png.npy and so on" in result.err
    for path in maps.rglob("*.npy"):
        path.unlink()
    assert "found no files; expected test/00.png.npy" in score(run, birds, maps).err


def test_maps_that_are_all_constant_are_noted(run, birds: Path, maps: Path) -> None:
    assert "are constant" not in score(run, birds, maps).err
    for image_id in IDS[:4]:
        np.save(maps / f"{image_id}.npy", np.full((24, 24), 3.0))
    result = score(run, birds, maps)
    assert result.code == 0, result.err
    assert "note: 4 of 9 maps are constant, or have no box on the object at any threshold" in result.err


def test_maps_that_lie_on_their_side_are_noted(run, birds: Path, maps: Path) -> None:
    annotations = birds / "annotations.csv"
    for name in IDS:
        for folder in ("images", "masks"):
            file = birds / folder / name
            Image.open(file).resize((96, 48), Image.Resampling.NEAREST).save(file)
        np.save(maps / f"{name}.npy", np.random.default_rng(0).random((12, 24)))
    annotations.write_text(annotations.read_text().replace(",48,48,", ",96,48,"))
    assert "are tall for wide images" not in score(run, birds, maps).err
    for name in IDS:
        np.save(maps / f"{name}.npy", np.load(maps / f"{name}.npy").T)
    result = score(run, birds, maps)
    assert result.code == 0, result.err
    assert "are tall for wide images, and wide for tall ones" in result.err
    assert "(24, 12) for 96 x 48 pixels" in result.err
    assert "expected is (height, width)" in result.err


def test_predictions_of_other_names_are_shown(run, birds: Path, maps: Path) -> None:
    (maps / "predictions.csv").write_text("image,rank1\n" + "".join(f"{index:02d},0\n" for index in range(9)))
    result = score(run, birds, maps)
    assert result.code == 2
    assert "lack 9 of 9 images, the first 'test/00.png', and name '00', for instance" in result.err
