"""OpenVINO behind `deploy.runtimes.runtime`."""
from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from deploy.artifact import metadata_beside, unreadable
from deploy.runtimes.cache import ModelCache
from utils.boxes import on_host
from utils.errors import ModelError
from utils.optional import needs
from utils.runs import Device, cpu_flags, pick_precision

if TYPE_CHECKING:
    import openvino as ov

    from utils.boxes import Values

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# Batch sizes whose compiled model is kept, the one used longest ago dropped first. Live streams make batches
# of every size up to their number, in any order, and compiling one in mid-stream takes as long as a few do.
# Each holds its values (micro-yolo at 416: 70 MB for 6 images); only sizes that come up are compiled.
PLANS = 16


def core() -> ov.Core:
    """Return the process's one Core, kept to its end. Raises EnvironmentFault without the library.

    Each Core moves the stack on which signals are handled and puts back, when it goes, the one it found: of
    two that go in the order they came, the second puts back memory that is freed, and the next Ctrl-C is a
    segmentation fault instead of a saved run.
    """
    return _only(needs("openvino", "to run OpenVINO models"))


@cache
def _only(library: ModuleType) -> ov.Core:
    return library.Core()


def read_model(path: Path) -> ov.Model:
    """Return the model of an .xml file and its .bin. Raises ModelError for what is no such file."""
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise unreadable(path, "an OpenVINO model", error) from error


def built_for(core: ov.Core) -> tuple[object, ...]:
    """Return what a compiled model depends on beside its file and settings: the library and the CPU."""
    return (core.get_versions("CPU")["CPU"].build_number, core.get_property("CPU", "FULL_DEVICE_NAME"),
            sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")), sorted(cpu_flags()))


class OpenvinoRunner:
    """Compiled models, one per batch size: fixed sides are faster. `precision`: what the library runs in.

    A call takes one that no other uses, or compiles another: calls run side by side. kept: a folder in which
    compiled models stay, for the next process that needs the same. read: the metadata and the model of
    `path`, where they are read and proven already.
    """

    kind = "openvino"

    def __init__(self, path: Path, precision: str, threads: int, device: Device,
                 kept: str | Path | None = None, read: tuple[dict, ov.Model] | None = None) -> None:
        self.core, self._lock = core(), Lock()
        self.plans: dict[int, list[ov.CompiledModel]] = {}     # by batch size, those that no call uses
        self.threads, self.device = threads, Device("cpu")
        self.metadata, self.model = read or (metadata_beside(path), read_model(path))
        self.cache = ModelCache(kept, self.metadata["files"], *built_for(self.core)) if kept else None
        outputs = {name for output in self.model.outputs for name in output.get_names()}
        if missing := sorted(set(self.metadata["outputs"]) - outputs):
            raise ModelError(f"{path}: the outputs {', '.join(missing)} of its metadata are not in the "
                             "model; export the checkpoint again")
        wanted = self._wanted(precision)
        self.hint = HINTS[wanted]
        plan = self._plan(1)
        self._done(1, plan)
        told = plan.get_property("INFERENCE_PRECISION_HINT").to_string()
        real = next((name for name, hint in HINTS.items() if hint == told), "fp32")
        self.note = "" if real == wanted else f"OpenVINO has no {wanted} here: continuing in {real}"
        if precision == "half" and real == "fp32":
            self.note = "OpenVINO has no half precision that is native here: continuing in fp32"
        self.hint = HINTS[real]
        self.precision = "int8" if self.metadata["precision"] == "int8" else real
        read = self.metadata, self.model
        self.exact = None if real == "fp32" else partial(OpenvinoRunner, path, "fp32", threads, device, kept,
                                                         read)

    def _wanted(self, precision: str) -> str:
        """Return `precision` in OpenVINO's terms, which runs on the CPU whatever torch has."""
        if precision == "int8":                            # of an 8-bit file's float parts
            return "fp32"
        if precision not in ("half", "auto"):
            return precision
        wanted = pick_precision(self.device, precision)[0]
        fp16 = precision == "half" and "FP16" in self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "fp16" if wanted == "fp32" and fp16 else wanted

    def _plan(self, batch: int) -> ov.CompiledModel:
        with self._lock:
            free = self.plans.get(batch)
            if free:
                return free.pop()
        return self._compiled(batch)

    def _done(self, batch: int, plan: ov.CompiledModel) -> None:
        with self._lock:
            free = self.plans.pop(batch, [])
            while len(self.plans) >= PLANS:
                del self.plans[next(iter(self.plans))]
            self.plans[batch] = [*free, plan]              # used last, so it stands last

    def _compiled(self, batch: int) -> ov.CompiledModel:
        shape = [batch, 3, self.metadata["imgsz"], self.metadata["imgsz"]]
        config = {"INFERENCE_PRECISION_HINT": self.hint, "INFERENCE_NUM_THREADS": self.threads,
                  "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        if self.cache and (found := self.cache.read(shape, config)):
            try:
                return self.core.import_model(found, "CPU", config)
            except RuntimeError as error:
                why = (str(error).strip() or "it says no more").splitlines()[-1]
                self.cache.say(f"OpenVINO refuses what it wrote ({why}), which is compiled again")
        model = self.model.clone()
        model.reshape(shape)
        plan = self.core.compile_model(model, "CPU", config)
        if self.cache:
            self.cache.write(plan.export_model().getvalue(), shape, config)
        return plan

    def __call__(self, images: Values) -> list[np.ndarray]:
        plan = self._plan(len(images))
        found = plan(np.ascontiguousarray(on_host(images)), share_inputs=True)
        self._done(len(images), plan)
        return [found[name] for name in self.metadata["outputs"]]
