"""Recipes of methods on vision transformers: the values of the released programs."""

from __future__ import annotations

import pytest

from reference_models.core.token_recipes import TOKEN_RECIPES
from wsolbench.methods import load_method

RECIPES = """
ts_cam_cub          60  128  5e-5    0.05  0.1
ts_cam_ilsvrc       20  256  5e-4    0.05  0.1
sat_cub             30  256  1e-4    0.05  0.1
sat_ilsvrc           1  512  1.5e-5  0.05  0.1
scm_cub             30  256  5e-5    0.05  0.1
scm_ilsvrc          20  512  1e-6    0.05  0.1
trt_cub             50  128  5e-5    0.05  0.1
trt_ilsvrc          24  512  5e-4    0.05  0.1
catr_cub            80  512  5e-5    0.05  0.1
catr_ilsvrc         14  512  5e-4    0.05  0.1
trilite_cub         50  128  5e-5    0.01  0
trilite_ilsvrc      20  256  5e-6    0.01  0
trilite_openimages  20   32  1e-5    0.01  0
"""
ROWS = [row.split() for row in RECIPES.strip().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_epochs_batch_rate_decay_and_skipped_blocks(row):
    recipe = TOKEN_RECIPES[row[0]]
    found = (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay, recipe.drop_path)
    assert found == tuple(map(float, row[1:]))
    assert (recipe.optimizer, recipe.momentum, recipe.new_factor, recipe.bias_factor) == ("adamw", 0.9, 1, 1)
    assert recipe.decay_vectors == row[0].startswith("trilite")
    assert round(448 * recipe.resize) == (480 if row[0] == "trilite_openimages" else 512)


def test_every_recipe_belongs_to_a_method():
    methods = ("catr", "scm", "sat", "trilite", "trt", "ts-cam")
    offered = {name for method in methods for name in load_method(method).recipes}
    assert offered == set(TOKEN_RECIPES) == {row[0] for row in ROWS}
