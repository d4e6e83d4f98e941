"""Training the reference recipe: the usual ways and condgen's, interleaved in one run, medians and spread.

    python benchmarks/peers.py --data bloodmnist --rounds 5 --out benchmarks/results/peers

(a) the plain notebook loop: TensorDataset, one-hot planes, binary cross-entropy of probabilities, `.item()` each step;
(b) the same over PIL images and `ToTensor`, as medmnist gives them;
(c) pythae's own trainer on the same networks (3 outputs, no labels: it has none), if pythae is installed;
(d) condgen's `fit`: untrimmed, as it is, with 3 outputs, in bfloat16.

With `--device cuda` all of it is on a GPU: the usual loops send each batch there, as notebooks do, and a row more has
their set on the device whole. pythae is left out.

Each round trains every variant for one epoch in turn, from weights of one seed; the order turns from round to round.
Each variant has a process of its own, which waits while others run: condgen tells the C library to keep freed memory,
and what others gain from that in one process they would not have alone. Sampling: condgen's, the plain loop's and
pythae's, images in hand.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import condgen
from condgen import recipes
from condgen.apps.timing import machine, peak, synchronise

CHANNELS = (16, 32, 64, 128, 256, 512)


class Notebook(nn.Module):
    """The reference network as a notebook writes it: one-hot planes in and out, probabilities out."""

    def __init__(self, classes: int = 8, outputs: int = 11) -> None:
        super().__init__()
        widths = (3 + classes, *CHANNELS)
        layers = []
        for k in range(6):
            layers += [nn.Conv2d(widths[k], widths[k + 1], 3, 2 if k < 5 else 1, 1), nn.LeakyReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.mean, self.log_variance = nn.Linear(512, 128), nn.Linear(512, 128)
        self.expand = nn.Linear(128 + classes, 512)
        back, layers = (*CHANNELS[::-1], outputs), []
        for k, extra in enumerate((0, 1, 1, 0, 1, 1)):
            layers.append(nn.ConvTranspose2d(back[k], back[k + 1], 3, 1 if k == 0 else 2, 1, extra))
            layers.append(nn.LeakyReLU() if k < 5 else nn.Sigmoid())
        self.decoder = nn.Sequential(*layers)

    def decode(self, z: torch.Tensor, onehot: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.expand(torch.cat([z, onehot], 1)).view(-1, 512, 1, 1))

    def forward(self, x: torch.Tensor, onehot: torch.Tensor) -> tuple[torch.Tensor, ...]:
        planes = onehot[:, :, None, None].expand(-1, -1, *x.shape[2:])
        both = torch.cat([x, planes], 1)
        h = self.encoder(both)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        return both, self.decode(z, onehot), mean, log_variance


def notebook_epoch(model: Notebook, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    """One epoch as the notebooks have it."""
    model.train()
    total, device = 0.0, next(model.parameters()).device
    for images, labels in loader:
        x, y = images.to(device), labels.to(device)
        onehot = F.one_hot(y.reshape(-1).long(), 8).float()
        target, output, mean, log_variance = model(x, onehot)
        bce = F.binary_cross_entropy(output, target, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
        loss = (bce + kl) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def notebook(data: condgen.LabelledImages, batch_size: int, device: str, there: bool = False) -> Callable[[], object]:
    torch.manual_seed(0)
    model = Notebook().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = torch.as_tensor(data.images) / 255, torch.as_tensor(data.labels)
    x, y = (x.to(device), y.to(device)) if there else (x, y)
    loader = DataLoader(TensorDataset(x, y), batch_size, shuffle=True)
    return lambda: notebook_epoch(model, optimizer, loader)


def pil(data: condgen.LabelledImages, batch_size: int, device: str) -> Callable[[], object]:
    from PIL import Image
    from torchvision.transforms import ToTensor

    images, labels, change = data.images.transpose(0, 2, 3, 1), data.labels, ToTensor()

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
            return change(Image.fromarray(images[k])), int(labels[k])

    torch.manual_seed(0)
    model = Notebook().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Images(), batch_size, shuffle=True)
    return lambda: notebook_epoch(model, optimizer, loader)


def pythae(data: condgen.LabelledImages, batch_size: int, device: str) -> Callable[[], object]:
    """pythae's trainer: a VAE without labels, since it has none, on the networks of the reference with 3 outputs."""
    if device != "cpu":
        raise ImportError("not tried on a GPU")
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    inner = Notebook(classes=0, outputs=3)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.mean, self.log_variance = inner.encoder, inner.mean, inner.log_variance

        def forward(self, x: torch.Tensor) -> ModelOutput:
            h = self.net(x)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))

    torch.manual_seed(0)
    config = VAEConfig(input_dim=(3, 28, 28), latent_dim=128, reconstruction_loss="bce")
    model = VAE(config, Encoder(), pythae_decoder(inner))
    from pythae.data.datasets import BaseDataset

    train = BaseDataset(torch.as_tensor(data.images) / 255, torch.as_tensor(data.labels))

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                output_dir=folder,
                num_epochs=1,
                per_device_train_batch_size=batch_size,
                learning_rate=1e-3,
                no_cuda=True,
                optimizer_cls="Adam",
            )
            trainer = BaseTrainer(model=model, train_dataset=train, training_config=settings)
            trainer.prepare_training()
            trainer.train_step(1)

    return epoch


def ours(
    data: condgen.LabelledImages,
    batch_size: int,
    device: str,
    *,
    trim: bool = True,
    precision: str = "32-true",
    outputs: bool = True,
) -> Callable[[], object]:
    torch.manual_seed(0)
    model = recipes.bloodmnist_reference(outputs)
    if trim:
        condgen.trim(model)
    model.to(device)
    options = {"batch_size": batch_size, "precision": precision, "trim": trim, "progress": False, "accelerator": device}
    return lambda: condgen.fit(model, data, epochs=1, **options)


