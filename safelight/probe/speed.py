"""How fast the device that is here is: small operators, timed in about two seconds, and kept in a file.

Comes in: a Device, a folder to keep the answer in. Goes out: Rates. Knows no model: the sizes are those that matter to
diffusion models. Time is read through a seam, so that tests do not depend on how fast a machine is.
"""

import functools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from safelight.config import put_whole
from safelight.measure.clock import synchronizer
from safelight.probe.device import GIB, Device
from safelight.probe.operations import Operation, Sizes, functions, module, operations
from safelight.probe.rates import Curve, Rates

SECONDS = 2.0  # for all curves together, after torch's libraries have loaded
REPEATS = 3
# The least of some repeats: where another program holds a core, OpenMP's threads wait for each other for a whole slice
# of its time (8 ms, for an operator of 10 us), and most repeats may be hit.
BUSY = 1e-3  # seconds that the smallest operator of a kind never takes on a machine of one's own
ATTEMPTS = 2  # to find the machine at rest
SAMPLE = 0.0002  # seconds of calls in one repeat, at least: far above what reading the clock costs
SAMPLE_QUEUED = 0.002  # far above how much the lead differs
MOST_CALLS = 200  # in one repeat; CUDA's queue holds 1024 launches, and a call may be several
LEAD = 0.004  # seconds that a queued device is kept busy while the host fills its queue: 200 calls of 20 us
LEAST = 1e-7  # seconds that any call takes; less than that is noise
LAUNCHES = 250  # rounds of a module with two operators
LINK_BYTES = 256 * 2**20
FORMAT = 1  # of the file and of what is measured: another number is measured anew


@dataclass(frozen=True, slots=True)
class Timer:
    """now: seconds. wait: until the device has done all it was given.

    lead: gives the device lead_seconds of work. What is called meanwhile stands in its queue and then runs without
    gaps, so that the time is the kernel's own and not that of the host, which is slower than a small kernel.
    """

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[], None] = lambda: None
    lead: Callable[[], object] = lambda: None
    lead_seconds: float = 0.0
    sample: float = SAMPLE

    def seconds(self, calls: Iterable[Callable[[], object]], times: int = 1) -> float:
        """Of one call, when so many are made in turn."""
        self.wait()
        started = self.now()
        self.lead()
        for call in islice(cycle(calls), times):
            call()
        self.wait()
        return max((self.now() - started - self.lead_seconds) / times, LEAST)


