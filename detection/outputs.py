"""What detection leaves behind: drawn images and videos, label files, a JSON of results, crops."""
from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from data.coco.clean import written_id
from detection.draw import contact_sheet, draw
from detection.sources import printable
from detection.video import Frame, Recorder
from detection.yuv import Yuv
from utils.errors import DiskError

FORBIDDEN = str.maketrans(dict.fromkeys('/\\:*?"<>|\x00', "_"))    # in file names, on one system or another


class Outputs:
    """Writes the boxes of frame after frame into `folder`, and counts them by class index: `per_class`.

    images: drawn images and videos; txt: labels/NAME.txt, with `scores`; json: predictions.json; crops:
    crops/CLASS/NAME_NUMBER.jpg; view: keep the last drawn image as `shown`. codec: Recorder's, of videos.
    """

    def __init__(self, folder: Path, names: Sequence[str], class_map: Mapping[str, int] | None = None,
                 images: bool = True, txt: bool = False, scores: bool = False, json: bool = False,
                 crops: bool = False, view: bool = False, say: Callable[[str], None] = print,
                 codec: str = "auto") -> None:
        self.folder, self.names = folder, tuple(names)
        self._ids: list[int | str] = list(range(1, len(names) + 1))     # where the data set's are unknown
        for given, index in (class_map or {}).items():
            self._ids[index] = written_id(given)
        self.images, self.txt, self.scores, self.crops, self.view = images, txt, scores, crops, view
        self.frames = 0
        self.per_class = np.zeros(len(self.names), np.int64)
        self.shown: np.ndarray | None = None
        self._say, self._codec = say, codec
        self._seen: dict[str, np.ndarray] = {}
        self._videos: dict[str, Recorder] = {}
        self._json = (folder / "predictions.json").open("w", encoding="utf-8") if json else None
        self._between = "[\n"                              # what stands before the next row of the JSON
        if txt:
            (folder / "labels").mkdir(exist_ok=True)

    @property
    def looks(self) -> bool:
        """Return whether the frames' pixels are needed, not their boxes alone."""
        return self.images or self.view or self.crops

    def write(self, frame: Frame, boxes: np.ndarray) -> None:
        """Write one frame with its boxes [N, 6] (xyxy px of the frame, score, class)."""
        self.frames += 1
        self.per_class += self._count(boxes)
        if self.images or self.view:
            drawn = draw(frame.image if self.view else frame.pixels, boxes, self.names)
            self.shown = self._look(frame, drawn) if self.view else None
            if self.images:
                self._save(frame, drawn)
        if self.txt:
            path = self.folder / "labels" / f"{stem(frame)}.txt"
            path.write_text(label_lines(boxes, frame.size, self.scores), encoding="utf-8")
        if self._json is not None:
            self._write_json(frame, boxes)
        if self.crops:
            self._write_crops(frame, boxes)

    def _save(self, frame: Frame, drawn: np.ndarray | Yuv) -> None:
        if frame.video is None:
            suffix = ".png" if frame.path.suffix.lower() == ".png" else ".jpg"
            save_image(self.folder / (stem(frame) + suffix), drawn)
            return
        if frame.name not in self._videos:
            if not frame.taken:                            # files come one by one, streams side by side
                self._end_videos()
            base = self.folder / Path(frame.name).stem
            self._videos[frame.name] = Recorder(base, frame.live, self._say, self._codec)
        self._videos[frame.name].write(drawn, frame.seconds, frame.video)

    def _look(self, frame: Frame, drawn: np.ndarray) -> np.ndarray:
        """Return what the window shows: the image, or the newest of each stream side by side."""
        self._seen = (self._seen if frame.taken else {}) | {frame.name: drawn}
        if len(self._seen) == 1:
            return drawn
        return contact_sheet(list(self._seen.values()), math.ceil(math.sqrt(len(self._seen))), (640, 480))

    def _write_json(self, frame: Frame, boxes: np.ndarray) -> None:
        """Add one line a box: top left corner and size in px, as COCO has it, and the data set's category."""
        for x1, y1, x2, y2, score, label in boxes.tolist():
            row: dict[str, object] = {"image_id": self.frames, "file_name": printable(frame.path.name)}
            if frame.video is not None:
                row["frame"] = frame.index
            if frame.live:
                row["time"] = round(time.time() - (time.monotonic() - frame.taken), 3)
            row |= {"category_id": self._ids[int(label)], "category": self.names[int(label)],
                    "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "score": round(score, 5)}
            self._json.write(self._between + json.dumps(row, ensure_ascii=False))
            self._between = ",\n"

    def _write_crops(self, frame: Frame, boxes: np.ndarray) -> None:
        image = frame.image if len(boxes) else None
        for number, row in enumerate(boxes, 1):
            name = self.names[int(row[5])].translate(FORBIDDEN).strip(" .") or f"class {int(row[5])}"
            folder = self.folder / "crops" / name
            folder.mkdir(parents=True, exist_ok=True)
            x1, y1 = (max(0, math.floor(value)) for value in row[:2])
            x2, y2 = (math.ceil(value) for value in row[2:4])
            crop = image[y1:max(y2, y1 + 1), x1:max(x2, x1 + 1)]
            save_image(folder / f"{stem(frame)}_{number}.jpg", crop)

    def _end_videos(self) -> None:
        """Finish all open videos, also where one cannot be."""
        videos, self._videos = self._videos, {}
        with ExitStack() as stack:
            for video in videos.values():
                stack.callback(video.close)

    def counts(self, boxes: np.ndarray | None = None) -> dict[str, int]:
        """Return boxes by class name, most first: of boxes [N, 6], or of all that were written."""
        number = self.per_class if boxes is None else self._count(boxes)
        return {self.names[k]: int(number[k]) for k in np.argsort(-number, kind="stable") if number[k]}

    def _count(self, boxes: np.ndarray) -> np.ndarray:
        return np.bincount(boxes[:, 5].astype(np.int64), minlength=len(self.names))

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the open videos and the JSON."""
        if self._json is not None:
            with self._json as file:
                file.write("[\n]\n" if self._between == "[\n" else "\n]\n")
        self._end_videos()


def stem(frame: Frame) -> str:
    """Return the name of the frame's own files, without suffix: a video's frames count from 1."""
    base = Path(frame.name).stem
    return base if frame.video is None else f"{base}_{frame.index + 1:06d}"


def label_lines(boxes: np.ndarray, shape: tuple[int, ...], scores: bool) -> str:
    """Return lines of class, cxcywh normalised, and score if `scores`, of boxes [N, 6] in a `shape` image."""
    low, high = boxes[:, :2] / shape[1::-1], boxes[:, 2:4] / shape[1::-1]
    rows = np.hstack(((low + high) / 2, high - low, boxes[:, 4:4 + scores]))
    return "".join(" ".join([str(int(label)), *(f"{value:.6f}" for value in row)]) + "\n"
                   for label, row in zip(boxes[:, 5], rows))


def save_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB by the path's suffix; non-ASCII paths work. Raises OSError, DiskError."""
    if path.suffix == ".jpg" and max(image.shape) > 65_500:        # JPEG has no larger ones
        path = path.with_suffix(".png")
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 92]
    good, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not good:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DiskError(f"{path}: an image of {size} px could not be encoded; try --nosave")
    path.write_bytes(data.tobytes())


def in_words(counts: Mapping[str, int]) -> str:
    """Return "3 person, 1 car", how many boxes of which class, or "no boxes"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no boxes"
