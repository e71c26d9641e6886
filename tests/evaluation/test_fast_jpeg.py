"""--fast-jpeg: large JPEGs shrunk as they are decoded; boxes still count from the whole image."""
import cv2
import numpy as np
import pytest
from PIL import Image

from data.augment import letterbox
from data.coco.read import read_coco
from data.dataset import DetectionSet
from data.images import decode, decode_small
from detection.detector import batch_of
from detection.sources import open_source
from tests.helpers.scripts import call
from utils.boxes import letterbox_geometry, scale_back
from utils.errors import DataError

pytest.importorskip("simplejpeg", reason="needs simplejpeg (requirements.txt)")


def photo(path, width, height, mode="RGB", orientation=1):
    """A smooth picture with edges, as a JPEG."""
    small = np.random.default_rng(width).integers(0, 256, (9, 12, 3), np.uint8)
    image = Image.fromarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, quality=92, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(401, 300), (333, 1001), (1603, 1201), (192, 192)])
def test_a_large_jpeg_comes_at_its_letterboxed_size_and_looks_the_same(tmp_path, width, height, orientation):
    path = photo(tmp_path / "a.jpg", width, height, orientation=orientation)
    whole, (small, size) = decode(path), decode_small(path, 96)
    place = letterbox_geometry(*whole.shape[:2], 96)
    assert size == whole.shape[:2] and small.shape == (place.height, place.width, 3)
    mine, where = letterbox(small, 96)
    assert where[1:] == place[1:], "letterboxing it changes nothing"
    assert np.abs(mine.astype(int) - letterbox(whole, 96)[0]).mean() < 5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_shrunk_alike(tmp_path, mode):
    path = photo(tmp_path / "a.jpg", 800, 600, mode)
    small, size = decode_small(path, 96)
    assert size == (600, 800) and small.shape == (72, 96, 3)
    close = cv2.resize(decode(path), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - close).mean() < 5


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_what_is_too_small_or_no_jpeg_is_read_whole(tmp_path, name):
    path = tmp_path / name
    photo(tmp_path / "a.jpg", 189, 189)                    # a pixel less than 2 x 95 - 1 would be 95
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    small, size = decode_small(path, 96 if name == "a.jpg" else 20)
    assert size == (189, 189) and np.array_equal(small, decode(path))


def test_damage_is_told_as_ever(tmp_path):
    path = photo(tmp_path / "a.jpg", 900, 700)
    data = bytearray(path.read_bytes())
    data[len(data) // 2:len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    for read in (decode, lambda path: decode_small(path, 96)):
        with pytest.raises(DataError, match="is damaged"):
            read(path)
    path.write_bytes(data[:-900])
    with pytest.raises(DataError, match="truncated or damaged"):
        decode_small(path, 96)


def test_boxes_count_from_the_whole_image(tmp_path):
    source = open_source(str(photo(tmp_path / "a.jpg", 1001, 501, orientation=6)))
    source.side = 96
    (frame,) = source
    assert frame.size == (1001, 501) and max(frame.image.shape) == 96
    place = batch_of([frame], lambda image: letterbox(image, 96)).places[0]
    box = np.array([[place.left, place.top, place.left + place.width, place.top + place.height, 1, 0]], float)
    assert scale_back(box, place, *frame.size)[0, :4] == pytest.approx([0, 0, 501, 1001])


def test_a_data_set_reads_nearly_the_same_and_minds_a_changed_size(tmp_path):
    photo(tmp_path / "a.jpg", 800, 600)
    (tmp_path / "a.json").write_text('{"images": [{"id": 1, "file_name": "a.jpg", "width": 800, "height": 600'
                                     '}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": '
                                     '[1, 1, 90, 90], "area": 8100, "iscrowd": 0}], "categories": [{"id": 1, '
                                     '"name": "a"}]}')
    coco = read_coco(tmp_path / "a.json", tmp_path)
    whole, fast = (DetectionSet(coco, 96, fast_jpeg=fast) for fast in (False, True))
    off = np.abs(whole.plain(0).astype(int) - fast.plain(0))
    assert 0 < off.mean() < 5 and fast.plain(0).shape == (96, 96, 3)
    photo(tmp_path / "a.jpg", 802, 600)
    with pytest.raises(DataError, match="is 802x600 now, was 800x600"):
        fast.plain(0)


@pytest.mark.parametrize("more", [(), ("--nosave", "--save-crop"), ("--nosave", "--serve")])
def test_nothing_whole_can_be_drawn_or_shown_with_it(tmp_path, monkeypatch, capsys, more):
    import detect
    words = ["detect.py", "--source", photo(tmp_path / "a.jpg", 80, 60), "--fast-jpeg", *more]
    assert call(monkeypatch, detect.main, words) == 2 and "--fast-jpeg" in capsys.readouterr().err


def test_a_live_source_is_refused(tmp_path, monkeypatch, capsys):
    import detect
    words = ["detect.py", "--source", "rtsp://127.0.0.1:9/a", "--fast-jpeg", "--nosave", "--project",
             tmp_path]
    assert call(monkeypatch, detect.main, words) == 2 and "is live" in capsys.readouterr().err
