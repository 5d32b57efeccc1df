"""Train a small network on handwritten digits, save its weights, load them again.

python -m pip install "fastconv[examples]"
python examples/train_small_net.py
"""

import tempfile
from pathlib import Path

import fastconv
from fastconv import data, nn, optim


def build() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )


def accuracy(model: nn.Module, samples: data.Samples) -> float:
    model.eval()
    with fastconv.no_grad():
        predicted = model(samples.x).numpy().argmax(axis=1)
    model.train()
    return float((predicted == samples.y).mean())


def main() -> None:
    nn.manual_seed(0)
    train, test = data.digits()
    model = build()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(5):
        for x, labels in data.batches(*train, 32, shuffle=True, seed=(0, epoch)):
            loss = nn.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: test accuracy {accuracy(model, test):.1%}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        nn.save(path, model)
        copy = build()
        copy.load_state_dict(nn.load(path))
    print(f"loaded again: {accuracy(copy, test):.1%}")


if __name__ == "__main__":
    main()
