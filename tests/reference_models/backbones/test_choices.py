"""What each method chooses on each backbone: recipes, variants of the network, sizes, and where it cuts.

The tables are literal, so that a change of a backbone's file or of a method shows here.
"""

from __future__ import annotations

import pytest
import torch

from reference_models.core.backbone import load_backbone, read_profile
from wsolbench.methods import list_methods, load_method

CHOICES = """
method            backbone            recipe             ILSVRC       grid    side
acol              vgg16               acol_cub           acol_ilsvrc  acol28  -
acol              resnet50            acol_cub           acol_ilsvrc  std28   -
acol              inception_v3        acol_cub           acol_ilsvrc  std28   -
acol              efficientnet_lite0  finetune           finetune     std14   -
acol              tiny                tiny               tiny         std16   -
acol              timm:resnet10t      finetune           finetune     std14   -
adl               vgg16               spa_cub            spa_ilsvrc   std14   -
adl               resnet50            spa_cub            spa_ilsvrc   std28   -
adl               inception_v3        spa_cub            spa_ilsvrc   std28   -
adl               efficientnet_lite0  finetune           finetune     std14   -
adl               tiny                tiny               tiny         std16   -
adl               timm:resnet10t      finetune           finetune     std14   -
b-cnn             vgg16               bcnn               spa_ilsvrc   std14   448
b-cnn             resnet50            bcnn               spa_ilsvrc   stock   448
b-cnn             inception_v3        spa_cub            spa_ilsvrc   std28   -
b-cnn             efficientnet_lite0  finetune           finetune     stock   -
b-cnn             tiny                tiny               tiny         std16   -
b-cnn             timm:resnet10t      finetune           finetune     stock   -
backprop          vgg16               spa_cub            spa_ilsvrc   std14   -
backprop          resnet50            spa_cub            spa_ilsvrc   std28   -
backprop          inception_v3        spa_cub            spa_ilsvrc   std28   -
backprop          efficientnet_lite0  finetune           finetune     std14   -
backprop          tiny                tiny               tiny         std16   -
backprop          timm:resnet10t      finetune           finetune     std14   -
bas               vgg16               bas_cub            bas_ilsvrc   std14   -
bas               resnet50            bas_cub            bas_ilsvrc   std28   -
bas               inception_v3        bas_cub            bas_ilsvrc   std28   -
bas               efficientnet_lite0  finetune           finetune     std14   -
bas               tiny                tiny               tiny         std16   -
bas               timm:resnet10t      finetune           finetune     std14   -
baseline          vgg16               spa_cub            spa_ilsvrc   std14   -
baseline          resnet50            lio_upright        lio_upright  stock   448
baseline          inception_v3        spa_cub            spa_ilsvrc   std28   -
baseline          efficientnet_lite0  finetune           finetune     stock   -
baseline          tiny                tiny               tiny         std16   -
baseline          timm:resnet10t      finetune           finetune     stock   -
boost-cnn         vgg16               bcnn               spa_ilsvrc   std14   448
boost-cnn         resnet50            bcnn               spa_ilsvrc   stock   448
boost-cnn         inception_v3        spa_cub            spa_ilsvrc   std28   -
boost-cnn         efficientnet_lite0  finetune           finetune     stock   -
boost-cnn         tiny                tiny               tiny         std16   -
boost-cnn         timm:resnet10t      finetune           finetune     stock   -
c2am              vgg16               c2am_cub           c2am_ilsvrc  std14   -
c2am              resnet50            c2am_cub           c2am_ilsvrc  std14   -
c2am              inception_v3        c2am_cub           c2am_ilsvrc  std14   -
c2am              efficientnet_lite0  finetune           finetune     std14   -
c2am              tiny                tiny               tiny         std16   -
c2am              timm:resnet10t      finetune           finetune     std14   -
caam              vgg16               spa_cub            spa_ilsvrc   std14   -
caam              resnet50            caam_cub_resnet50  spa_ilsvrc   std14   -
caam              inception_v3        spa_cub            spa_ilsvrc   std14   -
caam              efficientnet_lite0  finetune           finetune     std14   -
caam              tiny                tiny               tiny         std16   -
caam              timm:resnet10t      finetune           finetune     std14   -
cam               vgg16               spa_cub            spa_ilsvrc   std14   -
cam               resnet50            spa_cub            spa_ilsvrc   std28   -
cam               inception_v3        spa_cub            spa_ilsvrc   std28   -
cam               efficientnet_lite0  finetune           finetune     std14   -
cam               tiny                tiny               tiny         std16   -
cam               timm:resnet10t      finetune           finetune     std14   -
coseq             vgg16               coseq              spa_ilsvrc   std14   448
coseq             resnet50            coseq              spa_ilsvrc   stock   448
coseq             inception_v3        spa_cub            spa_ilsvrc   std28   -
coseq             efficientnet_lite0  finetune           finetune     stock   -
coseq             tiny                tiny               tiny         std16   -
coseq             timm:resnet10t      finetune           finetune     stock   -
cutmix            vgg16               spa_cub            spa_ilsvrc   std14   -
cutmix            resnet50            spa_cub            spa_ilsvrc   std28   -
cutmix            inception_v3        spa_cub            spa_ilsvrc   std28   -
cutmix            efficientnet_lite0  finetune           finetune     std14   -
cutmix            tiny                tiny               tiny         std16   -
cutmix            timm:resnet10t      finetune           finetune     std14   -
da-wsol           vgg16               da_wsol_cub        da_wsol_ilsvrc  std14   -
da-wsol           resnet50            da_wsol_cub        da_wsol_ilsvrc  std28   -
da-wsol           inception_v3        da_wsol_cub_inception  da_wsol_ilsvrc_inception  std28   -
da-wsol           efficientnet_lite0  finetune           finetune     std14   -
da-wsol           tiny                tiny               tiny         std16   -
da-wsol           timm:resnet10t      finetune           finetune     std14   -
danet             vgg16               spa_cub            spa_ilsvrc   std14   -
danet             resnet50            spa_cub            spa_ilsvrc   std28   -
danet             inception_v3        spa_cub            spa_ilsvrc   padded  -
danet             efficientnet_lite0  finetune           finetune     std14   -
danet             tiny                tiny               tiny         std16   -
danet             timm:resnet10t      finetune           finetune     std14   -
dcl               vgg16               spa_cub            spa_ilsvrc   std14   -
dcl               resnet50            dcl                dcl          stock   448
dcl               inception_v3        spa_cub            spa_ilsvrc   std28   -
dcl               efficientnet_lite0  finetune           finetune     stock   -
dcl               tiny                tiny               tiny         std16   -
dcl               timm:resnet10t      finetune           finetune     stock   -
dfl-cnn           vgg16               dfl                spa_ilsvrc   std14   448
dfl-cnn           resnet50            dfl                spa_ilsvrc   stock   448
dfl-cnn           inception_v3        spa_cub            spa_ilsvrc   std28   -
dfl-cnn           efficientnet_lite0  finetune           finetune     stock   -
dfl-cnn           tiny                tiny               tiny         std16   -
dfl-cnn           timm:resnet10t      finetune           finetune     stock   -
ddt               vgg16               spa_cub            spa_ilsvrc   std14   448
ddt               resnet50            spa_cub            spa_ilsvrc   stock   448
ddt               inception_v3        spa_cub            spa_ilsvrc   std28   -
ddt               efficientnet_lite0  finetune           finetune     stock   -
ddt               tiny                tiny               tiny         std16   -
ddt               timm:resnet10t      finetune           finetune     stock   -
deep-kspd         vgg16               bcnn               spa_ilsvrc   std14   448
deep-kspd         resnet50            bcnn               spa_ilsvrc   stock   448
deep-kspd         inception_v3        spa_cub            spa_ilsvrc   std28   -
deep-kspd         efficientnet_lite0  finetune           finetune     stock   -
deep-kspd         tiny                tiny               tiny         std16   -
deep-kspd         timm:resnet10t      finetune           finetune     stock   -
eil               vgg16               eil                spa_ilsvrc   std14   -
eil               resnet50            eil                spa_ilsvrc   std28   -
eil               inception_v3        eil                spa_ilsvrc   std28   -
eil               efficientnet_lite0  finetune           finetune     std14   -
eil               tiny                tiny               tiny         std16   -
eil               timm:resnet10t      finetune           finetune     std14   -
f-cam             vgg16               spa_cub            spa_ilsvrc   std14   -
f-cam             resnet50            f_cam_cub          spa_ilsvrc   std28   -
f-cam             inception_v3        spa_cub            spa_ilsvrc   std28   -
f-cam             efficientnet_lite0  finetune           finetune     std14   -
f-cam             tiny                tiny               tiny         std16   -
f-cam             timm:resnet10t      finetune           finetune     std14   -
fcan              vgg16               spa_cub            spa_ilsvrc   std14   -
fcan              resnet50            fcan               fcan         stock   448
fcan              inception_v3        spa_cub            spa_ilsvrc   std28   -
fcan              efficientnet_lite0  finetune           finetune     stock   -
fcan              tiny                tiny               tiny         std16   -
fcan              timm:resnet10t      finetune           finetune     stock   -
few-shot          vgg16               spa_cub            spa_ilsvrc   std14   -
few-shot          resnet50            spa_cub            spa_ilsvrc   std28   -
few-shot          inception_v3        spa_cub            spa_ilsvrc   std28   -
few-shot          efficientnet_lite0  finetune           finetune     std14   -
few-shot          tiny                tiny               tiny         std16   -
few-shot          timm:resnet10t      finetune           finetune     std14   -
focus-discriminate vgg16               spa_cub            spa_ilsvrc   std14   -
focus-discriminate resnet50            fnd                fnd          stock   448
focus-discriminate inception_v3        spa_cub            spa_ilsvrc   std28   -
focus-discriminate efficientnet_lite0  finetune           finetune     stock   -
focus-discriminate tiny                tiny               tiny         std16   -
focus-discriminate timm:resnet10t      finetune           finetune     stock   -
gc-net            vgg16               gc_net             gc_net       std14   -
gc-net            resnet50            gc_net             gc_net       std28   -
gc-net            inception_v3        gc_net             gc_net       std28   -
gc-net            efficientnet_lite0  finetune           finetune     std14   -
gc-net            tiny                tiny               tiny         std16   -
gc-net            timm:resnet10t      finetune           finetune     std14   -
has               vgg16               spa_cub            spa_ilsvrc   std14   -
has               resnet50            spa_cub            spa_ilsvrc   std28   -
has               inception_v3        spa_cub            spa_ilsvrc   std28   -
has               efficientnet_lite0  finetune           finetune     std14   -
has               tiny                tiny               tiny         std16   -
has               timm:resnet10t      finetune           finetune     std14   -
hbp               vgg16               hbp                spa_ilsvrc   std14   448
hbp               resnet50            hbp                spa_ilsvrc   stock   448
hbp               inception_v3        spa_cub            spa_ilsvrc   std28   -
hbp               efficientnet_lite0  finetune           finetune     stock   -
hbp               tiny                tiny               tiny         std16   -
hbp               timm:resnet10t      finetune           finetune     stock   -
hihca             vgg16               hihca              spa_ilsvrc   std14   448
hihca             resnet50            hihca              spa_ilsvrc   stock   448
hihca             inception_v3        spa_cub            spa_ilsvrc   std28   -
hihca             efficientnet_lite0  finetune           finetune     stock   -
hihca             tiny                tiny               tiny         std16   -
hihca             timm:resnet10t      finetune           finetune     stock   -
hsnet             vgg16               spa_cub            spa_ilsvrc   std14   -
hsnet             resnet50            hsnet              hsnet        stock   448
hsnet             inception_v3        spa_cub            spa_ilsvrc   std28   -
hsnet             efficientnet_lite0  finetune           finetune     stock   -
hsnet             tiny                tiny               tiny         std16   -
hsnet             timm:resnet10t      finetune           finetune     stock   -
i2c               vgg16               spa_cub            i2c_ilsvrc   acol28  -
i2c               resnet50            spa_cub            i2c_ilsvrc   std28   -
i2c               inception_v3        spa_cub            i2c_ilsvrc   std28   -
i2c               efficientnet_lite0  finetune           finetune     std14   -
i2c               tiny                tiny               tiny         std16   -
i2c               timm:resnet10t      finetune           finetune     std14   -
isqrt-cov         vgg16               isqrt              spa_ilsvrc   std14   448
isqrt-cov         resnet50            isqrt              spa_ilsvrc   std14   448
isqrt-cov         inception_v3        spa_cub            spa_ilsvrc   std14   -
isqrt-cov         efficientnet_lite0  finetune           finetune     std14   -
isqrt-cov         tiny                tiny               tiny         std16   -
isqrt-cov         timm:resnet10t      finetune           finetune     std14   -
kernel-pooling    vgg16               cbp                spa_ilsvrc   std14   448
kernel-pooling    resnet50            cbp                spa_ilsvrc   stock   448
kernel-pooling    inception_v3        spa_cub            spa_ilsvrc   std28   -
kernel-pooling    efficientnet_lite0  finetune           finetune     stock   -
kernel-pooling    tiny                tiny               tiny         std16   -
kernel-pooling    timm:resnet10t      finetune           finetune     stock   -
lio               vgg16               spa_cub            spa_ilsvrc   std14   -
lio               resnet50            lio                lio_ilsvrc   stock   448
lio               inception_v3        spa_cub            spa_ilsvrc   std28   -
lio               efficientnet_lite0  finetune           finetune     stock   -
lio               tiny                tiny               tiny         std16   -
lio               timm:resnet10t      finetune           finetune     stock   -
ma-cnn            vgg16               spa_cub            spa_ilsvrc   std14   -
ma-cnn            resnet50            macnn              macnn        stock   448
ma-cnn            inception_v3        spa_cub            spa_ilsvrc   std28   -
ma-cnn            efficientnet_lite0  finetune           finetune     stock   -
ma-cnn            tiny                tiny               tiny         std16   -
ma-cnn            timm:resnet10t      finetune           finetune     stock   -
mamc              vgg16               spa_cub            spa_ilsvrc   std14   -
mamc              resnet50            nts                nts          stock   448
mamc              inception_v3        spa_cub            spa_ilsvrc   std28   -
mamc              efficientnet_lite0  finetune           finetune     stock   -
mamc              tiny                tiny               tiny         std16   -
mamc              timm:resnet10t      finetune           finetune     stock   -
maxent            vgg16               spa_cub            spa_ilsvrc   std14   -
maxent            resnet50            lio_upright        lio_upright  stock   448
maxent            inception_v3        spa_cub            spa_ilsvrc   std28   -
maxent            efficientnet_lite0  finetune           finetune     stock   -
maxent            tiny                tiny               tiny         std16   -
maxent            timm:resnet10t      finetune           finetune     stock   -
nl-ccam           vgg16               nl_ccam_cub        spa_ilsvrc   std14   -
nl-ccam           resnet50            nl_ccam_cub        spa_ilsvrc   std28   -
nl-ccam           inception_v3        nl_ccam_cub        spa_ilsvrc   std28   -
nl-ccam           efficientnet_lite0  finetune           finetune     std14   -
nl-ccam           tiny                tiny               tiny         std16   -
nl-ccam           timm:resnet10t      finetune           finetune     std14   -
nts-net           vgg16               spa_cub            spa_ilsvrc   std14   -
nts-net           resnet50            nts                nts          stock   448
nts-net           inception_v3        spa_cub            spa_ilsvrc   std28   -
nts-net           efficientnet_lite0  finetune           finetune     stock   -
nts-net           tiny                tiny               tiny         std16   -
nts-net           timm:resnet10t      finetune           finetune     stock   -
opam              vgg16               spa_cub            spa_ilsvrc   std14   -
opam              resnet50            opam               opam         stock   448
opam              inception_v3        spa_cub            spa_ilsvrc   std28   -
opam              efficientnet_lite0  finetune           finetune     stock   -
opam              tiny                tiny               tiny         std16   -
opam              timm:resnet10t      finetune           finetune     stock   -
partnet           vgg16               spa_cub            spa_ilsvrc   std14   -
partnet           resnet50            partnet            partnet      stock   448
partnet           inception_v3        spa_cub            spa_ilsvrc   std28   -
partnet           efficientnet_lite0  finetune           finetune     stock   -
partnet           tiny                tiny               tiny         std16   -
partnet           timm:resnet10t      finetune           finetune     stock   -
psol              vgg16               psol_cub           psol_ilsvrc  std14   -
psol              resnet50            psol_cub           psol_ilsvrc  stock   -
psol              inception_v3        psol_cub           psol_ilsvrc  std28   -
psol              efficientnet_lite0  finetune           finetune     stock   -
psol              tiny                tiny               tiny         std16   -
psol              timm:resnet10t      finetune           finetune     stock   -
ra-cnn            vgg16               spa_cub            spa_ilsvrc   std14   -
ra-cnn            resnet50            racnn              racnn        stock   448
ra-cnn            inception_v3        spa_cub            spa_ilsvrc   std28   -
ra-cnn            efficientnet_lite0  finetune           finetune     stock   -
ra-cnn            tiny                tiny               tiny         std16   -
ra-cnn            timm:resnet10t      finetune           finetune     stock   -
spa               vgg16               spa_cub            spa_ilsvrc   std14   -
spa               resnet50            spa_cub            spa_ilsvrc   std28   -
spa               inception_v3        spa_cub            spa_ilsvrc   std28   -
spa               efficientnet_lite0  finetune           finetune     std14   -
spa               tiny                tiny               tiny         std16   -
spa               timm:resnet10t      finetune           finetune     std14   -
spg               vgg16               spa_cub            spg_ilsvrc   std14   -
spg               resnet50            spa_cub            spg_ilsvrc   std28   -
spg               inception_v3        spa_cub            spg_ilsvrc   std28   -
spg               efficientnet_lite0  finetune           finetune     std14   -
spg               tiny                tiny               tiny         std16   -
spg               timm:resnet10t      finetune           finetune     std14   -
ssanet            vgg16               spa_cub            spa_ilsvrc   std14   -
ssanet            resnet50            ssanet_cub         ssanet_cub   stock   448
ssanet            inception_v3        spa_cub            spa_ilsvrc   std28   -
ssanet            efficientnet_lite0  finetune           finetune     stock   -
ssanet            tiny                tiny               tiny         std16   -
ssanet            timm:resnet10t      finetune           finetune     stock   -
tasn              vgg16               spa_cub            spa_ilsvrc   std14   -
tasn              resnet50            tasn               tasn         stock   448
tasn              inception_v3        spa_cub            spa_ilsvrc   std28   -
tasn              efficientnet_lite0  finetune           finetune     stock   -
tasn              tiny                tiny               tiny         std16   -
tasn              timm:resnet10t      finetune           finetune     stock   -
"""
"""Recipe and side for 20 classes, recipe for 1000 classes, variant of the backbone; - is the backbone's side."""

