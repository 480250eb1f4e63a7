"""The kinds of places where tasks run; `gradoscope.sweep` is their front."""
