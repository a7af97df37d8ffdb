"""`python -m emosteer.sweep_cli`."""

from emosteer.sweep_cli import main

main()
