"""Training that goes on when ranks die.  Run: mpirun --with-ft ulfm -n 4 python survive.py

Needs Open MPI 5 with ULFM. Rank 2 kills itself in step 30, rank 0 in step 60; the others notice,
make a group of their own and do the step again. The weights at the end have the bits of a run in
which nobody dies (python survive.py alone): the batch is always cut into the same parts.
"""

import os
import signal

import numpy as np

import distgrad as dg
from distgrad import distributed as dist
from distgrad import nn
from distgrad.nn import functional as F

STEPS, PARTS, ROWS = 100, 8, 16
DIES = {30: 2, 60: 0}  # in which step which rank

group = dist.init_process_group()
me = group.rank
dg.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
model = nn.parallel.DistributedDataParallel(net, determinism="world", shards=PARTS)
optimizer = dg.optim.AdamW(net.parameters(), lr=1e-2)


def batch(step, part):
    """Return samples of a part of the batch; whoever asks, they are the same."""
    draw = np.random.default_rng([step, part])
    x = draw.standard_normal((ROWS, 8), dtype=np.float32)
    return dg.tensor(x), dg.tensor(np.sin(x.sum(1, keepdims=True)))


def train(step):
    """Do one step up to the update, for which all ranks must be ready."""
    optimizer.zero_grad()
    for part in model.local_shards:
        x, y = batch(step, part)
        loss = F.mse_loss(model(x), y)
        if DIES.get(step) == me and group.size > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
    dist.barrier()  # the vote: a rank that comes through knows that all have the gradients


done, lost = 0, False
while done < STEPS:
    try:
        if lost:
            group = dist.shrink()
            newest = np.array([done])
            group.all_reduce(newest, "max")
            if done < newest[0]:  # others came through the vote, so the gradients here are whole
                optimizer.step()
                done += 1
            model.rebuild(group, reductions=done)
            lost = False
            if group.rank == 0:
                print(f"ranks {group.origins} go on behind step {done}", flush=True)
        train(done + 1)
        optimizer.step()
        done += 1
    except dist.RankLost:
        lost = True

if group.rank == 0:
    digest = dg.cat([p.detach().reshape(-1) for p in net.parameters()]).double().sum().item()
    print(f"weights {digest!r} on {group.size} ranks", flush=True)
