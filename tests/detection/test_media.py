"""Media as devices and programs make them: damaged frames, odd times and names, animations, overwriting."""
import json
import os
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from detection.outputs import Outputs
from detection.sources import open_source, printable, unique_names
from detection.video import Frame, Recorder, VideoInfo, encoder, probe, read
from detection.yuv import Yuv
from tests.helpers.browser_cases import chromium, need_browser, served
from tests.helpers.detect_cases import film, save, scene
from utils.errors import DataError


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def coded(path: Path, codec: str, times: list[float], **options: str) -> Path:
    """A video by PyAV itself: frame k is 5 * k bright and shown at times[k] (s)."""
    size = 64, 96
    with av.open(f"file:{path}", "w") as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        noise = np.random.default_rng(0).integers(0, 40, (*size, 3))
        for k, at in enumerate(times):
            frame = av.VideoFrame.from_ndarray((noise + 5 * k).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * at), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def damage(path: Path, number: int) -> None:
    """Overwrites packet `number` of a video with zeros."""
    with av.open(f"file:{path}") as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place + 12:place + size] = bytes(size - 12)
    path.write_bytes(data)


def times_of(path: Path) -> list[float]:
    with av.open(f"file:{path}") as container:
        return [frame.time for frame in container.decode(video=0)]


@pytest.mark.parametrize(("name", "codec", "options"), [
    ("a.avi", "mjpeg", {}), ("a.mkv", "libvpx", {"g": "5"}),
    ("a.mp4", "libvpx-vp9", {"g": "5"}), ("a.ts", "mpeg4", {})])
def test_a_damaged_frame_is_passed_over_and_named(tmp_path, name, codec, options):
    path = coded(tmp_path / name, codec, [k / 10 for k in range(40)], **options)
    damage(path, 20)
    source = open_source(str(path))
    frames = list(source)
    assert 34 <= len(frames) <= 40 and frames[-1].seconds == pytest.approx(3.9, abs=0.11)
    if len(frames) < 39:
        assert "damaged frames" in source.faults[0][1] or "only" in source.faults[0][1]


def test_what_a_video_lacks_is_counted_and_told(tmp_path, nets, run):
    path = coded(tmp_path / "a.mkv", "mjpeg", [k / 10 for k in range(40)])
    for number in (10, 20, 21):
        damage(path, number)
    code, out, _, folder = run("--weights", nets["good"], "--source", path)
    assert code == 0 and "37 frames" in out
    assert re.search(r"a\.mkv: 3 damaged frames, the first at (0\.9\d|1\.0\d) s; only 37 of 40 frames", out)
    assert "1 files could not be read or not to their end" in out
    wanted = [k / 10 for k in range(40) if k not in (10, 20, 21)]
    assert times_of(folder / "a.mp4") == pytest.approx(wanted, abs=0.05)


def test_frames_that_a_decoder_leaves_out_in_silence_are_counted(tmp_path):
    if "libx265" not in av.codecs_available:
        pytest.skip("needs a PyAV whose FFmpeg writes HEVC")
    options = {"preset": "ultrafast", "x265-params": "keyint=10:bframes=0:log-level=none"}
    path = coded(tmp_path / "a.mp4", "libx265", [k / 10 for k in range(40)], **options)
    assert len(list(source := open_source(str(path)))) == 40 and not source.faults
    damage(path, 25)
    frames = list(source)
    assert len(frames) < 40 and frames[-1].seconds == pytest.approx(3.9, abs=0.01)
    assert re.search(rf"{40 - len(frames)} damaged frames, the first at 2\.50 s", source.faults[0][1])


