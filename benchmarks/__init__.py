"""Measurements that anyone with a GPU can repeat; each writes one JSON under results/."""
