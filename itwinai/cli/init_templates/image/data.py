"""Images of 32x32 pixels with a circle, a square or a cross on a noisy ground. Put your own images in their place."""

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

SIZE = 32


def shapes(count: int, seed: int) -> TensorDataset:
    """Draw images, and say what each shows: 0 is a circle, 1 a square, 2 a cross.

    Replace this function to read your own, such as by ``torchvision.datasets.ImageFolder``.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=random)
    radius = 5 + 5 * torch.rand(count, 1, 1, generator=random)
    x, y = 10 + 12 * torch.rand(2, count, 1, 1, generator=random)
    right = (torch.arange(SIZE).reshape(1, 1, SIZE) - x).abs()
    down = (torch.arange(SIZE).reshape(1, SIZE, 1) - y).abs()
    near, far = torch.minimum(right, down), torch.maximum(right, down)
    circle, square = right**2 + down**2 <= radius**2, far <= 0.85 * radius
    cross = (near <= 0.3 * radius) & (far <= radius)
    inside = torch.stack([circle, square, cross], dim=1)[torch.arange(count), labels].unsqueeze(1)
    ground, colour = torch.rand(2, count, 3, 1, 1, generator=random)
    noise = 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=random)
    return TensorDataset(torch.where(inside, 0.6 + 0.4 * colour, 0.4 * ground) + noise, labels)


class ShapesData(L.LightningDataModule):
    """Images to train, validate and test with.

    Args:
        batch_size: images of a batch.
        count: number of images to train with; a quarter as many to validate and to test with.
        num_workers: processes that read images, of each worker; 0 for none.
    """

    def __init__(self, batch_size: int = 32, count: int = 2000, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.count, self.num_workers = batch_size, count, num_workers

    def setup(self, stage: str) -> None:
        """Draw the images."""
        self.train = shapes(self.count, seed=0)
        self.val = shapes(self.count // 4, seed=1)
        self.test = shapes(self.count // 4, seed=2)

    def train_dataloader(self) -> DataLoader:
        """Return the images to train with."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the images to validate with."""
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        """Return the images to test with."""
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        """Return the images to classify."""
        return self.test_dataloader()

    def _loader(self, images: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(images, self.batch_size, shuffle, num_workers=self.num_workers)
