"""Ranks die, the others go on: in threads what moves, under Open MPI with ULFM the real thing."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.distributed import find_mpirun, local_group, run_ranks
from distgrad.distributed.redistribute import collect
from distgrad.distributed.shrink import shrink
from distgrad.errors import DistributedError, JobLost
from distgrad.launch.jobs.training import Trainer
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.parallel.fsdp import SpareParts, fully_shard
from distgrad.optim.mirror import holders
from distgrad.optim.zero import ZeroRedundancyOptimizer

ROOT = Path(__file__).parents[1]
SHARDS = 6


# ------------------------------------------------------------------ without MPI


def test_a_copy_answers_for_a_lost_rank():
    assert holders([0, 1, 2, 3], 1, [0, 2, 3]) == [0, 1, 1, 2]
    assert holders([0, 2, 3], 1, [0, 3]) == [0, 1, 1]


def test_a_rank_lost_with_its_copy_is_said():
    with pytest.raises(JobLost, match="ranks 1 and 2 have ended"):
        holders([0, 1, 2, 3], 1, [0, 3])
    with pytest.raises(JobLost, match=r"rank 1 has ended.*without redundant=True"):
        holders([0, 1], 0, [0])


def test_sets_of_other_ranks_are_collected():
    def program(group):
        whole = np.arange(12.0)
        parts = [slice(0, 5), slice(5, 6), slice(6, 12)]  # the second rank is lost
        sources = [(0, {7: parts[0]}), (1, {7: parts[1]}), (1, {7: parts[2]})]
        held = {
            n: {7: {"state": whole[parts[n]], "step": np.array(3.0)}}
            for n, (holder, _) in enumerate(sources)
            if holder == group.rank
        }
        want = [{7: slice(0, 7)}, {7: slice(4, 12)}]
        got = collect(group, sources, want, held)[7]
        assert got["step"] == 3.0
        assert (got["state"] == whole[want[group.rank][7]]).all()

    run_ranks(2, program)


def _batch(step, shard):
    draw = np.random.default_rng([step, shard])
    return dg.tensor(draw.standard_normal((3, 5), dtype=np.float32))


def _net():
    draw = np.random.default_rng(0)
    net = nn.Sequential(nn.Linear(5, 70), nn.Tanh(), nn.Linear(70, 3))
    for p in net.parameters():
        p.array[...] = draw.standard_normal(p.array.shape)
    return net


def _trainer(group, zero, redundant=True):
    model = DistributedDataParallel(
        _net(), process_group=group, determinism="world", shards=SHARDS, bucket_cap_mb=0.0005,
        shard_gradients=zero == 2,
    )  # fmt: skip
    if not zero:
        return model, dg.optim.AdamW(model.parameters(), lr=0.05)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), dg.optim.AdamW, process_group=group, redundant=redundant, lr=0.05
    )
    return model, optimizer


def _step(model, optimizer, step, spare=None):
    optimizer.zero_grad()
    for shard in model.local_shards:
        model(_batch(step, shard)).square().mean().backward()
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.prepare()
    if spare is not None:
        spare.prepare()
    optimizer.step()


def _bits(model):
    return b"".join(p.array.tobytes() for p in model.module.parameters())


def _undisturbed(steps):
    model, optimizer = _trainer(local_group(), 0)
    for step in range(steps):
        _step(model, optimizer, step)
    return _bits(model)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_the_others_go_on_with_the_same_bits(zero):
    expected = _undisturbed(5)

    def program(group):
        model, optimizer = _trainer(group, zero)
        for step in range(5):
            left = {2: [0, 2, 3], 4: [1, 2]}.get(step)  # 1 of 4 is lost, then 0 of what is left
            if left is not None:
                if group.rank not in left:
                    return
                for p in model.module.parameters():  # torn, but for what this rank has
                    _tear(p, optimizer)
                group = group.subgroup(left)
                model.rebuild(group, step)
                if zero:
                    optimizer.rebuild(group)
            _step(model, optimizer, step)
        assert group.size == 2
        assert _bits(model) == expected

    run_ranks(4, program)


def _tear(param, optimizer):
    """Let elements be wrong that an update of a lost rank would have brought."""
    if not isinstance(optimizer, ZeroRedundancyOptimizer):
        return
    kept = [*optimizer.pieces.values(), *optimizer._mirror.pieces.values()]
    flat = param.array.reshape(-1)
    before = flat.copy()
    flat[...] = np.nan
    for piece in kept:
        if piece.param is param:
            flat[piece.within] = before[piece.within]


def test_state_without_a_copy_is_lost():
    def program(group):
        model, optimizer = _trainer(group, 1, redundant=False)
        _step(model, optimizer, 0)
        if group.rank == 1:
            return
        rest = group.subgroup([0])
        model.rebuild(rest)
        with pytest.raises(JobLost, match="redundant=True"):
            optimizer.rebuild(rest)

    run_ranks(2, program)


def test_copies_are_loaded_with_the_state():
    def program(group):
        model, optimizer = _trainer(group, 1)
        _step(model, optimizer, 0)
        optimizer.consolidate_state_dict(0)
        saved = group.broadcast_object(optimizer.state_dict() if group.rank == 0 else None)
        optimizer.load_state_dict(saved)
        mirror = optimizer._mirror
        assert len(mirror.inner.state) == len(mirror.pieces) > 0
        states = group.all_gather_object(_averages(optimizer.pieces, optimizer._inner))
        assert _averages(mirror.pieces, mirror.inner) == states[mirror.owner]

    run_ranks(3, program)


def _sharded(group):
    model = _net()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=group)
    model = fully_shard(model, mesh=group, shards=SHARDS)
    optimizer = dg.optim.AdamW(model.parameters(), lr=0.05)
    return model, optimizer, SpareParts(model, optimizer)


def _whole_bits(model):
    return b"".join(v.numpy().tobytes() for v in model.state_dict().values())


@pytest.mark.parametrize("when", [0, 1, 3])
def test_parts_of_parameters_go_on_with_the_same_bits(when):
    """One of 5 is lost behind a step, or before any, then one after the other, rank 0 too."""
    expected = _undisturbed(7)
    losses = {when: [0, 2, 3, 4], 4: [1, 2, 3], 5: [0, 2], 6: [1]}

    def program(group):
        model, optimizer, spare = _sharded(group)
        spare.refresh()
        for step in range(7):
            left = losses.get(step)
            if left is not None:
                if group.rank not in left:
                    return
                group = group.subgroup(left)
                spare.rebuild(group, step)
            _step(model, optimizer, step, spare)
        assert _whole_bits(model) == expected

    run_ranks(5, program)


def test_a_step_that_began_leaves_nothing_when_parts_are_shared_out_anew():
    """Gradients of some shards, a unit that is gathered, one that is asked for: all of it goes."""
    expected = _undisturbed(4)

    def program(group):
        model, optimizer, spare = _sharded(group)
        spare.refresh()
        for step in range(4):
            if step == 2:
                (model(_batch(9, 0)).square().mean() * 3).backward()
                model(_batch(9, 1))
                model[2].unshard(async_op=True)
                group.barrier()
                if group.rank == 0:
                    return
                group = group.subgroup([1, 2])
                spare.rebuild(group, step)
                assert all(p.grad is None and p.array.ndim == 1 for p in model.parameters())
            _step(model, optimizer, step, spare)
        assert _whole_bits(model) == expected

    run_ranks(3, program)


def test_copies_follow_options_and_random_numbers_their_shards():
    def program(group):
        dg.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 70), nn.Dropout(0.5), nn.Linear(70, 3))
        for p, start in zip(model.parameters(), _net().parameters(), strict=True):
            p.array[...] = start.array
        model = fully_shard(model, mesh=group, shards=SHARDS)
        optimizer = dg.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        spare = SpareParts(model, optimizer)
        rates = dg.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        spare.refresh()
        for step in range(5):
            if step == 3 and group.size > 1:
                if group.rank == 1:
                    return None
                group = group.subgroup([0, 2])
                spare.rebuild(group, step)
            _step(model, optimizer, step, spare)
            rates.step()
        return _whole_bits(model)

    expected = program(local_group())
    first, none, last = run_ranks(3, program)
    assert none is None
    assert first == last == expected


def test_parts_without_a_copy_are_lost():
    def program(group):
        model, optimizer, spare = _sharded(group)
        _step(model, optimizer, 0)
        if group.rank == 1:
            return
        with pytest.raises(JobLost, match=r"rank 1 has ended.*without refresh\(\) of SpareParts"):
            spare.rebuild(group.subgroup([0, 2]))

    run_ranks(3, program)


def test_a_copy_that_was_left_behind_is_found():
    def program(group):
        model, optimizer, spare = _sharded(group)
        spare.refresh()
        _step(model, optimizer, 0, spare)
        with pytest.raises(DistributedError, match=r"call prepare\(\) of SpareParts"):
            _step(model, optimizer, 1)
        with dg.no_grad():
            for p in model.parameters():
                p.mul_(2)
        if group.rank == 1:
            return
        with pytest.raises(DistributedError, match=r"the copy of what rank [02] had is not"):
            spare.rebuild(group.subgroup([0, 2]))

    run_ranks(3, program)


def _averages(pieces, inner):
    return {n: inner.state[piece.leaf]["exp_avg"].tolist() for n, piece in pieces.items()}


def test_an_evaluation_goes_on_with_the_parts_that_nobody_has_computed():
    def program(group):
        computed = []

        def score(part):
            computed.append(part)
            return part + 0.5, 1

        task = SimpleNamespace(parts=7, score=score)
        kept = {part: (part + 0.5, 1) for part in (0, 2, 3, 5, 6)}  # those of a third are lost
        trainer = SimpleNamespace(group=group, task=task, scores=kept)
        Trainer._score(trainer)
        assert computed == [[1], [4]][group.rank]
        assert {part: tuple(row) for part, row in trainer.scores.items()} == {
            part: (part + 0.5, 1) for part in range(7)
        }
        Trainer._score(trainer)
        assert len(computed) == 1

    run_ranks(2, program)


def test_one_process_alone_cannot_shrink():
    dg.distributed.init_process_group("local")
    try:
        with pytest.raises(DistributedError, match="the backend is local; start again"):
            shrink()
    finally:
        dg.distributed.destroy_process_group()


# ------------------------------------------------------------------ under MPI


def _family():
    done = subprocess.run(
        [sys.executable, "-m", "mpi4py", "--mpi-lib-version"], capture_output=True, text=True
    )
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else ""


@pytest.fixture(scope="module")
def ulfm():
    """Skips without Open MPI 5, whose wheels and packages have ULFM built in."""
    name = _family()
    found = re.search(r"Open MPI v?(\d+)", name)
    if find_mpirun() is None or not found or int(found[1]) < 5:
        pytest.skip(f"needs Open MPI 5 or later with ULFM; here is {name or 'no MPI'}")


def start(words, ranks, *, with_ft=True, limit=240, **variables):
    head = [find_mpirun(), *(["--with-ft", "ulfm"] if with_ft else []), "-n", str(ranks)]
    environment = {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe",
    }  # fmt: skip
    return subprocess.run(
        [*head, sys.executable, *map(str, words)], capture_output=True, text=True, timeout=limit,
        stdin=subprocess.DEVNULL, env=os.environ | environment | variables,
    )  # fmt: skip


# Kills itself in a step, when a function is called for the n-th time in it.
KILLER = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    from distgrad.distributed import mpi, reducer, shrink
    from distgrad.launch.jobs import textgpt, training
    from distgrad.launch.run import main
    from distgrad.nn.parallel.fsdp.conductor import Conductor
    from distgrad.nn.parallel.fsdp.spare import SpareParts
    from distgrad.nn.parallel.fsdp.unit import Unit
    from distgrad.optim import runs

    shrinking = sys.modules[shrink.__module__]
    moving = sys.modules["distgrad.distributed.redistribute"]
    plan = [item.split(":") for item in sys.argv[1].split(",") if item]
    me = os.environ["OMPI_COMM_WORLD_RANK"]
    now = ["0"]

    def before(phase, function):
        def called(*args, **options):
            for item in plan:
                # a thread may come to write what step 9 saved when step 10 has begun
                due = int(now[0]) - int(item[0]) in ((0, 1) if phase == "fsync" else (0,))
                if due and item[1:3] == [phase, me]:
                    item[3] = str(int(item[3]) - 1)
                    if item[3] == "0":
                        Path(sys.argv[0]).with_name("struck").write_text(str(os.getpid()))
                        os.kill(os.getpid(), getattr(signal, os.environ.get("HOW", "SIGKILL")))
                        time.sleep(30)
            return function(*args, **options)
        return called

    def step(trainer):
        now[0] = str(trainer.step)
        return stepping(trainer)

    stepping, training.Trainer._train_step = training.Trainer._train_step, step
    for phase, owner, name in (
        ("forward", training.Trainer, "_span"), ("bucket", reducer.Reducer, "_launch"),
        ("vote", training, "clip_grad_norm_"), ("update", training.Trainer, "update"),
        ("optimizer", runs.Run, "apply"), ("evaluate", training.Trainer, "_evaluate"),
        ("save", training.Trainer, "_save"), ("fsync", os, "fsync"),
        ("recovery", training.Trainer, "regroup"), ("shrink", shrinking, "group_of"),
        ("gather", Unit, "gather"), ("send", Conductor, "_launch"),
        ("prepare", SpareParts, "prepare"), ("move", SpareParts, "_move"),
        ("moved", Conductor, "rebuild"), ("sent", moving, "wait_for"),
        ("score", textgpt.TextTask, "score"),
    ):
        setattr(owner, name, before(phase, getattr(owner, name)))
    raise SystemExit(main(sys.argv[2:]))
""")
JOB = (
    "--job", "textgpt", "--steps", "10", "--save-every", "3", "--eval-every", "4",
    "--log-every", "1", "--global-batch", "4", "--micro-batch", "1", "--set", "width=16",
    "--set", "bucket_cap_mb=0.002", "--set", "layers=1", "--set", "context=16",
    "--set", "heads=2", "--set", "sample=0",
)  # fmt: skip


