"""The figures a detection ends with: what was found, how fast, and against which speed of the bare
network."""
from __future__ import annotations

from typing import TYPE_CHECKING

from detection.outputs import Outputs, in_words

if TYPE_CHECKING:
    from torch import Tensor

    from detection.detector import Detector

ENOUGH = 20                        # frames; a rate of fewer says little


def figures(outputs: Outputs, detector: "Detector", seconds: float,
            images: "Tensor | None", time_alone: bool = True) -> dict[str, object]:
    """Everything summary.json holds, of a run of `seconds` from its first frame to its last written file.

    After long runs the bare network is timed again on a batch of the run, uint8 [B, 3, S, S], with all other
    threads gone: inside the run it shares its cores with reading and writing and would flatter the ratio.
    """
    import torch
    runtime, frames = detector.runtime, outputs.frames
    inside = frames / detector.seconds if detector.seconds else 0.0
    alone = detector.alone(images) if time_alone and frames >= ENOUGH else None
    fps = frames / seconds if seconds else 0.0
    return {"frames": frames, "boxes": int(outputs.per_class.sum()), "per_class": outputs.counts(),
            "dropped": detector.dropped, "notes": detector.notes,
            "fps_end_to_end": fps, "fps_network_in_run": inside, "fps_network_alone": alone,
            "ratio": fps / alone if alone else None,
            "imgsz": list(images.shape[-2:]) if images is not None else None,
            "batch_size": len(images) if images is not None else None,
            "precision": runtime.precision, "device": str(runtime.device), "threads": torch.get_num_threads()}


def closing_lines(found: dict, left_out: int) -> list[str]:
    """The same in sentences, with the number of files that could not be read."""
    lines = [f"{found['frames']} frames, {found['boxes']} boxes: {in_words(found['per_class'])}"]
    how = f"{found['precision']}, {found['threads']} threads, {found['device']}"
    if found["ratio"]:
        against = f"{found['fps_network_alone']:.1f} FPS the network alone: {100 * found['ratio']:.0f} %"
    else:
        against = f"{found['fps_network_in_run']:.1f} FPS the network within the run"
    lines.append(f"{found['fps_end_to_end']:.1f} FPS end to end, {against} ({how})")
    lines.append(f"{found['dropped']} non-finite or absurd boxes dropped")
    return lines + [f"{left_out} files could not be read or not to their end"] * bool(left_out)
