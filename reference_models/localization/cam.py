"""CAM: apply the weights of the linear classifier at every pixel.

B. Zhou, A. Khosla, A. Lapedriza, A. Oliva, A. Torralba, "Learning deep features for discriminative
localization", CVPR 2016. The convolutional form is that of X. Zhang, Y. Wei, J. Feng, Y. Yang, T. Huang,
"Adversarial complementary learning for weakly supervised object localization", CVPR 2018.

Idea. A linear layer on globally averaged features scores a class by the average of a linear score over the
pixels. Those pixel scores are the class map: they are the evidence for the class at each position.

    paper      name                                    shape
    f_k(x,y)   penultimate                             (B, D, h, w)
    w_k^c      head.classifier.weight                  (C, D)
    S_c        logits                                  (B, C)
    M_c        maps_of(class_ids)                      (B, K, h, w)
    b_c        head.classifier.bias                    (C,)

    M_c(x, y) = sum_k w_k^c f_k(x, y)
    S_c = b_c + mean over the pixels of M_c(x, y)

These are the equations of the head `fc`.

Heads (`--set head=...`; equations in `layers/heads.py`)

    conv       Two 3x3 convolutions of 1024 channels with ReLU, a 1x1 convolution to the classes, mean. M_c is
               a channel of the last layer, bias included. The head of ACoL and SPA; with `dropout=0.5` that
               of SPG, I2C and SEM.
    conv1x1    The 1x1 convolution alone.
    fc         The paper's: mean, linear layer. M_c = sum_k w_k^c f_k, without the bias. On VGG a 3x3
               convolution of 1024 channels comes first.

Departures from the paper. Means instead of sums over the pixels (a constant factor). The classifier has a
bias.

Departures from released code. wsolevaluation divides M_c by the number of channels, which has no effect after
normalisation. SPA's evaluation sets negative scores to 0 before it normalises, wsolevaluation does not. The
evaluation protocol decides (`relu`); the map here is raw and signed.
"""

from __future__ import annotations

from reference_models.base.head_localizer import HeadLocalizer

PAPER = "cam"
GROUP = "class activation"


class Cam(HeadLocalizer):
    """See the module. The forward pass and the loss are those of `head_localizer.py`."""

    method_name = "cam"
