"""One trial as the PyTorch tutorials would have one write it; what `plain` makes a search of.

Needs torch and torchvision only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainable.model import backbones

Row = tuple[str, int, int]
"""Image file, output of the superclass head, output of the subclass head."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is trained, on what, and how often."""

    train: Sequence[Row]
    val: Sequence[Row]
    num_super: int
    num_sub: int
    backbone: str
    image_size: int
    batch_size: int
    epochs: int = 1
    """0: empty trials, which import torch and report once."""
    trials: int = 1
    slots: int = 1
    """Trials at once, one core each."""
    weights: str | None = None
    """As for `backbones.build`."""
    workers: int = 0
    """Processes of each DataLoader. A trial that has one core is fastest without."""


class ImageFiles(Dataset[tuple[torch.Tensor, int, int]]):
    """Image files and their two labels."""

    def __init__(self, rows: Sequence[Row], transform: transforms.Compose) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        path, superclass, subclass = self.rows[index]
        image = Image.open(path).convert("RGB")
        return self.transform(image), superclass, subclass


class TwoHeads(nn.Module):
    """A pretrained backbone and a linear head for each task."""

    def __init__(self, spec: Spec, *, frozen: bool) -> None:
        super().__init__()
        backbone = backbones.build(
            spec.backbone, spec.image_size, Path(spec.weights) if spec.weights else None
        )
        self.backbone = nn.Sequential(*backbone.stages).requires_grad_(not frozen)
        self.super_head = nn.Linear(backbone.num_features, spec.num_super)
        self.sub_head = nn.Linear(backbone.num_features, spec.num_sub)
        self.normalize = transforms.Normalize(backbone.mean, backbone.std)
        self.frozen = frozen

    def train(self, mode: bool = True) -> "TwoHeads":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(images)
        return self.super_head(features), self.sub_head(features)


class Trial:
    """Model, data and optimizer of one trial."""

    def __init__(self, spec: Spec, *, frozen: bool, lr: float, weight_decay: float) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = TwoHeads(spec, frozen=frozen).to(self.device)
        resize = transforms.Resize((spec.image_size, spec.image_size))
        to_input = [transforms.ToTensor(), self.model.normalize]
        augment = [transforms.RandomHorizontalFlip(), transforms.RandomRotation(10)]
        train = ImageFiles(spec.train, transforms.Compose([resize, *augment, *to_input]))
        val = ImageFiles(spec.val, transforms.Compose([resize, *to_input]))
        self.train_loader, self.val_loader = (
            DataLoader(
                dataset,
                batch_size=spec.batch_size,
                shuffle=dataset is train,
                num_workers=spec.workers,
                persistent_workers=spec.workers > 0,
                pin_memory=self.device.type == "cuda",
            )
            for dataset in (train, val)
        )
        self.num_train, self.num_val = len(train), len(val)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=lr, weight_decay=weight_decay)

    def train_epoch(self) -> float:
        """Pass once over the training images; return the mean loss."""
        self.model.train()
        total = 0.0
        for images, superclass, subclass in self.train_loader:
            super_logits, sub_logits = self.model(images.to(self.device))
            loss = F.cross_entropy(super_logits, superclass.to(self.device))
            loss = loss + F.cross_entropy(sub_logits, subclass.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(images)
        return total / self.num_train

    @torch.no_grad()
    def validate(self) -> float:
        """Return the fraction of subclasses that are right."""
        self.model.eval()
        right = 0
        for images, _, subclass in self.val_loader:
            _, sub_logits = self.model(images.to(self.device))
            right += int((sub_logits.argmax(1) == subclass.to(self.device)).sum())
        return right / self.num_val
