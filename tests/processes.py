"""Child processes for tests."""

import signal


def heed_ctrl_c() -> None:
    """Run in a child before it starts: where a shell runs tests in the background, they inherit an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def refused(result: tuple[int, str, str], *words: str) -> None:
    """One clear line with these words, exit code 2."""
    code, _out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in err
