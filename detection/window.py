"""A window for drawn pictures, opened only where one can be: OpenCV aborts the whole process on a missing
display."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np

PROBE = "import cv2; cv2.namedWindow('probe'); cv2.waitKey(1); cv2.destroyAllWindows()"


def why_no_window(timeout: float = 20.0) -> str:
    """Why no window can be opened here, in a sentence; "" if one can.

    A trial in a process of its own decides, for a display that is named but does not answer ends the process
    by SIGABRT.
    """
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not named:
        return "there is no display (DISPLAY and WAYLAND_DISPLAY are unset)"
    try:
        trial = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=timeout, text=True)
    except subprocess.TimeoutExpired:
        return f"the display did not answer within {timeout:g} s"
    if trial.returncode == 0:
        return ""
    if "not implemented" in trial.stderr:
        return "this OpenCV was built without windows (exchange it as requirements-gui.txt says)"
    return f"the display refuses a window (a trial ended with code {trial.returncode})"


def open_window(title: str = "detect") -> "Window | None":
    """A window, or None after a sentence that says why there is none."""
    reason = why_no_window()
    if reason:
        print(f"--view-img: {reason}; going on without a window, the results are written to files")
        return None
    return Window(title)


class Window:
    """One window; `show` returns False once the user has pressed q or Escape or closed it."""

    def __init__(self, title: str) -> None:
        import cv2
        self._title = title
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, image: np.ndarray, wait_ms: int = 1) -> bool:
        """Shows uint8 [H, W, 3] RGB for at least `wait_ms` ms; whether to go on."""
        import cv2
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(wait_ms) & 0xFF
        return key not in (27, ord("q")) and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def hold(self, stop: Callable[[], bool]) -> None:
        """Keeps the last picture until a key is pressed, the window is closed, or `stop()` is true."""
        import cv2
        print("any key in the window ends")
        while not stop() and cv2.waitKey(50) < 0:
            if cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                return
