"""toybirds-v2: the birds of toybirds in all sizes, near the border. No centred box finds many of them."""

from wsolbench.datasets.toybirds.dataset import describe, make_loader
from wsolbench.datasets.toybirds.versions import V2

INFO = describe(V2)
load = make_loader(V2)
