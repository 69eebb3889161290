"""A network learns a function, on one process or on many: the same losses either way.

python examples/regression.py
mpirun -n 4 python examples/regression.py
"""

import distgrad as dg
from distgrad import distributed as dist

dist.init_process_group()
rank, size = dist.get_rank(), dist.get_world_size()

dg.manual_seed(0)
points = dg.rand(512, 2) * 4 - 2
values = (points[:, :1] * points[:, 1:]).sin()

model = dg.nn.Sequential(dg.nn.Linear(2, 64), dg.nn.Tanh(), dg.nn.Linear(64, 1))
ddp = dg.nn.parallel.DistributedDataParallel(model)
optimizer = dg.optim.AdamW(model.parameters(), lr=1e-2)
schedule = dg.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)

for step in range(1, 201):
    batch = dg.randperm(512)[:96]  # the same on all ranks
    x, y = points[batch][rank::size], values[batch][rank::size]
    optimizer.zero_grad()
    dg.nn.functional.mse_loss(ddp(x), y).backward()
    dg.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if step % 50 == 0 and rank == 0:
        with dg.no_grad():
            print(f"step {step}  loss {dg.nn.functional.mse_loss(model(points), values):.5f}")
