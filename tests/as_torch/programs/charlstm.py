"""A language model of an LSTM on characters, with truncated backpropagation through time."""

import math

import torch
import torch.nn as nn
import torch.onnx

torch.manual_seed(1111)
text = "to be or not to be that is the question whether tis nobler in the mind to suffer " * 8
vocab = sorted(set(text))
stoi = {c: i for i, c in enumerate(vocab)}
ids = torch.LongTensor([stoi[c] for c in text])
bptt, batch = 10, 4


def batchify(data, bsz):
    nbatch = data.size(0) // bsz
    data = data.narrow(0, 0, nbatch * bsz)
    return data.view(bsz, -1).t().contiguous()


class RNNModel(nn.Module):
    def __init__(self, rnn_type, ntoken, ninp, nhid, nlayers, dropout=0.0, tie_weights=False):
        super(RNNModel, self).__init__()
        self.ntoken = ntoken
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        if tie_weights:
            self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.rnn_type, self.nhid, self.nlayers = rnn_type, nhid, nlayers

    def forward(self, input, hidden):
        emb = self.drop(self.encoder(input))
        output, hidden = self.rnn(emb, hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.ntoken)
        return nn.functional.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, bsz):
        weight = next(self.parameters())
        if self.rnn_type == "LSTM":
            return (
                weight.new_zeros(self.nlayers, bsz, self.nhid),
                weight.new_zeros(self.nlayers, bsz, self.nhid),
            )
        return weight.new_zeros(self.nlayers, bsz, self.nhid)


def repackage_hidden(h):
    if isinstance(h, torch.Tensor):
        return h.detach()
    return tuple(repackage_hidden(v) for v in h)


for rnn_type in ("LSTM", "GRU"):
    model = RNNModel(rnn_type, len(vocab), 16, 16, 2, tie_weights=True)
    criterion = nn.NLLLoss()
    train_data = batchify(ids, batch)
    lr = 5.0
    for epoch in range(2):
        model.train()
        total_loss = 0.0
        hidden = model.init_hidden(batch)
        steps = 0
        for i in range(0, train_data.size(0) - 1, bptt):
            seq_len = min(bptt, len(train_data) - 1 - i)
            data = train_data[i : i + seq_len]
            targets = train_data[i + 1 : i + 1 + seq_len].view(-1)
            model.zero_grad()
            hidden = repackage_hidden(hidden)
            output, hidden = model(data, hidden)
            loss = criterion(output, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            for p in model.parameters():
                p.data.add_(p.grad, alpha=-lr)
            total_loss += loss.item()
            steps += 1
        cur = total_loss / steps
        print("{} epoch {:d} loss {:5.4f} ppl {:8.3f}".format(rnn_type, epoch, cur, math.exp(cur)))
