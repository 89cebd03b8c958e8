"""Checks the command as a user runs it, in its own processes: mistakes, two processes. Faults are in `faults/`."""

import contextlib
import json
import os
import re
import socket

import numpy as np
import pytest
from absl import flags
from processes import HANG_SECONDS, ROOT, cluster, losses, run, saved_steps, start, timeless
from tiers import cases

from big_distill import cli, weights
from big_distill.errors import ConfigError
from big_distill.run_dir.checkpoints import verify

DIGITS = ["--config=configs/digits_fm.py", "--config.total_steps=20", "--config.teacher.config.total_steps=10",
          "--config.log_every_steps=1", "--config.eval_every_steps=5", "--config.teacher.config.eval_every_steps=5",
          "--config.optimizer.warmup_steps=2", "--config.teacher.config.optimizer.warmup_steps=2",
          "--config.student.features=(16,512)", "--config.log_view_hash=True"]  # fmt: skip


on_one_worker = pytest.mark.xdist_group("whole")  # runs `whole` once


FM = "--config=configs/digits_fm.py"


@pytest.mark.parametrize(
    ("args", "message"),
    cases(
        ([FM, "--config.optimzer.lr=1"], "config.optimzer is not a field of the config; did you mean 'optimizer'?"),
        full=[
            ([FM, "--config.batch_size=abc"], "config.batch_size='abc': expected an integer"),
            ([FM, "--config.mesh=2"], "config.mesh='2': it has no value of its own, only fields: config.mesh.fsdp"),
            (
                ["--config=configs/digits.py"],
                "config file configs/digits.py does not exist; did you mean 'configs/digits_fm.py'?",
            ),
            (
                ["--config=configs/mnist_teacher.py", "--config.teacher.config.total_steps=3"],
                "config.teacher.config.total_steps cannot be set: this config has no teacher.config",
            ),
            ([], "--config=FILE is needed, e.g. --config=configs/digits_fm.py"),
        ],
    ),
)
def test_a_mistake_is_one_line_and_status_2(args, message):
    status, out, err = run(*args)
    assert (status, out, err) == (2, "", f"big_distill: {message}\n")


def config_of(*argv):
    """Returns the config that a command line makes."""
    values = flags.FlagValues()
    cli.define_config_flag(values, [*argv])
    cli.parse_flags(["main", *argv], values)
    return values.config


@pytest.mark.parametrize(
    ("replaced", "by", "message"),
    [
        (
            "config.batch_size =",
            "config.batchsize =",
            "assigns to 'batchsize', which is not a field of the config; did",
        ),
        ("config.view.flip =", "config.flip =", "did you mean 'config.view.flip'?"),
        ("= 3e-3", "= lr", "NameError: name 'lr' is not defined"),
        ("return ", "", "get_config returned NoneType, expected what template() makes"),
        ("config.batch_size = 128", "config.batch_size = 'a'", "TypeError"),
        ("import parse_arg", "import (", "SyntaxError"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, replaced, by, message):
    path = tmp_path / "mine.py"
    path.write_text((ROOT / "configs" / "digits_fm.py").read_text().replace(replaced, by))
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        config_of(f"--config={path}")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def flags_of(module, *names, config=False):
    """Returns the flags of a command, and one that a library defines."""
    values = flags.FlagValues()
    for name in names:
        flags.DEFINE_string(name, None, "", flag_values=values, module_name=f"big_distill.{module}")
    flags.DEFINE_string("orbax_workdirs", None, "", flag_values=values, module_name="orbax.checkpoint")
    if config:
        cli.define_config_flag(values, [])
    return values


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("epochs=3", "did you mean --config.total_epochs?"),
        ("lr=3", "did you mean --config.optimizer.lr?"),
        ("learning-rate=3", "did you mean --config.optimizer.lr?"),
        ("batch_size=3", "did you mean --config.batch_size?"),
        ("temperature=3", "did you mean --config.objective.temperature?"),
        ("data=x", "did you mean --config.source.name or --config.source.path?"),
        ("model=x", "did you mean --config.student.name?"),
        ("teacher=x", "did you mean --config.teacher.path?"),
        ("optimizer=x", "did you mean --config.optimizer.name?"),
        ("output_dir=x", "did you mean --workdir?"),
        ("wrokdir=x", "did you mean --workdir?"),
        ("processid=1", "did you mean --process_id?"),
        ("colour=red", "the flags of this command are --workdir, --process_id, and --config.FIELD=VALUE"),
    ],
)
def test_a_flag_that_other_projects_have_names_the_field(typed, message):
    values = flags_of("main", "workdir", "process_id", config=True)
    with pytest.raises(ConfigError) as error:
        cli.parse_flags(["main", f"--{typed}"], values)
    assert str(error.value).startswith(f"unknown flag --{typed.partition('=')[0]}; {message}"), error.value


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("config.source.train=x", "this command reads a run's config, and replaces only its data"),
        ("config=x", "this command reads a run's config, and replaces only its data"),
        ("epochs=3", "unknown flag --epochs"),
    ],
)
def test_a_command_without_a_config_names_its_own_flags_alone(typed, message):
    with pytest.raises(ConfigError, match=message) as error:
        cli.parse_flags(["evaluate", f"--{typed}"], flags_of("evaluate", "workdir", "split"))
    assert str(error.value).endswith("; the flags of this command are --workdir, --split")


