"""Checks what each launcher does with runs that are stopped, preempted or at fault."""

import time

import pytest
from machines import Checkout

PLACE = ["--name=flowers", "--project=p", "--zone=us-west4-a", "--bucket=b"]
TRAIN = ["--", "--config=configs/digits_fm.py:smoke", """--config.log=it's "$(x)" \\ `y`"""]
ARGV = ["-m", "big_distill.main", "--distributed", "--workdir=/bucket/flowers", *TRAIN[1:]]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.fixture
def machine(checkout):
    """Makes a machine that has the environment, and returns a call of machine.sh."""
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    (checkout.home / "python").rename(checkout.root / ".venv" / "bin" / "python")

    def call(word, *arguments):
        run = checkout.bash("launch/machine.sh", word, f"--home={checkout.home / 'state'}", *arguments)
        assert run.returncode == 0, run.stderr
        return run.stdout

    yield call
    call("stop")


def wait_for(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("statuses", "end"),
    [([0], "exit 0"), ([75, 134, 0], "exit 0"), ([75, 3], "exit 3"), ([1], "exit 1")],
)
def test_a_machine_starts_again_what_goes_on(checkout, machine, statuses, end):
    assert machine("status") == "nothing\n"
    checkout.statuses(statuses)
    machine("start", *TRAIN)
    wait_for(lambda: machine("status") == f"{end}\n")
    assert checkout.runs() == [["-m", "big_distill.main", *TRAIN[1:]]] * len(statuses)
    again = (checkout.home / "state" / "log").read_text().count("the same command goes on in 10 s")
    assert again == len(statuses) - 1


def test_a_machine_runs_one_run_and_stops_it(checkout, machine):
    """A stopped run gets the signal, saves (75), and is not started again."""
    checkout.statuses([None, 0])
    machine("start", *TRAIN)
    wait_for(lambda: (checkout.home / "runs").exists())
    machine("start", *TRAIN)
    assert machine("status") == "running\n"
    machine("stop")
    assert machine("status") == "exit 75\n"
    assert len(checkout.runs()) == 1 and "goes on" not in (checkout.home / "state" / "log").read_text()
    machine("start", *TRAIN)
    wait_for(lambda: machine("status") == "exit 0\n")


def test_a_run_stops_while_it_waits_to_go_on(checkout, machine):
    (checkout.home / "bin" / "sleep").write_text(
        '#!/bin/sh\n[ "$1" = 10 ] && exec /bin/sleep 60\nexec /bin/sleep 0.05\n'
    )
    checkout.statuses([75, 0])
    machine("start", *TRAIN)
    wait_for(lambda: "goes on in 10 s" in (checkout.home / "state" / "log").read_text())
    machine("stop")
    assert machine("status") == "exit 75\n" and len(checkout.runs()) == 1


def test_a_process_id_of_before_a_restart_is_no_run(checkout, machine):
    (checkout.home / "state").mkdir()
    (checkout.home / "state" / "pid").write_text("1\n")
    assert machine("status") == "nothing\n"


def test_a_bucket_is_mounted_or_nothing_runs(checkout, machine):
    checkout.answers([["mountpoint", 1, ""], ["gcsfuse --implicit-dirs", 1, ""]])
    run = checkout.bash("launch/machine.sh", "start", f"--home={checkout.home / 'state'}", "--bucket=b", *TRAIN)
    assert run.returncode and not checkout.runs()
    assert [command[0] for command in checkout.asked()] == ["mountpoint", "sudo", "gcsfuse"]


def steps(checkout):
    """Returns what gcloud was asked to do, without the queries of its state."""
    commands = [command[4:] for command in checkout.asked() if command[0] == "gcloud"]
    last = [words[-1].removeprefix("--command=") for words in commands]
    short = [
        said.split()[2] if words[0] == "ssh" and "machine.sh" in said else words[0]
        for words, said in zip(commands, last, strict=True)
    ]
    return [step for step, said in zip(short, last, strict=True) if step != "list" and "machine.sh status" not in said]


def resume(checkout, *flags):
    return checkout.bash("launch/tpu_vm.sh", "resume", *PLACE, *flags, *TRAIN)


BEGIN = ["scp", "ssh", "install", "start"]


def test_a_dry_run_shows_what_resume_does_first(checkout):
    checkout.answers([["machine.sh status", 0, ""]])
    dry = checkout.bash("launch/tpu_vm.sh", "resume", *PLACE, "--dry-run", *TRAIN, tools=False)
    assert checkout.bash("-c", dry.stdout).returncode == 0
    assert steps(checkout) == ["create", *BEGIN]


@pytest.mark.full
def test_resume_sees_a_run_through_preemption(checkout):
    """Resume makes a slice, makes it again after a preemption, and goes on with a run that stops with 75."""
    checkout.add_machine()
    states = ["", "CREATING", "READY", "READY", "PREEMPTED", "", "READY"]
    checkout.answers([["tpu-vm list", 0, state] for state in states] + [["tpu-vm list", 0, "READY"]] * 100
                     + [["machine.sh status", 0, "nothing\n"], ["machine.sh status", 0, "running\n"]])  # fmt: skip
    checkout.statuses([75, 0, 0])
    run = resume(checkout, "--spot")
    assert run.returncode == 0, run.stderr
    assert "flowers is done" in run.stdout
    assert steps(checkout)[:7] == ["create", *BEGIN, "delete", "create"]
    runs = checkout.runs()
    assert len(runs) >= 2 and all(argv == ARGV for argv in runs)


