"""Leaks: changed copies of photographs are found, other photographs are not, and thousands take seconds."""
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.doctor.leaks import Fingerprints, fingerprints, near_duplicates, same_bytes
from tests.helpers.doctor_cases import photo


@pytest.mark.parametrize("change", ["quality", "half", "noise", "brighter", "grey"])
def test_changed_copies_are_near_duplicates_and_other_photographs_are_not(tmp_path: Path, change: str):
    rng = np.random.default_rng(0)
    edit = {"quality": lambda m: m, "half": lambda m: m[::2, ::2], "brighter": lambda m: m * 0.8 + 40,
            "noise": lambda m: m + rng.normal(0, 8, m.shape),
            "grey": lambda m: m @ (.299, .587, .114)}[change]
    paths: dict[str, list[Path]] = {"before": [], "after": []}
    for seed in range(12):
        pixels_before = photo(seed, 320).astype(float)
        for kind, pixels in (("before", pixels_before), ("after", edit(pixels_before))):
            paths[kind].append(tmp_path / f"{kind}{seed}.jpg")
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[kind][-1], quality=60)
    before, after = (
        fingerprints([SimpleNamespace(path=path, width=side, height=side) for path in paths[kind]])
        for kind, side in (("before", 320), ("after", 160)))
    pairs = set(near_duplicates(before, after, block=5)) | set(same_bytes(before, after))
    assert pairs == {(i, i) for i in range(12)}


def test_blocks_of_any_size_give_the_pairs_of_a_plain_double_loop():
    rng = np.random.default_rng(1)
    bits = rng.choice([-1, 1], (40, 64)).astype(np.float32)
    bits[20:, :] = bits[:20] * np.where(rng.random((20, 64)) < 0.1, -1, 1)
    same = np.full((40, 256), 1 / 16, np.float32)
    prints = Fingerprints(tuple(map(str, range(40))), bits, same)
    plain = [(i, j) for i in range(40) for j in range(40) if i != j and int((bits[i] != bits[j]).sum()) <= 14]
    assert sorted(near_duplicates(prints, prints, block=7)) == plain and len(plain) > 10


def test_equal_shading_steps_alone_do_not_make_a_near_duplicate():
    bits, thumbnails = np.ones((2, 64), np.float32), np.eye(2, 256, dtype=np.float32)
    one, two = (Fingerprints((str(k),), bits[k:k + 1], thumbnails[k:k + 1]) for k in (0, 1))
    assert near_duplicates(one, two) == []
    assert near_duplicates(one, two._replace(thumbnails=thumbnails[:1])) == [(0, 0)]


def test_five_thousand_against_five_thousand_images_take_seconds():
    rng = np.random.default_rng(2)
    bits = rng.choice([-1, 1], (2, 5000, 64)).astype(np.float32)
    flat = np.zeros((5000, 256), np.float32)
    one, two = (Fingerprints(tuple(f"{k} {i}" for i in range(5000)), bits[k], flat) for k in (0, 1))
    start = time.process_time()
    near_duplicates(one, two)
    assert time.process_time() - start < 8
