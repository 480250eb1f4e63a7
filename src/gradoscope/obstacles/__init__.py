"""Obstacles: each says what it needs, tests its mechanism, and names the remedies that confirm it. One file each."""
