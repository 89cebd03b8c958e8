"""Checks what the scripts for other machines ask for, and that a dry run shows the same."""

import json
import re

import jsonschema
import pytest
import yaml
from machines import ROOT, Checkout

SCHEMAS = ROOT / "tests" / "launch"
NAME, PLACE = "--name=flowers", ["--project=p", "--zone=us-west4-a"]
TRAIN = [
    "--",
    "--config=configs/digits_fm.py:smoke",
    "--data_dir=/bucket/my data",
    """--config.log=it's "$(x)" \\ `y`""",
]
TPU_VM = [NAME, *PLACE, "--bucket=b"]
GKE = [NAME, "--image=r/i:tpu", "--bucket=b"]
XPK = ["--cluster=c", *PLACE, "--bucket=b"]
SKY = [NAME, "--accelerators=H100:8", "--bucket=s3://b"]
COMMANDS = [
    ("tpu_vm.sh", ["create", *TPU_VM, "--spot"]),
    ("tpu_vm.sh", ["create", *TPU_VM, "--queued", "--topology=v6e:4x4", "--runtime=mine"]),
    ("tpu_vm.sh", ["install", *TPU_VM]),
    ("tpu_vm.sh", ["run", *TPU_VM, *TRAIN]),
    ("tpu_vm.sh", ["logs", *TPU_VM]),
    ("tpu_vm.sh", ["status", *TPU_VM]),
    ("tpu_vm.sh", ["stop", *TPU_VM]),
    ("tpu_vm.sh", ["delete", *TPU_VM]),
    ("tpu_vm.sh", ["delete", *TPU_VM, "--queued"]),
    ("gke.sh", ["run", *GKE, "--topology=v5e:4x4", "--spot", "--grace_seconds=45", *TRAIN]),
    ("gke.sh", ["run", NAME, "--image=i", "--claim=runs", "--topology=v4:2x2x1", "--namespace=team", *TRAIN]),
    ("gke.sh", ["logs", NAME]),
    ("gke.sh", ["status", NAME]),
    ("gke.sh", ["delete", NAME]),
    ("xpk.sh", ["attach", *XPK]),
    ("xpk.sh", ["run", *XPK, NAME, "--image=i", "--spot", *TRAIN]),
    ("xpk.sh", ["status", *XPK, NAME]),
    ("xpk.sh", ["delete", *XPK, NAME]),
    ("slurm.sh", ["run", NAME, "--nodes=2", "--gpus=4", "--partition=a100", "--account=me", "--qos=high", *TRAIN]),
    ("slurm.sh", ["status", NAME]),
    ("slurm.sh", ["delete", NAME]),
    ("skypilot.sh", ["run", *SKY, "--nodes=2", "--infra=aws/us-east-1", "--spot", *TRAIN]),
    ("skypilot.sh", ["run", NAME, "--accelerators=tpu-v6e-8", "--bucket=gs://b", *TRAIN]),
    ("skypilot.sh", ["logs", NAME]),
    ("skypilot.sh", ["status"]),
    ("skypilot.sh", ["delete", NAME]),
]  # fmt: skip
# The flags used here, out of those that the references of gcloud and sbatch list.
KNOWN = {
    "gcloud compute tpus tpu-vm create": "zone project accelerator-type version spot",
    "gcloud compute tpus queued-resources create": "zone project node-id accelerator-type runtime-version spot",
    "gcloud compute tpus tpu-vm ssh": "zone project worker command",
    "gcloud compute tpus tpu-vm scp": "zone project worker",
    "gcloud compute tpus tpu-vm delete": "zone project quiet",
    "gcloud compute tpus queued-resources delete": "zone project force quiet",
    "sbatch": "job-name nodes gpus-per-node ntasks-per-node time output partition account qos",
}


TWO_SIDES = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
THREE_SIDES = "2x2x1, 2x2x2, 2x2x4, 2x4x4, and multiples of 4 in rising order"


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def files(checkout):
    return {path.name: path.read_text() for path in (checkout.root / "dist").glob("*.yaml")}


