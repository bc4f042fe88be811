"""``python -m fxexport``."""

from fxexport.cli import main

if __name__ == "__main__":
    main(prog_name="fxexport")