PLACES = """
adl     efficientnet_lite0  default   blocks4_2 blocks6_0 head
adl     inception_v3        default   Mixed_5d Mixed_6e head.trunk
adl     resnet50            default   layer3_0 layer4_0 layer4_2
adl     tiny                default   stage1 stage2 stage3
adl     vgg16               default   pool3 relu4_3 relu5_3
adl     vgg16               official  pool3 pool4 relu5_3
danet   efficientnet_lite0  default   blocks4_2 blocks6_0 head
danet   inception_v3        default   pool2 Mixed_5d Mixed_6e
danet   resnet50            default   layer2_3 layer3_5 layer4_2
danet   timm:resnet10t      default   stage3 stage4 stage5
danet   tiny                default   stage1 stage2 stage3
danet   vgg16               default   pool3 pool4 relu5_3
eil     efficientnet_lite0  default   blocks6_0
eil     inception_v3        default   Mixed_6a
eil     resnet50            default   layer3_5
eil     tiny                default   stage2
eil     vgg16               default   pool4
nl-ccam efficientnet_lite0  default   blocks4_2 blocks6_0 head
nl-ccam inception_v3        default   pool2 Mixed_5d Mixed_6e
nl-ccam resnet50            default   layer2_3 layer3_5 layer4_2
nl-ccam tiny                default   stage1 stage2 stage3
nl-ccam vgg16               default   pool2 pool3 pool4 relu5_3
spg     efficientnet_lite0  default   blocks6_0 head
spg     inception_v3        default   Mixed_5d Mixed_6d
spg     resnet50            default   layer3_0 layer3_5
spg     timm:resnet10t      default   stage4 stage5
spg     tiny                default   stage2 stage3
spg     vgg16               default   pool4 relu5_3
"""
"""Steps after which a method, in a variant, cuts its backbone or inserts a layer."""

