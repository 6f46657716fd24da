"""
Streams of binary image tasks: Continual ImageNet in its published layout, or Fashion-MNIST for those without it.

Continual ImageNet (Dohare et al., Nature 2024): 1,000 classes of ImageNet at 32 x 32, one array file for each class,
``classes/0.npy`` to ``classes/999.npy``, each of shape (700, 3, 32, 32); the first 600 images are for training and the
last 100 for testing. A task is to tell two classes apart.

Fashion-MNIST (Xiao et al., 2017): the four IDX files as published, gzipped or not. Its 45 pairs of classes are not
enough tasks, so each task also permutes the 4 x 4 blocks of its images, and every second task inverts them.
"""

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch as th

TRAINING_IMAGES = 600
TEST_IMAGES = 100
FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
BLOCK = 4


class ImageTask(NamedTuple):
    """
    Two classes to be told from each other.

    :param name: what the task is
    :param train_images: (N, channels, height, width), standardised
    :param train_labels: (N,) 0 or 1
    :param test_images: (M, channels, height, width)
    :param test_labels: (M,) 0 or 1
    """

    name: str
    train_images: th.Tensor
    train_labels: th.Tensor
    test_images: th.Tensor
    test_labels: th.Tensor


def read_idx(path: Path) -> np.ndarray:
    """
    Read an array in the IDX format of MNIST.

    :param path: of the file without its ``.gz``, which may be there or not
    :return: (N, ...) bytes
    :raises ValueError: if there is no such file or it is not in this format
    """
    packed = path.with_name(f"{path.name}.gz")
    if packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    elif path.is_file():
        content = path.read_bytes()
    else:
        raise ValueError(f"`data` must hold {path.name} or {packed.name}, got {path.parent}")
    magic, n_dimensions = content[:3], content[3] if len(content) > 3 else 0
    shape = tuple(np.frombuffer(content, ">u4", n_dimensions, 4)) if magic == b"\x00\x00\x08" else ()
    data = content[4 + 4 * n_dimensions :]
    if not shape or len(data) != np.prod(shape):
        raise ValueError(f"{path} must be an IDX file of bytes, got {len(content)} bytes that begin with {magic!r}")
    return np.frombuffer(data, np.uint8).reshape([int(size) for size in shape])


def fashion_tasks(folder: Path, n_tasks: int, seed: int) -> Iterator[ImageTask]:
    """
    Make tasks of Fashion-MNIST: no two of them are equal.

    :param folder: of the four IDX files
    :param n_tasks: how many
    :param seed: of the pairs and their disguises
    :return: one task after the other: 600 training and 100 test images of each class, 1 x 28 x 28
    :raises ValueError: if the files are not there
    """
    train, train_classes, test, test_classes = (read_idx(folder / name) for name in FASHION_FILES)
    generator = np.random.default_rng(seed)
    pairs = list(itertools.combinations(range(10), 2))
    order = np.concatenate([generator.permutation(len(pairs)) for _ in range(-(-n_tasks // len(pairs)))])
    for index in range(n_tasks):
        pair, inverted = pairs[order[index]], bool(index % 2)
        blocks = generator.permutation((28 // BLOCK) ** 2)
        parts = []
        for images, classes, count in ((train, train_classes, TRAINING_IMAGES), (test, test_classes, TEST_IMAGES)):
            rows = [generator.choice(np.flatnonzero(classes == label), count, replace=False) for label in pair]
            chosen = _shuffle_blocks(images[np.concatenate(rows)], blocks)[:, None]
            parts.append((255 - chosen if inverted else chosen, np.arange(2).repeat(count)))
        name = f"{pair[0]} or {pair[1]}, blocks shuffled{', inverted' * inverted}"
        yield ImageTask(name, *_standardised(*parts))


def _standardised(
    training: tuple[np.ndarray, np.ndarray], testing: tuple[np.ndarray, np.ndarray]
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """Bytes as floats that have mean 0 and standard deviation 1 over the training images."""
    images, labels, test_images, test_labels = (th.from_numpy(array) for array in (*training, *testing))
    images, test_images = images.float(), test_images.float()
    mean, std = images.mean(), images.std()
    return (images - mean) / std, labels, (test_images - mean) / std, test_labels


def _shuffle_blocks(images: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Permute the blocks of 4 x 4 pixels of (N, 28, 28) images."""
    n, side = len(images), images.shape[1] // BLOCK
    blocks = images.reshape(n, side, BLOCK, side, BLOCK).swapaxes(2, 3).reshape(n, side * side, BLOCK, BLOCK)
    return blocks[:, order].reshape(n, side, side, BLOCK, BLOCK).swapaxes(2, 3).reshape(images.shape)


def imagenet_tasks(folder: Path, n_tasks: int, seed: int) -> Iterator[ImageTask]:
    """
    Make tasks of Continual ImageNet: pairs of classes, no class twice before all have been shown.

    :param folder: of the class files ``0.npy``, ``1.npy``, ...
    :param n_tasks: how many
    :param seed: of the pairs
    :return: one task after the other, 3 x 32 x 32
    :raises ValueError: if there are not at least two class files, or one has another shape
    """
    files = sorted((path for path in folder.glob("*.npy") if path.stem.isdigit()), key=lambda path: int(path.stem))
    if len(files) < 2:
        raise ValueError(f"`data` must hold at least two class files such as 0.npy, got {len(files)} in {folder}")
    generator = np.random.default_rng(seed)
    per_round = len(files) // 2
    for index in range(n_tasks):
        if index % per_round == 0:
            order = generator.permutation(len(files))
        first = 2 * (index % per_round)
        pair = [files[place] for place in order[first : first + 2]]
        arrays = [np.load(path) for path in pair]
        for path, array in zip(pair, arrays, strict=True):
            if array.ndim != 4 or array.shape[1:] != (3, 32, 32) or len(array) <= TRAINING_IMAGES:
                raise ValueError(f"{path} must be of shape (700, 3, 32, 32), got {array.shape}")

        parts = []
        for rows in (slice(TRAINING_IMAGES), slice(TRAINING_IMAGES, None)):
            images = [array[rows] for array in arrays]
            parts.append((np.concatenate(images), np.arange(2).repeat([len(array) for array in images])))
        yield ImageTask(f"{pair[0].stem} or {pair[1].stem}", *_standardised(*parts))


def image_tasks(data: Path | None, n_tasks: int, seed: int) -> Iterator[ImageTask]:
    """
    Make the tasks of a seed from whatever lies in a folder.

    :param data: folder with class files (or their folder ``classes``) or with the files of Fashion-MNIST; None for the
        folder of Debian's package
    :param n_tasks: how many
    :param seed: of the tasks
    :return: one task after the other
    :raises ValueError: if the folder holds neither
    """
    folder = DEBIAN if data is None else data
    if (folder / "classes").is_dir():
        folder = folder / "classes"
    if (folder / "0.npy").is_file():
        return imagenet_tasks(folder, n_tasks, seed)
    if any((folder / f"{FASHION_FILES[0]}{ending}").is_file() for ending in ("", ".gz")):
        return fashion_tasks(folder, n_tasks, seed)
    raise ValueError(
        "`data` must be a folder with Continual ImageNet's classes/0.npy, ... or Fashion-MNIST's "
        f"{FASHION_FILES[0]}.gz, ..., got {folder}"
    )
