"""A run that is killed anywhere, any number of times, ends as the run that was left alone: the same files, bit for bit.

The short form runs the command line's own entry point in processes of jobs.py. `python tests/test_kill.py FOLDER [KILLS]` is
the long one: processes started as users start them, all engines verify the result, and every kill is a line of its log.
"""

import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm2enc import Encoder, load_recipe
from llm2enc.conversion import run_directory
from llm2enc.storage import owner
from llm2enc.training import checkpoint, trainer
from llm2enc.training.logging import Log
from tests.support import jobs
from tests.support.jobs import Job, assert_equal, convert, write_recipe

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What a kill may be aimed at: the first one of these paths shows that it is being written.
AIMS = ("*/.checkpoint.partial-*", "*/.checkpoint.partial-*/trained.safetensors", "*/adapter", ".model.partial-*")


@dataclass(frozen=True)
class Kill:
    signal: int
    aim: str
    """A path to wait for; empty for a moment of the clock."""
    after: float
    """Seconds after the start, or after the path showed."""

    @staticmethod
    def at_random(dice: random.Random, seconds: float) -> "Kill":
        """Of a run of so many seconds. Half of the kills are aimed."""
        number = dice.choice((signal.SIGKILL, *SIGNALS))
        if dice.random() < 0.5:
            return Kill(number, dice.choice(AIMS), dice.random() * 0.01)
        return Kill(number, "", dice.random() * seconds)

    def strike(self, job: Job, out: Path) -> bool:
        """Wait for the moment, and kill; False if the job ended before."""
        while job.poll() is None:
            if self.aim and _shows(self.aim, out, job):
                time.sleep(self.after)
                break
            if not self.aim and time.monotonic() - job.started > self.after:
                break
            time.sleep(0.001)
        if self.signal != signal.SIGKILL:
            while job.poll() is None and owner(out / run_directory.LOCK).get("pid") != job.pid:
                time.sleep(0.001)  # before, Python itself may not have come to its handlers
        job.send(self.signal)
        return job.wait() != 0


def _shows(aim: str, out: Path, job: Job) -> bool:
    try:
        return any(_is_new(path, job) for path in out.glob(aim))
    except FileNotFoundError:  # a directory that was renamed while the glob went through it
        return False


def _is_new(path: Path, job: Job) -> bool:
    """Whether this job wrote it, and not one that was killed before."""
    try:
        return time.time() - path.stat().st_mtime < time.monotonic() - job.started
    except FileNotFoundError:
        return False


def phase(out: Path) -> str:
    """What a run was doing, by what it left."""
    if not (out / run_directory.RECIPE).exists():
        return "loading"
    if list(out.glob("*/.checkpoint.partial-*")):
        return "writing a checkpoint"
    if list(out.glob(".model.*")):
        return "exporting"
    if (out / "model").exists():
        return "verifying"
    stages = sorted(path for path in out.iterdir() if path.name[0].isdigit())
    if not stages:
        return "scoring the start"
    if not checkpoint.is_finished(stages[-1]):
        return "finishing a stage" if (stages[-1] / "adapter").exists() else "training"
    rows = json.loads((out / "history.json").read_text())
    return "between stages" if rows[-1]["key"].startswith(stages[-1].name) else "scoring a stage"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), steps=3, rng_shards=1)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, float]]:
    """The run that nobody disturbs, and its seconds."""
    place = tmp_path_factory.mktemp("whole")
    job = Job(convert(recipe, place / "run"), place / "log")
    assert job.wait() == 0, job.said()
    yield place / "run", time.monotonic() - job.started


