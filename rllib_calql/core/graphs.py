"""Steps that never wait for the host: batches drawn on the device, and on a GPU the whole step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import torch

from rllib_calql.core.update import Batch, StepFigures, Update

WARM_UP_STEPS = 3  # libraries and buffers set themselves up in steps that no graph may record
STEPS_PER_LAUNCH = 16


class Draws(Protocol):
    """Rows on the update's device (see `data.resident.ResidentReplay`)."""

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch; nothing in here may look at a value on the device."""


class _Graph:
    """Some steps, recorded once and repeated. Without a GPU they are simply done again."""

    def __init__(self, update: Update, rows: Draws, num_steps: int) -> None:
        self._update, self._rows, self._num_steps = update, rows, num_steps
        self.names: list[str] = []
        self.total = torch.zeros(())
        self._graph: torch.cuda.CUDAGraph | None = None
        if update.device.type == "cuda":
            self._graph = torch.cuda.CUDAGraph()
            self._graph.register_generator_state(update.generator)
            with torch.cuda.graph(self._graph):
                self._steps()

    def run(self) -> None:
        """Makes the steps; `total` then holds the sums of their figures, in the order of `names`."""
        if self._graph is None:
            self._steps()
        else:
            self._graph.replay()
        self._update.num_updates += self._num_steps

    def _steps(self) -> None:
        start, total = self._update.num_updates, None
        for _ in range(self._num_steps):
            metrics = self._update.step(self._rows.draw(self._update.generator))
            figures = torch.stack(list(metrics.values()))
            total = figures if total is None else total.add_(figures)
        assert total is not None
        self.names, self.total = list(metrics), total
        self._update.num_updates = start


class DeviceSteps:
    """Runs an update on rows of its own device, several steps per launch.

    Args:
        update: whose tensors must stay in place from now on: `set_state` makes other ones.
        rows: where batches are drawn.
    """

    def __init__(self, update: Update, rows: Draws) -> None:
        self._update, self._rows = update, rows
        self._graphs: dict[tuple[Hashable, int], _Graph] = {}
        self._warm: set[Hashable] = set()

    def run(self, num_updates: int) -> dict[str, float]:
        """`num_updates` steps under the phase that the update is in; the means of their figures."""
        update, done, figures = self._update, 0, StepFigures()
        while done < num_updates:
            rules = update.rules(update.num_updates)
            steps = STEPS_PER_LAUNCH if num_updates - done >= STEPS_PER_LAUNCH else 1
            if any(update.rules(update.num_updates + i) != rules for i in range(1, steps)):
                steps = 1
            if rules not in self._warm:
                steps = min(WARM_UP_STEPS, num_updates - done)
                self._eagerly(steps, figures)
                self._warm.add(rules)
            else:
                graph = self._graph(rules, steps)
                graph.run()
                figures.add(graph.names, graph.total, steps)
            done += steps
        return figures.means()

    def _graph(self, rules: Hashable, steps: int) -> _Graph:
        if (rules, steps) not in self._graphs:
            self._graphs[rules, steps] = _Graph(self._update, self._rows, steps)
        return self._graphs[rules, steps]

    def _eagerly(self, steps: int, figures: StepFigures) -> None:
        # Beside the default stream, as recording is.
        on_gpu = self._update.device.type == "cuda"
        stream = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            if stream is not None:
                stream.wait_stream(torch.cuda.default_stream())
            for _ in range(steps):
                metrics = self._update.step(self._rows.draw(self._update.generator))
                figures.add(metrics, torch.stack(list(metrics.values())))
        if stream is not None:
            torch.cuda.default_stream().wait_stream(stream)
