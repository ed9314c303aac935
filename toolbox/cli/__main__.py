"""`python -m toolbox.cli` is `rcnn`."""

from toolbox.cli import main

if __name__ == "__main__":
    main()