def test_a_config_is_found_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").touch()
    with pytest.raises(
        ConfigError, match=rf"digits_fm does not exist; did you mean '{ROOT}/configs/digits_fm.py:smoke'"
    ):
        config_of("--config=digits_fm:smoke")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits_fm.py").touch()
    with pytest.raises(ConfigError, match=r"digit_fm.py does not exist; did you mean 'configs/digits_fm.py'\?$"):
        config_of("--config=digit_fm.py")
    with pytest.raises(ConfigError, match=r"nets does not exist; expected one of .*my_nets.py"):
        config_of("--config=resnets")


def test_a_config_file_is_run_once(tmp_path):
    path = tmp_path / "mine.py"
    program = (ROOT / "configs" / "digits_fm.py").read_text()
    path.write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n{program}")
    assert config_of(f"--config={path}:smoke", "--config.seed=3").seed == 3
    assert (tmp_path / "runs").read_text() == "x"


@pytest.mark.full
def test_training_imports_no_tensorflow(tmp_path):
    """Python lists on stderr all that a run imports: it trains a teacher and a student, evaluates and saves."""
    status, _, stderr = run(f"{FM}:smoke", f"--workdir={tmp_path}", PYTHONPROFILEIMPORTTIME="1")
    imported = set(re.findall(r"^import time:.*\|\s+(\S+)$", stderr, re.MULTILINE))
    assert status == 0 and {"big_distill.training.loop", "orbax.checkpoint", "clu.metric_writers"} <= imported
    assert not {name for name in imported if name.split(".")[0] == "tensorflow"}


def test_help_teaches():
    status, out, _ = run("--helpshort")
    assert status == 0
    for text in (
        "python -m big_distill.main --config=configs/digits_fm.py",
        "--config.objective.temperature",
        "maths",
        "one of adam, sgd",
    ):
        assert text in out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs the digits without an interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    status, out, err = run(*DIGITS, f"--workdir={workdir}")
    assert status == 0, err
    assert "agreement" in out and f"run directory: {workdir}" in out
    return workdir


@pytest.mark.full
@on_one_worker
@pytest.mark.parametrize("fsdp", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_are_one(whole, tmp_path, fsdp):
    """Each process has two devices; `whole` has one. If all four share a kernel, neither process has all of it."""
    args = [f"--config.teacher.path={whole}/teacher", f"--config.mesh.fsdp={fsdp}"]
    args += ["--config.teacher.sharded"] if fsdp > 1 else []
    processes = cluster(*DIGITS, f"--workdir={tmp_path}", *args, num_devices=2)
    outputs = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "agreement" in outputs[0][0] and "agreement" not in outputs[1][0]  # process 0 alone speaks
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)
    assert len(losses(tmp_path)) == 20
    views = [[line.get("train/view_hash") for line in timeless(directory)] for directory in (tmp_path, whole)]
    assert views[0] == views[1] and len({*views[0]}) > 20
    assert verify(tmp_path) == verify(whole) == dict.fromkeys(saved_steps(whole))
    assert len(list(tmp_path.glob("events.out.tfevents*"))) == 1
    got, want = (json.loads((d / "summary.json").read_text()) for d in (tmp_path, whole))
    assert got["scores"]["test"]["num_examples"] == 397
    assert got["params_sha256"] == weights.sha256(weights.load(tmp_path).variables["params"])
    assert got["agreement"] == pytest.approx(want["agreement"], abs=1.01 / 397)


