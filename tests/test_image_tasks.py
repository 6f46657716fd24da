"""The loaders of examples/image_tasks.py, on small files of the published layouts."""

import gzip
import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch as th

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def image_tasks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_tasks", EXAMPLES / "image_tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_idx(path: Path, array: np.ndarray, packed: bool = True) -> None:
    content = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class c has images whose pixel (row, column) is its block's number plus 49 where the class is odd."""
    folder = tmp_path_factory.mktemp("fashion")
    blocks = np.kron(np.arange(49).reshape(7, 7), np.ones((4, 4))).astype(np.uint8)
    for part, count, packed in (("train", 600, True), ("t10k", 100, False)):
        classes = np.repeat(np.arange(10, dtype=np.uint8), count)
        images = blocks[None] + 49 * (classes % 2)[:, None, None]
        ending = ".gz" if packed else ""
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images.astype(np.uint8), packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", classes, packed)
    return folder


def test_fashion_tasks(image_tasks: ModuleType, fashion: Path) -> None:
    tasks = list(image_tasks.image_tasks(fashion, 91, seed=0))
    assert len({task.name for task in tasks}) <= 90  # 45 pairs, inverted or not
    for task in tasks[:4]:
        assert task.train_images.shape == (1200, 1, 28, 28) and task.test_images.shape == (200, 1, 28, 28)
        assert task.train_labels.tolist() == [0] * 600 + [1] * 600
        assert abs(task.train_images.mean()) < 1e-5 and abs(task.train_images.std() - 1) < 1e-5
    # every pair once before any a second time
    assert len({task.name.split(",")[0] for task in tasks[:45]}) == 45


def test_blocks_are_permuted_and_every_second_task_is_inverted(image_tasks: ModuleType, fashion: Path) -> None:
    first, second = image_tasks.image_tasks(fashion, 2, seed=3)
    for task in (first, second):
        blocks = task.train_images[0, 0].reshape(7, 4, 7, 4).transpose(1, 2)
        assert (blocks.amax((2, 3)) == blocks.amin((2, 3))).all(), "blocks of 4 x 4 stay whole"
        ranks = blocks[..., 0, 0].flatten().argsort().argsort()
        assert sorted(ranks.tolist()) == list(range(49)) and ranks.tolist() != list(range(49))
    # brightness grows with the class's offset of 49, unless the task is inverted
    for task, inverted in ((first, False), (second, True)):
        classes = [int(name) for name in task.name.split(",")[0].split(" or ")]
        if classes[0] % 2 != classes[1] % 2:
            odd = classes[1] % 2
            brighter = task.train_images[task.train_labels == odd].mean() > 0
            assert bool(brighter) != inverted


def test_tasks_depend_on_the_seed_alone(image_tasks: ModuleType, fashion: Path) -> None:
    def names(seed: int) -> list[str]:
        return [task.name for task in image_tasks.image_tasks(fashion, 5, seed)]

    (a,), (b,) = (list(image_tasks.image_tasks(fashion, 1, 7)) for _ in range(2))
    assert names(1) == names(1) != names(2)
    assert th.equal(a.train_images, b.train_images)


def test_continual_imagenet_layout(image_tasks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    for number in range(4):
        array = np.full((602, 3, 32, 32), number, np.uint8)
        array[600:] = 100 + number
        np.save(tmp_path / "classes" / f"{number}.npy", array)
    tasks = list(image_tasks.image_tasks(tmp_path, 3, seed=0))
    assert {part for task in tasks[:2] for part in task.name.split(" or ")} == {"0", "1", "2", "3"}
    for task in tasks:
        low, high = (int(part) for part in task.name.split(" or "))
        assert task.train_images.shape == (1200, 3, 32, 32) and task.test_images.shape == (4, 3, 32, 32)
        # mean (low + high) / 2 and, nearly, half the difference as standard deviation
        expected = 1.0 if high > low else -1.0
        assert abs(task.train_images[-1].mean() - expected) < 1e-3
        assert task.test_images.min() > 10, "test images are the last ones, and are scaled as the training images are"


def test_bad_folders(image_tasks: ModuleType, tmp_path: Path, fashion: Path) -> None:
    with pytest.raises(ValueError, match="`data` must be a folder with Continual ImageNet's"):
        image_tasks.image_tasks(tmp_path, 1, 0)
    np.save(tmp_path / "0.npy", np.zeros((700, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="at least two class files"):
        next(image_tasks.image_tasks(tmp_path, 1, 0))
    np.save(tmp_path / "1.npy", np.zeros((700, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"must be of shape \(700, 3, 32, 32\), got \(700, 32, 32, 3\)"):
        next(image_tasks.image_tasks(tmp_path, 1, 0))
    broken = tmp_path / "train-images-idx3-ubyte"
    broken.write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x05abc")
    with pytest.raises(ValueError, match="must be an IDX file of bytes"):
        image_tasks.read_idx(broken)