def train(tmp_path, plan, *more, ranks=4, lines=60, **options):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog saw the cat .\n" * lines)
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    words = [script, plan, *JOB, "--data", text, "--run-dir", tmp_path / "run", "--min-ranks", "1"]
    return start([*words, *more], ranks, **options)


def weights(done):
    found = re.findall("weights sha256 ([0-9a-f]{64})", done.stdout)
    assert len(found) == 1, done.stdout + done.stderr
    return found[0]


@pytest.fixture(scope="module")
def unhurt(ulfm, tmp_path_factory):
    """Return the weights of the job on one rank."""
    done = train(tmp_path_factory.mktemp("unhurt"), "", ranks=1)
    return weights(done)


def evaluations(folder):
    """Return what evaluations found, by the step."""
    rows = [json.loads(row) for row in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}


@pytest.mark.parametrize(
    ("zero", "plan", "left"),
    [
        (0, "2:forward:1:2,5:vote:0:1,8:optimizer:3:1", 1),  # one after the other, rank 0 too
        (0, "3:bucket:2:2,3:bucket:3:2", 2),  # two at once
        (0, "4:evaluate:0:1,6:save:1:1,9:fsync:2:1", 1),
        (0, "3:update:2:1,3:recovery:0:1", 2),  # and one while the others recover
        (0, "3:update:2:1,3:shrink:0:1", 2),
        (1, "1:vote:3:1,4:optimizer:1:2,7:update:0:1", 1),
        (2, "3:bucket:1:2,6:update:0:1", 2),
        (1, "3:update:1:1,3:sent:3:8", 2),  # when the new state has come to some
        (3, "2:gather:1:2,4:send:0:2,7:prepare:3:1", 1),
        (3, "1:forward:2:1,3:vote:0:1,6:optimizer:3:2", 1),
        (3, "4:evaluate:0:1,6:update:2:1,9:fsync:1:1", 1),
        (3, "3:update:2:1,3:move:0:1", 2),  # when parts and state have come to all
        (3, "3:update:1:1,3:sent:3:1", 2),  # to some
        (3, "3:gather:1:4,3:moved:3:1", 2),  # and when the others have them already
    ],
)
def test_the_job_ends_with_the_bits_of_one_in_which_nobody_dies(
    ulfm, unhurt, tmp_path, zero, plan, left
):
    done = train(tmp_path, plan, "--zero", zero)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(done) == unhurt
    lost = re.findall(r"lost  ranks? (.*?): (\d) of (\d) ranks go on", done.stdout)
    assert lost and int(lost[-1][1]) == left, done.stdout
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert sum("sha256" in row for row in rows) == 1
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert "step_00000010" in names and not any(name.endswith(".tmp") for name in names)


