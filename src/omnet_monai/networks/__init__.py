"""Networks of OM-Net, in MONAI's grammar."""

from omnet_monai.networks.blocks import (
    CategoryChannelImportance,
    ComplementarySegmentation,
    CrossTaskGuidedAttention,
    FusionResidualBlock,
    in_attention,
)
from omnet_monai.networks.cascade import ModelCascade
from omnet_monai.networks.folding import folded
from omnet_monai.networks.nets import FusionNet, OMNet, TaskHead

__all__ = [
    "CategoryChannelImportance",
    "ComplementarySegmentation",
    "CrossTaskGuidedAttention",
    "FusionNet",
    "FusionResidualBlock",
    "ModelCascade",
    "OMNet",
    "TaskHead",
    "folded",
    "in_attention",
]
