"""Command line: start-up time, help, errors and exit codes; partly with real processes."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from edgeship.toolkit.cli import app as cli
from edgeship.toolkit.core.errors import GateError, ToolkitError, nearest
from edgeship.toolkit.core.options import warn_renamed

HEAVY = (
    "torch",
    "openvino",
    "onnxruntime",
    "onnx",
    "sklearn",
    "plotly",
    "scipy",
    "numpy",
    "rich",
    "tensorrt_rtx",
)
COMMANDS = cli.app.list_commands(None)


def edgeship(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "edgeship.toolkit.cli.app", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    out, err = capsys.readouterr()
    return left.value.code, out, err


@pytest.fixture(autouse=True)
def _own_store(monkeypatch, tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setenv("EDGESHIP_STORE", str(tmp_path / "store"))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def every_command(group=cli.app, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(p, c, id=" ".join(p)) for p, c in every_command()]
)
def test_every_command_has_help_for_every_option_and_an_example(path, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"--{parameter.name} has no help"
    group = cli.app.get_command(None, path[0])  # its examples serve those below it
    assert f"edgeship {path[0]}" in (command.epilog or group.epilog or ""), "no example"
    text = command.get_help(click.Context(command, info_name=" ".join(path), terminal_width=80))
    assert max(map(len, text.splitlines())) <= 80 and "RANGE" not in text
    assert "--debug" in [option for parameter in command.params for option in parameter.opts]


def test_every_help_starts_without_any_sdk():
    program = f"""
import sys
from edgeship.toolkit.cli import app
for arguments in [[]] + [[name] for name in {COMMANDS!r}]:
    try:
        app.main([*arguments, "--help"])
    except SystemExit as left:
        assert left.code == 0, arguments
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_help_starts_fast():
    def cpu_seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert edgeship("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.5  # processor time: a busy machine does not matter


def test_errors_have_a_hint_and_no_traceback(capsys):
    code, out, err = call(capsys, "run", "quikstart")
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: no checkpoint, ONNX file or recipe: quikstart\n hint: did you mean 'quickstart'"
    )


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["rnu"], "no command named 'rnu'", "did you mean 'run'?"),
        (["run"], "Missing argument 'MODEL'.", "see `edgeship run --help`"),
        (["run", "quickstart", "--untl", "load"], "No such option", "see `edgeship run --help`"),
        (["run", "quickstart", "--set", "x"], "cannot read 'x'", "section.key=value"),
        (["run", "quickstart", "--set", "quantize.effort"], "cannot read 'quantize.effort'", "section.key="),
        (["run", "quickstart", "--until", "lod"], "no stage named 'lod'", "did you mean 'load'?"),
        (["run", "no/such.toml"], "no recipe file no/such.toml", "check the path"),
    ],
)
def test_wrong_use_is_exit_code_2(capsys, arguments, message, hint):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}") and hint in err and "Traceback" not in err


def raising(monkeypatch, error):
    @click.command()
    def command():
        raise error

    monkeypatch.setattr(cli.Commands, "get_command", lambda self, ctx, name: command)
    cli._with_common_options(command)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ToolkitError("broken", hint="mend it"), 1),
        (GateError("drop 2", hint="mend it"), 3),
        (KeyboardInterrupt("interrupted in stage 'bench'"), 130),
        (click.ClickException("no such file"), 1),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code):
    raising(monkeypatch, error)
    got, out, err = call(capsys, "run")
    assert (got, out) == (code, "")
    assert err.startswith("error: ") and "\n hint: " in err and "Traceback" not in err