def test_evaluations_that_ranks_leave_have_the_same_results(ulfm, tmp_path):
    plan, found = "4:score:1:1,8:score:3:2,10:score:0:3", []
    for ranks, zero in ((1, 0), (4, 0), (4, 3)):
        folder = tmp_path / f"{ranks}-{zero}"
        folder.mkdir()
        done = train(folder, plan if ranks > 1 else "", "--zero", zero, ranks=ranks, lines=1000)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(re.findall("^lost ", done.stdout, re.MULTILINE)) == 3 * (ranks > 1), done.stdout
        found.append((weights(done), evaluations(folder)))
    assert found[0] == found[1] == found[2]
    assert sorted(found[0][1]) == [4, 8, 10]


def test_too_few_ranks_end_the_job_with_the_reason(ulfm, tmp_path):
    done = train(tmp_path, "3:vote:1:1", "--min-ranks", "3", ranks=3)
    assert done.returncode == 76, done.stdout + done.stderr
    assert "rank 1 has ended; 2 of 3 ranks are left, fewer than min_ranks=3" in done.stderr


@pytest.mark.parametrize("zero", [1, 3])
def test_a_rank_and_its_copy_lost_at_once_end_the_job(ulfm, tmp_path, zero):
    done = train(tmp_path, "3:vote:1:1,3:vote:2:1", "--zero", zero, ranks=4)
    assert done.returncode == 76, done.stdout + done.stderr
    assert "ranks 1 and 2 have ended" in done.stderr
    assert ("nobody else has that part of the parameters" in done.stderr) == (zero == 3)


