"""`python -m yopo_cli`, the same as `yopo`."""

from .app import main

if __name__ == "__main__":
    main()
