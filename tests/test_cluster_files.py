"""The files that start clusters: compose, image, Slurm's script, Kubernetes' job, hostfiles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from distgrad.launch.supervise.hosts import parse

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
UID = 10001

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def shell(script: str, **variables: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **{key: str(value) for key, value in variables.items()}}
    return subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=60, env=environ
    )


def programs(folder: Path, **bodies: str) -> str:
    """Make shell scripts of these names and return a PATH that finds them first."""
    folder.mkdir(exist_ok=True)
    for name, body in bodies.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


# ------------------------------------------------------------------ containers


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    whole = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert whole["networks"]["cluster"]["internal"] is True
    assert set(whole["volumes"]) == {"keys", "runs"}
    return dict(whole["services"])


def test_compose_has_workers_and_a_launcher_and_no_service_that_ends_early(
    services: dict[str, Any],
) -> None:
    # --exit-code-from ends everything as soon as any container ends
    assert set(services) == {"worker", "launcher"}
    assert services["launcher"]["depends_on"]["worker"]["condition"] == "service_healthy"
    assert "ssh" in services["worker"]["healthcheck"]["test"][1]


@pytest.mark.parametrize("name", ["worker", "launcher"])
def test_containers_may_do_nothing_that_they_do_not_need(
    services: dict[str, Any], name: str
) -> None:
    service = services[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["networks"] == ["cluster"]
    for word in ("ports", "privileged", "cap_add", "user", "network_mode", "devices", "pid"):
        assert word not in service
    assert f"/run/distgrad:uid={UID},gid={UID},mode=700" in service["tmpfs"]


def test_the_image_is_not_roots_and_its_build_makes_no_key() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    code = [line for line in lines if not line.lstrip().startswith("#")]
    users = [line.split()[1] for line in code if line.startswith("USER ")]
    assert users == ["distgrad"]
    assert f"--uid {UID}" in "\n".join(code)
    assert "ssh-keygen" not in "\n".join(code)
    assert "rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*" in "\n".join(code)


def test_what_the_image_copies_is_there_and_passes_dockerignore() -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (LAUNCH / "Dockerfile").read_text(), re.M)
    sources = [word for line in copies for word in line.split() if "[" not in word]
    assert len(sources) >= 6
    for source in sources:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in kept


def test_sshd_takes_the_key_of_one_account_and_nothing_else() -> None:
    lines = (LAUNCH / "sshd_config").read_text().splitlines()
    options = dict(line.split(None, 1) for line in lines if line and line[0] != "#")
    for name in ("PasswordAuthentication", "KbdInteractiveAuthentication", "PermitRootLogin"):
        assert options[name] == "no"
    assert options["UsePAM"] == "no"
    assert options["StrictModes"] == "yes"
    assert options["AuthenticationMethods"] == "publickey"
    assert options["AllowUsers"] == "distgrad"
    assert int(options["Port"]) > 1023  # which needs no root
    client = (LAUNCH / "ssh_config").read_text()
    assert "StrictHostKeyChecking yes" in client
    assert "UserKnownHostsFile /run/distgrad/home/known_hosts" in client


def test_no_key_and_no_password_lies_in_the_repository() -> None:
    for file in [*LAUNCH.rglob("*"), ROOT / "docker-compose.yml"]:
        if file.is_file():
            text = file.read_text()
            assert "PRIVATE KEY" not in text
            assert not re.search(r"ssh-(ed25519|rsa) AAAA", text)
            assert not re.search(r"chpasswd|passwd\s*=|sshpass|NOPASSWD", text, re.IGNORECASE)


# The functions of the entry point, without the role at its end.
ENTRYPOINT = (LAUNCH / "entrypoint.sh").read_text().partition("\nrole=")[0]


@needs_ssh_keygen
def test_five_nodes_that_start_at_once_agree_on_the_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    one = f"{ENTRYPOINT}\ntake_keys"
    nodes = [
        subprocess.Popen(
            ["sh", "-c", one],
            env={**os.environ, "KEYS": str(keys), "HOME": str(tmp_path / f"home{node}")},
        )
        for node in range(5)
    ]
    assert [node.wait(30) for node in nodes] == [0] * 5
    homes = [tmp_path / f"home{node}" for node in range(5)]
    assert sorted(file.name for file in keys.iterdir()) == [
        "complete", "host", "host.pub", "lock", "user", "user.pub",
    ]  # fmt: skip
    for name in ("id", "host", "authorized_keys", "known_hosts"):
        assert len({(home / name).read_bytes() for home in homes}) == 1
        assert (homes[0] / name).stat().st_mode & 0o777 == 0o600
    assert homes[0].stat().st_mode & 0o777 == 0o700
    assert (homes[0] / "id").read_bytes() != (homes[0] / "host").read_bytes()
    assert (homes[0] / "known_hosts").read_text().startswith("distgrad ssh-ed25519 ")


def test_a_node_whose_keys_never_come_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    done = shell(f"{ENTRYPOINT}\ntake_keys", KEYS=tmp_path, HOME=tmp_path / "home", WAIT_S=0)
    assert done.returncode == 69
    assert "docker compose down -v" in done.stderr


def test_the_key_of_kubernetes_operator_serves_for_all(tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text("private\n")
    (tmp_path / "id_rsa.pub").write_text("ecdsa-sha2-nistp521 AAAA\n")
    home = tmp_path / "home"
    done = shell(f"{ENTRYPOINT}\ntake_keys", KEYS=tmp_path, HOME=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "id").read_text() == (home / "host").read_text() == "private\n"
    assert (home / "known_hosts").read_text() == "distgrad ecdsa-sha2-nistp521 AAAA\n"
    assert not (tmp_path / "lock").exists()  # a secret cannot be written to


def test_the_launcher_starts_the_ranks_on_the_workers_that_answer(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", ssh="exit 0", python='echo "$@"')
    done = shell(
        f"{ENTRYPOINT}\nlaunch --steps 3", PATH=path, HOSTFILE=LAUNCH / "hostfile.hydra",
        WORKERS=2, SLOTS=4,
    )  # fmt: skip
    expected = "-m distgrad.launch --nproc 8 --hosts node1:4,node2:4 --steps 3\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_the_launcher_names_the_workers_that_do_not_answer(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", ssh='[ "$2" = node1 ]')
    done = shell(
        f"{ENTRYPOINT}\nlaunch", PATH=path, HOSTFILE=LAUNCH / "hostfile.prrte", WORKERS=2, WAIT_S=0
    )
    assert done.returncode == 69
    assert "1 of 2 workers answer by ssh (answer: node1; do not: node2)" in done.stderr


# ------------------------------------------------------------------ scripts


@needs_bash
@pytest.mark.parametrize("name", ["entrypoint.sh", "ci-cluster.sh", "ci-slurm.sh", "slurm.sbatch"])
def test_scripts_are_valid_and_know_nothing_of_the_machine_they_were_written_on(name: str) -> None:
    file = LAUNCH / name
    subprocess.run(["bash", "-n", str(file)], check=True)
    text = file.read_text()
    assert not re.search(r"(?<![\w.$])/(home|work|root/)\b", text)
    assert not re.search(r"https?://\w", text)
    if name != "slurm.sbatch":  # which sbatch reads
        assert os.access(file, os.X_OK)


# ------------------------------------------------------------------ Slurm


@pytest.fixture
def batch(tmp_path: Path) -> Any:
    """A function that runs slurm.sbatch with an srun of this body, and its output and calls."""

    def run(srun: str, **variables: object) -> tuple[int, str, list[str]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        path = programs(
            tmp_path / "bin",
            srun=f'echo "srun $*" >>{calls}; n=$(grep -c ^srun {calls}); {srun}',
            scontrol=f'echo "scontrol $*" >>{calls}',
        )
        environ = {
            "PATH": path, "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "PYTHON": "python",
            "RETRY_PAUSE": "0", **{key: str(value) for key, value in variables.items()},
        }  # fmt: skip
        done = subprocess.run(
            ["bash", str(LAUNCH / "slurm.sbatch"), "--steps", "9"],
            capture_output=True, text=True, timeout=60, env=environ, cwd=tmp_path,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return run


START = (
    "srun --mpi=pmi2 --kill-on-bad-exit=1 python -m distgrad.launch --run-dir runs/slurm-17 "
    "--resume auto --steps 9"
)


@needs_bash
def test_slurm_a_job_that_ends_well_is_not_queued_again(batch: Any) -> None:
    status, _, calls = batch("exit 0")
    assert (status, calls) == (0, [START])


@needs_bash
def test_slurm_ranks_that_saved_are_queued_again(batch: Any) -> None:
    status, text, calls = batch("exit 75")
    assert (status, calls) == (75, [START, "scontrol requeue 17"])
    assert "queues job 17 again" in text


@needs_bash
def test_slurm_does_not_queue_for_ever(batch: Any) -> None:
    status, text, calls = batch("exit 75", SLURM_RESTART_COUNT=4, MAX_REQUEUES=4)
    assert (status, calls) == (75, [START])
    assert "MAX_REQUEUES" in text


@needs_bash
@pytest.mark.parametrize("status", [1, 2, 3])
def test_slurm_an_error_before_the_next_checkpoint_ends_the_job(batch: Any, status: int) -> None:
    assert batch(f"exit {status}")[::2] == (status, [START])


@needs_bash
def test_slurm_an_error_after_a_checkpoint_may_be_that_of_a_lost_rank(batch: Any) -> None:
    progress = "mkdir -p runs/slurm-17/checkpoints; ln -sfn step_1 runs/slurm-17/checkpoints/latest"
    status, _, calls = batch(f"{progress}; exit 1")
    assert (status, calls) == (1, [START] * 2)


@needs_bash
def test_slurm_ranks_that_a_signal_killed_start_again_a_few_times(batch: Any) -> None:
    status, text, calls = batch('[ "$n" -gt 2 ] || exit 137; exit 0')
    assert (status, calls) == (0, [START] * 3)
    assert "starts the ranks again (2 of 3)" in text
    status, _, calls = batch("exit 137", RETRIES=1)
    assert (status, calls) == (137, [START] * 2)


@needs_bash
@pytest.mark.parametrize("ends_with", [75, 143])
def test_slurm_passes_the_signal_on_and_queues_again(batch: Any, ends_with: int) -> None:
    srun = f"trap 'echo told; exit {ends_with}' USR1; kill -USR1 $PPID; while :; do sleep 0.1; done"
    status, text, calls = batch(srun)
    assert (status, calls) == (75, [START, "scontrol requeue 17"])
    assert "told" in text


@needs_bash
def test_slurm_a_cancelled_job_saves_and_is_not_queued_again(batch: Any) -> None:
    # Slurm sends TERM to the ranks too, and a second signal would end them at once
    srun = "trap 'exit 9' USR1; kill -TERM $PPID; sleep 0.5; exit 75"
    assert batch(srun)[::2] == (75, [START])


@needs_bash
def test_slurm_a_job_that_ends_well_in_spite_of_the_signal_is_done(batch: Any) -> None:
    srun = "trap 'exit 0' USR1; kill -USR1 $PPID; while :; do sleep 0.1; done"
    assert batch(srun)[::2] == (0, [START])


def test_slurm_is_asked_for_what_the_script_counts_on() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.+))?$", text, re.MULTILINE)
    assert {"requeue": "", "open-mode": "append", "signal": "B:USR1@120"}.items() <= dict(
        options
    ).items()


def test_ranks_that_slurm_started_without_mpi_refuse_to_train_alone(tmp_path: Path) -> None:
    environ = {
        "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "distgrad.launch", "--run-dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Slurm started 4 ranks" in done.stderr
    assert "srun --mpi=pmi2" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ hostfiles


def test_both_hostfiles_name_the_same_hosts() -> None:
    for name in ("hostfile.hydra", "hostfile.prrte"):
        hosts = parse(None, str(LAUNCH / name))
        assert [(host.name, host.slots) for host in hosts] == [("node1", 4), ("node2", 4)]


# ------------------------------------------------------------------ Kubernetes


def thing(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """The schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def many(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def one_of(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


TEXT: dict[str, Any] = {"type": "string"}
FLAG: dict[str, Any] = {"type": "boolean"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SOME: dict[str, Any] = {"type": "integer", "minimum": 1}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
AMOUNT: dict[str, Any] = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi)?$"}
NAME: dict[str, Any] = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
AMOUNTS: dict[str, Any] = {"type": "object", "additionalProperties": AMOUNT}

# The fields of an MPIJob, and those of a pod that this project's job uses, with what every release
# of mpijobs.kubeflow.org v2beta1 takes where releases differ, MPICH and launcherCreationPolicy
# apart, which are younger. An API server drops what it does not know without a word; here a
# misspelt field is an error.
CONTAINER = thing(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    args=many(TEXT),
    command=many(TEXT),
    env=many(thing(("name",), name=TEXT, value=TEXT)),
    ports=many(thing(("containerPort",), name=NAME, containerPort=COUNT)),
    resources=thing(requests=AMOUNTS, limits=AMOUNTS),
    securityContext=thing(
        allowPrivilegeEscalation=FLAG,
        readOnlyRootFilesystem=FLAG,
        capabilities=thing(drop=many(TEXT)),
    ),
    volumeMounts=many(thing(("name", "mountPath"), name=NAME, mountPath=TEXT, readOnly=FLAG)),
    readinessProbe=thing(exec=thing(command=many(TEXT)), periodSeconds=COUNT, timeoutSeconds=COUNT),
)
POD = thing(
    ("containers",),
    containers={**many(CONTAINER), "minItems": 1},
    automountServiceAccountToken=FLAG,
    enableServiceLinks=FLAG,
    terminationGracePeriodSeconds=COUNT,
    securityContext=thing(
        runAsNonRoot=FLAG, runAsUser=COUNT, runAsGroup=COUNT, fsGroup=COUNT,
        seccompProfile=thing(("type",), type=one_of("RuntimeDefault", "Localhost", "Unconfined")),
    ),
    volumes=many(
        thing(
            ("name",),
            name=NAME,
            persistentVolumeClaim=thing(("claimName",), claimName=NAME, readOnly=FLAG),
            emptyDir=thing(medium=one_of("", "Memory"), sizeLimit=AMOUNT),
        )
    ),
)  # fmt: skip
REPLICAS = thing(
    replicas=SOME,
    restartPolicy=one_of("OnFailure", "Never"),
    template=thing(metadata=thing(labels=TEXTS, annotations=TEXTS), spec=POD),
)
MPI_JOB = thing(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "kubeflow.org/v2beta1"},
    kind={"const": "MPIJob"},
    metadata=thing(("name",), name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS),
    spec=thing(
        ("mpiReplicaSpecs",),
        slotsPerWorker=SOME,
        runLauncherAsWorker=FLAG,
        launcherCreationPolicy=one_of("AtStartup", "WaitForWorkersReady"),
        sshAuthMountPath=TEXT,
        mpiImplementation=one_of("OpenMPI", "Intel", "MPICH"),
        runPolicy=thing(
            cleanPodPolicy=one_of("None", "Running", "All"),
            ttlSecondsAfterFinished=COUNT,
            activeDeadlineSeconds=COUNT,
            backoffLimit=COUNT,
            suspend=FLAG,
            managedBy=one_of("kubeflow.org/mpi-operator", "kueue.x-k8s.io/multikueue"),
            schedulingPolicy=thing(
                minAvailable=COUNT, queue=TEXT, minResources=AMOUNTS, priorityClass=TEXT,
                scheduleTimeoutSeconds=COUNT,
            ),
        ),
        mpiReplicaSpecs=thing(("Launcher", "Worker"), Launcher=REPLICAS, Worker=REPLICAS),
    ),
)  # fmt: skip


@pytest.fixture
def job() -> dict[str, Any]:
    first, *_ = yaml.safe_load_all((LAUNCH / "mpijob.yaml").read_text())
    return dict(first)


def pods(job: dict[str, Any]) -> dict[str, Any]:
    replicas = job["spec"]["mpiReplicaSpecs"]
    return {role: spec["template"]["spec"] for role, spec in replicas.items()}


def test_the_job_of_kubernetes_fits_the_schema(job: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(MPI_JOB)
    jsonschema.validate(job, MPI_JOB)


@pytest.mark.parametrize("wrong", ["slotPerWorker", "sshAuthMountpath", "mpiReplicaSpec"])
def test_the_schema_finds_a_misspelt_field(job: dict[str, Any], wrong: str) -> None:
    job["spec"][wrong] = 1
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        jsonschema.validate(job, MPI_JOB)


def test_pods_are_not_roots_and_may_do_nothing_more(job: dict[str, Any]) -> None:
    for pod in pods(job).values():
        account = pod["securityContext"]
        assert account["runAsNonRoot"] is True
        assert {account[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
        assert account["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}
            names = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container["volumeMounts"]} == names


def test_the_job_of_kubernetes_agrees_with_itself_and_with_the_entry_point(
    job: dict[str, Any],
) -> None:
    spec, (launcher, worker) = job["spec"], (pods(job)[role] for role in ("Launcher", "Worker"))
    environ = {row["name"]: row["value"] for row in launcher["containers"][0]["env"]}
    assert environ["WORKERS"] == str(spec["mpiReplicaSpecs"]["Worker"]["replicas"])
    assert environ["SLOTS"] == str(spec["slotsPerWorker"])
    assert launcher["containers"][0]["args"][0] == "launch"
    assert worker["containers"][0]["args"] == ["worker"]
    assert f"keys=${{KEYS:-{spec['sshAuthMountPath']}}}" in ENTRYPOINT
    port = worker["containers"][0]["ports"][0]["containerPort"]
    assert f"Port {port}\n" in (LAUNCH / "sshd_config").read_text()
    policy = list(yaml.safe_load_all((LAUNCH / "mpijob.yaml").read_text()))[1]
    chosen = policy["spec"]["podSelector"]["matchLabels"]["training.kubeflow.org/job-name"]
    assert chosen == job["metadata"]["name"]