@pytest.mark.full
@on_one_worker
def test_evaluate_command(whole, tmp_path):
    args = (f"--workdir={whole}", "--split=validation", "--json", f"--out={tmp_path}")
    status, out, err = run(*args, module="big_distill.evaluate")
    assert status == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"classes.csv", "confusion.csv", "confusion.svg"}
    want = json.loads((whole / "summary.json").read_text())["scores"]["validation"]
    scores = json.loads(out)
    assert scores.pop("data") == "digits validation" and scores == pytest.approx(want, rel=1e-6)
    status, _, err = run("--workdir=nowhere", module="big_distill.evaluate")
    assert (status, err) == (4, "big_distill: nowhere is not a run directory: it has no config.json\n")


CLUSTER = {"coordinator": "localhost:45671", "num_processes": "2", "process_id": "1"}


def cluster_flags(**changed):
    return [f"--{name}={value}" for name, value in (CLUSTER | changed).items() if value]


@pytest.mark.full
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num_processes=2"], "--num_processes=2: --coordinator and --process_id must be given too"),
        (cluster_flags(process_id=None), "and --num_processes=2: --process_id must be given too"),
        (cluster_flags(coordinator="host"), "--coordinator=host: expected HOST:PORT of process 0"),
        (cluster_flags(coordinator="host:99999"), "--coordinator=host:99999: expected HOST:PORT of process 0"),
        (cluster_flags(process_id="2"), "--process_id=2: expected 0 to 1 (--num_processes)"),
    ],
)
def test_flags_that_name_half_a_cluster(args, message):
    status, out, err = run(FM, *args)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


SLURM = {"SLURM_JOB_ID": "12", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "JAX finds no cluster here"),
        (SLURM, "SLURM job 12 has no SLURM_LOCALID: start the command with srun"),
        (SLURM | {"SLURM_LOCALID": "0", "SLURM_NTASKS": "two"}, "cannot join it (ValueError: "),
        ({"OMPI_MCA_orte_hnp_uri": "1"}, "cannot join it (RuntimeError: "),
    ],
)
def test_a_cluster_that_jax_does_not_find_is_one_line(environment, message):
    status, out, err = run(FM, "--distributed", **environment)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert err.startswith("big_distill: --distributed: ") and "give --coordinator=HOST:PORT" in err


def free_job():
    """Finds the number of a SLURM job for whose coordinator JAX takes a port that is free."""
    for number in range(os.getpid(), os.getpid() + 100):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("localhost", 61440 + number % 4096))
            return number
    pytest.fail("no port is free")


@pytest.mark.full
def test_slurm_is_found():
    """Two processes as srun starts them see two devices."""
    job = {"SLURM_JOB_ID": str(free_job()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    args = [FM, "--distributed", "--config.batch_size=3", "--config.teacher.config.batch_size=3"]
    processes = [start(*args, **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
    outputs = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert all("3" in err and "2 devices" in err for _, err in outputs), outputs


@pytest.mark.full
@pytest.mark.parametrize("process_id", ["0", "1"])
def test_processes_that_do_not_meet_leave_in_time(process_id):
    """Process 1 finds no coordinator that answers; process 0 is a coordinator that stays alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    args = cluster_flags(coordinator=coordinator, process_id=process_id)
    status, out, err = run(FM, *args, "--start_timeout_seconds=2")
    assert (status, out) == (75, "") and err.count("\n") == 1
    assert f"not all processes have met at {coordinator} within --start_timeout_seconds=2" in err


@pytest.mark.full
def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("::", 0), family=socket.AF_INET6) as taken:
        coordinator = f"localhost:{taken.getsockname()[1]}"
        status, out, err = run(FM, *cluster_flags(coordinator=coordinator, process_id="0"))
    assert (status, out) == (2, "") and err.startswith(f"big_distill: --coordinator={coordinator}: port ")
    assert err.count("\n") == 1


@pytest.mark.full
@pytest.mark.parametrize(
    ("each", "changed"),
    [
        (("--config.steps_per_dispatch=1", "--config.steps_per_dispatch=5"), "config.steps_per_dispatch: 1 -> 5"),
        (("--config.source.resident", "--noconfig.source.resident"), "config.source.resident: True -> False"),
    ],
)
def test_processes_with_different_flags_say_so(tmp_path, each, changed):
    """The processes also do not wait for each other without end."""
    together = cluster(*DIGITS, f"--workdir={tmp_path}", of_each=each)
    errors = [process.communicate(timeout=HANG_SECONDS)[1] for process in together]
    assert [process.returncode for process in together] == [2, 2], errors
    assert "process 1 of 2 was given another config than this one" in errors[0]
    assert "this process has another config than process 0 (" in errors[1] and changed in errors[1]
