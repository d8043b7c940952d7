"""A drawn image and the same warped by a known homography, written in the official layouts of data sets of pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from gate_lightning.utils.files import write_atomically

__all__ = [
    "Drawing",
    "drawing",
    "write_ap10k",
    "write_cub",
    "write_list",
    "write_pascal",
    "write_spair",
    "write_willow",
]

#: maps pixels of the first image to pixels of the second
HOMOGRAPHY = np.array([[0.9, 0.06, 3.0], [-0.05, 1.1, 1.0], [1e-4, 2e-4, 1.0]])


@dataclass(frozen=True)
class Drawing:
    """Two images (H, W, 3), points (N, 2) and boxes of both, all by the same homography."""

    images: tuple[np.ndarray, np.ndarray]
    points: tuple[np.ndarray, np.ndarray]
    boxes: tuple[list[int], list[int]]


def drawing(seed: int = 0, count: int = 5, size: tuple[int, int] = (48, 64)) -> Drawing:
    """Blobs on noise, with points of whole pixels in the first image and rounded ones in the second."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    xs, ys = rng.choice(np.arange(12, width - 14), count, False), rng.choice(np.arange(10, height - 14), count, False)
    points = np.stack([xs, ys], axis=1)
    for x, y in points.tolist():
        cv2.circle(image, (x, y), 3, rng.integers(120, 255, 3).tolist(), -1)
    warped = cv2.warpPerspective(image, HOMOGRAPHY, (width + 8, height + 16))
    mapped = np.hstack([points, np.ones((count, 1))]) @ HOMOGRAPHY.T
    other = np.rint(mapped[:, :2] / mapped[:, 2:]).astype(int)
    boxes = [[*(both.min(axis=0) - 3).tolist(), *(both.max(axis=0) + 3).tolist()] for both in (points, other)]
    return Drawing((image, warped), (points, other), (boxes[0], boxes[1]))


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content).encode())


def write_spair(root: Path, splits: dict[str, tuple[str, ...]] | None = None, ids: tuple[str, ...] = ()) -> Path:
    """SPair-71k: split (trn, val, test) → categories of its pairs, one pair each and the same backwards."""
    number = 0
    for split, categories in (splits or {"trn": ("cat", "dog"), "val": ("cat",), "test": ("dog", "cat")}).items():
        names = []
        for category in categories:
            drawn, pair = drawing(number), []
            stems = [f"{split}_{number:02d}_{side}" for side in "ab"]
            named = list(ids) or [str(index) for index in range(len(drawn.points[0]))]
            for stem, image, points in zip(stems, drawn.images, drawn.points, strict=True):
                save(root / f"JPEGImages/{category}/{stem}.jpg", image)
                seen = {**dict(zip(named, points.tolist(), strict=True)), "28": [1, 1], "29": None}
                dump(root / f"ImageAnnotation/{category}/{stem}.json", {"kps": seen})
            for first in (0, 1):
                pair = [first, 1 - first]
                name = f"{number:06d}-{stems[pair[0]]}-{stems[pair[1]]}:{category}"
                entry: dict[str, Any] = {
                    "pair_id": number,
                    "category": category,
                    "mirror": 0,
                    "viewpoint_variation": first,
                }
                for side, which in zip(("src", "trg"), pair, strict=True):
                    height, width = drawn.images[which].shape[:2]
                    entry |= {
                        f"{side}_imname": f"{stems[which]}.jpg",
                        f"{side}_imsize": [width, height, 3],
                        f"{side}_bndbox": drawn.boxes[which],
                        f"{side}_kps": drawn.points[which].tolist(),
                        f"{side}_pose": "Unspecified",
                    }
                entry["kps_ids"] = named
                dump(root / f"PairAnnotation/{split}/{name}.json", entry)
                names.append(name)
                number += 1
        write = root / f"Layout/large/{split}.txt"
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text("\n".join(names) + "\n")
    return root


def write_list(root: Path) -> Path:
    """One's own pairs in a JSON list."""
    entries = []
    for number in range(2):
        drawn, names = drawing(number), [f"{number}{side}.png" for side in "ab"]
        for name, image in zip(names, drawn.images, strict=True):
            save(root / name, image)
        entry: dict[str, Any] = {"category": "thing"}
        for side, name, points in zip(("source", "target"), names, drawn.points, strict=True):
            entry |= {f"{side}_path": name, f"{side}_points": points.tolist()}
        entries.append(entry)
    dump(root / "pairs.json", entries)
    return root


def write_willow(root: Path, rows: int = 3) -> Path:
    """PF-WILLOW: pairs of its folders in turn, in the published table."""
    folders = ("car(G)", "duck(S)", "winebottle(wC)")
    columns = [f"{axis}{side}{number}" for side in "AB" for axis in "XY" for number in range(1, 11)]
    lines = [",".join(["imageA", "imageB", *columns])]
    for number in range(rows):
        drawn, folder = drawing(number, 10), folders[number % 3]
        names = [f"PF-dataset/{folder}/60_{number:04d}_{side}.png" for side in "ab"]
        for name, image in zip(names, drawn.images, strict=True):
            save(root / name.removeprefix("PF-dataset/"), image)
        numbers = [f"{value:.4f}" for points in drawn.points for axis in points.T for value in axis]
        lines.append(",".join([*names, *numbers]))
    (root / "test_pairs_pf.csv").write_text("\n".join(lines) + "\n")
    return root


