"""How far a benchmark is: a bar with the time left on a terminal, plain lines elsewhere."""
from __future__ import annotations

import sys
from types import TracebackType


class Bar:
    """Progress of `total` turns on stderr; `say` prints a line that stays."""

    def __init__(self, total: int) -> None:
        self.total, self._bar = total, None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from tqdm import tqdm
            self._bar = tqdm(total=self.total, unit="turn", dynamic_ncols=True, leave=False)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, text: str) -> None:
        """One turn is done; the text says of what."""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update()

    def say(self, text: str) -> None:
        """Prints a line; the bar makes way for it."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)
