"""How fast are the built-in images drawn on one core, and can their classes be learnt?

python benchmarks/smears.py
"""

import time
from itertools import pairwise

import torch
from torch import nn

import condgen
from condgen.data.batches import batches, image_tensor

IMAGES, TRAIN, FRESH, EPOCHS = 10_000, 4_000, 2_000, 12


def main() -> None:
    torch.set_num_threads(1)
    condgen.load_smears(100)  # once without counting
    start = time.perf_counter()
    condgen.load_smears(IMAGES)
    print(f"{IMAGES:,} images of 28x28 on one core: {time.perf_counter() - start:.1f} s")

    torch.manual_seed(0)
    train, fresh = condgen.load_smears(TRAIN), condgen.load_smears(FRESH, seed=1)
    widths = (3, 32, 64, 128)
    layers = [
        layer
        for i, o in pairwise(widths)
        for layer in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
    ]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 8))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for epoch in range(EPOCHS):
        for _, x, y in batches(torch.as_tensor(train.images), torch.as_tensor(train.labels), 64, epoch=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        right = net.eval()(image_tensor(fresh.images)).argmax(1) == torch.as_tensor(fresh.labels)
    print(f"a small convolutional net trained on {TRAIN:,}: {right.double().mean():.3f} right on {FRESH:,} fresh ones")


if __name__ == "__main__":
    main()
