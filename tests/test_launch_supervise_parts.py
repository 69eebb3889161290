"""The parts of the supervisor without any rank: messages, hosts, reasons, decisions."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distgrad import doctor
from distgrad.errors import ConfigError
from distgrad.launch import spawn
from distgrad.launch.supervise import explain, hosts, visit, wire
from distgrad.launch.supervise.child import Child
from distgrad.launch.supervise.hosts import Answer, Host, Remote
from distgrad.launch.supervise.listener import Listener
from distgrad.launch.supervise.outcome import Outcome, pause_s, why_not_again

# ------------------------------------------------------------------ messages


@pytest.fixture
def listener():
    ear = Listener("127.0.0.1")
    yield ear
    ear.close()


@pytest.fixture
def call(listener):
    """Connects, says what is given, and lets the listener hear it."""
    opened = []

    def say(*messages: object, link: socket.socket | None = None) -> socket.socket:
        if link is None:
            link = socket.create_connection((listener.address.host, listener.address.port))
            opened.append(link)
        for message in messages:
            link.sendall(message if isinstance(message, bytes) else wire.pack(message))
        for _ in range(5):
            listener.poll(0.02)
        return link

    yield say
    for link in opened:
        link.close()


def hello(listener, rank=0, size=2, **more):
    return {"token": listener.token, "rank": rank, "size": size, "pid": 7, "host": "a", **more}


def beat(step, moves=1, **more):
    return {"step": step, "phase": "training", "moves": moves, "call": "", **more}


def test_ranks_that_know_the_token_are_heard(listener, call):
    link = call(hello(listener), beat(3, stack="here"))
    rank = listener.ranks[0]
    assert (rank.step, rank.phase, rank.stack, rank.peer) == (3, "training", "here", "127.0.0.1")
    assert rank.named == "rank 0 (a, process 7)"
    call({"failed": 1, "error": "ValueError: x"}, {"failed": 2, "error": "later"}, link=link)
    assert rank.failed["error"] == "ValueError: x"
    link.close()
    listener.poll(0.1)
    assert rank.lost is not None


@pytest.mark.parametrize(
    "first",
    [
        {"token": "0" * 32, "rank": 0, "size": 2, "pid": 7, "host": "a"},
        {"token": "ключ", "rank": 0, "size": 2, "pid": 7, "host": "a"},
        {"rank": 0},
        [1, 2],
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 60000 + b"\n",
        b"x" * (wire.LINE_BYTES + 2),
    ],
)
def test_strangers_are_not_heard(listener, call, first):
    link = call(first)
    assert listener.ranks == {}
    assert len(listener.refused) == 1
    assert link.recv(10) == b""


def test_a_rank_speaks_once_and_within_the_world(listener, call):
    call(hello(listener))
    call(hello(listener))
    call(hello(listener, rank=5))
    call({**hello(listener), "rank": "many"})
    assert sorted(listener.ranks) == [0]
    assert len(listener.refused) == 3


def test_only_the_first_rank_that_is_left_says_that_all_agreed(listener, call):
    one = call(hello(listener, 1), {"agreed": 0})
    assert listener.agreed is None
    zero = call(hello(listener, 0))
    zero.close()
    call(beat(4, members=[1]), {"agreed": 0}, link=one)
    assert listener.agreed == {"agreed": 0}


def test_progress_is_what_moves(listener, call):
    link = call(hello(listener), beat(3, moves=5))
    before = listener.ranks[0].moved
    call(beat(3, moves=5), link=link)
    assert listener.ranks[0].moved == before
    assert listener.ranks[0].heard > before
    call(beat(3, moves=6), link=link)
    assert listener.ranks[0].moved > before


def test_texts_are_bounded():
    for character in ("\x00", "é", '"', "x"):
        assert len(wire.pack({"stack": wire.clip(character * 10**6)})) < wire.LINE_BYTES


# ------------------------------------------------------------------ hosts


def test_hosts_are_read_in_the_spelling_of_both_mpiruns(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# cluster\nalpha:2\nbeta slots=4  # big\n\ngamma\ndelta slots = 3\n")
    found = hosts.parse(None, str(file))
    assert [(h.name, h.slots) for h in found] == [
        ("alpha", 2), ("beta", 4), ("gamma", 1), ("delta", 3),
    ]  # fmt: skip
    assert hosts.parse(None, None) == []


@pytest.mark.parametrize("text", ["-oProxyCommand=x", "a b", "", "a,,b"])
def test_what_is_no_host_is_refused(text):
    if not text:
        return
    with pytest.raises(ConfigError, match="is no host; write HOST:RANKS"):
        hosts.parse(text, None)


@pytest.mark.parametrize(
    ("left", "asked", "placed"),
    [("abc", 6, 6), ("ab", 6, 4), ("a", 6, 2), ("ab", 12, 8), ("", 6, 0)],
)
def test_as_many_ranks_as_there_is_room_for(left, asked, placed):
    everyone = [Host(name, 2) for name in "abc"]
    assert hosts.placed([Host(name, 2) for name in left], everyone, asked) == placed


SSH_SAID = {
    "ssh: Could not resolve hostname x: Name or service not known": "cannot be resolved",
    "mpi@x: Permission denied (publickey).": "ssh-copy-id x",
    "Host key verification failed.": "ssh-keyscan x",
    "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.":
        "ssh-keygen -R x",
    "ssh: connect to host x port 22: Connection refused": "no ssh server listens",
    "ssh: connect to host x port 22: Connection timed out": "cannot be reached",
    "ssh: connect to host x port 22: No route to host": "cannot be reached",
    "something else": "said 'something else'",
}  # fmt: skip


@pytest.mark.parametrize("said", SSH_SAID)
def test_what_ssh_says_has_its_sentence_and_its_fix(said):
    assert SSH_SAID[said] in hosts.why_ssh_failed("x", 255, said)


def test_a_host_that_does_not_answer_takes_its_time_and_no_more(tmp_path):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 30\n")
    slow.chmod(0o700)
    started = time.monotonic()
    remote = Remote(str(slow))
    answers = remote.each(
        ["198.51.100.1", "198.51.100.2"], lambda name: remote.ask(name, "true", 0.5)
    )
    remote.close()
    assert time.monotonic() - started < 5
    assert answers["198.51.100.2"].reason.startswith("198.51.100.2 does not answer within")


def test_an_ssh_that_is_not_there_is_named():
    remote = Remote("/nowhere/ssh")
    assert "/nowhere/ssh is not installed" in remote.ask("198.51.100.1", "true").reason
    assert remote.ask("localhost", "echo yes").text == "yes\n"
    remote.close()


def test_mpirun_is_not_started_without_the_program_that_reaches_hosts():
    mpirun = spawn.Mpi("MPICH", "5.0", "/usr/bin/mpirun")
    with pytest.raises(ConfigError, match="--ssh /nowhere/ssh: is not installed"):
        spawn._reached_by(mpirun, "/nowhere/ssh")


def test_ssh_is_kept_alive_and_never_asks_for_a_password(tmp_path):
    folder = tmp_path
    remote = Remote("ssh -F conf")
    options = remote.options()
    remote.close()
    mpirun = spawn.Mpi("MPICH", "5.0", "/usr/bin/mpirun")
    words, variables = spawn.kept_apart(mpirun, folder, options, "10.0.0.1")
    assert words[-6:] == [
        "-launcher", "ssh", "-launcher-exec", "ssh", "-localhost", "10.0.0.1",
    ]  # fmt: skip
    hydra = variables.pop("HYDRA_LAUNCHER_EXTRA_ARGS")
    assert variables == {"TMPDIR": str(folder)}
    mpirun = spawn.Mpi("Open MPI", "5.0", "/usr/bin/mpirun")
    words, variables = spawn.kept_apart(mpirun, folder, options, "10.0.0.1")
    agent = variables.pop("PRTE_MCA_plm_ssh_agent")
    assert (words, variables) == ([], {"PRTE_MCA_prte_local_tmpdir_base": str(folder)})
    assert agent == f"ssh {hydra}"
    for option in ("-F conf", "BatchMode=yes", "ConnectTimeout=2", "ServerAliveInterval=3"):
        assert option in hydra
    assert not list(folder.iterdir())  # a script there could not run where /tmp is noexec


def test_hydra_runs_the_options_that_it_is_given(tmp_path):
    pytest.importorskip("mpi4py")
    mpirun = spawn.matching_mpirun()
    if mpirun.family != "MPICH":
        pytest.skip("the MPI at hand is not MPICH")
    calls = tmp_path / "calls"
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$*" >>{calls}\nexit 255\n')
    ssh.chmod(0o700)
    remote = Remote(f"{ssh} -F conf")
    words, variables = spawn.kept_apart(mpirun, tmp_path, remote.options(), "127.0.0.1")
    remote.close()
    subprocess.run(
        [mpirun.path, "-n", "1", "-hosts", "127.0.0.2", *words, "true"],
        env=os.environ | variables, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    said = calls.read_text()
    assert re.search("-F conf -o BatchMode=yes .*ServerAliveInterval=3.* 127.0.0.2", said)


def test_daemons_of_open_mpi_need_no_program_that_only_this_host_has(tmp_path):
    mpirun = spawn.Mpi("Open MPI", "5.0", "/usr/bin/mpirun")
    _, variables = spawn.kept_apart(mpirun, tmp_path, ["/opt/enter"], "10.0.0.1")
    assert variables["PRTE_MCA_plm_ssh_agent"] == "/opt/enter"
    assert variables["PRTE_MCA_plm_ssh_no_tree_spawn"] == "1"


def test_a_program_with_options_that_hydra_cannot_give_it_is_a_script(tmp_path, monkeypatch):
    mpirun = spawn.Mpi("MPICH", "5.0", "/usr/bin/mpirun")
    words, _ = spawn.kept_apart(mpirun, tmp_path, ["ip", "netns", "exec"], "10.0.0.1")
    script = Path(words[words.index("-launcher-exec") + 1])
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    assert 'exec ip netns exec "$@"' in script.read_text()
    monkeypatch.setattr(spawn.os, "access", lambda path, mode: mode != os.X_OK)  # noexec
    with pytest.raises(ConfigError, match=r"mounted with noexec.*set TMPDIR"):
        spawn.kept_apart(mpirun, tmp_path, ["ip", "netns", "exec"], "10.0.0.1")


def test_only_processes_of_the_job_are_swept():
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    mine, other = (
        subprocess.Popen(program, env={**os.environ, wire.JOB: mark}) for mark in ("a-0", "b-0")
    )
    try:
        until = time.monotonic() + 10
        while hosts.mark_of(other.pid) != "b-0" and time.monotonic() < until:
            time.sleep(0.01)
        assert hosts.sweep_here("a-0") == 1
        assert mine.wait(10) == -9
        done = subprocess.run(["sh", "-c", hosts.sweep_command("c-0")], check=True)
        assert done.returncode == 0
        assert other.poll() is None
        subprocess.run(["sh", "-c", hosts.sweep_command("b-0")], check=True)
        assert other.wait(10) == -9
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


# ------------------------------------------------------------------ decisions


FAILED = Outcome("failed", 1, "rank 1: ValueError: no luck", 7, "ValueError: no luck")
LOST = Outcome("lost", 76, "rank 1 has ended", 7, "lost [1]")


def test_a_failure_that_repeats_ends_the_job_and_progress_does_not():
    assert why_not_again([FAILED], 5) is None
    assert "twice at step 7" in (why_not_again([FAILED, FAILED], 5) or "")
    assert why_not_again([FAILED, replace(FAILED, step=8)], 5) is None
    assert why_not_again([FAILED, replace(FAILED, what="KeyError: 'x'")], 5) is None
    assert why_not_again([FAILED, replace(FAILED, began=4)], 5) is None
    assert why_not_again([FAILED, LOST], 5) is None


def test_a_lost_rank_may_die_a_step_earlier_in_the_eyes_of_the_supervisor():
    assert why_not_again([LOST, replace(LOST, step=8)], 5) is not None
    assert why_not_again([LOST, replace(LOST, step=9)], 5) is None
    assert why_not_again([LOST, replace(LOST, hosts=("a",))], 5) is None


def test_restarts_are_used_up():
    steps = [replace(LOST, step=step) for step in (10, 20, 30)]
    assert why_not_again(steps, 3) is None
    assert why_not_again(steps, 2) == "2 restarts used up"
    assert why_not_again([LOST], 0) == "no restart is allowed"
    assert why_not_again([replace(FAILED, final=True)], 9) == "another start would end the same way"


def test_the_pause_grows_only_without_progress():
    stuck = [LOST] * 9
    assert [pause_s(stuck[:n]) for n in (1, 2, 3, 4)] == [0.0, 1.0, 2.0, 4.0]
    assert pause_s(stuck) == 30.0
    assert pause_s([*stuck, replace(LOST, step=50)]) == 0.0


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("There are not enough slots available in the system", "HOST:RANKS"),
        ("/x/python: No module named distgrad", "distgrad is not installed on every host"),
        ("ssh: connect to host beta port 22: Connection refused", "host beta: no ssh server"),
        ("unable to connect to server vm at port 4", "the daemons of MPICH do not reach"),
        ("PRTE has lost communication with a remote daemon.", "ended on another host before"),
        ("", "mpirun ended with status 3 before the ranks had begun"),
    ],
)
def test_a_start_that_fails_has_its_reason(said, reason):
    assert reason in explain.why_not_started(said, 3, [])


def test_what_mpirun_says_is_text_that_grep_reads(tmp_path, capfd):
    child = Child(["sh", "-c", r"printf 'notice\n\0' >&2"], os.environ, tmp_path)
    assert child.wait(10)
    child.end()
    child.close()
    assert capfd.readouterr().err == "notice\n"


def test_the_last_words_of_mpirun_are_words():
    said = "prted: out of luck\n-----\n \0\n"
    assert explain.why_not_started(said, 3, []).endswith("the last it said: prted: out of luck")


def test_a_stall_names_who_does_not_wait(listener, call):
    for number, doing in enumerate(["all_reduce, call 7", "all_reduce, call 7", ""]):
        call(hello(listener, number, 3), {**beat(5, stack=f"line of {number}"), "call": doing})
    ranks = [listener.ranks[n] for n in range(3)]
    lines, blamed = explain.stall(ranks, {}, 20.0)
    assert blamed == [2]
    assert lines[0] == (
        "nothing has moved for 20 s (--stall-timeout): rank 2 computes or waits outside of "
        "collectives; ranks 0, 1 wait in all_reduce, call 7"
    )
    assert lines[1:] == ["rank 2 (a, process 7) is here, in training of step 5:", "line of 2"]
    lines, blamed = explain.stall(ranks, {1: "is stopped (SIGSTOP)"}, 20.0)
    assert blamed[0] == 1
    assert "rank 1 is stopped (SIGSTOP)" in lines[0]
    assert "rank 1 (a, process 7) was here last, in training of step 5:" in lines


def test_different_software_is_named(listener, call):
    call(hello(listener, 0, versions={"numpy": "2.1", "python": "3.12"}))
    call(hello(listener, 1, versions={"numpy": "2.0", "python": "3.12"}))
    text = explain.different(listener.ranks[0], listener.ranks[1])
    assert "different software: numpy 2.1 and 2.0; install" in text


# ------------------------------------------------------------------ the doctor


QUESTION = visit.Question("/runs", ".mark", "10.0.0.1:99", ("/x/hydra_pmi_proxy",))
HAVE = {"distgrad": "1", "python": "3.12", "numpy": "2.1", "mpi4py": "4", "mpi": "MPICH 5"}


def reply(**more: object) -> Answer:
    told = {"software": HAVE, "cores": 2, "shared": True, "back": "", "missing": [], **more}
    return Answer(True, "motd\n" + json.dumps(told) + "\n")


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (reply(), "ok", "same software"),
        (reply(software={**HAVE, "numpy": "1.26"}), "fail", "numpy 1.26 (here 2.1)"),
        (reply(shared=False), "warn", "does not see the files of this host in /runs"),
        (reply(back="No route to host"), "fail", "cannot connect back to 10.0.0.1:99"),
        (reply(missing=["/x/hydra_pmi_proxy"]), "fail", "has no /x/hydra_pmi_proxy"),
        (Answer(True, "hello"), "fail", "gives no answer that this one knows"),
        (Answer(False, "", "... said 'No module named distgrad'"), "fail", "has no distgrad"),
        (Answer(False, "", hosts.why_ssh_failed("b", 255, "Connection refused")), "fail",
         "no ssh server listens there"),
    ],
)  # fmt: skip
def test_the_doctor_finds_what_would_stop_a_job(answer, state, words):
    found = visit.judge("b", answer, QUESTION, HAVE)
    assert [f.state for f in found] == [state]
    assert words in found[0].text
    assert bool(found[0].fix) == (state != "ok")


def test_the_doctor_asks_hosts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctor._hosts(doctor._options(["--hosts", "localhost"]))
    assert [(c.name, c.state) for c in found] == [("host localhost", "ok")], found
    assert list(tmp_path.iterdir()) == []  # the file that hosts were to see is gone
    with pytest.raises(ConfigError, match="did you mean --hosts"):
        doctor._options(["--hots", "x"])


@pytest.mark.skipif(shutil.which("grep") is None, reason="needs grep")
def test_a_process_that_is_gone_is_gone():
    assert hosts.state_here(2**22 + 1) == hosts.GONE
    assert hosts.state_in_words("7 (a) b) R 1") == hosts._STATES["R"]