@pytest.mark.parametrize(
    ("script", "arguments"), COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:30]
)
def test_a_dry_run_is_what_is_done(checkout, script, arguments):
    """A dry run needs none of the tools; its output, run as a script, asks them for the same and writes the same."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    dry = checkout.bash(f"launch/{script}", *arguments[:split], "--dry-run", *arguments[split:], tools=False)
    assert (dry.returncode, dry.stderr) == (0, "") and not checkout.asked() and not files(checkout)
    assert checkout.bash("-c", dry.stdout).returncode == 0
    shown, written = checkout.asked(), files(checkout)

    real = checkout.bash(f"launch/{script}", *arguments)
    assert real.returncode == 0, real.stderr
    assert checkout.asked() == shown != [] and files(checkout) == written
    for command in shown:
        for words, flags in KNOWN.items():
            if command[: len(words.split())] == words.split():
                own = command[: command.index("launch/slurm_job.sh")] if command[0] == "sbatch" else command
                used = {word[2:].partition("=")[0] for word in own if word.startswith("--")}
                assert used <= set(flags.split())


def test_without_the_tool_it_is_one_line(checkout):
    (checkout.home / "bin" / "sky").unlink()
    run = checkout.bash("launch/skypilot.sh", "status")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "big_distill: sky is not installed here; --dry-run shows what it would be asked\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("tpu_vm.sh run --zone=z --project=p", "--name is needed; --help explains it"),
        ("tpu_vm.sh run --name=a --project=p", "--zone is needed; --help explains it"),
        ("tpu_vm.sh run --name=a --zone=z", "--project is needed; --help explains it"),
        ("tpu_vm.sh run --name=a --zone=z --project=p", "--bucket is needed; --help explains it"),
        (
            "tpu_vm.sh run --name=a --zone=z --project=p --bucket=b -- --x=1",
            "-- --config=FILE is needed, e.g. -- --config=configs/digits_fm.py",
        ),
        (
            "tpu_vm.sh create --nmae=a",
            "unknown flag --nmae; did you mean --name?; flags of main.py come after --",
        ),
        ("gke.sh run --config=a.py", "unknown flag --config; flags of main.py come after --"),
        ("gke.sh run --name=a --image=i", "--bucket or --claim is needed: the run directory must outlive the pods"),
        ("gke.sh run --name=A", "--name=A: expected at most 40 lower-case letters, digits and dashes, a letter first"),
        (
            "gke.sh run --name=a --image=i --bucket=b --topology=v5e",
            "--topology=v5e: expected GENERATION:SIZE as big_distill.plan takes it, e.g. v5e:2x4",
        ),
        (
            "gke.sh run --name=a --image=i --bucket=b --topology=v9:2x2",
            "--topology=v9:2x2: expected v4, v5e, v5p or v6e",
        ),
        (
            "gke.sh run --name=a --image=i --bucket=b --topology=v4:1x1x2",
            f"--topology=v4:1x1x2: v4 has the sizes {THREE_SIDES} up to 4096 chips, e.g. 4x4x8",
        ),
        ("gke.sh run --name=a --image=i --bucket=b --claim=c -- --config=a.py",
         "--bucket=b --claim=c: expected one of them: only one can be /bucket"),
        ("gke.sh run --name=a --image=i --bucket=gs://b/runs -- --config=a.py",
         "--bucket=gs://b/runs: expected the name of a Cloud Storage bucket, no directory in it"),
        ("tpu_vm.sh create --name=a --zone=z --project=p --bucket=s3://b",
         "--bucket=s3://b: expected the name of a Cloud Storage bucket, no directory in it"),
        ("xpk.sh attach --cluster=c --zone=z --project=p --bucket=gs://",
         "--bucket=gs://: expected the name of a Cloud Storage bucket, no directory in it"),
        ("machine.sh start --pause=x -- --config=a.py", "--pause=x: expected a whole number, 1 or more"),
        ("gke.sh", "expected one of run, logs, status, delete, not ''; --help explains them"),
        ("gke.sh stop --name=a", "expected one of run, logs, status, delete, not 'stop'; --help explains them"),
        ("gke.sh run --name", "--name needs a value"),
        ("gke.sh run --spot=maybe", "--spot=maybe: expected true or false"),
        ("slurm.sh run --name=a --nodes=two", "--nodes=two: expected a whole number, 1 or more"),
        ("slurm.sh run --name=a --gpus 0", "--gpus=0: expected a whole number, 1 or more"),
        (
            "skypilot.sh run --name=a --accelerators=H100:8 --bucket=b",
            "--bucket=b: expected gs://NAME or s3://NAME",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(checkout, command, message):
    (checkout.home / "bin" / "python3").unlink()  # the real python3 would add the nearest name
    run = checkout.bash(*f"launch/{command}".split())
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"big_distill: {message}\n")
    assert not checkout.asked()


@pytest.mark.parametrize("script", ["tpu_vm.sh", "machine.sh", "gke.sh", "xpk.sh", "slurm.sh", "skypilot.sh"])
def test_help_teaches_every_flag_and_word(checkout, script):
    run = checkout.bash(f"launch/{script}", "--help", tools=False)
    assert (run.returncode, run.stderr) == (0, "")
    text = (ROOT / "launch" / script).read_text()
    words, flags = (
        names.split() for names in re.search(r'^parse_flags "([^"]+)" \\\n +"([^"]+)"', text, re.M).groups()
    )
    assert not [flag for flag in [*flags, "dry-run"] if f"--{flag}" not in run.stdout]
    assert not [word for word in words if word not in run.stdout and word != "supervise"]
    assert f"bash launch/{script} " in run.stdout and "set -e" not in run.stdout


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts", "chips_per_host"),
    [
        ("v5e:1x1", "v5litepod-1", 1, 1),
        ("v5e:2x4", "v5litepod-8", 1, 8),
        ("v5e:4x4", "v5litepod-16", 4, 4),
        ("v6e:16x16", "v6e-256", 64, 4),
        ("v4:2x2x1", "v4-8", 1, 4),
        ("v5p:2x2x4", "v5p-32", 4, 4),
        ("v6e:2x4", "v6e-8", 1, 8),
        ("v4:2x4x4", "v4-64", 8, 4),
        ("v4:16x16x16", "v4-8192", 1024, 4),
        ("v5p:4x4x12", "v5p-384", 48, 4),
        ("v5p:16x20x28", "v5p-17920", 2240, 4),
    ],
)
def test_slices_by_their_other_names(checkout, topology, accelerator, hosts, chips_per_host):
    """Cloud TPU counts cores for v4 and v5p, two in a chip; v5e and v6e have up to eight chips in one machine."""
    dry = checkout.bash("launch/tpu_vm.sh", "create", *TPU_VM, f"--topology={topology}", "--dry-run", tools=False)
    assert f"--accelerator-type={accelerator} " in dry.stdout
    job = manifest(checkout, "gke.sh", "run", *GKE, f"--topology={topology}", *TRAIN)["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    (train,) = spec["template"]["spec"]["containers"]
    assert train["resources"]["limits"] == {"google.com/tpu": chips_per_host}


@pytest.mark.parametrize(
    "topology",
    ["v5e:2x4x1", "v5e:1x8", "v5e:2x6", "v5e:3x4", "v5e:4x2", "v5e:16x32", "v6e:3x2", "v4:2x2", "v4:4x4", "v4:2x4x2",
     "v4:8x4x4", "v4:4x4x6", "v4:16x16x20", "v5p:2x2x3", "v5p:1x1x1", "v5p:20x20x24"],
)  # fmt: skip
def test_a_slice_that_is_not_made_is_refused_with_those_that_are(checkout, topology):
    generation = topology.partition(":")[0]
    most = {"v4": 4096, "v5p": 8960}.get(generation)
    known = f"{THREE_SIDES} up to {most} chips, e.g. 4x4x8" if most else TWO_SIDES
    message = f"big_distill: --topology={topology}: {generation} has the sizes {known}\n"
    for script, arguments in [
        ("gke.sh", ["run", *GKE]),
        ("tpu_vm.sh", ["create", *TPU_VM]),
        ("xpk.sh", ["run", *XPK, NAME, "--image=i"]),
    ]:
        run = checkout.bash(f"launch/{script}", *arguments, f"--topology={topology}", *TRAIN)
        assert (run.returncode, run.stdout, run.stderr) == (2, "", message) and not checkout.asked()


@pytest.mark.parametrize("argument", ["--config.batch_size=3", "--data_dir=my-config", "--configs=a.py"])
@pytest.mark.parametrize(
    "command",
    [["gke.sh", "run", *GKE], ["tpu_vm.sh", "run", *TPU_VM], ["xpk.sh", "run", *XPK, NAME, "--image=i"],
     ["slurm.sh", "run", NAME], ["skypilot.sh", "run", *SKY]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_field_of_the_config_is_no_config(checkout, command, argument):
    run = checkout.bash(f"launch/{command[0]}", *command[1:], "--", argument)
    message = "big_distill: -- --config=FILE is needed, e.g. -- --config=configs/digits_fm.py\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", message) and not checkout.asked()


@pytest.mark.parametrize("config", [["--config=a.py"], ["-config=a.py"], ["--config", "a.py"], ["-config", "a.py"]])
def test_a_config_in_each_way_that_main_takes_it(checkout, config):
    run = checkout.bash("launch/slurm.sh", "run", NAME, "--dry-run", "--", "--config.seed=1", *config)
    assert run.returncode == 0 and run.stdout.rstrip().endswith(" ".join(config))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("gke.sh", ["run", NAME, "--image=i", *TRAIN]),
        ("tpu_vm.sh", ["resume", NAME, *PLACE, *TRAIN]),
        ("xpk.sh", ["attach", "--cluster=c", *PLACE]),
        ("xpk.sh", ["run", "--cluster=c", *PLACE, NAME, "--image=i", *TRAIN]),
        ("machine.sh", ["start", "--home=h", *TRAIN]),
    ],
)
@pytest.mark.parametrize("written", ["gs://b", "gs://b/", "b/"])
def test_a_bucket_may_be_written_as_an_address(checkout, script, arguments, written):
    checkout.answers([["mountpoint", 1, ""]] * 2)  # not mounted yet
    name, address = (
        checkout.bash(f"launch/{script}", arguments[0], "--dry-run", f"--bucket={bucket}", *arguments[1:])
        for bucket in ("b", written)
    )
    assert name.returncode == 0 and address.stdout == name.stdout != ""


def manifest(checkout, script, *arguments):
    run = checkout.bash(f"launch/{script}", *arguments)
    assert run.returncode == 0, run.stderr
    (text,) = files(checkout).values()
    return yaml.safe_load(text)


def validate(value, schema):
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{schema}.json").read_text())).validate(value)


@pytest.mark.parametrize("arguments", [arguments for script, arguments in COMMANDS if script == "gke.sh"][:2])
def test_the_jobset(checkout, arguments):
    jobset = manifest(checkout, "gke.sh", *arguments)
    validate(jobset, "jobset")
    (job,) = jobset["spec"]["replicatedJobs"]
    validate(job["template"], "kubernetes_job")

    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (train,) = pod["containers"]
    grace = 45 if "--grace_seconds=45" in arguments else 30
    assert train["args"] == ["--distributed", "--workdir=/bucket/flowers", f"--config.grace_seconds={grace}",
                             *TRAIN[1:-1], TRAIN[-1].replace("$(", "$$(")]  # fmt: skip
    assert pod["terminationGracePeriodSeconds"] > grace
    # The run's own faults end it. All other statuses, 75 among them, fail the job, and JobSet starts it again.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob",
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": [1, 2, 3, 4, 5]}}  # fmt: skip
    policy = jobset["spec"]["failurePolicy"]
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    assert policy["maxRestarts"] > 0 and (pod["restartPolicy"], spec["backoffLimit"]) == ("Never", 0)
    (volume,) = pod["volumes"]
    assert train["volumeMounts"] == [{"name": volume["name"], "mountPath": "/bucket"}]


def test_the_schemas_see_mistakes(checkout):
    jobset = manifest(checkout, "gke.sh", "run", *GKE, *TRAIN)
    job = jobset["spec"]["replicatedJobs"][0]["template"]
    job["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(jsonschema.ValidationError, match="nodeSelectors"):
        validate(job, "kubernetes_job")
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        validate(jobset, "jobset")
    with pytest.raises(jsonschema.ValidationError, match="num_node"):
        validate({"num_node": 2}, "skypilot_task")


@pytest.mark.parametrize("arguments", [arguments for script, arguments in COMMANDS if script == "skypilot.sh"][:2])
def test_the_skypilot_task(checkout, arguments):
    task = manifest(checkout, "skypilot.sh", *arguments)
    validate(task, "skypilot_task")
    extra = "tpu" if "tpu" in task["resources"]["accelerators"] else "cuda"
    assert f"--extra {extra} " in task["setup"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]

    checkout.statuses([0])
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    (checkout.home / "python").rename(checkout.root / ".venv" / "bin" / "python")
    nodes = "export SKYPILOT_NODE_IPS=$'10.0.0.1\\n10.0.0.2' SKYPILOT_NUM_NODES=2 SKYPILOT_NODE_RANK=1\n"
    assert checkout.bash("-c", nodes + task["run"]).returncode == 0
    (argv,) = checkout.runs()
    assert argv == ["-m", "big_distill.main", "--workdir=/bucket/flowers", *TRAIN[1:],
                    "--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]  # fmt: skip


def test_what_main_is_given_is_not_given_twice(checkout):
    own = ["--workdir=/bucket/mine", "--config.grace_seconds=5"]
    jobset = manifest(checkout, "gke.sh", "run", *GKE, *TRAIN, *own)
    (train,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert train["args"][:2] == ["--distributed", TRAIN[1]] and train["args"][-2:] == own


def test_xpk_is_given_the_command_as_a_shell_reads_it(checkout):
    checkout.bash("launch/xpk.sh", "run", *XPK, NAME, "--image=i", *TRAIN)
    (create,) = checkout.asked()
    (command,) = [word.partition("=")[2] for word in create if word.startswith("--command=")]
    said = checkout.bash("-c", f"exec() {{ printf '%s\\n' \"$@\"; }}; {command}").stdout.splitlines()
    assert said == ["python", "-m", "big_distill.main", "--distributed", "--workdir=/bucket/flowers",
                    "--config.grace_seconds=30", *TRAIN[1:]]  # fmt: skip


def test_the_container_has_what_it_copies():
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    sources = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]]
    kept = {
        line[1:] for line in (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert set(sources) == kept and all((ROOT / source).exists() for source in sources)
