"""Batches: the same for every number of workers, another every epoch, split evenly over processes."""
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data.augment import letterbox, preset
from data.coco.locate import locate
from data.coco.read import CocoSet, read_coco
from data.dataset import DetectionSet, available_ram
from data.images import decode
from data.loader import Batch, EpochSampler, collate, make_loader, worker_fault
from data.scenes import make_scenes
from utils.errors import DataError, EnvironmentFault


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CocoSet:
    """Twenty images of the embedded set, read."""
    folder = make_scenes(tmp_path_factory.mktemp("sets") / "scenes", train=20, val=2, size=160)
    return read_coco(*locate(folder).train)


def flat(batches: list[Batch]) -> list[tuple[bytes, bytes, tuple[int, ...]]]:
    """Batches as bytes, for exact comparison."""
    return [(b.images.contiguous().numpy().tobytes(), b.targets.numpy().tobytes(), tuple(b.indices))
            for b in batches]


def epoch(scenes: CocoSet, number: int, workers: int = 0, **options: object) -> list[Batch]:
    """The batches of one epoch, six images each."""
    dataset = DetectionSet(scenes, 96, preset("default"), seed=3, **options)
    loader = make_loader(dataset, 6, seed=3, workers=workers)
    loader.set_epoch(number)
    return list(loader)


