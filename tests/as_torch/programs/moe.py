"""A mixture of experts with noisy top-k gates."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions.normal import Normal


class SparseDispatcher:
    def __init__(self, num_experts, gates):
        self._gates, self._num_experts = gates, num_experts
        sorted_experts, index_sorted_experts = torch.nonzero(gates).sort(0)
        _, self._expert_index = sorted_experts.split(1, dim=1)
        self._batch_index = torch.nonzero(gates)[index_sorted_experts[:, 1], 0]
        self._part_sizes = (gates > 0).sum(0).tolist()
        gates_exp = gates[self._batch_index.flatten()]
        self._nonzero_gates = torch.gather(gates_exp, 1, self._expert_index)

    def dispatch(self, inp):
        return torch.split(inp[self._batch_index].squeeze(1), self._part_sizes, dim=0)

    def combine(self, expert_out):
        stitched = torch.cat(expert_out, 0).mul(self._nonzero_gates)
        zeros = torch.zeros(self._gates.size(0), expert_out[-1].size(1), requires_grad=True)
        return zeros.index_add(0, self._batch_index, stitched.float())


class MoE(nn.Module):
    def __init__(self, input_size, output_size, num_experts, hidden_size, k=2):
        super(MoE, self).__init__()
        self.num_experts, self.k = num_experts, k
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, output_size)
            )
            for _ in range(num_experts)
        )
        self.w_gate = nn.Parameter(torch.zeros(input_size, num_experts), requires_grad=True)
        self.w_noise = nn.Parameter(torch.zeros(input_size, num_experts), requires_grad=True)
        self.softplus, self.softmax = nn.Softplus(), nn.Softmax(1)
        self.register_buffer("mean", torch.tensor([0.0]))
        self.register_buffer("std", torch.tensor([1.0]))

    def cv_squared(self, x):
        return x.float().var() / (x.float().mean() ** 2 + 1e-10)

    def noisy_top_k_gating(self, x, train, noise_epsilon=1e-2):
        clean_logits = x @ self.w_gate
        noise_stddev = self.softplus(x @ self.w_noise) + noise_epsilon
        noisy_logits = clean_logits + torch.randn_like(clean_logits) * noise_stddev
        logits = self.softmax(noisy_logits if train else clean_logits)
        top_logits, top_indices = logits.topk(self.k + 1, dim=1)
        top_k_gates = top_logits[:, : self.k] / (
            top_logits[:, : self.k].sum(1, keepdim=True) + 1e-6
        )
        gates = torch.zeros_like(logits).scatter(1, top_indices[:, : self.k], top_k_gates)
        normal = Normal(self.mean, self.std)
        threshold = top_logits[:, self.k].unsqueeze(1)
        return gates, normal.cdf((clean_logits - threshold) / noise_stddev).sum(0)

    def forward(self, x, loss_coef=1e-2):
        gates, load = self.noisy_top_k_gating(x, self.training)
        loss = (self.cv_squared(gates.sum(0)) + self.cv_squared(load)) * loss_coef
        dispatcher = SparseDispatcher(self.num_experts, gates)
        outputs = [expert(part) for expert, part in zip(self.experts, dispatcher.dispatch(x))]
        return dispatcher.combine(outputs), loss


torch.manual_seed(0)
model = MoE(10, 4, num_experts=5, hidden_size=8)
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2, momentum=0.5)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
x, target = torch.rand(40, 10), torch.randint(4, (40,))
for epoch in range(5):
    model.train()
    optimizer.zero_grad()
    y_hat, aux_loss = model(x)
    loss = F.cross_entropy(y_hat, target)
    (loss + aux_loss).backward()
    optimizer.step()
    scheduler.step()
    print("Training Results - loss: {:.4f}, aux_loss: {:.5f}".format(loss.item(), aux_loss.item()))
