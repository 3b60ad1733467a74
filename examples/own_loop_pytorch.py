"""ArcFace in your own PyTorch loop: your network, your optimiser, your tensors; from torch_reference only the losses.

python examples/own_loop_pytorch.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from torch_reference import Head, arcface, center


def main(epochs=10):
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float()
    train, test = torch.randperm(len(labels)).split([1400, len(labels) - 1400])

    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    head = Head(arcface(m=0.3, scale=16.0) + 0.001 * center(), embedding_dim=32, num_classes=10)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(50):
            loss = head.loss(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        predicted = head(network(images[test])).argmax(dim=1)
    accuracy = (predicted == labels[test]).float().mean().item()
    print(f"loss {loss:.3f}, accuracy on {len(test)} test images {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
