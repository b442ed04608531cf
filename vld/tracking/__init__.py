"""Weights & Biases: a faithful copy of what is in run directories, made by a process of its own."""

# How long that process waits for W&B to open a run (WANDB_INIT_TIMEOUT says otherwise), to take what is left of one, and to
# confirm it.
OPEN_SECONDS, FINISH_SECONDS, CONFIRM_SECONDS = 20.0, 40.0, 10.0
# After W&B could not be reached, nothing is tried for so long: a sweep must not wait for it again and again.
PAUSE_SECONDS = 300.0