OF_TOKENS = """
catr              timm:deit_small_patch16_224     catr_cub     catr_ilsvrc     tokens  -
scm               timm:deit_small_patch16_224     scm_cub      scm_ilsvrc      tokens  -
sat               timm:deit_small_patch16_224     sat_cub      sat_ilsvrc      tokens  -
trilite           timm:vit_small_patch14_dinov2   trilite_cub  trilite_ilsvrc  tokens  224
trt               timm:deit_base_patch16_224      trt_cub      trt_ilsvrc      tokens  -
ts-cam            timm:deit_small_patch16_224     ts_cam_cub   ts_cam_ilsvrc   tokens  -
"""
"""The same columns, of methods that need a vision transformer; their size is also that of ILSVRC."""

ROWS = [row.split() for row in [*CHOICES.split("\n")[2:-1], *OF_TOKENS.split("\n")[1:-1]]]
CUTS = [row.split() for row in PLACES.strip().split("\n")]


def test_the_table_has_every_method_with_a_backbone():
    ours = {row.name for row in list_methods() if row.module.startswith("reference_models.")}
    assert {row[0] for row in ROWS} == {
        name for name in ours if load_method(name).trainable and load_method(name).needs_backbone
    }


@pytest.mark.parametrize(("name", "backbone", "recipe", "ilsvrc", "grid", "side"), ROWS)
def test_recipe_grid_and_side_are_those_of_the_table(name, backbone, recipe, ilsvrc, grid, side):
    method = load_method(name)
    chosen = method.grid_for(backbone, method.Config())
    assert method.recipe_name(backbone, 20) == recipe
    assert method.recipe_name(backbone, 1000) == ilsvrc
    assert (read_profile(backbone).grids[0] if chosen == "default" else chosen) == grid
    assert str(method.default_size(backbone, 20) or "-") == side
    same = method.needs_tokens or name == "ddt"  # whose size is not that of fine-grained papers
    assert str(method.default_size(backbone, 1000) or "-") == (side if same else "-")
    assert method.grid_for(backbone, method.Config(grid="mine")) == "mine"


