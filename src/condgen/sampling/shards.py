"""Samples on disk, as they are drawn: npz files and folders, by any number of workers."""

__all__ = ["write_samples"]

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor

from condgen.io.archives import weights_hash
from condgen.io.atomic import check_writable, flush_all, read_json, replacing, write_atomically
from condgen.io.names import folder_names, write_classes
from condgen.io.pictures import to_uint8
from condgen.io.progress import working
from condgen.models.classes import class_names

SHARD_BLOCK = 64  # images that a model draws at once: parts are of whole blocks
MARK = "samples.json"  # in a folder of samples: what they are of, and whether all are there


def write_samples(
    model: Any,
    y: Any,
    path: str | Path,
    *,
    seed: int = 0,
    start: int = 0,
    temperature: float = 1.0,
    shard: tuple[int, int] | None = None,
    teacher: Any = None,
    progress: bool = False,
) -> Path:
    """Write one new image per label as they are drawn, in bounded memory.

    Args:
        model: of any family.
        y: labels, one an image.
        path: a `.npz` file (`images` uint8, channels last, and `labels`: what `load_npz` reads), or a folder, which
            gets one PNG an image in one subfolder per class (what `load_folder` reads) and `samples.json`, which says
            what they are of and whether all are there. A folder takes more samples of the same model, seed and
            temperature, and those that an interrupted call left out.
        seed: of the samples.
        start: number of the first sample.
        temperature: scales the noise.
        shard: (k, n): the k-th of n parts of them, k from 1, for one of n workers that are called alike. Any of them
            may be stopped and called again; the last to end puts the parts together, byte for byte what one worker
            would have written.
        teacher: images → probabilities of the classes (:class:`condgen.evaluation.teacher.Teacher`), which are
            written to an npz file as `probabilities`, beside the labels.
        progress: show a progress bar.

    Returns:
        The path.

    Raises:
        ValueError: for labels the model does not know, another file ending, a folder with anything else in it, or
            images that are not finite.
        OSError: if nothing can be written there.
    """
    path, labels = Path(path), model.labels(y)
    if len(labels) == 0:
        raise ValueError("Expected at least one label; got none.")
    if path.suffix != ".npz" and path.suffix[1:].isalpha():  # v1.0 is a folder, cells.zip is a mistake
        raise ValueError(f"Expected a path ending in .npz, or a folder; got {path}.")
    check_writable(path.parent)
    first, last = (0, len(labels)) if shard is None else shard_range(len(labels), *shard)
    own, npz, settings = labels[first:last], path.suffix == ".npz", {"seed": seed, "temperature": temperature}
    if teacher is not None:
        if not npz:
            raise ValueError(f"Expected a path ending in .npz for a teacher's probabilities; got {path}.")
        settings["teacher"] = teacher.weights
    mark = marked(model, **settings) if npz else check_folder(path, model, labels, **settings)
    of_all = {**mark, "start": start, "labels": labels_hash(labels)}
    part = None if shard is None else Shard(path, *shard, of_all)
    if part and (part.done() or (note_of(path) == of_all if npz else all_there(path, model, own, start + first, mark))):
        return part.join_if_last(model, labels)
    drawn = model.sample_blocks(own, seed=seed, start=start + first, temperature=temperature) if len(own) else ()
    arrays = ahead(rearrange(to_uint8(block), "b c h w -> b h w c").cpu().numpy() for block in drawn)
    arrays = showing(arrays, len(own), progress)
    if npz:
        file, note = (part.file, part.mark) if part else (path, of_all)
        write_npz(file, arrays, own.cpu().numpy(), model, image_shape(model, labels), note, teacher)
    else:
        write_folder(path, arrays, own.cpu().numpy(), model, start + first, mark, part)
    return part.join_if_last(model, labels) if part else path


def all_there(path: Path, model: Any, labels: Tensor, start: int, mark: Mapping[str, Any]) -> bool:
    """Whether a folder that is complete has all of these samples."""
    if not (path / MARK).is_file() or read_json(path / MARK) != {**mark, "complete": True}:
        return False
    names = folder_names(class_names(model))
    return all((path / names[label] / f"{start + k:08d}.png").is_file() for k, label in enumerate(labels.tolist()))


def image_shape(model: Any, labels: Tensor) -> tuple[int, int, int]:
    """(height, width, channels) of what the model draws."""
    channels, height, width = model.image_shape or tuple(model.sample(labels[:1]).shape[1:])
    return height, width, channels