@pytest.mark.parametrize(
    ("said", "step"),
    [
        ("nothing\nrunning\n", BEGIN),  # a machine was restarted
        ("exit 75\nexit 134\n", ["start"]),
        ("exit 0\nrunning\n", []),
        ("running\nrunning\n", []),
    ],
)
def test_resume_asks_all_machines(checkout, said, step):
    checkout.answers([["tpu-vm list", 0, "READY"]] * 2
                     + [["machine.sh status", 0, said], ["machine.sh status", 0, "exit 0\nexit 0\n"]])  # fmt: skip
    assert resume(checkout).returncode == 0
    assert steps(checkout) == step


@pytest.mark.full
def test_resume_waits_in_the_queue(checkout):
    states = "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE", "ACTIVE"
    said = "nothing\n", "nothing\n", "exit 0\n"
    checkout.answers([["queued-resources list", 0, state] for state in states]
                     + [["machine.sh status", 0, words] for words in said])  # fmt: skip
    run = resume(checkout, "--queued", "--spot")
    assert run.returncode == 0, run.stderr
    assert steps(checkout) == ["create", *BEGIN, "delete", "create", *BEGIN]


def test_resume_ends_at_a_fault_of_the_run(checkout):
    checkout.answers([["tpu-vm list", 0, "READY"], ["machine.sh status", 0, "running\nexit 3\n"]])
    run = resume(checkout)
    assert run.returncode == 2
    assert run.stderr.endswith("big_distill: flowers ended with status 3, which starting it again would not mend\n")
    assert steps(checkout) == ["ssh", "stop"]  # the end of the log; the other machines


@pytest.mark.full
def test_resume_gives_up_after_five_failures(checkout):
    checkout.answers([["tpu-vm list", 0, ""]] * 9 + [["tpu-vm create", 1, ""]] * 9)
    run = resume(checkout)
    assert run.returncode == 2 and run.stderr.endswith("gave up: create failed 5 times in a row\n")
    assert steps(checkout) == ["create"] * 5


def test_resume_outlives_a_gcloud_that_does_not_answer(checkout):
    checkout.answers([["tpu-vm list", 1, ""], ["tpu-vm list", 0, "READY"], ["machine.sh status", 255, ""],
                      ["tpu-vm list", 0, "READY"], ["machine.sh status", 0, "exit 0\n"]])  # fmt: skip
    assert resume(checkout).returncode == 0
    assert steps(checkout) == []


@pytest.mark.parametrize(
    ("status", "state", "restarts", "again"),
    [
        (75, "RUNNING", None, True),
        (75, "RUNNING", 7, True),
        (134, "RUNNING", None, True),
        (75, "RUNNING", 100, False),
        (75, "COMPLETING", None, False),  # cancelled, or queued again by SLURM itself
        (0, "RUNNING", None, False),
        (3, "RUNNING", None, False),
    ],
)
def test_slurm_queues_again_what_goes_on(checkout, status, state, restarts, again):
    checkout.answers([["srun", status, ""], ["squeue", 0, state]])
    count = "" if restarts is None else f"SLURM_RESTART_COUNT={restarts} "
    job = f"{count}SLURM_JOB_ID=12 bash launch/slurm_job.sh"
    run = checkout.bash("-c", f'{job} "$@"', "bash", *TRAIN[1:])
    assert run.returncode == status
    srun, *rest = checkout.asked()
    assert srun == ["srun", "--kill-on-bad-exit=0", ".venv/bin/python", "-m", "big_distill.main", "--distributed",
                    *TRAIN[1:]]  # fmt: skip
    assert (["scontrol", "requeue", "12"] in rest) == again


def test_a_slurm_job_outlives_its_signal(checkout):
    """SLURM also sends the signal to bash itself when a job is preempted."""
    (checkout.home / "bin" / "srun").write_text("#!/bin/sh\nkill -TERM $PPID\nexit 75\n")
    checkout.answers([["squeue", 0, "RUNNING"]])
    assert checkout.bash("-c", "SLURM_JOB_ID=12 bash launch/slurm_job.sh --config=a.py").returncode == 75
    assert checkout.asked()[-1] == ["scontrol", "requeue", "12"]


def test_a_slurm_job_says_what_makes_it_go_on(checkout):
    """sbatch reads options only up to the first command."""
    text = (checkout.root / "launch" / "slurm_job.sh").read_text()
    head = text[: text.index("set -euo")]
    assert text.startswith("#!") and text.count("#SBATCH") == head.count("\n#SBATCH")
    options = [line.removeprefix("#SBATCH ") for line in head.splitlines() if line.startswith("#SBATCH")]
    assert options == ["--requeue", "--open-mode=append", "--signal=TERM@60"]
