"""The last trusted reading of the clock, in memory."""

import threading

from sd35.storage.clock import ClockRecord, ClockRules, Reading, judge


class MemoryClockStore:
    """A ClockStore in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._record = ClockRecord()

    def read(self, now_s: float, rules: ClockRules) -> Reading:
        """Decide whether the clock can be trusted if it now shows `now_s`, and store the new clock record."""
        with self._lock:
            reading = judge(self._record, now_s, rules)
            self._record = reading.record
            return reading
