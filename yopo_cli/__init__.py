"""The command line of yopo: everything that touches the user."""