def test_a_stopped_rank_ends_the_others_with_the_reason(ulfm, tmp_path):
    """Nobody takes it for dead; mpirun stays as long as it is there, so it is killed in the end."""
    struck = tmp_path / "struck"

    def kill():
        until = time.monotonic() + 120
        while not struck.exists() and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(30)
        os.kill(int(struck.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = train(tmp_path, "3:vote:1:1", ranks=3, HOW="SIGSTOP", DISTGRAD_STALL_S="2")
    killer.join()
    assert "rank 1 does not answer: ended, or stopped" in done.stderr
    assert not re.search("step 3/", done.stdout)


def test_the_example_survives(ulfm):
    hurt = start([ROOT / "examples/survive.py"], 4)
    assert hurt.returncode == 0, hurt.stderr
    alone = start([ROOT / "examples/survive.py"], 1)
    assert "ranks (0, 1, 3) go on behind step 29" in hurt.stdout
    assert "ranks (1, 3) go on behind step 59" in hurt.stdout
    ends = [re.search(r"weights \S+", text.stdout)[0] for text in (hurt, alone)]
    assert ends[0] == ends[1]


def test_another_mpi_says_what_it_needs(tmp_path):
    if find_mpirun() is None or "Open MPI" in _family():
        pytest.skip("is about other MPIs than Open MPI")
    words = ["-m", "distgrad.launch", *JOB, "--run-dir", tmp_path / "run", "--min-ranks", "1"]
    done = start([*words, "--steps", "1"], 2, with_ft=False)
    assert done.returncode == 0, done.stderr
    assert "shrinking in place needs Open MPI 5 or later with ULFM" in done.stdout
    assert "--max-restarts starts the job again" in done.stdout
