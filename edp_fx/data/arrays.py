"""Images held in memory, delivered a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset


class ArrayDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images [N, C, H, W] in [0, 1] with labels [N], normalised, optionally shifted and mirrored.

    One channel is repeated to three, as image networks expect. The shift and the mirroring of an image depend
    on (seed, epoch, its index) alone: not on the batch it is in, the process that reads it, or when the run
    was resumed.
    """

    batched = True

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        shift: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        self.labels = labels.long()
        self.shift = shift
        self.flip = flip
        self.seed = seed
        channels = 3 if images.shape[1] == 1 else images.shape[1]
        mean_t = torch.tensor(list(mean)).view(1, -1, 1, 1)
        std_t = torch.tensor(list(std)).view(1, -1, 1, 1)
        normal = (images.float().expand(-1, channels, -1, -1)[:, : mean_t.shape[1]] - mean_t) / std_t
        self.channels = channels
        # what lies outside the picture is black, as the background of these images is
        self.images = F.pad(normal - normal.min(), (shift, shift, shift, shift)) + normal.min()
        self.size = (int(images.shape[2]), int(images.shape[3]))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw this epoch's shift and mirroring of every image."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        count = len(self)
        self._top = torch.randint(0, 2 * self.shift + 1, (count,), generator=generator)
        self._left = torch.randint(0, 2 * self.shift + 1, (count,), generator=generator)
        self._mirror = torch.rand(count, generator=generator) < 0.5

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The batch of these images [len(indices), C, H, W] and labels [len(indices)]."""
        index = torch.as_tensor(indices)
        height, width = self.size
        if self.shift == 0:
            images = self.images[index]
        else:
            rows = self._top[index, None] + torch.arange(height)
            columns = self._left[index, None] + torch.arange(width)
            images = self.images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]
            images = images.permute(0, 3, 1, 2)
        if self.flip:
            images = torch.where(self._mirror[index].view(-1, 1, 1, 1), images.flip(-1), images)
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        return images.contiguous(), self.labels[index]
