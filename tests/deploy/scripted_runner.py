"""Stand-in for the device runner with scripted faults: the real one's events, without an SDK.

Making a bundle replaces SCRIPT: {command: fault}, with "fail", "negative", "crash", "kill", "hang".
"""

import json
import os
import pathlib
import sys
import time

SCRIPT = {}  # filled in by the test

command, arguments = sys.argv[1], sys.argv[2:]


def option(name):
    return arguments[arguments.index(name) + 1]


def send(**event):
    print(json.dumps(event), flush=True)


figures = {
    "build": {
        "key": "k", "reused": False, "build_s": 0.1, "size_bytes": 3, "backend": "b", "version": "1",
        "warnings": [],
    },
    "selftest": {
        "verdict": "pass", "images": 2, "cosine_min": 1.0, "cosine_mean": 1.0, "top1_agreement": 1.0,
        "largest_difference": 0.0,
    },
    "evaluate": {
        "images": 100, "top1": SCRIPT.get("top1", 0.9), "top5": 1.0, "agreement": 1.0, "sqnr_db": 30.0,
    },
    "time": {
        "timings": [
            {
                "batch": 1, "runs": 10, "throughput_ips": 100.0, "included": "scripted", "energy_mj": None,
                "power_mw": SCRIPT.get("power_mw"), "power_of": None, "marks": [], "latency_ms": None,
                "threads": int(option("--threads")) if command == "time" else None,
                "wall_ms": dict.fromkeys(("median", "mean", "p90", "p99"), SCRIPT.get("ms", 2.0)),
            }
        ],
        "throttled": False, "marks": [],
    },
}  # fmt: skip

send(event="progress", stage=command, elapsed_s=0)
if command == "build":
    pathlib.Path(option("--out")).parent.mkdir(exist_ok=True)
fault = SCRIPT.get(command)
if fault == "hang":
    pathlib.Path(option("--out")).write_text("half")
    time.sleep(600)
elif fault == "kill":
    os.kill(os.getpid(), 9)
elif fault == "crash":
    raise RuntimeError("scripted crash")
elif fault == "fail":
    cause = "scripted failure"
    error = {"code": "x", "message": cause, "cause": cause, "cure": "do better"}
    send(event="result", command=command, ok=False, error=error)
    sys.exit(1)
elif fault == "negative":
    send(
        event="result", command=command, ok=False, verdict="fail", reasons=["lowest cosine 0.5 is below 0.99"]
    )
    sys.exit(3)
if command == "build":
    pathlib.Path(option("--out")).write_text("engine")
send(event="result", command=command, ok=True, fake=True, **figures[command])
