"""The exit code of a command that runs a model is the command's own, whatever the model does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from robench.cli import supervise

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux only")

HEAD = (
    "import os, signal, sys, time\nfrom robench.cli.supervise import supervise, tell\nsupervise()\n"
)


def start(body: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HEAD + body]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


ENDS = {
    "os._exit(0)": (2, "the model's code ended the process (exit code 0)"),
    "os.abort()": (2, "exit code -6"),
    "tell(0); sys.exit(0)": (0, ""),
    "tell(1); sys.exit(1)": (1, ""),
    "tell(0); os.abort()": (0, ""),
    "os.fork() or time.sleep(1); os._exit(0)": (2, "exit code 0"),
    "os.kill(os.getpid(), signal.SIGKILL)": (2, "the process was killed"),
    "os.kill(os.getpid(), signal.SIGTERM)": (-15, ""),
}


def test_only_what_the_command_tells_is_believed() -> None:
    started = {body: start(body) for body in ENDS}
    for body, process in started.items():
        _, err = process.communicate(timeout=60)
        code, words = ENDS[body]
        assert process.returncode == code, (body, err)
        assert words in err, body
        assert err.count("\n") == bool(words), (body, err)


WAITING = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell has set
try:
    print(os.getpid(), flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    tell(130)
    sys.exit(130)
"""


@pytest.mark.parametrize(
    "how, code, words", [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, -15, "")]
)
def test_signals_reach_the_child(how: int, code: int, words: str) -> None:
    with start(WAITING) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert child != process.pid
        process.send_signal(how)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == words


def test_the_child_dies_with_its_parent() -> None:
    with start(WAITING) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        for _ in range(100):
            try:
                with open(f"/proc/{child}/stat") as stat:
                    if stat.read().rpartition(")")[2].split()[0] in "ZX":
                        break
            except FileNotFoundError:
                break
            time.sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child lives")


def test_a_process_that_cannot_fork_goes_on_alone() -> None:
    body = HEAD.replace("supervise()\n", "os.fork = lambda: 1 / 0\nsupervise()\n")
    body = body.replace("1 / 0", "(_ for _ in ()).throw(BlockingIOError())")
    done = subprocess.run([sys.executable, "-c", f"{body}tell(0); sys.exit(3)"], check=False)
    assert done.returncode == 3


AGAIN = """
import sys
from robench.cli import supervise
start = "import sys; del sys.argv[1]; from robench.cli.supervise import be_supervised, tell; "
sys.exit(supervise._started_again(start + "be_supervised(); import os; " + sys.argv[1]))
"""


def test_where_nothing_forks_a_new_interpreter_tells() -> None:
    ends = {
        "sys.exit(tell(130))": (130, ""),
        "print(sys.argv[1:]); sys.exit(tell(0))": (0, ""),
        "os._exit(0)": (2, "exit code 0"),
        "sys.exit(1)": (2, "exit code 1"),
        "os.abort()": (2, "exit code -6"),
    }
    pipe = subprocess.PIPE
    started = {
        body: subprocess.Popen(
            [sys.executable, "-c", AGAIN, body], stdout=pipe, stderr=pipe, text=True
        )
        for body in ends
    }
    for body, process in started.items():
        out, err = process.communicate(timeout=60)
        code, words = ends[body]
        assert (process.returncode, words in err) == (code, True), (body, err)
        assert out in ("", f"{[body]}\n")


def test_it_is_started_again_once_and_for_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(supervise, "_started_again", lambda _: 1)
    supervise.supervise(answers=False)
    with pytest.raises(SystemExit) as end:
        supervise.supervise(answers=True)
    assert end.value.code == 1
    monkeypatch.setattr(supervise, "_offsets", [64])
    ended: list[int] = []
    monkeypatch.setattr(supervise, "_end_late", ended.append)
    supervise.supervise(answers=True)
    assert supervise.tell(1) == 65
    assert ended == [65]


GOES_ON = {
    "threading.Thread(target=time.sleep, args=(99,)).start(); tell(1); sys.exit(1)": 1,
    "atexit.register(time.sleep, 99); tell(0); sys.exit(0)": 0,
    "multiprocessing.get_context('fork').Process(target=time.sleep, args=(9,)).start(); tell(0)": 0,
}


def test_what_goes_on_after_the_commands_end_is_ended() -> None:
    head = "import atexit, multiprocessing, threading\n" + HEAD.replace(
        "supervise()\n", "from robench.cli import supervise as s\ns._GRACE = 0.2\nsupervise()\n"
    )
    pipe = subprocess.PIPE
    started = {
        body: subprocess.Popen(
            [sys.executable, "-c", f"{head}print('all of it')\n{body}"],
            stdout=pipe, stderr=pipe, text=True,
        )
        for body in GOES_ON
    }  # fmt: skip
    for body, process in started.items():
        assert process.stdout is not None
        assert process.wait(timeout=60) == GOES_ON[body], body
        assert process.stdout.readline() == "all of it\n"
        process.stdout.close()
        assert process.stderr is not None
        assert "goes on after the command's end" in process.stderr.readline()
        process.stderr.close()


LATE = "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start(); "


def test_where_nothing_forks_too() -> None:
    again = AGAIN.replace("be_supervised, tell; ", "be_supervised, tell; supervise._GRACE = 0.2; ")
    again = again.replace("; from robench.cli.supervise", "; from robench.cli import supervise; "
                          "from robench.cli.supervise")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", again, f"{LATE}sys.exit(tell(1))"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, "goes on" in done.stderr) == (1, True), done.stderr
