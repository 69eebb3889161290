"""ResNet with its public weights: the files of torchvision, read without it.

python examples/resnet_weights.py resnet50-11ad3fa6.pth    # 18, 34, 50, 101 and 152 layers
python examples/resnet_weights.py                          # a small file of random weights
"""

import os
import sys
import tempfile

import distgrad as dg
from distgrad import nn


class Basic(nn.Module):
    """Two convolutions of 3 × 3."""

    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + self.downsample(x)).relu()


class Bottleneck(nn.Module):
    """Convolutions of 1 × 1, 3 × 3 and 1 × 1, the middle one narrow."""

    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + self.downsample(x)).relu()


def shortcut(inputs, outputs, stride):
    """Return what fits the input to the output: nothing, where it fits."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(self, block, depths, classes=1000, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for number, depth in enumerate(depths):
            blocks = []
            for place in range(depth):
                stride = 2 if number and not place else 1
                blocks.append(block(inputs, width * 2**number, stride))
                inputs = width * 2**number * block.expansion
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))


def load_resnet(path):
    """Return the model of a file; its depth is read from the names, its sizes from the shapes."""
    state = dg.load(path, map_location="cpu")
    block = Bottleneck if "layer1.0.conv3.weight" in state else Basic
    depths = [
        1 + max(int(name.split(".")[1]) for name in state if name.startswith(f"layer{number}."))
        for number in range(1, 5)
    ]
    model = ResNet(block, depths, len(state["fc.bias"]), len(state["conv1.weight"]))
    model.load_state_dict(state)
    return model.eval()


def main():
    dg.manual_seed(0)
    if len(sys.argv) > 1:
        model = load_resnet(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "resnet18.pth")
            dg.save(ResNet(Basic, [2, 2, 2, 2], classes=10, width=8).state_dict(), path)
            model = load_resnet(path)
    print("parameters", sum(p.numel() for p in model.parameters()))
    with dg.no_grad():
        print("classes", model(dg.randn(2, 3, 64, 64)).argmax(1).tolist())


if __name__ == "__main__":
    main()
