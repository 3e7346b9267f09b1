"""Stages add up, one at a time, after the device has finished."""

from safelight.measure.clock import Clock, synchronizer


def test_stages_add_up_and_pauses_do_not_count():
    times = iter([0.0, 1.0, 4.0, 10.0, 12.0])
    clock = Clock(now=lambda: next(times))
    for stage in ("text", "denoise", "", "text", ""):
        clock.switch(stage)
    assert clock.seconds == {"text": 1.0 + 2.0, "denoise": 3.0}


def test_the_device_is_waited_for_before_the_time_is_read():
    events = []
    clock = Clock(synchronize=lambda: events.append("wait"), now=lambda: events.append("read") or 0.0)
    clock.switch("text")
    assert events == ["wait", "read"]


def test_a_cpu_needs_no_waiting():
    assert synchronizer("cpu")() is None
