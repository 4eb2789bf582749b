"""toybirds: generated birds whose classes differ only in small parts, rendered on first use."""

from wsolbench.datasets.toybirds.dataset import describe, make_loader
from wsolbench.datasets.toybirds.versions import V1

INFO = describe(V1)
load = make_loader(V1)
