"""Put on a process's path, its clock is off by CHAOS_CLOCK_SECONDS."""

import os
import time

_off = float(os.environ.get("CHAOS_CLOCK_SECONDS", "0"))
_true = time.time
time.time = lambda: _true() + _off
