"""What needs a GPU. ``bench/gpu.sh`` runs it all; without a GPU these tests are skipped."""
