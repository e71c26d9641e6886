"""Streams that are cut again and again: does detect.py come back each time, and neither grow nor slow down?

    python -m tests.speed_streams --video cars.mp4 --minutes 5 --cuts 10 --save-json results/stream-cuts.json

A video is sent by RTSP (GStreamer, H.264) and by HTTP (MJPEG), each from a process of its own, and detect.py
watches both. Every cut is one of two in turn: the server is killed and started again after DOWN seconds, or
it stops answering while its connections stay open. Frames carry the time at which they were sent, so that the
written videos tell whether they play at true speed.
"""
from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
DOWN, STILL = 3.0, 6.0             # seconds that a killed server is away, that a still one is silent
READ_TIMEOUT = 3.0
BITS, BLOCK = 20, 12               # the stamp: hundredths of seconds in black and white squares of so many px


def main() -> None:
    """Runs the servers and detect.py, cuts, prints what was seen, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "micro-yolo-voc5.pt")
    parser.add_argument("--imgsz", type=int, default=416)
    parser.add_argument("--save-json", type=Path)
    parser.add_argument("--http-port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.http_port:
        serve_http(args.video, args.http_port)
        return
    from tests.helpers.live_cases import RtspServer, free_port, why_no_rtsp
    if reason := why_no_rtsp():
        sys.exit(reason)
    frames, fps = Frames(args.video), Frames(args.video).fps
    servers = [RtspServer(frames.next, round(fps)), HttpServer(args.video, free_port())]
    with tempfile.TemporaryDirectory() as folder:
        try:
            for server in servers:
                server.begin()
            report(args, watch(args, servers, Path(folder)), Path(folder))
        finally:
            for server in servers:
                server.kill()


class Frames:
    """The frames of a video over and over, each with the time at which it was asked for."""

    def __init__(self, path: Path) -> None:
        self._capture, self._lock = cv2.VideoCapture(str(path)), threading.Lock()
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)

    def next(self) -> np.ndarray:
        """The next frame, uint8 [H, W, 3] BGR, stamped."""
        with self._lock:                                   # two connections may overlap
            good, image = self._capture.read()
            if not good:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
                image = self._capture.read()[1]
        hundredths = int(time.time() * 100)
        for bit in range(BITS):
            image[:BLOCK, bit * BLOCK:(bit + 1) * BLOCK] = 255 if hundredths >> bit & 1 else 0
        return image


def stamp_of(image: np.ndarray) -> float:
    """The seconds that a frame is stamped with, modulo 2^20 hundredths."""
    inner = [image[2:BLOCK - 2, bit * BLOCK + 2:(bit + 1) * BLOCK - 2].mean() > 127 for bit in range(BITS)]
    return sum(1 << bit for bit in range(BITS) if inner[bit]) / 100


def serve_http(video: Path, port: int) -> None:
    """Sends the video as MJPEG until killed."""
    from tests.helpers.live_cases import MjpegCamera
    frames = Frames(video)
    camera = MjpegCamera(lambda _: frames.next(), frames.fps)
    camera.port = port
    camera.begin()
    print("ready", flush=True)
    signal.pause()


class HttpServer:
    """An MJPEG server in a process of its own."""

    def __init__(self, video: Path, port: int) -> None:
        self.video, self.port = video, port
        self._process: subprocess.Popen | None = None

    def begin(self) -> None:
        """Starts it, and waits until it listens."""
        words = [sys.executable, "-m", "tests.speed_streams", "--video", self.video, "--http-port", self.port]
        self._process = subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=subprocess.PIPE)
        self._process.stdout.readline()

    def send_signal(self, number: int) -> None:
        """Sends its process a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def address(self) -> str:
        """Where its stream is."""
        return f"http://127.0.0.1:{self.port}/live"


def plan(minutes: float, cuts: int) -> list[tuple[float, int, str]]:
    """(second, server, what is done to it) in order: the servers' cuts lie half an interval apart."""
    steps, interval = [], 60 * minutes / (cuts + 1)
    for number in range(cuts):
        for server in (0, 1):
            at = interval * (number + 0.6 + server / 2)
            before, after, seconds = ("stop", "go", STILL) if number % 2 else ("kill", "begin", DOWN)
            steps += [(at, server, before), (at + seconds, server, after)]
    return sorted(steps)


