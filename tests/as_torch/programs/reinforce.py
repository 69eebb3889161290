"""Policy gradients and deep Q-learning on a small world of our own."""

import random
from collections import deque, namedtuple
from itertools import count

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.distributions import Categorical


class Walk:
    """Go right to the end of a line; wind blows."""

    def __init__(self, length=8):
        self.length = length
        self.random = np.random.RandomState(0)

    def reset(self):
        self.place, self.steps = 2, 0
        return self.state()

    def state(self):
        return np.array([self.place / self.length, self.steps / 20, 1.0], dtype=np.float32)

    def step(self, action):
        wind = self.random.rand() < 0.2
        self.place += 1 if (action == 1) != wind else -1
        self.steps += 1
        done = self.place <= 0 or self.place >= self.length or self.steps >= 20
        return self.state(), 1.0 if self.place >= self.length else -0.05, done


class Policy(nn.Module):
    def __init__(self):
        super(Policy, self).__init__()
        self.affine1 = nn.Linear(3, 32)
        self.affine2 = nn.Linear(32, 2)
        self.saved_log_probs = []
        self.rewards = []

    def forward(self, x):
        return F.softmax(self.affine2(F.relu(self.affine1(x))), dim=1)


def reinforce():
    torch.manual_seed(543)
    env, policy = Walk(), Policy()
    optimizer = optim.Adam(policy.parameters(), lr=1e-2)
    eps = np.finfo(np.float32).eps.item()
    running_reward = 0
    for i_episode in range(20):
        state, ep_reward = env.reset(), 0
        for _ in count():
            probs = policy(torch.from_numpy(state).float().unsqueeze(0))
            m = Categorical(probs)
            action = m.sample()
            policy.saved_log_probs.append(m.log_prob(action))
            state, reward, done = env.step(action.item())
            policy.rewards.append(reward)
            ep_reward += reward
            if done:
                break
        running_reward = 0.05 * ep_reward + 0.95 * running_reward
        R, returns = 0, deque()
        for r in policy.rewards[::-1]:
            R = r + 0.99 * R
            returns.appendleft(R)
        returns = torch.tensor(returns)
        returns = (
            (returns - returns.mean()) / (returns.std() + eps) if len(returns) > 1 else returns
        )
        policy_loss = []
        for log_prob, R in zip(policy.saved_log_probs, returns):
            policy_loss.append(-log_prob * R)
        optimizer.zero_grad()
        policy_loss = torch.cat(policy_loss).sum()
        policy_loss.backward()
        optimizer.step()
        del policy.rewards[:]
        del policy.saved_log_probs[:]
        if i_episode % 5 == 0:
            print(
                f"Episode {i_episode}\tLoss {policy_loss.item():.4f}\tAverage {running_reward:.4f}"
            )


Transition = namedtuple("Transition", ("state", "action", "next_state", "reward"))


class DQN(nn.Module):
    def __init__(self, n_observations, n_actions):
        super(DQN, self).__init__()
        self.layer1 = nn.Linear(n_observations, 32)
        self.layer2 = nn.Linear(32, 32)
        self.layer3 = nn.Linear(32, n_actions)

    def forward(self, x):
        x = F.relu(self.layer1(x))
        x = F.relu(self.layer2(x))
        return self.layer3(x)


def dqn():
    random.seed(1)
    torch.manual_seed(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    env, memory = Walk(), deque([], maxlen=200)
    policy_net, target_net = DQN(3, 2).to(device), DQN(3, 2).to(device)
    target_net.load_state_dict(policy_net.state_dict())
    optimizer = optim.AdamW(policy_net.parameters(), lr=1e-3, amsgrad=True)

    def optimize_model():
        if len(memory) < 16:
            return None
        batch = Transition(*zip(*random.sample(memory, 16)))
        non_final_mask = torch.tensor(
            tuple(map(lambda s: s is not None, batch.next_state)), device=device, dtype=torch.bool
        )
        non_final_next_states = torch.cat([s for s in batch.next_state if s is not None])
        state_batch, action_batch = torch.cat(batch.state), torch.cat(batch.action)
        reward_batch = torch.cat(batch.reward)
        state_action_values = policy_net(state_batch).gather(1, action_batch)
        next_state_values = torch.zeros(16, device=device)
        with torch.no_grad():
            next_state_values[non_final_mask] = target_net(non_final_next_states).max(1).values
        expected = (next_state_values * 0.99) + reward_batch
        loss = nn.SmoothL1Loss()(state_action_values, expected.unsqueeze(1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(policy_net.parameters(), 100)
        optimizer.step()
        return loss.item()

    loss = None
    for episode in range(8):
        state = torch.tensor(env.reset(), dtype=torch.float32, device=device).unsqueeze(0)
        for _ in count():
            if random.random() > 0.3:
                with torch.no_grad():
                    action = policy_net(state).max(1).indices.view(1, 1)
            else:
                action = torch.tensor([[random.randrange(2)]], device=device, dtype=torch.long)
            observation, reward, done = env.step(action.item())
            reward = torch.tensor([reward], device=device)
            next_state = None if done else torch.tensor(observation).unsqueeze(0)
            memory.append(Transition(state, action, next_state, reward))
            state = next_state
            loss = optimize_model()
            target, own = target_net.state_dict(), policy_net.state_dict()
            for key in own:
                target[key] = own[key] * 0.05 + target[key] * 0.95
            target_net.load_state_dict(target)
            if done:
                break
        if loss is not None:
            print(f"DQN episode {episode} loss {loss:.6f}")


if __name__ == "__main__":
    reinforce()
    dqn()