THERE = "notebook loop, set on the device"
VARIANTS: dict[str, Callable[..., Callable[[], object]]] = {
    "notebook loop": notebook,
    THERE: lambda data, batch, device: notebook(data, batch, device, there=True),
    "PIL images and ToTensor": pil,
    "pythae (3 outputs, no labels)": pythae,
    "condgen, untrimmed": lambda data, batch, device: ours(data, batch, device, trim=False),
    "condgen": ours,
    "condgen, 3 outputs": lambda data, batch, device: ours(data, batch, device, outputs=False),
    "condgen, bfloat16": lambda data, batch, device: ours(data, batch, device, precision="bf16-mixed"),
}


def sample_plain(n: int, device: str) -> Callable[[], object]:
    plain, labels = Notebook(outputs=3).eval().to(device), torch.arange(n, device=device) % 8

    def loop() -> torch.Tensor:
        with torch.no_grad():
            parts = [
                plain.decode(torch.randn(len(y), 128, device=device), F.one_hot(y, 8).float())
                for y in labels.split(128)
            ]
        return torch.cat(parts).cpu()

    return loop


def sample_ours(n: int, device: str) -> Callable[[], object]:
    model, labels = recipes.bloodmnist_reference(False), np.arange(n) % 8
    condgen.trim(model)
    model.to(device)
    return lambda: model.sample(labels).cpu()


def sample_pythae(n: int, device: str) -> Callable[[], object]:
    if device != "cpu":
        raise ImportError("not tried on a GPU")
    from pythae.samplers import NormalSampler

    sampler = NormalSampler(pythae_model())
    return lambda: sampler.sample(num_samples=n, batch_size=128, return_gen=True)


SAMPLED = 4096
SAMPLING: dict[str, Callable[[int, str], Callable[[], object]]] = {
    "plain loop": sample_plain,
    "pythae": sample_pythae,
    "condgen": sample_ours,
}


def pythae_decoder(inner: Notebook) -> nn.Module:
    """The notebook's decoder as pythae takes one."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.net = inner.expand, inner.decoder

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(self.expand(z).view(-1, 512, 1, 1)))

    return Decoder()


def pythae_model() -> nn.Module:
    from pythae.models import VAE, VAEConfig

    config = VAEConfig(input_dim=(3, 28, 28), latent_dim=128)
    return VAE(config, None, pythae_decoder(Notebook(classes=0, outputs=3)))


def serve(pipe: Connection, kind: str, name: str, source: str, batch_size: int, device: str) -> None:
    """A variant's process: at each request, work once, and tell seconds and the highest memory so far, GiB."""
    try:
        if kind == "sampling":
            work = SAMPLING[name](SAMPLED, device)
        else:
            work = VARIANTS[name](condgen.load_data(source, n=6000).train, batch_size, device)
        pipe.send(None)
    except ImportError as error:
        pipe.send(str(error))
        return
    while pipe.recv():
        started = time.perf_counter()
        work()
        synchronise(torch.device(device))
        pipe.send((time.perf_counter() - started, peak(torch.device(device)) or 0.0))


def rounds(
    kind: str, names: list[str], source: str, batch_size: int, count: int, images: int, device: str
) -> dict[str, Any]:
    """Images per second of each in rounds whose order turns (the first, for warming up, does not count), and memory."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name in names:
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, kind, name, source, batch_size, device), daemon=True).start()
        if error := ours.recv():
            print(f"{name} is left out: {error}")
        else:
            pipes[name] = ours
    found: dict[str, Any] = {name: {"images per second": [], "memory": 0.0} for name in pipes}
    order = list(pipes)
    for k in range(count + 1):
        for name in order[k % len(order) :] + order[: k % len(order)]:
            pipes[name].send(True)
            seconds, found[name]["memory"] = pipes[name].recv()
            if k:
                found[name]["images per second"].append(images / seconds)
    for pipe in pipes.values():
        pipe.send(False)
    return found


def table(found: dict[str, Any], base: str) -> list[str]:
    """A row a variant: median, range, the median ratio to the base of the same round, memory."""
    rows = [f"| variant | images/s (median) | range | times the {base} | peak memory, GiB |", "|---|---|---|---|---|"]
    for name, own in found.items():
        values = own["images per second"]
        ratios = [value / other for value, other in zip(values, found[base]["images per second"], strict=True)]
        rows.append(
            f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f}–{max(values):,.0f} "
            f"| {statistics.median(ratios):.2f} | {own['memory']:.2f} |"
        )
    return [*rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="smears")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", nargs="*", help="variants by name")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data, n=6000).train
    lines = [
        "# Training and sampling beside the usual ways",
        "",
        f"{', '.join(f'{name} {value}' for name, value in machine(options.device).items())}; "
        f"{len(data):,} images of {data.image_shape}.",
        "",
        f"    python benchmarks/peers.py {' '.join(sys.argv[1:])}",
        "",
    ]
    kept: dict[str, Any] = {}
    for batch_size in options.batch_size:
        names = options.only or [name for name in VARIANTS if options.device != "cpu" or name != THERE]
        kept[f"training, batch {batch_size}"] = found = rounds(
            "training", names, options.data, batch_size, options.rounds, len(data), options.device
        )
        lines += [f"## Training, batch {batch_size}", "", *table(found, names[0])]
    kept["sampling"] = found = rounds(
        "sampling", list(SAMPLING), options.data, 0, 4 * options.rounds, SAMPLED, options.device
    )
    lines += ["## Sampling, 3 outputs, images in hand", "", *table(found, "plain loop")]
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        options.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
