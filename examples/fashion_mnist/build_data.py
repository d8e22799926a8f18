"""Builds data/fashion_mnist.npz out of the original Fashion-MNIST files.

    python examples/fashion_mnist/build_data.py [FOLDER]

Calibration images are 512 of the 60,000 *training* images, drawn without replacement with seed 0;
test images are the first 2,000 of the 10,000 *test* images, with labels. Invariant: the same input
gives the same bytes (the archive's times are fixed).
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np

from idx import DEBIAN, read_split

DATA = Path(__file__).parent / "data" / "fashion_mnist.npz"
CALIBRATION_IMAGES = 512
TEST_IMAGES = 2000
SEED = 0


def calibration_indices() -> np.ndarray:
    """Sorted positions in the training set."""
    chosen = np.random.default_rng(SEED).choice(60_000, CALIBRATION_IMAGES, replace=False)
    return np.sort(chosen)


def build(folder: Path = DEBIAN) -> dict[str, np.ndarray]:
    """The arrays of the data file, all uint8."""
    train_images, _ = read_split("train", folder)
    test_images, test_labels = read_split("t10k", folder)
    return {
        "calibration_images": train_images[calibration_indices()],
        "test_images": test_images[:TEST_IMAGES],
        "test_labels": test_labels[:TEST_IMAGES],
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed npz with fixed times, so that equal arrays are equal files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds data/fashion_mnist.npz.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEBIAN, help="the four .gz files")
    DATA.parent.mkdir(exist_ok=True)
    write_npz(DATA, build(parser.parse_args().folder))
    print(f"{DATA}: {DATA.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