@pytest.mark.parametrize("row", CUTS, ids=lambda row: " ".join(row[:3]))
def test_cuts_are_those_of_the_table(row):
    name, backbone, variant, *steps = row
    method = load_method(name)
    settings = {} if variant == "default" else {"variant": variant}
    with torch.device("cpu" if name == "danet" else "meta"):  # its class tree reads numbers
        model = method.create(backbone=backbone, num_classes=20, weights="none", settings=settings)
    found = {
        "adl": lambda: model.places,
        "eil": lambda: model.inside,
        "spg": lambda: model.places,
        "danet": lambda: model.places,
        "nl-ccam": lambda: model.blocks,
    }[name]()
    assert list(found) == steps


def test_overlapping_pools_of_vgg_are_those_of_each_release():
    acol, spa = load_method("acol"), load_method("spa")
    assert acol.grid_for("vgg16", acol.Config()) == "acol28"
    assert acol.grid_for("vgg16", acol.Config(variant="clovaai")) == "acol14"
    assert spa.grid_for("vgg16", spa.Config()) == "default"
    assert spa.grid_for("vgg16", spa.Config(variant="paper")) == "acol28"


@pytest.mark.parametrize(
    ("backbone", "group", "step", "belongs"),
    [
        ("resnet50", "last-stage", "layer4_0", True),
        ("resnet50", "last-stage", "layer3_5", False),
        ("resnet50", "deep", "layer4_0", False),
        ("vgg16", "deep", "conv4_1", True),
        ("vgg16", "deep", "conv3_3", False),
        ("vgg16", "last-stage", "conv5_3", False),
        ("tiny", "last-stage", "stage3", False),
    ],
)
def test_steps_that_some_recipes_train_as_new(backbone, group, step, belongs):
    assert read_profile(backbone).in_group(f"backbone.steps.{step}.weight", group) is belongs
    assert not read_profile(backbone).in_group(f"head.{step}.weight", group)


@pytest.mark.parametrize(
    "backbone", ["vgg16", "resnet50", "inception_v3", *(f"efficientnet_lite{n}" for n in range(3)), "tiny"]
)
def test_a_step_with_a_role_has_the_channels_and_the_stride_that_the_role_states(backbone):
    network = load_backbone(backbone, weights="none").eval()
    found = {}
    with torch.no_grad():
        network.run(torch.zeros(1, 3, 64, 64), edit=found.setdefault)
    for steps in network.roles.values():
        for step in steps:
            assert found[step.name].shape[1] == step.channels
            # An unpadded convolution, as Inception's second one, loses two cells.
            assert abs(64 / step.stride - found[step.name].shape[-1]) <= 2
