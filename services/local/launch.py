"""The first instructions of every child process: who it runs as, and that it does not outlive its parent.

Run as a program: `python -I -S launch.py PARENT_PID DEATH_SIGNAL UID GID COMMAND…`, UID and GID `-` to stay as
one is. It then becomes COMMAND, under the same process id. A small program rather than a function run after the
fork (`preexec_fn`), because that is unsafe in a parent with threads; it needs nothing but the standard library,
all loaded before the change of user, who may be unable to read it.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_EXIT_CANNOT_RUN = 127


def main() -> None:
    """Set up this process as told by the arguments, then become the command; end with 127 when that fails."""
    parent_pid, death_signal = int(sys.argv[1]), int(sys.argv[2])
    user_id, group_id, command = sys.argv[3], sys.argv[4], sys.argv[5:]
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    if user_id != "-":
        os.setgroups([])
        os.setgid(int(group_id))
        os.setuid(int(user_id))
    if prctl is not None:
        # After the change of user, which clears the setting.
        prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent_pid:
            return  # the parent ended before the setting was in force
    try:
        os.execvp(command[0], command)  # noqa: S606  becoming the command is the purpose
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.exit(_EXIT_CANNOT_RUN)


if __name__ == "__main__":
    main()
