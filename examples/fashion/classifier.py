"""A small classifier of Fashion-MNIST, trained on real images: the judge of the generated ones.

python examples/fashion/classifier.py    # writes the ONNX file of the shipped weights again
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from arforge.export.trace import OPSET, strip_traces

CHECKPOINTS = Path(__file__).parent / "checkpoints"


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


class Judge(nn.Module):
    """The classifier as `arforge evaluate --classifier` takes it: uint8 [n, 32, 32, 3] to float [n, 10]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(prepare(images.float().mean(dim=3)))  # grey: the channels are alike


def load(path: Path) -> Classifier:
    """The classifier of a `.safetensors` file."""
    model = Classifier()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return model.eval()


def export(weights: Path, path: Path) -> None:
    """Write the ONNX file of a `.safetensors` file."""
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        Judge(load(weights)).eval(),
        (example,),
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes={"images": {0: "images"}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    strip_traces(program.model)
    onnx_ir.save(program.model, path)


if __name__ == "__main__":
    export(CHECKPOINTS / "classifier.safetensors", CHECKPOINTS / "classifier.onnx")
