"""`python -m dlc_reg` is `dlc-reg`, for where the script is not on the PATH."""

from dlc_reg.cli import main

if __name__ == "__main__":
    main(prog_name="python -m dlc_reg")