def measured(device: Device, *, cache: Path | None, now: Callable[[], float] = time.perf_counter) -> Rates:
    """Of the device that is here, or what `cache` keeps of it. cache: a folder, made if need be; None keeps nothing."""
    import torch

    assert not device.elsewhere, f"{device.name} is not here"
    if cache is None:
        return measure(device, now)
    key = {"format": FORMAT, "device": device.name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    path = cache / f"{_slug(f'rates {device.name} torch {torch.__version__} {torch.get_num_threads()} threads')}.json"
    if (kept := _kept(path, key, device)) is not None:
        return kept
    rates = _at_rest(replace(device, free_bytes=device.free_bytes // GIB * GIB), torch.get_num_threads(), now)
    if is_busy(rates):  # better than nothing, for this process
        return replace(rates, source=f"{rates.source} while it was busy: not kept")
    try:
        put_whole(path, json.dumps({**key, "rates": rates.as_dict()}, indent=1))
    except OSError as error:  # nothing is wrong with the rates: they are measured anew next time
        return replace(rates, source=f"{rates.source} (not kept in {cache}: {error.strerror})")
    return rates


@functools.lru_cache(maxsize=8)  # on a busy machine nothing is kept in the file, and every session asks
def _at_rest(device: Device, _threads: int, now: Callable[[], float]) -> Rates:
    for _ in range(ATTEMPTS):
        if not is_busy(rates := measure(device, now)):
            break
    return rates


def is_busy(rates: Rates) -> bool:
    """Whether another program was in the way: even the smallest operators took long."""
    return any(curve.points[0][1] > BUSY for curves in rates.curves.values() for curve in curves.values())


def measure(device: Device, now: Callable[[], float] = time.perf_counter) -> Rates:
    import torch

    with torch.inference_mode():
        timer = _timer(torch, device, now)
        plan = operations(torch, device)
        curves = all_curves(plan, timer, SECONDS, lambda dtype: _tf32(torch) if dtype == "tf32" else nullcontext())
        launch = _launch(torch, device, timer)
        link = _link(torch, device, timer)
    if device.kind != "cpu":
        getattr(torch, device.kind).empty_cache()
    source = f"measured on this machine, {date.today().isoformat()}"
    return Rates(curves, launch, queued=device.kind != "cpu", link=link, source=source)


# -- curves ------------------------------------------------------------------------------------------------------------


def all_curves(
    plan: Mapping[tuple[str, str], Sizes],
    timer: Timer,
    budget: float,
    during: Callable[[str], AbstractContextManager[None]] = lambda dtype: nullcontext(),
) -> dict[str, dict[str, Curve]]:
    """plan: sizes by kind and dtype, measured in this order. budget: seconds for all of them.

    Each gets an equal share of what is left, so that what one does not need goes to the later ones. during: what is
    switched on for a dtype.
    """
    for sizes in plan.values():  # libraries load and choose their kernels at the first call: not counted
        sizes[0]().calls[0]()
    timer.wait()
    end = timer.now() + budget
    curves: dict[str, dict[str, Curve]] = {}
    for done, ((kind, dtype), sizes) in enumerate(plan.items()):
        started = timer.now()
        with during(dtype):
            until = started + (end - started) / (len(plan) - done)
            curves.setdefault(kind, {})[dtype] = curve_of(sizes, timer, until)
    return curves


def curve_of(sizes: Sizes, timer: Timer, until: float) -> Curve:
    """sizes: by rising work. Stops before the one that is expected to end after `until`, but not before the third: what
    a small operator takes says nothing of a large one."""
    points: list[tuple[float, float]] = []
    for make in sizes:
        operation = make()
        # it takes two calls at least, see _least
        if len(points) > 1 and timer.now() + 2 * points[-1][1] * operation.work / points[-1][0] > until:
            break
        seconds = _least(operation, timer, until)
        # more work is never quicker: what looks so is another program's doing
        points.append((operation.work, max(seconds, points[-1][1] if points else 0.0)))
    return Curve(tuple(points))


def _least(operation: Operation, timer: Timer, until: float) -> float:
    timer.seconds(operation.calls)  # not counted: kernels are chosen then, and the system gives memory for the result
    once = timer.seconds(operation.calls)
    times = min(MOST_CALLS, round(timer.sample / once) + 1)
    found = [once] if times < 3 else [timer.seconds(operation.calls, times)]
    while len(found) < REPEATS and timer.now() + times * once < until:
        found.append(timer.seconds(operation.calls, times))
    return min(found)


# -- the host's side ---------------------------------------------------------------------------------------------------


def _timer(torch: Any, device: Device, now: Callable[[], float]) -> Timer:
    if device.kind == "cpu":
        return Timer(now)
    wait = synchronizer(device.kind)
    square = torch.ones(2048, 2048, device=device.torch_name)
    simple = Timer(now, wait)
    simple.seconds([lambda: square @ square])
    times = 1 + int(LEAD / simple.seconds([lambda: square @ square], 4))

    def lead() -> None:
        for _ in range(times):
            square @ square

    took = statistics.median(simple.seconds([lead]) for _ in range(REPEATS))
    return Timer(now, wait, lead, took, SAMPLE_QUEUED)


def _launch(torch: Any, device: Device, timer: Timer) -> float:
    """Seconds of the host per operator. A device with a queue: all that calling takes. On a CPU the operator's own
    seconds have the call of torch in them, so that only what modules and views add is left."""
    through, direct = module(torch, device), functions(torch, device)
    host = Timer(timer.now) if device.kind != "cpu" else timer
    found = []
    for _ in range(REPEATS + 1):  # the first warms up
        timer.wait()
        called = host.seconds([through], LAUNCHES)
        timer.wait()
        found.append(called if device.kind != "cpu" else called - host.seconds([direct], LAUNCHES))
    return max(statistics.median(found[1:]) / 2, LEAST)


def _link(torch: Any, device: Device, timer: Timer) -> float | None:
    """Bytes/s from pinned memory; None where there is no memory but the host's."""
    if device.kind not in ("cuda", "xpu"):
        return None
    nbytes = min(LINK_BYTES, device.free_bytes // 4)
    here, there = torch.ones(nbytes, dtype=torch.uint8).pin_memory(), torch.empty(nbytes, dtype=torch.uint8)
    there = there.to(device.torch_name)
    plain = Timer(timer.now, timer.wait)  # nothing waits in the queue: one copy takes milliseconds
    return nbytes / statistics.median(
        plain.seconds([lambda: there.copy_(here, non_blocking=True)]) for _ in range(REPEATS)
    )


@contextmanager
def _tf32(torch: Any) -> Iterator[None]:
    # by the interface whose getter always answers; the older one raises once somebody has used this one
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


# -- the file ----------------------------------------------------------------------------------------------------------


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _kept(path: Path, key: Mapping[str, Any], device: Device) -> Rates | None:
    """None where there is no such file, or a damaged one, or one about something else: it is measured anew then."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rates = Rates.from_dict(table["rates"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    about = {name: table.get(name) for name in key}
    known = all(set(device.fast_dtypes) <= set(curves) for curves in rates.curves.values())
    return rates if known and about == dict(key) else None
