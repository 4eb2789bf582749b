"""Training recipes of methods on vision transformers.

All of them are AdamW with one rate for all layers, and crops of 224 of 256 pixels, mirrored at random. The
five that fine-tune a DeiT also share weight decay 0.05 for matrices and kernels only, and blocks that are
skipped with a probability of up to 0.1.

Departures from the sources
    best epoch  Every source picks the epoch by the boxes of the images that it reports (TriLite: of `val`).
                Here the last epoch counts.
    epochs      TriLite stops early by boxes, within 200 epochs (CUB) or 100. Its lengths here are this
                project's. SAT's script for ILSVRC sets 5 epochs, but ends its loop after the first one.
    decay       SAT's wrapper for several GPUs hides the list of parameters without decay, so its class token,
                location token and positions do decay. Over its 720 steps on CUB that is less than 0.4 %.
    schedule    SAT computes a cosine schedule and never applies it: `--set recipe.schedule=cosine` does.
                TS-CAM, SCM and TRT drop the rate before each epoch whose number, from 1, one of their
                steps divides: also before the last one. SCM's file for ILSVRC has the steps 10 and 12; those
                of TS-CAM, whose third is the last epoch, are used. TRT has two stages, whose epochs are
                counted apart; its milestones are fractions of a stage.
                CATR's cosine ends at a rate of 1e-5 and starts at 1e-6; here it goes from and to 0.
    views       CATR draws crops of 8 to 100 % of the area, and adds RandAugment, jitter of colours, random
                erasing, and three views of a third of the images in each epoch. TRT on ILSVRC draws crops of
                80 to 100 % of the area, and adds RandAugment, jitter of colours and random erasing.
    batch       SCM's file for CUB has 256 images a step, as its README says, and 16 in another version. CATR
                has 128 on each of four GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from reference_models.core.recipes import Recipe

_TS_CAM = Recipe(
    source="vasgaowei/TS-CAM, CUB script",
    epochs=60,
    batch_size=128,
    lr=5e-5,
    optimizer="adamw",
    weight_decay=0.05,
    decay_vectors=False,
    drop_path=0.1,
    milestones=(30 / 60, 60 / 60),
    first_epoch=1,
    bias_factor=1.0,
)

_SAT = replace(
    _TS_CAM,
    source="wpy1999/SAT, train.py",
    epochs=30,
    batch_size=256,
    lr=1e-4,
    schedule="constant",
    milestones=(),
    first_epoch=0,
)

_CATR = replace(
    _TS_CAM,
    source="zhiweichen0012/CATR, CUB script: 128 images on each of four GPUs",
    epochs=80,
    batch_size=512,
    schedule="cosine",
    milestones=(),
    first_epoch=0,
    warmup=5 / 80,
)

_TRILITE = Recipe(
    source="ariansabaghi/TriLite, CUB configuration; 50 epochs chosen here",
    epochs=50,
    batch_size=128,
    lr=5e-5,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="constant",
    bias_factor=1.0,
)

TOKEN_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "ts_cam_cub": _TS_CAM,
        "ts_cam_ilsvrc": replace(
            _TS_CAM,
            source="vasgaowei/TS-CAM, ILSVRC script",
            epochs=20,
            batch_size=256,
            lr=5e-4,
            milestones=(10 / 20, 12 / 20, 20 / 20),
        ),
        "sat_cub": _SAT,
        "sat_ilsvrc": replace(
            _SAT, source="wpy1999/SAT, train_ImageNet.py (one epoch)", epochs=1, batch_size=512, lr=1.5e-5
        ),
        "trilite_cub": _TRILITE,
        "trilite_ilsvrc": replace(
            _TRILITE,
            source="ariansabaghi/TriLite, ILSVRC configuration; 20 epochs chosen here",
            epochs=20,
            batch_size=256,
            lr=5e-6,
        ),
        "trilite_openimages": replace(
            _TRILITE,
            source="ariansabaghi/TriLite, OpenImages configuration; 20 epochs chosen here",
            epochs=20,
            batch_size=32,
            lr=1e-5,
            resize=480 / 448,
        ),
        "scm_cub": replace(
            _TS_CAM,
            source="hbai98/SCM, CUB configuration",
            epochs=30,
            batch_size=256,
            milestones=(30 / 30,),
        ),
        "scm_ilsvrc": replace(
            _TS_CAM,
            source="hbai98/SCM, ILSVRC script; the falls of the rate are TS-CAM's",
            epochs=20,
            batch_size=512,
            lr=1e-6,
            milestones=(10 / 20, 12 / 20, 20 / 20),
        ),
        "catr_cub": _CATR,
        "catr_ilsvrc": replace(
            _CATR,
            source="zhiweichen0012/CATR, ILSVRC script: 128 images on each of four GPUs",
            epochs=14,
            lr=5e-4,
            warmup=5 / 14,
        ),
        "trt_cub": replace(
            _TS_CAM,
            source="su-hui-zz/ReAttentionTransformer, CUB configurations: 30 and 20 epochs",
            epochs=30 + 20,
            milestones=(1 / 2, 2 / 2),
        ),
        "trt_ilsvrc": replace(
            _TS_CAM,
            source="su-hui-zz/ReAttentionTransformer, ILSVRC configurations: 12 and 12 epochs",
            epochs=12 + 12,
            batch_size=512,
            lr=5e-4,
            milestones=tuple(epoch / 12 for epoch in range(2, 13, 2)),
            gamma=0.4,
        ),
    }
)
"""Recipes by name. Each method offers its own ones."""