def test_a_sample_is_the_letterboxed_image_with_centre_boxes(scenes: CocoSet):
    image, boxes, index = DetectionSet(scenes, 96)[(0, 4)]
    record = scenes.images[4]
    expected = letterbox(decode(record.path), 96)[0]
    assert image.dtype == torch.uint8 and image.shape == (3, 96, 96) and index == 4
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    x1, y1, x2, y2 = (record.boxes[:, k] / 160 for k in range(1, 5))
    wanted = np.stack((record.boxes[:, 0], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1)
    assert boxes.dtype == torch.float32 and np.allclose(boxes.numpy(), wanted, atol=1e-6)


def test_a_batch_holds_what_the_contract_says(scenes: CocoSet):
    dataset = DetectionSet(scenes, 96)
    samples = [dataset[(0, i)] for i in range(5)]
    batch = collate(samples)
    assert batch.images.shape == (5, 3, 96, 96) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.shape == (sum(len(s[1]) for s in samples), 6)
    assert batch.targets.dtype == torch.float32
    for k, (image, boxes, index) in enumerate(samples):
        assert torch.equal(batch.images[k], image) and batch.indices[k] == index
        assert torch.equal(batch.targets[batch.targets[:, 0] == k][:, 1:], boxes)


def test_a_batch_without_any_target_is_empty_not_broken():
    image = torch.zeros(8, 8, 3, dtype=torch.uint8).permute(2, 0, 1)
    batch = collate([(image, torch.zeros(0, 5), 0), (image, torch.zeros(0, 5), 1)])
    assert batch.targets.shape == (0, 6) and batch.targets.dtype == torch.float32
    assert batch.images.shape == (2, 3, 8, 8)


def test_zero_one_and_two_workers_give_the_same_batches(scenes: CocoSet):
    reference = flat(epoch(scenes, 1))
    assert flat(epoch(scenes, 1, 1)) == reference and flat(epoch(scenes, 1, 2)) == reference
    assert flat(epoch(scenes, 1, cache="off")) == reference


def test_every_epoch_shows_each_image_once_and_never_twice_alike(scenes: CocoSet):
    first, second = epoch(scenes, 0), epoch(scenes, 1)
    for batches in (first, second):
        assert sorted(i for b in batches for i in b.indices) == list(range(20))
        assert [len(b.indices) for b in batches] == [6, 6, 6, 2]
    assert [b.indices for b in first] != [b.indices for b in second]
    dataset = DetectionSet(scenes, 96, preset("default"), seed=3)
    assert not torch.equal(dataset[(0, 5)][0], dataset[(1, 5)][0])
    assert torch.equal(dataset[(1, 5)][0], dataset[(1, 5)][0])
    assert not torch.equal(dataset[(0, 5)][0], DetectionSet(scenes, 96, preset("default"), seed=4)[(0, 5)][0])


def test_persistent_workers_follow_the_epoch(scenes: CocoSet):
    dataset = DetectionSet(scenes, 96, preset("default"), seed=3)
    loader = make_loader(dataset, 6, seed=3, workers=1)
    for number in (0, 1, 0):
        loader.set_epoch(number)
        assert flat(list(loader)) == flat(epoch(scenes, number))


def test_an_epoch_goes_on_from_any_batch(scenes: CocoSet):
    loader = make_loader(DetectionSet(scenes, 96, preset("light"), seed=3), 6, seed=3)
    loader.set_epoch(2)
    whole = flat(list(loader))
    loader.set_epoch(2, start_batch=2)
    assert flat(list(loader)) == whole[2:] and len(loader) == 4


def test_no_mosaic_from_the_epoch_that_asks_for_whole_images(scenes: CocoSet):
    import dataclasses
    only_mosaic = dataclasses.replace(preset("none"), mosaic=1.0)
    dataset = DetectionSet(scenes, 96, only_mosaic, plain_from=2)
    plain = DetectionSet(scenes, 96)
    assert not torch.equal(dataset[(1, 0)][0], plain[(1, 0)][0])
    assert torch.equal(dataset[(2, 0)][0], plain[(2, 0)][0])


def test_the_cache_changes_no_sample_reads_no_file_and_is_never_written(scenes: CocoSet,
                                                                        monkeypatch: pytest.MonkeyPatch):
    plain = DetectionSet(scenes, 96, preset("default"), cache="off")
    cached = DetectionSet(scenes, 96, preset("default"), cache="ram")
    assert not plain.fill_cache(False) and cached.fill_cache(False) and cached.cached
    wanted = [plain.sample(0, i) for i in range(20)]
    before = cached._pixels.copy()
    monkeypatch.setattr("data.dataset.decode_small", lambda *_: pytest.fail("a cached image was read"))
    for i, (image, boxes) in enumerate(wanted):
        found = cached.sample(0, i)
        assert np.array_equal(found[0], image) and np.array_equal(found[1], boxes)
    assert np.array_equal(cached._pixels, before)


def test_the_cache_minds_the_free_memory(scenes: CocoSet, monkeypatch: pytest.MonkeyPatch):
    assert available_ram() > 2 ** 26
    monkeypatch.setattr("data.dataset.available_ram", lambda: 20 * 96 * 96 * 3 + 1)
    assert not DetectionSet(scenes, 96, cache="auto").fill_cache(False)
    assert DetectionSet(scenes, 96, cache="ram").fill_cache(False)
    monkeypatch.setattr("data.dataset.available_ram", lambda: 1000)
    message = "--cache ram: 20 images of 96 px need .* are free; pass --cache auto"
    with pytest.raises(EnvironmentFault, match=message):
        DetectionSet(scenes, 96, cache="ram").fill_cache(False)


def test_filling_the_cache_can_be_interrupted(scenes: CocoSet):
    def stop() -> None:
        raise KeyboardInterrupt

    dataset = DetectionSet(scenes, 96, cache="ram")
    with pytest.raises(KeyboardInterrupt):
        dataset.fill_cache(False, poll=stop)
    assert not dataset.cached


@pytest.mark.parametrize("length, batch, world",
                         [(20, 4, 2), (21, 4, 2), (23, 3, 3), (5, 4, 2), (1, 2, 3), (2, 1, 5)])
def test_ranks_share_the_global_batch_of_one_process(length: int, batch: int, world: int):
    whole = EpochSampler(length, batch * world, seed=5)
    ranks = [EpochSampler(length, batch, seed=5, rank=r, world=world) for r in range(world)]
    for sampler in (whole, *ranks):
        sampler.set_epoch(3)
    parts = [list(r) for r in ranks]
    assert {len(p) for p in parts} == {len(whole)} == {len(r) for r in ranks}, "so that none waits for a step"
    for b, wanted in enumerate(whole):
        shares = [p[b] for p in parts]
        assert len({len(s) for s in shares}) == 1, "the same share of every batch"
        joined = sum(shares, [])
        assert joined[:len(wanted)] == wanted and len(joined) - len(wanted) < world


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, number: int, **options: object) -> list:
        sampler = EpochSampler(50, 8, seed=seed, **options)
        sampler.set_epoch(number)
        return list(sampler)

    assert order(1, 2) == order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)
    assert [i for b in order(0, 9, shuffle=False) for _, i in b] == list(range(50))
    assert [len(b) for b in order(0, 0, drop_last=True)] == [8] * 6
    counts = Counter(i for number in range(30) for _, i in order(7, number)[0])
    assert len(counts) == 50, "each image comes first some time"
    with pytest.raises(ValueError, match="rank 2 of 2"):
        EpochSampler(5, 1, rank=2, world=2)


