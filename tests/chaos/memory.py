"""Does memory grow? Thousands of tiny steps of the self-critical stage, measured at counted steps.

    python -m tests.chaos.memory                      (5,000 steps; what grows is fitted over the second half)
    python -m tests.chaos.memory --steps 600 --trace  (and where what grows was allocated)

The log of the run (``TrainerState.log_history``), which every checkpoint holds, has one entry per logged
step: its size is measured apart. Caches of a bounded size (``functools.lru_cache``) are emptied
before measuring. Exits 0 when Python keeps less than :data:`LIMITS` more a step beside the log.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

POINTS = 40
"""Measurements over a run."""
LIMITS = {"objects": 2.0}
"""Growth per step above which something is kept that should not be."""
MALLINFO = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)
"""The fields of glibc's ``struct mallinfo2``."""


@dataclass
class Measurement:
    """Sizes after so many steps.

    Attributes:
        step: completed steps.
        objects: containers that Python's collector knows.
        blocks: pieces of memory that Python has allocated, those of the log left out.
        resident: bytes of the process in memory.
        allocated: bytes that the C allocator has given out; None where the library cannot tell.
        traced: bytes that Python has allocated; None without tracing.
        log: bytes of the log.
    """

    step: int
    objects: int
    blocks: int
    resident: int
    allocated: int | None
    traced: int | None
    log: int


@dataclass
class Watcher:
    """Measures at steps, in the process that trains.

    Attributes:
        every: steps between two measurements.
        trace: whether to find out where memory was allocated.
        found: measurements.
        snapshots: of ``tracemalloc``, in the middle and at the end.
    """

    every: int
    trace: bool = False
    found: list[Measurement] = field(default_factory=list)
    snapshots: list[tracemalloc.Snapshot] = field(default_factory=list)

    def observe(self, state: Any) -> None:
        """Called after every step with the trainer's state."""
        if state.global_step % self.every:
            return
        import psutil

        empty_caches()
        gc.collect()
        if self.trace and not self.found:
            tracemalloc.start(8)  # not before: tracing makes loading last for minutes
        traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else None
        self.found.append(
            Measurement(
                state.global_step,
                len(gc.get_objects()),
                sys.getallocatedblocks() - len(log_sizes(state.log_history)),
                psutil.Process().memory_info().rss,
                allocated_bytes(),
                traced,
                sum(log_sizes(state.log_history).values()),
            )
        )
        if traced is not None and len(self.found) in (POINTS // 2, POINTS):
            self.snapshots.append(tracemalloc.take_snapshot())


def empty_caches() -> None:
    """Forget what bounded caches hold: they fill up over thousands of steps, and then stay as they are."""
    for cache in [each for each in gc.get_objects() if isinstance(each, functools._lru_cache_wrapper)]:
        if cache.cache_parameters()["maxsize"] is not None:
            cache.cache_clear()


def log_sizes(entries: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Bytes of every object of the log, by its identity: each counts once."""
    parts = (part for entry in entries for part in (entry, *entry, *entry.values()))
    return {id(part): sys.getsizeof(part) for part in parts}


def allocated_bytes() -> int | None:
    """Bytes in use of the C heap and in maps of their own (glibc's ``mallinfo2``)."""
    import ctypes

    class Info(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO)

    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = Info
    info = mallinfo()
    return info.uordblks + info.hblkhd


def slope(found: Sequence[Measurement], name: str) -> float | None:
    """Growth of a size per step: a straight line through the measurements of the second half."""
    half = found[len(found) // 2 :]
    values = [getattr(each, name) for each in half]
    if None in values or len(values) < 2:
        return None
    mean_x, mean_y = sum(m.step for m in half) / len(half), sum(values) / len(values)
    spread = sum((m.step - mean_x) ** 2 for m in half)
    return sum((m.step - mean_x) * (v - mean_y) for m, v in zip(half, values, strict=True)) / spread


def run(steps: int, folder: Path, *, trace: bool = False, **keys: Any) -> Watcher:
    """Train so many steps in this process, and measure."""
    from transformers.trainer_callback import CallbackHandler

    from tests.chaos.lab import Lab
    from tests.support.preloaded import preload
    from tests.support.stages import run_recipe

    lab, watcher = Lab(folder), Watcher(max(1, steps // POINTS), trace)
    preload()  # the laboratory forks
    lab.build()
    gc.unfreeze()  # what was imported before the fork, caches too, is to be seen
    tiny = {
        "per_device_train_batch_size": 1,
        "max_new_tokens": 4,
        "max_steps": steps,
        "save_steps": max(1, steps // 5),
        "eval_steps": max(1, steps // 5),
        "logging_steps": 1,
        "learning_rate": 1e-4,
        "kl_weight": 0.0,
        "resume": False,
    }
    call_event = CallbackHandler.call_event

    def observing(self: Any, event: str, args: Any, state: Any, *rest: Any, **kwargs: Any) -> Any:
        result = call_event(self, event, args, state, *rest, **kwargs)
        if event == "on_step_end":
            watcher.observe(state)
        return result

    CallbackHandler.call_event = observing  # type: ignore[method-assign]
    try:
        run_recipe("scst", lab.keys("scst", "out", **tiny | keys))
    finally:
        CallbackHandler.call_event = call_event  # type: ignore[method-assign]
        tracemalloc.stop()
    return watcher


def main() -> int:
    """Run, print the growth per step, and say whether it is within the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--trace", action="store_true", help="where what grows was allocated; twice as slow")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scst-memory-") as folder:
        watcher = run(options.steps, Path(folder), trace=options.trace)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in watcher.found], indent=1) + "\n")
    names = ("objects", "blocks", "resident", "allocated", "traced", "log")
    growth = {name: slope(watcher.found, name) for name in names}
    print(f"growth over the last {options.steps // 2} of {options.steps} steps")
    for name, value in growth.items():
        print(f"{name:10} {'not measured' if value is None else f'{value:+.1f} a step'}")
    if options.trace:
        middle, last = watcher.snapshots
        for difference in last.compare_to(middle, "traceback")[:12]:
            print(difference, *difference.traceback.format(), sep="\n    ")
    return int(any((growth[name] or 0.0) > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
