"""Child processes for tests."""

import signal


def heed_ctrl_c() -> None:
    """Run in a child before it starts: where a shell runs tests in the background, they inherit an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
