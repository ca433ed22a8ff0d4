"""A Python that runs the agent and changes what it answers: `hostile_device.py KIND PYTHON -c ...`."""

import json
import subprocess
import sys
import time

ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\r\nother: live\x00"


def of(answer):
    """Return the name of the command that an answer or event belongs to."""
    value = answer.get("ok", answer.get("event"))
    if not isinstance(value, dict):
        return None
    for name, field in (("status", "releases"), ("have", "whole"), ("stage", "folder"), ("run", "exit")):
        if field in value:
            return name
    if value.get("event") == "result":
        return value["command"]
    return value.get("event")


def put(path, value):
    """Return a change: set a field, or remove it (Ellipsis)."""

    def change(message):
        name = "ok" if "ok" in message else "event"
        parts = path.split(".") if isinstance(path, str) else path
        *parents, last = (int(part) if str(part).isdigit() else part for part in parts)
        place = message[name]
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
        return json.dumps(message)

    return change


def endless(block, pause_s=0.0):
    def change(_):
        end = time.monotonic() + 600
        while time.monotonic() < end:
            sys.stdout.write(block)
            sys.stdout.flush()
            time.sleep(pause_s)
        sys.exit(1)

    return change


def silent(_):
    time.sleep(600)


def nested(_):
    return '{"ok": ' + "[" * 200_000 + "]" * 200_000 + "}"


FIELDS = [  # command, field, value
    ("status", "releases", ...), ("status", "releases", []), ("status", "releases", {"../../etc": None}),
    ("status", "releases", {"r-1": {"accuracy": {"top1": float("nan")}}}), ("status", "history", None),
    ("status", "current", ["r"]), ("status", "current", "../../etc"), ("status", "pending", {"to": 3}),
    ("status", "free_bytes", "much"), ("status", "free_bytes", float("inf")), ("status", "free_bytes", -1),
    ("status", "hostname", 7), ("status", "bad", {"r": 1}), ("status", "locked_by", {}),
    ("status", "root", ...),
    ("have", "whole", None), ("have", "part", {"x": -5}), ("have", "part", {"x": 10**400}),
    ("stage", "folder", None),
    ("run", "exit", ...), ("run", "exit", "0"), ("run", "exit", 10**12), ("run", "log", None),
    ("probe", "facts", ...), ("probe", "facts.cpu", None), ("probe", "facts.arch", []),
    ("probe", "facts.memory.total_bytes", "all"), ("probe", "facts.thermal.temperatures_c", {"gpu": None}),
    ("probe", "backends", []), ("probe", "backends.openvino", 3),
    ("probe", "backends.openvino.precisions", None),
    ("probe", "backends.openvino.available", "yes"), ("probe", "problems", [{"code": 1}]),
    ("build", "version", None), ("build", "size_bytes", float("nan")),
    ("selftest", "cosine_min", float("nan")), ("selftest", "verdict", "fail"), ("selftest", "images", ...),
    ("evaluate", "top1", float("nan")), ("evaluate", "top1", 1.5), ("evaluate", "top1", None),
    ("evaluate", "top1", "0.9"), ("evaluate", "images", -100), ("evaluate", "images", ...),
    ("time", "timings", []), ("time", "timings.0.wall_ms.median", float("-inf")),
    ("time", "timings.0.wall_ms", None), ("time", "timings.0.batch", 1e300), ("time", "marks", 5),
    ("progress", "elapsed_s", "soon"),
]  # fmt: skip

KINDS = {f"{name}.{field}={value!r:.30}": (name, put(field, value)) for name, field, value in FIELDS}
for _name in ("status", "stage", "evaluate"):
    KINDS |= {
        f"{_name}: list": (_name, lambda _: "[1, 2]"),
        f"{_name}: ok is no object": (_name, lambda _: '{"ok": 5}'),
        f"{_name}: event is no object": (_name, lambda _: '{"event": "x"}'),
        f"{_name}: error without hint": (_name, lambda _: '{"error": "x"}'),
        f"{_name}: error is an object": (_name, lambda _: '{"error": {}, "hint": [], "code": null}'),
        f"{_name}: error with escapes": (
            _name, lambda _: json.dumps({"error": ESCAPES, "hint": ESCAPES, "code": "health"}),
        ),
        f"{_name}: nested": (_name, nested),
        f"{_name}: line without end": (_name, endless("x" * 65536)),
        f"{_name}: noise without end": (_name, endless("noise\n" * 1000)),
        f"{_name}: events without end": (_name, endless('{"event": {"event": "x"}}\n' * 1000)),
        f"{_name}: blank lines without end": (_name, endless("\n" * 1000)),
        f"{_name}: silent": (_name, silent),
        f"{_name}: ends": (_name, lambda _: sys.exit(0)),
        f"{_name}: half a line": (_name, lambda m: (sys.stdout.write(json.dumps(m)[:9]), sys.exit(0))[0]),
        f"{_name}: other bytes": (_name, lambda _: "\udcff\udcfe{"),
    }  # fmt: skip
KINDS |= {
    "status: drips": ("status", endless("x", 0.2)),
    "login: noise without end": (None, endless("Welcome!\n" * 1000)),
    "login: line without end": (None, endless("W" * 65536)),
    "login: silent": (None, silent),
    "login: drips": (None, endless(".", 0.5)),
    "probe: text with escapes": (
        "probe", put("problems", [dict.fromkeys(("code", "cause", "cure"), ESCAPES)]),
    ),
    "stderr without end": (
        "status", lambda m: (sys.stderr.write("e" * (64 << 20)), json.dumps(m))[1],
    ),
}  # fmt: skip


def main():
    kind, python, *arguments = sys.argv[1:]
    name, change = KINDS[kind]
    sys.stdout.reconfigure(errors="surrogateescape")
    agent = subprocess.Popen([python, *arguments], stdout=subprocess.PIPE)
    if name is None:
        change(None)
    for line in agent.stdout:
        text = line.decode().rstrip("\n")
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        if isinstance(message, dict) and of(message) == name:
            text = change(message)
        print(text, flush=True)


if __name__ == "__main__":
    main()
