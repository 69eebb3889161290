"""Word embeddings of an n-gram model, and a siamese network with a triplet loss."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim

torch.manual_seed(1)
CONTEXT_SIZE, EMBEDDING_DIM = 2, 10
text = """when in the course of human events it becomes necessary for one people to dissolve the
bands which have connected them with another and to assume among the powers of the earth""".split()
ngrams = [
    ([text[i - j - 1] for j in range(CONTEXT_SIZE)], text[i])
    for i in range(CONTEXT_SIZE, len(text))
]
vocab = sorted(set(text))
word_to_ix = {word: i for i, word in enumerate(vocab)}


class NGramLanguageModeler(nn.Module):
    def __init__(self, vocab_size, embedding_dim, context_size):
        super(NGramLanguageModeler, self).__init__()
        self.embeddings = nn.Embedding(vocab_size, embedding_dim)
        self.linear1 = nn.Linear(context_size * embedding_dim, 32)
        self.linear2 = nn.Linear(32, vocab_size)

    def forward(self, inputs):
        embeds = self.embeddings(inputs).view((1, -1))
        out = F.relu(self.linear1(embeds))
        return F.log_softmax(self.linear2(out), dim=1)


losses = []
loss_function = nn.NLLLoss()
model = NGramLanguageModeler(len(vocab), EMBEDDING_DIM, CONTEXT_SIZE)
optimizer = optim.SGD(model.parameters(), lr=0.05)
for epoch in range(4):
    total_loss = 0
    for context, target in ngrams:
        context_idxs = torch.tensor([word_to_ix[w] for w in context], dtype=torch.long)
        model.zero_grad()
        log_probs = model(context_idxs)
        loss = loss_function(log_probs, torch.tensor([word_to_ix[target]], dtype=torch.long))
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
    losses.append(total_loss)
print(losses)
print(model.embeddings.weight[word_to_ix["course"]])


class SiameseNetwork(nn.Module):
    def __init__(self):
        super(SiameseNetwork, self).__init__()
        self.cnn = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(1, 4, kernel_size=3),
            nn.ReLU(inplace=True),
            nn.GroupNorm(2, 4),
            nn.AdaptiveAvgPool2d((4, 4)),
            nn.Flatten(),
            nn.Linear(64, 8),
        )

    def forward(self, *inputs):
        return tuple(self.cnn(x) for x in inputs)


net = SiameseNetwork()
criterion = nn.TripletMarginLoss(margin=1.0)
optimizer = optim.Adagrad(net.parameters(), lr=0.01)
scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
anchor = torch.rand(12, 1, 10, 10)
positive, negative = anchor + 0.1 * torch.randn_like(anchor), torch.rand(12, 1, 10, 10)
for step in range(5):
    optimizer.zero_grad(set_to_none=False)
    a, p, n = net(anchor, positive, negative)
    loss = criterion(a, p, n) + F.cosine_embedding_loss(a, n, -torch.ones(12))
    loss.backward()
    optimizer.step()
    scheduler.step(loss.item())
    print(
        "step {} loss {:.5f} distance {:.4f}".format(
            step, loss.item(), F.pairwise_distance(a, n).mean()
        )
    )
print(net)
