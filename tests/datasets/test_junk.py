"""Files that tools leave in data folders change nothing. Folders that are not classes are ignored and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets.layouts import WNIDS, write_cub, write_ilsvrc_official, write_image
from tests.system.test_listing import LEFT_BY_TOOLS
from wsolbench.datasets import load_dataset
from wsolbench.exceptions import DataError, UsageError


def litter(folder: Path, name: str, content: bytes = b"\0\5\x16\7") -> None:
    """Write a file of a tool, or a folder if the name has no suffix."""
    if "." in name[1:] or name.endswith("~"):
        (folder / name).write_bytes(content)
    else:
        (folder / name).mkdir()
        write_image(folder / name / "a.JPEG", (8, 8))


@pytest.mark.parametrize("name", LEFT_BY_TOOLS)
@pytest.mark.parametrize("kaggle", [True, False])
def test_ilsvrc_has_the_same_images_and_labels_with_junk_in_every_folder(
    name: str, kaggle: bool, tmp_path: Path
) -> None:
    write_ilsvrc_official(tmp_path, kaggle=kaggle)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink()  # classes are named by the folders
    before = [load_dataset("ilsvrc", split, tmp_path) for split in ("train", "test")]
    home = tmp_path / "ILSVRC" if kaggle else tmp_path
    images = home / "Data/CLS-LOC" if kaggle else home
    for folder in (
        images / "train",
        images / "train" / WNIDS[1],
        images / "val",
        home / "Annotations" / ("CLS-LOC/val" if kaggle else "val"),
    ):
        litter(folder, name)
    after = [load_dataset("ilsvrc", split, tmp_path) for split in ("train", "test")]
    assert [dataset.fingerprint for dataset in after] == [dataset.fingerprint for dataset in before]
    assert all(dataset.findings == () for dataset in after)


def test_a_folder_that_is_named_after_no_class_is_left_out_and_named(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    write_image(tmp_path / "train" / "a copy" / "x.JPEG", (8, 8))
    for _ in ("listed", "foldered"):
        train = load_dataset("ilsvrc", "train", tmp_path)
        assert [sample.label for sample in train.samples] == [0, 1, 2]
        (finding,) = train.findings
        assert (finding.count, finding.example, finding.severity) == (1, "a copy", "warning")
        (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink(missing_ok=True)


def test_a_folder_of_another_wordnet_id_contradicts_the_list_of_classes(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    write_image(tmp_path / "train" / "n00000001" / "x.JPEG", (8, 8))
    with pytest.raises(
        DataError, match="n00000001: unknown class; expected a folder named after one of the 3 classes"
    ):
        load_dataset("ilsvrc", "train", tmp_path)


def test_a_class_without_an_image_is_a_warning_and_keeps_its_label(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    (tmp_path / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG").unlink()
    train = load_dataset("ilsvrc", "train", tmp_path)
    assert [sample.label for sample in train.samples] == [1, 2]
    (finding,) = train.findings
    assert (finding.what, finding.example, finding.severity) == (
        "classes without an image in train/",
        WNIDS[0],
        "warning",
    )


def test_a_root_with_nothing_but_junk_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(UsageError, match="is empty"):
        load_dataset("cub", "test", tmp_path)


def test_a_list_of_classes_with_a_repeated_id_would_shift_labels_and_is_refused(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=True)
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} name\n" for wnid in (*WNIDS, WNIDS[0])))
    with pytest.raises(
        DataError, match=rf"LOC_synset_mapping.txt: expected every WordNet id once.*{WNIDS[0]}' again"
    ):
        load_dataset("ilsvrc", "test", tmp_path)


def test_junk_beside_the_folders_of_cub_changes_nothing(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    before = load_dataset("cub", "test", tmp_path)
    for folder in (tmp_path, home, home / "images", home / "images" / "001.Auk"):
        litter(folder, "._a.jpg")
        litter(folder, "@eaDir")
    assert load_dataset("cub", "test", tmp_path).fingerprint == before.fingerprint
