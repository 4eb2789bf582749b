"""toybirds: generated birds whose classes differ only in small parts, rendered on first use."""

from wsolbench.datasets.toybirds.dataset import INFO as INFO
from wsolbench.datasets.toybirds.dataset import load as load
