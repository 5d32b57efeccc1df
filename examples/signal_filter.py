"""One-dimensional convolution: find short spikes in a noisy signal with the filter (-1, 1, -1) and a smoother.

python examples/signal_filter.py
"""

import numpy as np

import fastconv


def main() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(400)
    signal = np.sin(t / 30) + 0.05 * rng.standard_normal(t.size)
    spikes = np.array([40, 130, 260, 333])
    signal[spikes] += 1.5

    x = signal.astype(np.float32)[None, None]  # (batch, channels, time)
    smoother = np.full((1, 1, 9), 1 / 9, np.float32)
    low_high_low = np.array([[[-0.5, 1, -0.5]]], np.float32)  # its weights sum to 0: slow changes give no response
    trend = fastconv.conv1d(x, smoother, padding="same", padding_mode="replicate")
    response = fastconv.conv1d(x - trend, low_high_low, padding="same", activation="relu")

    found = np.flatnonzero(response[0, 0] > 0.7)
    print(f"spikes at {spikes.tolist()}, found at {found.tolist()}")


if __name__ == "__main__":
    main()
