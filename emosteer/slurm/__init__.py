"""Sweeps on a SLURM cluster: submit workers, see what became of their jobs, end them.

`client` speaks with SLURM; `script` writes what sbatch is given, through submitit; `refusal` says what SLURM would not run;
`submitting` brings workers to a sweep, and `submission` is what is kept of that. `worker_job` and `finaliser_job` are what the jobs
run, `following` what a person sees of them.
"""
