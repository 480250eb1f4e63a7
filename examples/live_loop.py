"""A plain training loop, watched: three lines are added, and the body of the loop is as it was.

    python examples/live_loop.py

It prints the diagnosis and writes `live_loop.html`. The loop's step size is far too small on purpose.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradoscope


def main(steps: int = 600, lr: float = 2e-5) -> gradoscope.Diagnosis:
    bunch = load_digits()
    x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    criterion = nn.CrossEntropyLoss()

    watch = gradoscope.watch(model, optimizer, criterion)  # 1: before the loop

    done = 0
    while done < steps:
        for inputs, target in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), target)
            loss.backward()
            optimizer.step()
            done += 1

    diagnosis = watch.diagnose()  # 2: after the loop
    watch.close()  # 3: removes every hook
    return diagnosis


if __name__ == "__main__":
    found = main()
    print(found)  # noqa: T201
    found.save_html("live_loop.html")
