"""Data parallelism with accumulated gradients: one exchange for several batches.

python examples/accumulation.py
mpirun -n 4 python examples/accumulation.py

All processes together take batches of 96; each cuts its part into pieces that fit its memory. The
gradients of all but the last piece stay where they are: ``no_sync``.
"""

import contextlib

import distgrad as dg
from distgrad import distributed as dist
from distgrad import nn
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.utils.data import DataLoader, TensorDataset
from distgrad.utils.data.distributed import DistributedSampler

PIECES = 3
dist.init_process_group()
rank, size = dist.get_rank(), dist.get_world_size()

dg.manual_seed(0)  # the same data and the same first weights on all ranks
points = dg.rand(1152, 2) * 4 - 2
labels = ((points[:, 0] * points[:, 1]) > 0).float()
data = TensorDataset(points, labels)
sampler = DistributedSampler(data, num_replicas=size, rank=rank, seed=1)
loader = DataLoader(data, batch_size=96 // size // PIECES, sampler=sampler)

model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
ddp = DistributedDataParallel(model)
optimizer = dg.optim.AdamW(model.parameters(), lr=1e-2)

for epoch in range(1, 11):
    sampler.set_epoch(epoch)  # another order in each epoch
    total = dg.zeros(())
    for number, (x, y) in enumerate(loader, start=1):
        last = number % PIECES == 0
        with contextlib.nullcontext() if last else ddp.no_sync():
            logits = ddp(x).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, y) / PIECES
            loss.backward()  # adds to the gradients; with the last piece they are exchanged
        total += loss.detach()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    total *= (
        PIECES / len(loader) / size
    )  # the mean over this rank's pieces, its share of all ranks'
    dist.all_reduce(total)
    if rank == 0 and epoch % 2 == 0:
        print(f"epoch {epoch}  loss {total.item():.4f}")
dist.destroy_process_group()
