"""Child processes for tests."""

import signal


def heed_signals() -> None:
    """Run in a child before it starts: tests in the background (`&`, nohup) inherit an ignored SIGINT or SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def refused(result: tuple[int, str, str], *words: str) -> None:
    """One clear line with these words, exit code 2."""
    code, _out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in err
