"""What a terminal shows while a run goes on: curve, rate, time left."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from vitral.tune.run import Event

__all__ = ["Screen"]


class Screen:
    """Gathers events and draws them; `total` is how many steps there will be, once known."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.losses: list[float] = []
        self.recent: deque[tuple[int, float]] = deque(maxlen=20)  # tokens and seconds of the last steps
        self.step = 0
        self.notes: list[str] = []

    def take(self, event: Event) -> None:
        """Note an event."""
        from vitral.tune.run import Evaluation, Rehearsal, Stopping

        if isinstance(event, Rehearsal):
            self.total = event.steps
            peak, guess = event.peak_bytes / 1e9, event.estimated_bytes / 1e9
            self.notes.append(
                f"largest piece: {event.tokens} tokens in {event.seconds:.1f} s; {peak:.2f} GB of an estimated {guess:.2f}"
            )
        elif isinstance(event, Evaluation):
            parts = [] if event.test_loss is None else [f"test {event.test_loss:.4f}"]
            parts += [f"{name.replace('_', ' ')} {loss:.4f}" for name, loss in event.forgetting.items()]
            if parts:
                self.notes.append(f"after step {event.step}: " + ", ".join(parts))
        elif isinstance(event, Stopping):
            self.notes.append(
                f"stopping after step {event.step}, which is saved; Ctrl-C again stops at once, without it"
            )
        else:
            self.step = event.step
            self.losses.append(event.loss)
            self.recent.append((event.tokens, event.seconds))

    def line(self) -> str:
        """The state in one line."""
        if not self.recent:
            return self.notes[-1] if self.notes else "starting"
        seconds = sum(s for _, s in self.recent) or 1e-9
        rate = sum(t for t, _ in self.recent) / seconds
        text = (
            f"step {self.step}"
            + (f"/{self.total}" if self.total else "")
            + f"  loss {self.losses[-1]:.4f}  {rate:.0f} tokens/s"
        )
        if self.total:
            left = (self.total - self.step) * seconds / len(self.recent)
            text += f"  {int(left // 60)}:{int(left % 60):02d} left"
        return text

    def __rich__(self) -> RenderableType:
        from vitral.tune.chart import in_characters

        lines = [*in_characters(self.losses, 64, 6), self.line(), *self.notes[-3:]]
        return Group(*[Text(line) for line in lines])
