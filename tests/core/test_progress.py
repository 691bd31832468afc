import os
import pty
import subprocess
import sys

PROGRAM = (
    "from agartha.core.progress import bar\n"
    "with bar('reading [corpus]', 4, 'files') as progress:\n"
    "    for _ in range(4):\n        progress.advance(1, loss=0.12345)\n"
)


def test_nothing_is_shown_and_rich_is_not_loaded_without_a_terminal() -> None:
    program = PROGRAM + "import sys\nassert 'rich' not in sys.modules\n"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


def test_a_terminal_shows_the_work_its_rate_and_the_numbers_beside_it() -> None:
    master, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "140", "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=terminal, env=environment, check=True)
    shown = os.read(master, 65536).decode()
    os.close(terminal)
    os.close(master)
    assert "reading [corpus]" in shown and "4/4 files" in shown and "files/s" in shown and "loss 0.123" in shown