# ------------------------------------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize("chain", range(3))
def test_killed_seven_times_and_equal(chain: int, recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    expected, seconds = whole
    dice, out = random.Random(chain), tmp_path / "run"
    kills = 0
    while kills < 7:
        job = Job(convert(recipe, out, "--resume"), tmp_path / f"log-{kills}")
        kill = Kill.at_random(dice, 0.5 * seconds)
        if not kill.strike(job, out):
            shutil.rmtree(out)  # finished before the kill: from the start again
            continue
        kills += 1
        _check_end(job, kill)
    last = Job(convert(recipe, out, "--resume"), tmp_path / "log")
    assert last.wait() == 0, last.said()
    assert_equal(out, expected)


def _check_end(job: Job, kill: Kill) -> None:
    """Killed, or stopped with a message that says how to go on."""
    if kill.signal == signal.SIGKILL:
        assert job.code == -signal.SIGKILL
    else:
        assert job.code == 130 and "--resume" in job.said() and "Traceback" not in job.said(), job.said()


def test_a_finished_run_is_left_as_it_is(recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """Other forms in its directory stay, and what a killed process left goes."""
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    (out / "model" / "gguf").mkdir()
    (out / "model" / "gguf" / "model.gguf").write_text("exported later")
    (out / "0-clm" / "checkpoint").mkdir()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    job = Job(convert(recipe, out, "--resume"), tmp_path / "log")
    assert job.wait() == 0 and "finished already" in job.said(), job.said()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert not (out / "0-clm" / "checkpoint").exists()


def test_no_file_depends_on_the_order_of_a_set(whole: tuple[Path, float]) -> None:
    """Processes forked from one share its order, so the other tests would not see it; started ones do not."""
    config = json.loads((whole[0] / "1-simcse" / "adapter" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 14 and config["target_modules"] == sorted(config["target_modules"])


def test_a_signal_after_the_last_step_is_not_lost(recipe: Path, tmp_path: Path) -> None:
    def late(encoder: Encoder) -> None:
        raise AssertionError("went on")

    def signalled() -> None:
        save = Log.step

        def step(self, number: int, *others) -> None:
            save(self, number, *others)
            if number + 1 == self.stage.steps:
                trainer.stop_requested = lambda received, device: os.kill(os.getpid(), signal.SIGTERM) or False

        Log.step, trainer.restore = step, late
        convert(recipe, tmp_path / "run")()

    job = Job(signalled, tmp_path / "log")
    assert job.wait() == 130 and "--resume" in job.said(), job.said()


# ----------------------------------------------------------------------------------------------------------- the folder


def test_two_jobs_never_write_one_folder(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Job(convert(recipe, out), tmp_path / "first")
    while not (out / "0-clm").exists():
        assert first.poll() is None, first.said()
        time.sleep(0.001)
    first.send(signal.SIGSTOP)  # it holds the folder for as long as the others take to look
    for option in ("--resume", "--overwrite"):
        second = Job(convert(recipe, out, option), tmp_path / f"second{option}")
        assert second.wait() == 2 and f"is being written by process {first.pid} on " in second.said(), second.said()
    assert first.poll() is None, "ended before the second one was refused"
    first.send(signal.SIGKILL)
    first.wait()
    with run_directory.opened(
        load_recipe(str(recipe)), out, resume=True, overwrite=False
    ):  # the lock went with its holder
        assert (out / run_directory.LOCK).exists()
    assert not (out / run_directory.LOCK).exists()  # filelock would leave it


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_goes_by_the_process(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """filelock's own fallback knows ENOSYS alone; NFS without a lock daemon answers ENOLCK, other systems EOPNOTSUPP."""

    def refuse(*_) -> None:
        raise OSError(number, os.strerror(number))

    def killed(host: str) -> Callable[[], None]:
        def work() -> None:
            fcntl.flock, socket.gethostname = refuse, lambda: host
            with run_directory.opened(recipe, out, False, False):
                os.kill(os.getpid(), signal.SIGKILL)

        return work

    recipe, out = load_recipe("pocket"), tmp_path / "run"
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert Job(killed(socket.gethostname()), tmp_path / "here").wait() == -signal.SIGKILL
    with (
        run_directory.opened(recipe, out, False, False),  # whose holder died on this machine
        pytest.raises(ValueError, match=f"process {os.getpid()} on .* delete .*no locks"),
    ):
        run_directory.opened(recipe, out, False, False).__enter__()
    assert not list(out.iterdir())
    job = Job(killed("elsewhere"), tmp_path / "elsewhere")
    assert job.wait() == -signal.SIGKILL
    with pytest.raises(
        ValueError, match=f"process {job.pid} on elsewhere.* delete {out / run_directory.LOCK}.soft: .*no locks"
    ):
        run_directory.opened(recipe, out, False, False).__enter__()
    (out / f"{run_directory.LOCK}.soft").unlink()
    _begin(recipe, out)
    assert [path.name for path in out.iterdir()] == [run_directory.RECIPE]


@pytest.mark.parametrize("moment", range(8))
def test_an_overwriting_run_leaves_no_mixture(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before its n-th renaming, the folder holds the former run or counts as empty."""
    former, out = load_recipe("pocket"), tmp_path / "run"
    recipe = load_recipe("pocket", ["seed=1"])
    _begin(former, out)
    for name in ("0-mntp", "1-simcse"):
        (out / name).mkdir()
    left, rename = [moment], Path.rename

    def counted(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        try:
            _begin(recipe, out, overwrite=True)
        except KeyboardInterrupt:
            assert moment < 3
    if (out / run_directory.RECIPE).exists() and load_recipe(str(out / run_directory.RECIPE)) == former:
        assert moment == 0 and (out / "0-mntp").exists() and (out / "1-simcse").exists()
        return
    _begin(recipe, out, resume=True)  # neither flag is needed
    assert [path.name for path in out.iterdir()] == [run_directory.RECIPE]
    assert load_recipe(str(out / run_directory.RECIPE)) == recipe


def _begin(recipe, out: Path, resume: bool = False, overwrite: bool = False) -> None:
    with run_directory.opened(recipe, out, resume, overwrite):
        run_directory.begin(recipe, out, overwrite)


def test_half_a_recipe_counts_as_none(tmp_path: Path) -> None:
    recipe, out = load_recipe("pocket"), tmp_path / "run"
    gone = subprocess.Popen(["true"])
    gone.wait()
    out.mkdir()
    (out / run_directory.LOCK).write_text("")
    (out / f".{run_directory.RECIPE}.partial-{gone.pid}").write_text("name: po")
    _begin(recipe, out)
    assert [path.name for path in out.iterdir()] == [run_directory.RECIPE]


def test_what_was_not_begun_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run_directory.opened(load_recipe("pocket"), tmp_path / "a" / "run", False, False):
        raise RuntimeError("the model cannot be converted")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ full disks


@pytest.mark.parametrize("size", [60_000, 200_000], ids=["checkpoint", "export"])
def test_a_full_disk_costs_nothing(size: int, recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """No file may grow beyond `size`: the run says so and ends with 1; with room again it goes on to the same result."""
    out = tmp_path / "run"
    work = convert(recipe, out)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        work()

    job = Job(limited, tmp_path / "log")
    assert job.wait() == 1, job.said()
    said = job.said()
    assert "Traceback" not in said and str(out) in said and "--resume" in said, said
    assert not list(out.rglob("*partial*")) and not (out / "model").exists()
    again = Job(convert(recipe, out, "--resume"), tmp_path / "again")
    assert again.wait() == 0, again.said()
    assert_equal(out, whole[0])


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("share", [0.6, *(pytest.param(share, marks=pytest.mark.full) for share in (0.3, 0.95))])
def test_a_file_system_that_fills_up(share: float, recipe: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = int(share * sum(path.stat().st_size for path in whole[0].rglob("*")))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]).returncode:
        pytest.skip("no right to mount")
    try:
        job = Job(convert(recipe, disk / "run"), tmp_path / "log")
        assert job.wait() == 1 and "--resume" in job.said() and "Traceback" not in job.said(), job.said()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        closed = Job(convert(recipe, disk / "run", "--resume"), tmp_path / "closed")
        assert closed.wait() == 1 and "read-only" in closed.said().lower(), closed.said()
        subprocess.run(["mount", "-o", "remount,rw,size=100m", disk], check=True)
        again = Job(convert(recipe, disk / "run", "--resume"), tmp_path / "again")
        assert again.wait() == 0, again.said()
        assert_equal(disk / "run", whole[0])
    finally:
        subprocess.run(["umount", disk], check=True)


# --------------------------------------------------------------------------------------------------------- the long form


class Started:
    """`llm2enc convert` as users start it; the interface of Job."""

    def __init__(self, command: list[str], output: Path):
        self.output, self.started = output, time.monotonic()
        with output.open("w") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def poll(self) -> int | None:
        return self.process.poll()

    def send(self, number: int) -> None:
        if self.poll() is None:
            self.process.send_signal(number)

    def wait(self, seconds: float = 600) -> int:
        return self.process.wait(seconds)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def long_form(place: Path, kills: int, say: Callable[[str], None]) -> None:
    """Kill real runs `kills` times, several times in a row for each result."""
    recipe = write_recipe(place / "in", steps=6, save_every=2)
    dice, done, counted = random.Random(0), 0, Counter[str]()
    seconds: dict[bool, float] = {}

    def start(out: Path, real: bool) -> Job | Started:
        """The command as users start it, or forked: without the import, and verified by no other engine."""
        (place / "log").unlink(missing_ok=True)
        if real:
            return Started(
                [sys.executable, "-m", "llm2enc", "convert", str(recipe), "-o", str(out), "--resume"], place / "log"
            )
        return Job(convert(recipe, out, "--resume"), place / "log")

    for chain in range(kills):
        out, real = place / f"run-{chain}", done >= 0.7 * kills
        whole = place / f"whole-{real}"
        if real not in seconds:
            job = start(whole, real)
            assert job.wait(1200) == 0, job.said()
            seconds[real] = time.monotonic() - job.started
            say(f"undisturbed, {'started' if real else 'forked'}: {seconds[real]:.1f} s")
        for _ in range(14):
            job = start(out, real)
            kill = Kill.at_random(dice, 0.5 * seconds[real])
            if not kill.strike(job, out):
                say("finished before its kill")
                break
            _check_end(job, kill)
            done += 1
            name, where = signal.Signals(kill.signal).name, phase(out)
            counted.update([name, where])
            after = time.monotonic() - job.started
            say(f"kill {done}: run {chain}, {name}, {where}, {after:.1f} s after its start, exit code {job.code}")
        job = start(out, real)
        assert job.wait(1200) == 0, job.said()
        assert_equal(out, place / f"whole-{real}")
        say(f"run {chain}: equal to the undisturbed one, bit for bit ({len(jobs.contents(out))} files)")
        if done >= kills:
            break
    say(f"{done} kills: " + ", ".join(f"{name} {count}" for name, count in counted.most_common()))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    target.mkdir(parents=True, exist_ok=True)
    long_form(target, int(sys.argv[2]) if len(sys.argv) > 2 else 50, lambda text: print(text, flush=True))
