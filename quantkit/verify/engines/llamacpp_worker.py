"""A llama.cpp server in a process of its own: a file that crashes native code must not take verify with it.

Runs under any Python that has xllamacpp, so it imports nothing of quantkit. One line of JSON each way: settings come on
stdin; out go either the server's address, or what is missing or failed. It serves until stdin closes. llama.cpp's log
is stderr; what native code writes to stdout goes there too.
"""

import json
import os
import signal
import sys


def main() -> None:
    """Read the settings, start the server, say so, wait."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; its end closes our stdin
    settings = json.loads(sys.stdin.readline())
    started = start(settings)
    answer.write(json.dumps(started[0]) + "\n")
    answer.flush()
    if "address" in started[0]:
        sys.stdin.read()
    # llama.cpp's own shutdown can hang; nothing here needs it
    os._exit(0)


def start(settings: dict) -> tuple:
    """What to answer, and the server, which lives as long as it is held."""
    try:
        import xllamacpp
    except ImportError as error:
        return {"missing": str(error)}, None
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    if settings["mmproj"]:
        params.mmproj.path = settings["mmproj"]
    params.n_ctx = settings["context"]
    params.n_parallel = 1
    params.api_keys = [settings["api_key"]]
    if settings["cpu"]:
        params.n_gpu_layers = 0
        params.mmproj_use_gpu = False
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        return {"failed": str(error)}, None
    devices = [device["name"] for device in xllamacpp.get_device_info()]
    return {"address": server.listening_address, "version": xllamacpp.__version__, "devices": devices}, server


if __name__ == "__main__":
    main()
