"""SLURM: job scripts, site profiles, submission, requeue, and checks before a job trains."""
