"""`python -m wsolbench`: the command, for launchers that start modules (torchrun -m wsolbench)."""

from wsolbench.cli import main

if __name__ == "__main__":
    main()