def test_only_a_resumable_command_has_a_hint_to_continue(capsys, monkeypatch):
    resumable, commands = [], [name for name in COMMANDS if not isinstance(command_of(name), click.Group)]
    for name in commands:
        monkeypatch.setattr(command_of(name), "invoke", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        monkeypatch.setattr(command_of(name), "params", [])
        code, _, err = call(capsys, name)
        assert code == 130 and err.startswith("error: interrupted\n")
        resumable += [name] if "to continue" in err else []
        assert ("no partial results" in err) is (name not in resumable)
    assert resumable == ["deploy", "prune", "run", "train"]


def command_of(name):
    return cli.app.get_command(None, name)


def test_an_interrupted_codec_is_an_interrupt(capsys, monkeypatch):
    """Regression: Ctrl-C while a zip file's names were read."""
    raising(monkeypatch, KeyboardInterrupt("decoding with 'cp437' codec failed (KeyboardInterrupt: )"))
    got, _, err = call(capsys, "run")
    assert got == 130 and err.startswith("error: interrupted\n")


def test_debug_shows_the_traceback(capsys, monkeypatch):
    raising(monkeypatch, ToolkitError("broken", hint="mend it"))
    with pytest.raises(ToolkitError):
        cli.main(["run", "--debug"])


def test_our_own_bugs_keep_their_traceback(monkeypatch):
    raising(monkeypatch, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["run"])


def test_colour_is_for_terminals_that_want_it(capsys, monkeypatch):
    raising(monkeypatch, ToolkitError("broken", hint="mend it"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "\x1b[" in call(capsys, "run")[2]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in call(capsys, "run")[2]


def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "edgeship.toolkit.cli.app", "run", "--options"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_options_of_a_recipe_are_listed_with_help(capsys):
    code, out, _ = call(capsys, "run", "--options")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert "Number of calibration images." in rows["select.images"]
    assert {"load.preprocess.resize", "report.max_drop_pp", "compile.targets"} <= set(rows)


class TestStore:
    def test_lists_and_clears(self, capsys, tmp_path):
        from edgeship.toolkit.pipeline.store import Store

        assert call(capsys, "store")[1].startswith("0 stages, 0 B")
        store = Store(tmp_path / "store")
        with store.in_use():
            store.make("load", "k", lambda out, work_dir: (out / "a").write_bytes(bytes(3000)))
        code, out, _ = call(capsys, "store")
        assert code == 0 and "load" in out and "2.9 kB" in out
        listed = json.loads(call(capsys, "store", "--json")[1])
        assert listed["stages"][0]["size_bytes"] == 3000
        assert call(capsys, "store", "gc", "--store", str(tmp_path / "store"))[1] == "freed 0 B\n"
        assert call(capsys, "store", "verify")[:2] == (0, "1 stages are intact\n")
        next((tmp_path / "store" / "objects").glob("load-*/a")).write_bytes(bytes(2999) + b"x")
        code, _, errors = call(capsys, "store", "verify")
        assert code == 1 and "1 of 1 stages were damaged" in errors
        store.make("load", "k", lambda out, work_dir: (out / "a").write_bytes(bytes(3000)))
        assert call(capsys, "store", "clear")[1].startswith("freed 3.")
        assert call(capsys, "store")[1].startswith("0 stages")

    def test_what_is_no_store_is_left_alone(self, capsys, tmp_path):
        code, _, err = call(capsys, "store", "--store", str(tmp_path), "clear")
        assert code == 1 and "is not a store" in err


def test_doctor_tells_what_is_here_and_how_to_get_the_rest(capsys, monkeypatch):
    from edgeship import targets
    from edgeship.toolkit.core.errors import TargetError

    class Absent:
        def versions(self):
            raise TargetError("openvino is not installed", hint="pip install openvino")

    got = targets.get
    monkeypatch.setattr(targets, "get", lambda name: Absent() if name == "openvino" else got(name))
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "openvino is not installed" in out and "hint: pip install openvino" in out
    assert "onnxruntime" in out and "cores" in out
    printed = json.loads(call(capsys, "doctor", "--json")[1])
    assert printed["targets"]["onnxruntime"]["versions"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_a_stage_leaves_nothing_half_done(tmp_path, stop):
    store = tmp_path / "store"
    run = [
        sys.executable,
        "-m",
        "edgeship.toolkit.cli.app",
        "run",
        "quickstart",
        "--until",
        "load",
        "--store",
        str(store),
    ]
    with subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not list(store.glob("tmp/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(stop)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == [
        "error: interrupted in stage 'load'",
        f" hint: {cli.RESUMES}",
    ]
    assert "Traceback" not in err and out == ""
    assert not list(store.glob("tmp/*")) and not list(store.glob("objects/*"))


SIGNALLED = """
import atexit, os, signal, sys
from edgeship.toolkit.core import signals
from edgeship.toolkit.cli import app

class Late:
    def __del__(self):
        stop()

def stop():
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    print("not interrupted")

def dropped(_context):
    Late()
    print("went on")
    signals.check()

def translated(_context):
    try:
        stop()
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error

atexit.register(print, "finalized")
app.app.invoke = globals()[sys.argv[2]]
app.main(["list"])
"""


@pytest.mark.parametrize(("stop", "words"), [("SIGINT", "interrupted"), ("SIGTERM", "stopped by a signal")])
@pytest.mark.parametrize(("kind", "printed"), [("dropped", "went on\n"), ("translated", "")])
def test_an_interrupt_that_gets_lost_still_ends_the_command(stop, words, kind, printed):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, stop, kind],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 130 and done.stdout == printed
    assert done.stderr == f"error: {words}\n hint: {cli.RESTARTS}\n"


def test_a_full_disk_is_a_clear_error(tmp_path):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    checkpoint = tmp_path / "net.safetensors"
    program = (
        "import sys; from pathlib import Path; from edgeship.toolkit.models import resnet, weights; "
        "weights.save(resnet.ResNet(resnet.architecture('resnet20')), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=300)
    (tmp_path / "model.safetensors").rename(checkpoint)
    store = tmp_path / "store"
    arguments = ("run", "quickstart", "--until", "load", "--set", "load.model=auto")
    weights = ("--set", f"load.weights={checkpoint}", "--store", str(store))
    done = edgeship(*arguments, *weights, preexec_fn=small_files_only)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no room left" in done.stderr and "edgeship store gc" in done.stderr
    assert not list(store.glob("tmp/*")) and not list(store.glob("objects/*"))
    again = edgeship(*arguments, *weights)
    assert again.returncode == 0 and Path(again.stdout.strip()).is_dir()


RENAMED = [
    (
        ("run", "quickstart", "--redo=nostage", "--skip-bad"),
        {"--redo": "--rerun", "--skip-bad": "--skip-unreadable"},
    ),
    (
        ("quantize", "no.onnx", "digits", "--target", "openvino", "--out", "q.onnx", "--int8-sums", "pairs"),
        {"--int8-sums": "--overflow-fix"},
    ),
    (
        ("quantize", "no.onnx", "digits", "--target=openvino", "--out=q.onnx", "--max-drop-pp=1"),
        {"--max-drop-pp": "--max-drop"},
    ),
    (
        ("prune", "no.pth", "digits", "--out", "net", "--macs", "0.5", "--target-latency", "0.5"),
        {"--macs": "--macs-ratio", "--target-latency": "--latency-ratio"},
    ),
]


@pytest.mark.parametrize(("arguments", "names"), RENAMED)
def test_former_option_names_are_accepted_and_hidden(capsys, caplog, arguments, names):
    warn_renamed.cache_clear()
    _, _, err = call(capsys, *arguments)
    assert "no such option" not in err.lower()
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [f"option {former} is called {current} now" for former, current in names.items()]
    _, out, _ = call(capsys, arguments[0], "--help")
    assert all(current in out and f"{former} " not in out for former, current in names.items())


def test_a_hint_lists_no_more_names_than_fit():
    hint = nearest("zz", (f"photo{number}.png" for number in range(1000)))
    assert "photo0.png" in hint and "960 more" in hint and len(hint) < 800
