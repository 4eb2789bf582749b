"""The page on Grad-CAM runs from its first block to its last, on a small data set in CUB's layout."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from tests.datasets.layouts import write_cub
from wsolbench import read_record

PAGE = Path(__file__).parents[2] / "docs/grad_cam.md"


class SmallNet(nn.Module):
    """Stands for the ResNet-50 of the page: it has a `layer4` of several blocks, and few parameters."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 7, stride=16), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.layer4(self.stem(images)).relu().mean(dim=(2, 3)))
        return scores


def test_the_page_runs_from_data_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WSOLBENCH_CUB_ROOT", str(write_cub(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet50", SmallNet)
    torch.manual_seed(0)
    torch.save(SmallNet(2).state_dict(), "resnet50_cub.pt")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    for number, code in enumerate(blocks):
        exec(compile(code, f"grad_cam.md block {number}", "exec"), names)
    # What was printed, drawn and written.
    printed = capsys.readouterr().out
    assert printed.startswith(
        "2 images, 2 classes\ngrad-cam-resnet50 (SmallNet) on cub test: 2 images, protocol wsoleval"
    )
    assert "contrast on cub test: 2 images" in printed
    assert np.asarray(Image.open("grad_cam.png")).shape == (240, 320, 3)  # 40 x 30 pixels, repeated
    found = [read_record(path).method["name"] for path in Path("results/measured").rglob("*.json")]
    assert sorted(found) == ["cam-resnet50", "grad-cam-resnet50", "resnet50+grad-cam"]