class Dying(DetectionSet):
    """A data set whose image 7 kills the process that loads it."""

    def __getitem__(self, key: tuple[int, int]) -> tuple:
        if key[1] == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def test_a_dead_worker_is_an_environment_fault_that_names_workers(scenes: CocoSet):
    with pytest.raises(EnvironmentFault, match="a loader process died .*killed.*fewer --workers"):
        list(make_loader(Dying(scenes, 96), 4, workers=1))
    handler = getattr(signal.getsignal(signal.SIGCHLD), "__module__", "")
    assert "torch" not in handler, "or it would raise in the middle of something else"
    assert worker_fault(RuntimeError("shapes differ"), 1) is None
    assert worker_fault(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nx"), 1) is None
    assert "killed" in str(worker_fault(ConnectionResetError(104, "reset by peer"), 1, [-9]))
    bus = RuntimeError("DataLoader worker (pid 5) is killed by signal: Bus error. shared memory")
    assert "/dev/shm" in str(worker_fault(bus, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_after_reading_is_named(tmp_path: Path, workers: int):
    data = read_coco(*locate(make_scenes(tmp_path / "s", train=4, val=1, size=160)).train)
    data.images[2].path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(make_loader(DetectionSet(data, 96), 2, workers=workers))
    assert str(caught.value).startswith(f"{data.images[2].path}: is empty")
    assert "Traceback" not in str(caught.value)


def test_workers_leave_the_first_signals_to_their_parent(scenes: CocoSet):
    loader = make_loader(DetectionSet(scenes, 96, preset("light"), seed=3), 2, seed=3, workers=1)
    steps, seen = iter(loader), []
    seen.append(next(steps))
    for worker in loader._iterator._workers:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
    seen += list(steps)
    assert sorted(i for b in seen for i in b.indices) == list(range(20))


def test_a_script_with_living_workers_ends(scenes: CocoSet, root: Path):
    import subprocess
    import sys
    code = ("from data.coco.locate import locate; from data.coco.read import read_coco; "
            "from data.dataset import DetectionSet; from data.loader import make_loader; "
            f"d = DetectionSet(read_coco(*locate({str(scenes.root.parent)!r}).train), 96); "
            "l = make_loader(d, 5, workers=2); print(sum(len(b.indices) for b in l))")
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout == "20\n" and done.returncode == 0


def test_real_photographs_load_as_they_are_read(shared: Path):
    data = read_coco(*locate(shared / "bccd").val)
    dataset = DetectionSet(data, 128, preset("default"), seed=1)
    assert dataset.fill_cache(False)
    for batch in make_loader(dataset, 16, workers=0):
        assert batch.targets[:, 2:].min() >= 0 and batch.targets[:, 2:].max() <= 1 and len(batch.targets)


def test_workers_find_the_pipeline_built(scenes, monkeypatch):
    """Each of them would else import albumentations anew, at every start of the loader."""
    dataset = DetectionSet(scenes, 96, preset("default"), cache="off")
    dataset.fill_cache(False)
    monkeypatch.setattr("data.augment._compose", None)             # called in a worker it would fail
    assert len(list(make_loader(dataset, 2, workers=1))) == -(-len(dataset) // 2)
