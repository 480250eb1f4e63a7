"""Structured prediction: layers that do not depend on the order of nodes, scene graphs, and inference under constraints."""
