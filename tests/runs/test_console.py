"""What a run shows of its progress: a bar at a terminal, plain lines in a log."""

import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from tiny import HARD, ROOT, TRAIN, succeed

from emmental.training import console
from emmental.utils import progress

LINE = r"(?P<title>.+): (?P<done>\d+)/(?P<total>\d+), (?P<rate>\S+)/s, (?P<left>[\d:]+) left(?P<values>(, \w+ \S+)*)"


@pytest.mark.parametrize("task", ["qqp", "squad1"])
def test_a_log_holds_plain_lines(world, tmp_path, task):
    """No control character, and for so short a run nothing but its last line; evaluation and folding as well."""
    out = tmp_path / "out"
    flags = [*TRAIN, *HARD, *world.cap(task), "--evaluate_during_training", "--eval_all_checkpoints"]
    ran = succeed(*world.command(task), *flags, "--output_dir", out)
    (line,) = ran.err.splitlines()
    shown = re.fullmatch(LINE, line)
    assert shown and shown["title"] == "steps" and shown["done"] == shown["total"] and shown["left"] == "00:00"
    assert re.fullmatch(r", loss [\d.]+, remaining [\d.]+", shown["values"])
    folded = succeed("bertarize.py", "--model_name_or_path", out, "--target_model_path", tmp_path / "folded")
    assert folded.err == ""
    for text in (ran.out, folded.out):
        assert not [character for character in text if ord(character) < 32 and character != "\n"]


def test_a_long_pass_tells_every_half_minute(monkeypatch, capsys):
    """A step in two seconds, the first 1,000 done before: the rate is that of this run."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress(1100, "steps", "step", initial=1000) as lines:
        for step in range(1001, 1101):
            now[0] += 2
            lines.set_postfix({"loss": f"{step}"})
            lines.update()
    told = [re.fullmatch(LINE, line) for line in capsys.readouterr().err.splitlines()]
    assert [int(line["done"]) for line in told] == [1015, 1030, 1045, 1060, 1075, 1090, 1100]
    assert {line["rate"] for line in told} == {"0.5"} and told[0]["left"] == "02:50"
    assert [line["values"] for line in told] == [f", loss {line['done']}" for line in told]
    with pytest.raises(KeyError), progress.progress(2, "steps", "step"):
        raise KeyError
    with progress.progress(2, "dev", "ex", leave=False) as lines:
        lines.update(2)
    with progress.progress(2, "steps", "step", quiet=True) as lines:
        lines.update(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_bars(tmp_path):
    program = (
        "from emmental.utils.progress import progress\nwith progress(3, 'steps', 'step') as bar:\n    bar.update(3)\n"
    )
    terminal, end = pty.openpty()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=end, check=True)
    os.close(end)
    assert b"\r" in os.read(terminal, 10_000)
    os.close(terminal)


@pytest.mark.parametrize("by_torchrun", [False, True])
def test_a_second_signal_stops_at_once_unless_it_is_an_echo(monkeypatch, capsys, by_torchrun):
    """What ends a job sends SIGTERM to all its processes, and torchrun passes its own on."""
    now, ended = [100.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    if by_torchrun:
        monkeypatch.setenv("LOCAL_RANK", "0")
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        with console.Stop() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert (stop.received, ended) == (signal.SIGTERM, [])
            now[0] += 1
            signal.raise_signal(signal.SIGTERM)
            assert len(ended) == (0 if by_torchrun else 1)
            now[0] += 10
            signal.raise_signal(signal.SIGTERM)
            assert len(ended) == (1 if by_torchrun else 2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().out.count("finishing the step, then saving") == 1
