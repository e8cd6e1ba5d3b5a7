"""Building blocks of OM-Net: the residual block of its backbone and the two halves of cross-task guided attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from torch import nn

__all__ = [
    "CategoryChannelImportance",
    "ComplementarySegmentation",
    "CrossTaskGuidedAttention",
    "FusionResidualBlock",
    "in_attention",
]


class FusionResidualBlock(nn.Module):
    """
    Three 3x3x3 convolutions with a shortcut around them: ``relu(x + bn(conv(f(f(x)))))``, ``f = relu(bn(conv))``.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of input and output channels.
        norm: normalization type and arguments, in MONAI's grammar.
    """

    def __init__(self, spatial_dims: int, channels: int, norm: tuple | str = "batch") -> None:
        super().__init__()
        self.conv1 = Convolution(spatial_dims, channels, channels, adn_ordering="NA", norm=norm, act="relu")
        self.conv2 = Convolution(spatial_dims, channels, channels, adn_ordering="NA", norm=norm, act="relu")
        self.conv3 = Convolution(spatial_dims, channels, channels, adn_ordering="N", norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features of shape ``(B, C, *spatial)`` to features of the same shape."""
        return F.relu(x + self.conv3(self.conv2(self.conv1(x))))


class CategoryChannelImportance(nn.Module):
    """
    Weigh each feature channel by its response inside each category: the CCI block of `OM-Net
    <https://doi.org/10.1109/TIP.2020.2973510>`_ (Zhou et al., 2020).

    The weight of channel ``c`` for category ``k`` is the mean of ``features[c]`` under the map ``probs[k]``, scaled so
    that the absolute weights of one category sum to one. A category with no mass gets zeros, not NaN.
    """

    def forward(self, features: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: shared backbone output, shape ``(B, C, *spatial)``.
            probs: category maps of the previous task, values in [0, 1], shape ``(B, K, *spatial)``.

        Returns:
            Channel weights, float32, shape ``(B, K, C)``.
        """
        maps, values = probs.flatten(2).float(), features.flatten(2).float()
        # A mean, where the paper sums: L1 scaling cancels the difference, and a sum over a patch overflows float16.
        # Product and mean rather than a matrix product, which autocast would run in half precision.
        means = torch.stack([(values * maps[:, k : k + 1]).mean(2) for k in range(maps.shape[1])], dim=1)
        return F.normalize(means, p=1.0, dim=2, eps=1e-12)


class ComplementarySegmentation(nn.Module):
    """
    Segment the features once per category and join the parts by the category maps: the CompSeg block of OM-Net.

    ``final(sum over k of part_k(features * weights_k) * probs_k)``, where every ``part_k`` and ``final`` is a
    convolution with kernel size 1 and a bias, without normalization or activation.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of feature channels.
        out_channels: number of classes.
        categories: number of categories ``K``; the paper has two, region and complement.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, categories: int = 2) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.parts = nn.ModuleList([conv(in_channels, out_channels, kernel_size=1) for _ in range(categories)])
        self.final = conv(out_channels, out_channels, kernel_size=1)

    def forward(self, features: torch.Tensor, probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: shared backbone output, shape ``(B, C, *spatial)``.
            probs: category maps, values in [0, 1], shape ``(B, K, *spatial)``.
            weights: channel weights, shape ``(B, K, C)``.

        Returns:
            Logits, shape ``(B, out_channels, *spatial)``.
        """
        ones = [1] * (features.dim() - 2)
        joined = torch.zeros(1, device=features.device)
        for k, part in enumerate(self.parts):
            scale = weights[:, k].reshape([weights.shape[0], weights.shape[2]] + ones)
            joined = joined + part(features * scale.to(features.dtype)) * probs[:, k : k + 1]
        return self.final(joined.to(self.final.weight.dtype))


class CrossTaskGuidedAttention(nn.Module):
    """
    Segment one task's classes, guided by the region that the task before it found (CGA, TIP 2020, section III-C).

    The guide is detached: gradients reach the backbone through the features alone.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of feature channels.
        out_channels: number of classes.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.importance = CategoryChannelImportance()
        self.segmentation = ComplementarySegmentation(spatial_dims, in_channels, out_channels)

    def forward(self, features: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: shared backbone output, shape ``(B, C, *spatial)``.
            guide: probability of the previous task's region, shape ``(B, 1, *spatial)``.

        Returns:
            Logits, shape ``(B, out_channels, *spatial)``.
        """
        guide = guide.detach()
        probs = torch.cat([1 - guide, guide], dim=1)  # (B, 2, *spatial)
        weights = self.importance(features, probs)  # (B, 2, C)
        return self.segmentation(features, probs, weights)


def in_attention(named_parameter: tuple[str, nn.Parameter]) -> bool:
    """
    Tell whether an entry of ``network.named_parameters()`` is a weight of cross-task guided attention.

    Its convolutions see features divided by about the number of channels, as each category's channel weights sum to
    one, and therefore learn at a higher rate.
    """
    return ".segmentation." in named_parameter[0]
