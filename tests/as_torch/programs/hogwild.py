"""Processes that train one model in shared memory, one after the other so that numbers are fixed."""

import torch
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim


def train(rank, model, queue):
    torch.manual_seed(rank)
    x = torch.randn(16, 4)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x[:, :1])
        loss.backward()
        optimizer.step()
    queue.put((rank, loss.item()))


if __name__ == "__main__":
    mp.set_start_method("spawn", force=True)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    model.share_memory()
    queue = mp.SimpleQueue()
    for rank in range(2):
        p = mp.Process(target=train, args=(rank, model, queue))
        p.start()
        p.join()
        print(queue.get(), model.weight.is_shared())
    print(model.weight.detach().tolist(), model.bias.item())
