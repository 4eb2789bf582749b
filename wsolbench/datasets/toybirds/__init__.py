"""toybirds: generated birds that differ in small parts only, rendered on first use."""

from wsolbench.datasets.toybirds.dataset import INFO as INFO
from wsolbench.datasets.toybirds.dataset import load as load