def write_pascal(root: Path, missing: int = 1) -> Path:
    """PF-PASCAL: a pair of cats (class 8) in each list, once more mirrored in training; needs scipy.

    In the first image keypoint 0 is absent, in the second the last ``missing``.
    """
    from scipy.io import savemat

    lists = {"trn": "source_image,target_image,class,flip", "val": "source_image,target_image,class,flip"}
    lists["test"] = "source_image,target_image,class,XA,YA,XB,YB"
    for number, (split, header) in enumerate(lists.items()):
        drawn, names = drawing(number), [f"2008_{number:03d}{side}" for side in "01"]
        points = [both.astype(np.float64) for both in drawn.points]
        points[0][0] = points[1][len(points[1]) - missing :] = np.nan
        for name, image, own, box in zip(names, drawn.images, points, drawn.boxes, strict=True):
            save(root / f"JPEGImages/{name}.jpg", image)
            (root / "Annotations/cat").mkdir(parents=True, exist_ok=True)
            savemat(root / f"Annotations/cat/{name}.mat", {"kps": own, "bbox": np.array([box], dtype=np.float64)})
        row = ",".join([*(f"PF-dataset-PASCAL/JPEGImages/{name}.jpg" for name in names), "8"])
        both = slice(1, len(points[0]) - missing)
        listed = ["; ".join(map(str, axis[both])) for own in drawn.points for axis in own.T]
        rows = [f"{row},{','.join(listed)}"] if split == "test" else [f"{row},0"]
        rows += [f"{row},1"] if split == "trn" else []
        (root / f"{split}_pairs_pf_pascal.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def write_ap10k(root: Path, suffixes: tuple[str, ...] = ("", "_cross_species", "_cross_family")) -> Path:
    """AP-10K as GeoAware-SC prepares it: animals of three species, a pair of each kind in every split."""
    places = {"": ("Felidae/cat", "Felidae/cat"), "_cross_species": ("Felidae/cat", "Felidae/king cheetah")}
    places["_cross_family"] = ("Felidae/cat", "Bovidae/cow")
    folders = ["trn", *(f"{split}{suffix}" for split in ("val", "test") for suffix in suffixes)]
    for number, folder in enumerate(folders):
        drawn, made = drawing(number, 17, (64, 96)), []
        where = places[folder.removeprefix("trn").removeprefix("val").removeprefix("test")]
        for side, image, points, box, place in zip("ab", drawn.images, drawn.points, drawn.boxes, where, strict=True):
            name = f"{place}/{number:012d}{side}"
            save(root / f"JPEGImages/{name}.jpg", image)
            seen = [0 if index == ("ab".index(side) + 3) else 2 for index in range(17)]
            flat = [value for (x, y), v in zip(points.tolist(), seen, strict=True) for value in (x, y, v)]
            entry = {"width": image.shape[1], "height": image.shape[0], "keypoints": flat, "num_keypoints": 16}
            entry["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            dump(root / f"ImageAnnotation/{name}.json", entry)
            made.append(f"data/ap-10k/ImageAnnotation/{name}.json")
        pair = {"src_json_path": made[0], "trg_json_path": made[1]}
        dump(root / f"PairAnnotation/{folder}/{number}-a-b:x.json", pair)
    return root


#: colours of the 15 parts of a bird in `write_cub`
PART_COLOURS = [(40 + 14 * index, 250 - 16 * index, 120) for index in range(15)]


def write_cub(root: Path, classes: int = 2, images: int = 3) -> Path:
    """CUB-200-2011: birds whose parts are squares of their own colours, and one list of them (needs scipy).

    Boxes are tight around the parts and reach the border of the image in every other bird. Part n of bird n is hidden.
    """
    from scipy.io import savemat

    tables: dict[str, list[str]] = {
        name: [] for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
    }
    parts, entries = [], []
    rng = np.random.default_rng(0)
    for number in range(1, classes * images + 1):
        name = f"{(number - 1) // images + 1:03d}.Bird/Bird_{number:04d}.jpg"
        low = 4 if number % 2 else 30
        xs, ys = low + 12 * rng.permutation(15)[:15], low + 8 * rng.permutation(15)
        image = np.full((ys.max() + 20, xs.max() + 30, 3), 60, dtype=np.uint8)
        for part, (x, y) in enumerate(zip(xs.tolist(), ys.tolist(), strict=True)):
            image[y - 4 : y + 5, x - 4 : x + 5] = PART_COLOURS[part]
            parts.append(f"{number} {part + 1} {x + 1}.0 {y + 1}.0 {int(part + 1 != number)}")  # counted from 1
        save(root / "images" / name, image)
        Image.fromarray(image).save(root / "images" / name, quality=100, subsampling=0)
        left, top = max(xs.min() - 4, 0) + 1, max(ys.min() - 4, 0) + 1
        right, bottom = xs.max() + 5, ys.max() + 5
        tables["images.txt"].append(f"{number} {name}")
        tables["image_class_labels.txt"].append(f"{number} {(number - 1) // images + 1}")
        tables["train_test_split.txt"].append(f"{number} 0")
        tables["bounding_boxes.txt"].append(f"{number} {left}.0 {top}.0 {right - left}.0 {bottom - top}.0")
        corners = {"x1": float(left), "y1": float(top), "x2": float(right), "y2": float(bottom)}
        entries.append({"id": float(number), "rel_path": name, "bbox": corners})
    for table, lines in tables.items():
        (root / table).write_text("\n".join(lines) + "\n")
    (root / "parts").mkdir()
    (root / "parts/part_locs.txt").write_text("\n".join(parts) + "\n")
    metadata = root / "cub_metadata"
    metadata.mkdir()
    savemat(metadata / "acsm_val_cub_cleaned.mat", {"images": np.array(entries, dtype=object)})
    listed = [f"CUB_200_2011/images/{entry['rel_path']}" for entry in entries]
    (metadata / "cub_subset_0_original_paths.txt").write_text("\n".join(listed[:4]) + "\n")
    (metadata / "cub_subset_13_original_paths.txt").write_text("\n".join(listed[3:]))
    return root