def shard_range(n: int, k: int, of: int) -> tuple[int, int]:
    """Where the k-th of so many parts of n samples begins and ends: whole blocks, so that none is drawn twice.

    Raises:
        ValueError: unless k is from 1 to the number of parts.

    Example:
        >>> [shard_range(200, k, 3) for k in (1, 2, 3)]
        [(0, 64), (64, 128), (128, 200)]
    """
    if not 1 <= k <= of:
        raise ValueError(f"Expected a shard k of n with k from 1 to n; got {k} of {of}.")
    blocks = -(-n // SHARD_BLOCK)
    first, last = (min(n, SHARD_BLOCK * (blocks * j // of)) for j in (k - 1, k))
    return first, last


def labels_hash(labels: Tensor) -> str:
    """What tells two lists of labels apart."""
    return weights_hash({"labels": labels})


class Shard:
    """One worker's part of samples that several write: a file beside the npz, or a note in the folder."""

    def __init__(self, path: Path, k: int, of: int, mark: Mapping[str, Any]) -> None:
        self.path, self.mark = path, {**mark, "parts": of, "complete": True}
        npz = path.suffix == ".npz"
        folder, stem, ending = (path.parent, path.stem, ".npz") if npz else (path, "samples", ".json")
        self.files = [folder / f"{stem}.{j}-of-{of}{ending}" for j in range(1, of + 1)]
        self.file = self.files[k - 1]

    def done(self) -> bool:
        """Whether this part is there already.

        Raises:
            ValueError: if one is there of other samples.
        """
        note = note_of(self.file)
        if note is None:
            return False
        if differ := differing(self.mark, note):
            raise ValueError(f"{self.file} is of other {' and '.join(differ)}. Delete it, or choose another place.")
        return note["complete"]

    def join_if_last(self, model: Any, all_labels: Tensor) -> Path:
        """Make one of the parts where all are there, as one worker would have written it: where it is, or will be."""
        try:
            if all(note_of(file) == self.mark for file in self.files):
                self.join(model, all_labels)
        except FileNotFoundError:  # another worker ended at the same time, and has joined and removed them
            if not self.path.exists():
                raise
        return self.path

    def join(self, model: Any, all_labels: Tensor) -> None:
        """Make one of all parts, and remove them."""
        kept = {name: value for name, value in self.mark.items() if name not in ("parts", "complete")}
        if self.path.suffix == ".npz":
            parts = [read_rest(file) for file in self.files]
            rest = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            labels, shape = rest.pop("labels"), image_shape(model, all_labels)
            write_npz(self.path, joined(self.files, shape), labels, model, shape, kept, rest=rest)
        else:
            kept = {name: value for name, value in kept.items() if name not in ("start", "labels")}
            write_atomically(self.path / MARK, json.dumps({**kept, "complete": True}, indent=1).encode())
        for file in self.files:
            file.unlink(missing_ok=True)


def note_of(file: Path) -> dict[str, Any] | None:
    """What samples say they are; None where there are none, or none that say it."""
    if not file.is_file():
        return None
    if file.suffix == ".json":
        return read_json(file)
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.comment or "null")
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{file} holds no samples ({error}). Delete it.") from error


def read_rest(file: Path) -> dict[str, np.ndarray]:
    """What is written of each image beside it."""
    with np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in ("labels", "probabilities") if name in found}


def joined(files: Sequence[Path], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """The images of several npz files, block by block, as they were written."""
    for file in files:
        with zipfile.ZipFile(file) as archive, archive.open("images.npy") as images:
            np.lib.format.read_magic(images)  # type: ignore[arg-type]
            np.lib.format.read_array_header_1_0(images)  # type: ignore[arg-type]
            while content := images.read(SHARD_BLOCK * math.prod(shape)):
                yield np.frombuffer(content, np.uint8).reshape(-1, *shape)


def check_folder(path: Path, model: Any, labels: Tensor, **settings: Any) -> dict[str, Any]:
    """What `samples.json` says of the samples; raises unless the folder can take them."""
    names, present = class_names(model), {int(label) for label in labels.unique()} if labels.ndim == 1 else {-1}
    if min(present) < 0 or max(present) >= len(names):
        raise ValueError(f"Expected one label in [0, {len(names)}) an image. Write an .npz file instead.")
    mark = marked(model, **settings)
    # A worker leaves a note before anything else.
    if path.exists() and any(path.glob("[!.]*")) and not any(path.glob("samples.*-of-*.json")):
        if not (path / MARK).is_file():
            raise ValueError(f"{path} holds other files. Choose another folder (out=).")
        earlier = read_json(path / MARK)
        if differ := differing(mark, earlier):
            raise ValueError(f"{path} holds samples of other {' and '.join(differ)}. Choose another folder (out=).")
    return mark


def differing(mark: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Names of the entries in which the notes of two sets of samples differ, but for whether they are complete.

    Example:
        >>> differing({"seed": 0, "complete": True}, {"seed": 0, "label_mixing": 0.5})
        ['label_mixing']
    """
    return [name for name in {**mark, **earlier} if name != "complete" and mark.get(name) != earlier.get(name)]


def marked(model: Any, **settings: Any) -> dict[str, Any]:
    """What samples are of."""
    return {"weights": weights_hash(model.state_dict()), **settings, **model.drawing}


def ahead(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same blocks, the next one drawn by another thread while one is written.

    Example:
        >>> [int(block[0]) for block in ahead(np.full(1, k) for k in range(3))]
        [0, 1, 2]
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block
            del block  # let go of it before the next one is there


def showing(blocks: Iterator[np.ndarray], images: int, progress: bool) -> Iterator[np.ndarray]:
    """The same blocks; how many images have passed is told meanwhile."""
    with working("drawing images", images, progress) as advance:
        for block in blocks:
            yield block
            advance(len(block))


def write_npz(
    path: Path,
    blocks: Iterator[np.ndarray],
    labels: np.ndarray,
    model: Any,
    shape: tuple[int, int, int],
    mark: Mapping[str, Any],
    teacher: Any = None,
    rest: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Blocks of (images, height, width, channels) into one npz, block by block; the same bytes at any time.

    Args:
        path: of the file.
        blocks: the images.
        labels: of all of them.
        model: which has drawn them.
        shape: (height, width, channels).
        mark: what they are.
        teacher: gives probabilities for each block.
        rest: other arrays that are written, when they are known already.
    """
    probabilities = []
    blocks = chain([first], blocks) if (first := next(blocks, None)) is not None else iter(())
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *shape)}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.comment = json.dumps(mark).encode()
        with file.open(member("images"), "w", force_zip64=True) as images:
            np.lib.format.write_array_header_1_0(images, header)  # type: ignore[arg-type]
            for block in blocks:
                images.write(block.tobytes())
                if teacher is not None:
                    probabilities.append(teacher(np.moveaxis(block, -1, 1)))
        arrays = {"labels": labels, **({"class_names": np.array(model.class_names)} if model.class_names else {})}
        arrays |= {"probabilities": np.concatenate(probabilities)} if probabilities else (rest or {})
        for name, array in arrays.items():
            with file.open(member(name), "w") as content:
                np.lib.format.write_array(content, array, allow_pickle=False)  # type: ignore[arg-type]


def member(name: str) -> zipfile.ZipInfo:
    """An array's place in an npz, without the time of day."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
    return info


def write_folder(
    path: Path,
    blocks: Iterator[np.ndarray],
    labels: np.ndarray,
    model: Any,
    start: int,
    mark: dict[str, Any],
    part: Shard | None = None,
) -> None:
    """Blocks of images as PNGs, named by sample number, in a subfolder for each class drawn."""
    from PIL import Image

    def note(complete: bool) -> None:
        path.mkdir(parents=True, exist_ok=True)
        file, said = (path / MARK, mark) if part is None else (part.file, part.mark)
        write_atomically(file, json.dumps({**said, "complete": complete}, indent=1).encode())

    names, number = folder_names(class_names(model)), 0
    for block in blocks:
        if not number:  # nothing is made before the model has drawn
            note(complete=False)
            write_classes(path, class_names(model))
            for name in {names[label] for label in labels}:
                (path / name).mkdir(parents=True, exist_ok=True)
        for image in block:
            image = image[..., 0] if image.shape[-1] == 1 else image
            encoded = io.BytesIO()  # in memory first: Pillow writes a file in many small pieces
            Image.fromarray(image).save(encoded, format="PNG")
            with replacing(path / names[labels[number]] / f"{start + number:08d}.png", flush=False) as temporary:
                temporary.write_bytes(encoded.getbuffer())
            number += 1
    flush_all()
    note(complete=True)