def watch(args: argparse.Namespace, servers: list, folder: Path) -> list[dict]:
    """detect.py's health second by second while the servers are cut as planned; each with its "at" (s)."""
    sources = folder / "cameras.txt"
    sources.write_text("\n".join(server.address() for server in servers))
    child = subprocess.Popen(
        [sys.executable, "detect.py", "--source", sources, "--weights", args.weights, "--threads", "1",
         "--imgsz", str(args.imgsz), "--project", folder, "--name", "run", "--health", "health.json",
         "--read-timeout", str(READ_TIMEOUT)], cwd=ROOT)
    health, start, steps, series = folder / "run" / "health.json", 0.0, plan(args.minutes, args.cuts), []
    while child.poll() is None and (not start or time.time() - start < 60 * args.minutes):
        time.sleep(0.25)
        found = json.loads(health.read_text()) if health.is_file() else None
        if not start and found and all(one["results"] for one in found["streams"]):
            start = time.time()
        at = time.time() - start
        if start and (not series or found["time"] != series[-1]["time"]):
            series.append(found | {"at": at})
        while start and steps and steps[0][0] <= at:
            _, number, what = steps.pop(0)
            print(f"{at:6.1f} s  {('RTSP', 'HTTP')[number]} {what}", flush=True)
            server = servers[number]
            if what in ("kill", "begin"):
                getattr(server, what)()
            else:
                server.send_signal(signal.SIGSTOP if what == "stop" else signal.SIGCONT)
    child.send_signal(signal.SIGINT)
    if (code := child.wait(60)) != 130:
        sys.exit(f"detect.py ended with {code} after {time.time() - start:.0f} s")
    return series


def report(args: argparse.Namespace, series: list[dict], folder: Path) -> None:
    """Prints the figures and writes them."""
    from utils.runs import environment, write_json
    rss = [one["rss_mb"] for one in series]
    at = np.array([one["at"] for one in series])
    steady = at > 30                                       # libraries and buffers are in place by then
    slope = np.polyfit(at[steady] / 60, np.array(rss)[steady], 1)[0]
    result = {"minutes": args.minutes, "cuts_of_each": args.cuts, "video": args.video.name, "streams": {},
              "rss_mb": {"after_30_s": rss[int(np.argmax(steady))], "end": rss[-1], "most": max(rss),
                         "mb_a_minute": round(float(slope), 3), "each_10_s": rss[::10]}}
    print("memory, MB:", json.dumps(result["rss_mb"]))
    for number, kind in enumerate(("RTSP", "HTTP")):
        mine = [one["streams"][number] for one in series]
        last = mine[-1]
        found = {"reconnects": last["reconnects"], "frames_read": last["frames_read"],
                 "frames_dropped": last["frames_dropped"], "results": last["results"]}
        for name, part in (("first_minute", at <= 60), ("last_minute", at >= at[-1] - 60)):
            rows = [one for one, inside in zip(mine, part) if inside and one["state"] == "live"]
            found[name] = {key: round(float(np.median([one["latency_ms"][key] for one in rows])), 1)
                           for key in ("p50", "p90")}
            behind = [one["behind_seconds"] for one in rows if one["behind_seconds"] is not None]
            found[name]["behind_s"] = round(float(np.median(behind)), 3) if behind else None
        found["videos"] = [look(path) for path in sorted((folder / "run").glob(f"{last['name']}*.mkv"))]
        result["streams"][kind] = found
        print(kind, json.dumps(found))
    if args.save_json:
        write_json(args.save_json, result | {"environment": environment()})


def look(path: Path) -> dict:
    """What a recorded video holds: its frames by two counts, and whether its pace is true."""
    capture, stamps = cv2.VideoCapture(str(path)), []
    fps = capture.get(cv2.CAP_PROP_FPS)
    while (image := capture.read()[1]) is not None:
        stamps.append(stamp_of(image))
    apart = max(1, round(4 * fps))                         # frames whose stamps are compared
    steps = [(after - before) * fps / apart for before, after in zip(stamps, stamps[apart:])]
    found = {"fps": fps, "frames": len(stamps), "seconds_of_life_a_second": round(float(np.median(steps)), 3)}
    if shutil.which("ffprobe"):
        words = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", "-show_entries",
                 "stream=nb_read_frames", "-of", "csv=p=0", str(path)]
        found["frames_by_ffprobe"] = int(subprocess.run(words, capture_output=True, text=True,
                                                        check=True).stdout.strip(",\n"))
    return found


if __name__ == "__main__":
    main()
