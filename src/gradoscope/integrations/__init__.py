"""Thin adapters: training frameworks that `watch` attaches to, and where its numbers go. Nothing is imported before it is asked for."""
