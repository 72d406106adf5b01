"""A small classifier of Fashion-MNIST, trained on real images: the judge of the generated ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Sequential):
    """Float images [n, 1, 32, 32] in [-1, 1] to logits [n, 10]."""

    def __init__(self) -> None:
        def block(width: int, out: int) -> list[nn.Module]:
            return [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

        super().__init__(
            *block(1, 32),
            nn.MaxPool2d(2),
            *block(32, 64),
            *block(64, 64),
            nn.MaxPool2d(2),
            *block(64, 128),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(512, 10),
        )


def prepare(images: Tensor) -> Tensor:
    """uint8 [n, 32, 32] to the classifier's input."""
    return (images.float() / 127.5 - 1.0)[:, None]


def train(images: Tensor, labels: Tensor, steps: int) -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(images), (128,))
        loss = F.cross_entropy(model(prepare(images[chosen])), labels[chosen])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"classifier {step}/{steps} loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 [n, 32, 32] images whose most likely class is their label."""
    predicted = torch.cat([model(prepare(batch)).argmax(1) for batch in images.split(500)])
    return (predicted == labels).float().mean().item()
