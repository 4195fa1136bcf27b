"""Programs that do not outlive the process that started them.

Run as a file, this is the launcher: it asks the kernel for a signal on its parent's death and becomes the program.
A launcher, because code between fork and exec (`preexec_fn`) can deadlock in a process that has threads. It runs
with `-I -S` and imports the standard library only, so it adds some hundredths of a second.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str], on_parent_death: signal.Signals) -> list[str]:
    """The command that runs `command` and sends it a signal when this process dies.

    Linux only (elsewhere the command comes back as it is). The kernel watches the *thread* that starts the
    program: start it from one that lives as long as the program should.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(int(on_parent_death)), str(os.getpid()), *command]


def _become(on_parent_death: int, parent_pid: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, on_parent_death)
    if os.getppid() != parent_pid:
        # The parent died before the request: no signal will ever come.
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  (becoming the program is the purpose)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
