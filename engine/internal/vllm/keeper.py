"""Keeps a command and all that it starts together with engine.

    python3 -c THIS COMMAND [ARGUMENT…]

Engine starts it as the leader of a process group, with a pipe to itself as file
descriptor 3: a byte is written to it five times a second. When engine has gone, which
the pipe shows, or the kernel by SIGTERM, the whole group is killed. When the command
ends, so does this process, in the same way; engine then kills what is left of the group.
"""
import os
import signal
import subprocess
import sys
import threading
import time

BEAT_FD = 3
BEAT_EVERY = 0.2  # seconds


def end(*_):
    os.killpg(0, signal.SIGKILL)


def beat():
    while True:
        try:
            os.write(BEAT_FD, b".")
        except BlockingIOError:
            pass  # the engine is stopped: it will read what is in the pipe
        except OSError:
            end()
        time.sleep(BEAT_EVERY)


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    os.set_blocking(BEAT_FD, False)
    os.set_inheritable(BEAT_FD, False)
    threading.Thread(target=beat, daemon=True).start()
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, close_fds=True)
    code = child.wait()
    if code < 0:  # by a signal, and so do we
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


main()
