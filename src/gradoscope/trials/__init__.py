"""The trial set: trainings whose obstacle is known by construction, on which the verdicts are tried."""
