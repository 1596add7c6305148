"""Where searches run: in this process, in forks of it, one on each of several devices.

A search knows none of them: an :class:`Executor` is given tasks and says what each came to.
"""

from robench.execution.forks import Forks, survives_fork, worker_count
from robench.execution.pool import Executor, Results, Task, ThisProcess
from robench.execution.threads import Threads
from robench.execution.worker import Call, Progress, Save, packed, unpacked

__all__ = [
    "Call",
    "Executor",
    "Forks",
    "Progress",
    "Results",
    "Save",
    "Task",
    "ThisProcess",
    "Threads",
    "packed",
    "survives_fork",
    "unpacked",
    "worker_count",
]
