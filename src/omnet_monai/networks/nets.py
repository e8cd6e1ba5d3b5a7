"""OM-Net: one backbone, three tasks, one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from monai.networks.blocks import ChannelSELayer, Convolution
from monai.networks.layers.factories import Dropout, Pool
from torch import nn

from omnet_monai.networks.blocks import ComplementarySegmentation, CrossTaskGuidedAttention, FusionResidualBlock
from omnet_monai.regions import REGIONS, TASKS, tasks_named

__all__ = ["FusionNet", "OMNet", "TaskHead"]


class FusionNet(nn.Module):
    """
    The shared backbone of `OM-Net <https://doi.org/10.1109/TIP.2020.2973510>`_: a residual encoder and decoder whose
    levels are joined by element-wise sums. Every spatial side is halved three times with four levels; a side that is
    no multiple of 8 is padded with zeros on its far end and cropped again.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, four MR sequences by default.
        features: channels of each level, outermost first.
        norm: normalization type and arguments, in MONAI's grammar.
        dropout: probability of dropping a voxel's feature at the deepest level.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 4,
        features: Sequence[int] = (32, 64, 128, 256),
        norm: tuple | str = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        inputs, last = [in_channels, *features[:-1]], len(features) - 1

        def conv(fan_in: int, fan_out: int) -> Convolution:
            return Convolution(spatial_dims, fan_in, fan_out, adn_ordering="NA", norm=norm, act="relu")

        self.encoders = nn.ModuleList(
            nn.Sequential(conv(i, c), FusionResidualBlock(spatial_dims, c, norm), conv(c, c))
            for i, c in zip(inputs, features, strict=True)
        )
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=2)
        self.dropout = Dropout[Dropout.DROPOUT, 1](dropout)
        self.ups = nn.ModuleList(
            Convolution(
                spatial_dims,
                features[level + 1],
                features[level],
                strides=2,
                kernel_size=2,
                padding=0,
                output_padding=0,
                is_transposed=True,
                adn_ordering="NA",
                norm=norm,
                act="relu",
            )
            for level in reversed(range(last))
        )
        self.decoders = nn.ModuleList()
        for level in reversed(range(last)):
            c = features[level]
            layers = [conv(c, c), FusionResidualBlock(spatial_dims, c, norm)]
            self.decoders.append(nn.Sequential(*layers, conv(c, c)) if level else nn.Sequential(*layers))
        self.divisor = 2**last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map sequences of shape ``(B, in_channels, *spatial)`` to features ``(B, features[0], *spatial)``."""
        sizes = x.shape[2:]
        pads: list[int] = []
        for size in sizes[::-1]:
            pads += [0, -size % self.divisor]
        x = F.pad(x, pads)

        skips: list[torch.Tensor] = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(self.pool(x) if level else x)
            skips.append(x)
        x = self.dropout(x)
        for level, (up, decoder) in enumerate(zip(self.ups, self.decoders)):  # noqa: B905, TorchScript knows no strict
            x = decoder(up(x) + skips[-2 - level])

        for axis, size in enumerate(sizes):
            x = x.narrow(axis + 2, 0, size)
        return x


class TaskHead(nn.Module):
    """
    One task's own layers: a 3x3x3 convolution with normalization and ReLU, then a 1x1x1 convolution to its classes.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of feature channels.
        out_channels: number of classes.
        norm: normalization type and arguments, in MONAI's grammar.
        squeeze: recalibrate the shared features by a squeeze-and-excitation layer (r=16) first.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm: tuple | str = "batch", squeeze: bool = False
    ) -> None:
        super().__init__()
        reduction = min(16, in_channels)
        self.attention = ChannelSELayer(spatial_dims, in_channels, r=reduction) if squeeze else nn.Identity()
        self.conv = Convolution(spatial_dims, in_channels, in_channels, adn_ordering="NA", norm=norm, act="relu")
        self.final = Convolution(spatial_dims, in_channels, out_channels, kernel_size=1, conv_only=True)

    def forward(self, features: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Map features ``(B, C, *spatial)`` to logits ``(B, out_channels, *spatial)``; the guide is not looked at."""
        return self.final(self.conv(self.attention(features)))


class OMNet(nn.Module):
    """
    One-pass multi-task network for brain tumor segmentation, `Zhou et al., IEEE TIP 2020
    <https://doi.org/10.1109/TIP.2020.2973510>`_.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, the MR sequences T1, T1c, T2, FLAIR by default.
        class_counts: number of classes of each of the three tasks. The release has ``(5, 5, 2)``, of which the fifth
            stays unused; the bundle has ``(4, 4, 2)``.
        features: channels of each backbone level.
        attention: ``"cga"`` for cross-task guided attention, ``"se"`` for a squeeze-and-excitation layer on the
            shared features before each head (where the paper put it is not known: this placement is ours), ``"none"``.
        norm: normalization type and arguments, in MONAI's grammar.
        dropout: probability of dropping a voxel's feature at the deepest level.
        tasks: names of the tasks that the network has a head for, ``None`` for all three. A network for a single task
            has nothing that could guide it: "cga" is idle.
        attention_gain: how many times as large as by He's rule the weights of the convolutions start that CGA has for
            each category (ours). They see features that channel weights, which sum to one, have divided by about the
            number of channels. With that number, logits and gradients of a guided task start about as large as those of
            the first; with 1, as in the release, at a tenth or less of that.

    Raises:
        ValueError: for an unknown ``attention``, for class counts that cannot hold a task's classes, for unknown tasks,
            and for an ``attention_gain`` that is not above 0.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 4,
        class_counts: Sequence[int] = (5, 5, 2),
        features: Sequence[int] = (32, 64, 128, 256),
        attention: str = "cga",
        norm: Sequence | str = ("batch", {"eps": 1e-5, "momentum": 0.1}),
        dropout: float = 0.5,
        tasks: Sequence[str] | None = None,
        attention_gain: float = 1.0,
    ) -> None:
        super().__init__()
        if attention not in ("cga", "se", "none"):
            raise ValueError(f'attention must be "cga", "se" or "none", got {attention!r}')
        needed = [len(task.classes) + 1 for task in TASKS]
        if len(class_counts) != len(TASKS) or any(n < m for n, m in zip(class_counts, needed, strict=True)):
            raise ValueError(f"class_counts must be three counts of at least {needed}, got {class_counts}")
        if not attention_gain > 0:
            raise ValueError(f"attention_gain must be above 0, got {attention_gain}")
        self.attention_gain = attention_gain
        norm = norm if isinstance(norm, str) else (norm[0], norm[1])
        own = [TASKS.index(task) for task in tasks_named(tasks)]
        width = features[0]
        self.backbone = FusionNet(spatial_dims, in_channels, features, norm, dropout)
        self.heads = nn.ModuleList(
            CrossTaskGuidedAttention(spatial_dims, width, class_counts[task])
            if attention == "cga" and task != own[0]
            else TaskHead(spatial_dims, width, class_counts[task], norm, squeeze=attention == "se")
            for task in own
        )
        # A region whose own task the network does not have comes from the task before, or else from the first one.
        sources = [max([task for task in own if task <= index], default=own[0]) for index in range(len(REGIONS))]
        self.channels = [
            [TASKS[task].channels_of(region) for region, source in zip(REGIONS, sources, strict=True) if source == task]
            for task in own
        ]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as the release does, but for the gain: He weights, biases 0.1, the first convolution's 0."""
        convs = [m for m in self.modules() if isinstance(m, nn.modules.conv._ConvNd)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)
            if conv.bias is not None:
                nn.init.constant_(conv.bias, 0.0 if conv is convs[0] else 0.1)
        blocks: list[Any] = [m for m in self.modules() if isinstance(m, ComplementarySegmentation)]
        for block in blocks:
            for part in block.parts:
                part.weight.data.mul_(self.attention_gain)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, strictly whatever is asked: MONAI Label would go on with half of another variant's."""
        return super().load_state_dict(state_dict, strict=True, assign=assign)

    def forward(self, x: torch.Tensor, num_tasks: int = 3) -> Union[torch.Tensor, list[torch.Tensor]]:  # noqa: UP007
        """
        Args:
            x: normalized sequences, shape ``(B, in_channels, *spatial)``.
            num_tasks: how many of its tasks are active. The heads of the others do not run in training, so no gradient,
                momentum or weight decay reaches them; evaluation always runs all.

        Returns:
            In training the logits of the active tasks, each ``(B, class_counts[task], *spatial)``. In evaluation the
            probabilities of WT, TC and ET, float32, shape ``(B, 3, *spatial)``: each region from the task that yields
            it, not nested. Without that task, from the inner classes of the task before; of a lone precise task, which
            knows enhancing tumor from the rest alone, all three are that.
        """
        features = self.backbone(x)
        logits: list[torch.Tensor] = []
        regions: list[torch.Tensor] = []
        region = torch.ones_like(features[:, :1])  # nothing guides the first task
        for task, head in enumerate(self.heads):
            if task < num_tasks or not self.training:
                scores = head(features, region)
                logits.append(scores)
                shares = scores.float().softmax(1)
                for channels in self.channels[task]:
                    region = shares[:, channels].sum(1, keepdim=True).clamp(max=1)
                    regions.append(region)
        if self.training:
            return logits
        return torch.cat(regions, dim=1)