def test_a_damaged_start_moves_no_times_and_a_varying_rate_is_no_loss(tmp_path):
    path = coded(tmp_path / "a.mkv", "mjpeg", [k / 10 for k in range(20)])
    for number in (0, 1):
        damage(path, number)
    source = open_source(str(path))
    times = [frame.seconds for frame in source]
    assert times == pytest.approx([k / 10 for k in range(2, 20)], abs=0.002)
    assert "2 damaged frames, the first at 0.00 s" in source.faults[0][1]
    times = [0.5 * k for k in range(10)] + [5 + 0.02 * k for k in range(30)]
    path = coded(tmp_path / "b.webm", "libvpx", times)
    assert len(list(source := open_source(str(path)))) == 40 and not source.faults, source.faults


def test_a_video_of_nothing_but_damage_ends_soon(tmp_path):
    path = coded(tmp_path / "a.avi", "mjpeg", [k / 10 for k in range(300)])
    head = path.read_bytes()[:5000]
    path.write_bytes(head + os.urandom(2_000_000))
    try:
        assert len(list(open_source(str(path)))) < 40
    except DataError as error:
        assert "a.avi" in str(error)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rates_keep_their_times_and_pixels_their_aspect(tmp_path, nets, run, suffix):
    times = [0.2 * k for k in range(20)] + [4 + 0.04 * k for k in range(20)]
    path = coded(tmp_path / f"a{suffix}", "libvpx-vp9", times)
    with av.open(str(path)) as container, av.open(str(tmp_path / f"wide{suffix}"), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        stream.sample_aspect_ratio = Fraction(4, 3)
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    code, _, _, folder = run("--weights", nets["good"], "--source", tmp_path / f"wide{suffix}")
    assert code == 0 and times_of(folder / "wide.mp4") == pytest.approx(times, abs=0.002)
    info = probe(folder / "wide.mp4")
    assert (info.width, info.height) == (96, 64) and info.aspect == probe(tmp_path / f"wide{suffix}").aspect


def test_a_video_whose_frames_change_size_is_written_in_parts_and_said(tmp_path, nets, run):
    path, images = tmp_path / "a.mjpeg", [scene(240, width, [(2, 1, 0)])[0] for width in (320, 160)]
    path.write_bytes(b"".join(jpeg(image) for image in images for _ in range(8)))
    code, out, _, folder = run("--weights", nets["good"], "--source", path)
    assert code == 0 and "16 frames, 16 boxes" in out and "continues in a-part2.mp4, at 160x240 px" in out
    for name, width in (("a.mp4", 320), ("a-part2.mp4", 160)):
        assert probe(folder / name).width == width and len(times_of(folder / name)) == 8


@pytest.mark.parametrize(("size", "flags", "wanted"), [
    ((240, 320), (), "h264"), ((240, 320), ("--codec", "vp9"), "vp9"), ((241, 320), (), "vp9"),
    ((240, 321), (), "vp9"), ((8, 2), (), "h264")])
def test_a_video_is_written_in_h264_or_vp9_whole_and_ffmpeg_and_opencv_read_it(tmp_path, nets, run, size,
                                                                            flags, wanted):
    film(tmp_path / "a.mp4", 12, size)
    code, _, err, folder = run("--weights", nets["good"], "--source", tmp_path / "a.mp4", *flags)
    assert code == 0, err
    with av.open(str(folder / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert wanted in stream.codec_context.name and stream.frames == 12
        assert stream.average_rate == Fraction(25, 2) and (stream.height, stream.width) == size
    capture = cv2.VideoCapture(str(folder / "a.mp4"))
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 12


def test_where_pyav_has_no_x264_vp9_is_written(monkeypatch):
    assert encoder((64, 48))[0] == "libx264" and encoder((20000, 48))[0] == "libvpx-vp9"
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    assert encoder((64, 48))[0] == "libvpx-vp9"


def test_names_with_a_colon_or_that_are_no_unicode_are_read_and_written(tmp_path, nets, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "12:30:05.mp4", 3)
    assert len(list(open_source("12:30:05.mp4"))) == 3
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"caf\xe9.jpg", b"\x1b]0;x\x07.jpg", "视".encode() * 80 + b".jpg"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.write_bytes(jpeg(scene(160, 160, [(1, 1, 0)])[0]))
    Path(os.fsdecode(os.fsencode(folder) + b"/torn\xe9.jpg")).write_bytes(b"x")
    code, out, err, made = run("--weights", nets["good"], "--source", folder, "--save-txt", "--save-json",
                               "--save-crop")
    assert code == 0 and "3 frames, 3 boxes" in out, err
    assert out.isprintable() or "\x1b" not in out and "left out:" in out
    assert len(list((made / "labels").iterdir())) == 3 and len(list((made / "crops" / "red").iterdir())) == 3
    names = {row["file_name"] for row in json.loads((made / "predictions.json").read_text(encoding="utf-8"))}
    assert printable("caf\udce9.jpg") in names and all(name.encode() for name in names)


def test_labels_of_a_video_s_frame_and_of_an_image_of_its_name_do_not_meet():
    given = ("clip_000001.jpg", "clip.mp4", "clip.avi", "clip_2_000003.png", "x" * 300, "x" * 301 + ".jpg")
    names = unique_names(tuple(map(Path, given)))
    assert names[1] == "clip.mp4" and names[2] == "clip_2.avi"
    frames = {f"{Path(name).stem}_{k:06d}" for name in names[1:3] for k in range(9)}
    assert not frames & {Path(name).stem for name in names}
    assert len({Path(name).stem for name in names}) == 6 and max(len(name.encode()) for name in names) < 220


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_is_read_to_its_end_with_its_times(tmp_path, nets, run, suffix):
    images = [Image.fromarray(scene(160, 160, [(1, k % 5, 0)])[0]) for k in range(6)]
    exact = {"lossless": True} if suffix == ".webp" else {}
    images[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=images[1:],
                   duration=[200, 100, 100, 300, 100, 100], **exact)
    images[0].save(tmp_path / f"still{suffix}", **exact)
    frames = list(open_source(str(tmp_path / f"a{suffix}")))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.2, 0.3, 0.4, 0.7, 0.8])
    code, out, _, folder = run("--weights", nets["good"], "--source", tmp_path, "--save-txt")
    assert code == 0 and "7 frames, 7 boxes" in out
    assert times_of(folder / "a.mp4") == pytest.approx([0, 0.2, 0.3, 0.4, 0.7, 0.8], abs=0.001)
    assert len(list((folder / "labels").iterdir())) == 7 and (folder / "still.jpg").is_file()


def test_what_a_folder_holds_beside_is_named_and_counted(tmp_path):
    save(tmp_path / "a.png", scene(60, 60, [])[0])
    for name in ("IMG_1.HEIC", "IMG_2.HEIC", "b.cr2", "notes.txt", "instances.json", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "clip.MTS").write_bytes(bytes(500))
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(40 * 2 ** 30)
    source = open_source(str(tmp_path))
    assert [frame.name for frame in source] == ["a.png"]
    said = [reason for _, reason in source.faults]
    assert len(said) == 4 and "b.cr2: .cr2 is not supported" in said[1]
    assert "IMG_1.HEIC and 1 more: .HEIC is not supported: pip install pillow-heif" in said[0]
    assert "clip.MTS: not a readable video" in said[2] and "huge.jpg: has 40.0 GiB" in said[3]


def test_pipes_and_broken_links_are_named_and_hold_up_nothing(tmp_path):
    save(tmp_path / "a.png", scene(48, 64, [])[0])
    for name in ("b.gif", "c.jpg", "d.mp4"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "e.jpg").symlink_to("gone.jpg")
    (tmp_path / "f.jpg").symlink_to("f.jpg")
    (tmp_path / "folder.jpg").mkdir()
    source = open_source(str(tmp_path))
    assert [frame.name for frame in source] == ["a.png"]
    assert [path.name for path, _ in source.faults] == ["b.gif", "c.jpg", "d.mp4", "e.jpg", "f.jpg"]
    assert all("a pipe, a device or a broken link" in reason for _, reason in source.faults)


def test_an_image_that_jpeg_cannot_hold_is_written_as_png(tmp_path, nets, run):
    image = np.full((10, 70_000, 3), 114, np.uint8)
    save(tmp_path / "in" / "a.bmp", image)
    code, out, err, folder = run("--weights", nets["good"], "--source", tmp_path / "in")
    assert code == 0 and (folder / "a.png").is_file(), err


def test_a_video_that_claims_too_many_pixels_is_refused(tmp_path):
    film(tmp_path / "a.mp4", 2)
    with pytest.raises(DataError, match="320x240 px, above the limit of 1,000"):
        open_source(str(tmp_path / "a.mp4"), 1000)


def test_a_turned_video_is_read_upright(tmp_path):
    path = coded(tmp_path / "a.mp4", "mpeg4", [k / 10 for k in range(4)])
    data = path.read_bytes()
    unit = b"\x00\x01\x00\x00" + bytes(12) + b"\x00\x01\x00\x00" + bytes(12) + b"\x40\x00\x00\x00"
    turn = bytes(4) + b"\x00\x01\x00\x00" + bytes(4) + b"\xff\xff\x00\x00" + bytes(16) + b"\x40\x00\x00\x00"
    place = data.index(unit, data.index(b"tkhd"))
    path.write_bytes(data[:place] + turn + data[place + len(unit):])
    wanted = cv2.VideoCapture(str(path)).read()[1][:, :, ::-1]
    image, _ = next(read(path))
    info = probe(path)
    assert image.shape == wanted.shape == (96, 64, 3) and (info.width, info.height) == (64, 96)
    assert np.abs(image.astype(int) - wanted).mean() < 3


def test_results_are_never_written_over_the_source_or_what_no_detection_wrote(tmp_path, nets, run):
    place = tmp_path / "out" / "exp"
    image = save(place / "a.jpg", scene(160, 160, [(1, 1, 0)])[0])
    before = image.read_bytes()
    flags = ("--weights", nets["good"], "--name", "exp", "--exist-ok")
    for source in (place, image, tmp_path / "out" / ".." / "out" / "exp" / "*.jpg"):
        code, _, err, _ = run(*flags, "--source", source)
        assert code == 2 and "holds the source" in err and "--name" in err
    other = save(tmp_path / "b.jpg", scene(160, 160, [(1, 1, 0)])[0])
    (place / "args.json").write_text('{"epochs": 3}')
    code, _, err, _ = run(*flags, "--source", other)
    assert code == 2 and "holds a.jpg and is not the folder of a detection" in err
    assert image.read_bytes() == before
    assert sorted(path.name for path in place.iterdir()) == ["a.jpg", "args.json"]
    for _ in range(2):
        assert run("--weights", nets["good"], "--name", "again", "--exist-ok", "--source", other)[0] == 0


def test_frames_of_equal_or_falling_times_are_written_one_after_the_other(tmp_path):
    video = Recorder(tmp_path / "a", live=False)
    for at in (0, 0.1, 0.1, 0.05, 0.3):
        video.write(np.zeros((48, 64, 3), np.uint8), at, VideoInfo(10, 0, 64, 48))
    video.close()
    times = times_of(tmp_path / "a.mp4")
    assert len(times) == 5 and times == sorted(set(times)) and times[-1] == pytest.approx(0.3, abs=0.001)


VARYING = [0.2 * k for k in range(8)] + [1.6 + 0.04 * k for k in range(12)]


@pytest.fixture(scope="module")
def written(nets, tmp_path_factory):
    """What detect.py's Recorder makes of a video whose rate varies."""
    folder = tmp_path_factory.mktemp("written")
    video = Recorder(folder / "a", live=False)
    for frame in open_source(str(coded(folder / "source.mkv", "mjpeg", VARYING))):
        video.write(frame.image, frame.seconds, frame.video)
    video.close()
    return folder / "a.mp4"


def test_ffprobe_and_opencv_agree_on_the_times(written):
    capture, seen = cv2.VideoCapture(str(written)), []
    while capture.read()[0]:
        seen.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    assert seen == pytest.approx(VARYING, abs=0.002)
    if shutil.which("ffprobe") is None:
        pytest.skip("needs ffprobe for the rest")
    done = subprocess.run(["ffprobe", "-v", "error", "-show_entries", "packet=pts_time", "-of", "csv=p=0",
                           written], capture_output=True, text=True, check=True)
    assert [float(line.strip(",")) for line in done.stdout.split()] == pytest.approx(VARYING, abs=0.002)


def test_chromium_shows_each_frame_at_its_time(written):
    need_browser()
    ask = """times => new Promise((done, fail) => {
        const video = document.createElement('video'), seen = [];
        const next = () => { if (seen.length === times.length) return done(seen);
            video.requestVideoFrameCallback((_, { mediaTime }) => { seen.push(mediaTime); next(); });
            video.currentTime = times[seen.length] + 0.01; };
        video.onerror = () => fail(video.error.message);
        video.onloadeddata = next;
        video.muted = true; video.src = 'a.mp4'; setTimeout(() => done(seen), 20000); })"""
    with chromium() as browser, served(written.parent) as address:
        page = browser.new_page()
        page.goto(address + "a.mp4")
        seen = page.evaluate(ask, VARYING[::3])
    assert seen == pytest.approx(VARYING[::3], abs=0.041), seen


@pytest.mark.parametrize("name", ["a.mp4", "b.avi", "c.mkv", "d.ts", "e.gif", "f.webp", "g.avif", "h.png"])
def test_mutations_of_a_file_are_read_or_refused_in_a_sentence(tmp_path, name):
    """30 seeded mutations: bytes changed, cut, doubled, put in; only frames or DataError may come of them."""
    codecs = {"a.mp4": "libvpx-vp9", "b.avi": "mjpeg", "c.mkv": "libvpx", "d.ts": "mpeg4"}
    images = [Image.fromarray(scene(60, 80, [(1, k, 0)])[0]) for k in range(3)]
    if name in codecs:
        whole = coded(tmp_path / name, codecs[name], [k / 10 for k in range(10)]).read_bytes()
    else:
        several = {"save_all": True, "append_images": images[1:]} if name < "g" else {}
        images[0].save(tmp_path / name, **several)
        whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(sum(name.encode()))
    for _ in range(30):
        data = bytearray(whole)
        most = len(data) if rng.random() < 0.5 else min(400, len(data))
        for at in rng.integers(0, most, rng.integers(1, 12)):
            kind, length = rng.integers(4), int(rng.integers(1, 30))
            data[at:at + (length if kind in (0, 1) else 0)] = (
                rng.bytes(length), b"", data[at:at + length], rng.bytes(length))[kind]
        if rng.random() < 0.2:
            del data[int(rng.integers(1, len(data))):]
        (tmp_path / name).write_bytes(data)
        try:
            for frame in open_source(str(tmp_path / name)):
                frame.pixels.letterbox(32) if isinstance(frame.pixels, Yuv) else None
                assert frame.image.ndim == 3 and frame.image.dtype == np.uint8
        except DataError as error:
            assert name in str(error) and len(str(error)) < 600


def test_ids_that_are_no_plain_number_stay_as_the_data_set_has_them(tmp_path: Path):
    given = {"007": 0, "-2": 1, "--7": 2}
    with Outputs(tmp_path, ("a", "b", "c"), given, images=False, json=True) as outputs:
        outputs.write(Frame("x", Path("x.jpg"), np.zeros((8, 8, 3), np.uint8), 0, None),
                      np.array([[0, 0, 4, 4, .9, k] for k in range(3)], np.float32))
    rows = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert [row["category_id"] for row in rows] == ["007", -2, "--7"]
