"""What a layer's `cache=` argument is: paged KV layers and the seam that leads mlx-lm's attention
to them.
"""

from mlxrt.attention.choice import AttentionChoice, ChosenPath, LayerCall, choose_path
from mlxrt.attention.gather import GatherPath
from mlxrt.attention.heads import HeadRules
from mlxrt.attention.layer import PagedLayer, StepBinding, WindowMask, bind_pools, pools_of
from mlxrt.attention.metadata import HostRows, StepMetadata
from mlxrt.attention.path import AttendCounts, AttentionPath
from mlxrt.attention.pool import LayerShape, allocate_pool
from mlxrt.attention.seam import AttendingCache, install_seam, uninstall_seam

__all__ = [
    "AttendCounts",
    "AttendingCache",
    "AttentionChoice",
    "AttentionPath",
    "ChosenPath",
    "GatherPath",
    "HeadRules",
    "HostRows",
    "LayerCall",
    "LayerShape",
    "PagedLayer",
    "StepBinding",
    "StepMetadata",
    "WindowMask",
    "allocate_pool",
    "bind_pools",
    "choose_path",
    "install_seam",
    "pools_of",
    "uninstall_seam",
]
