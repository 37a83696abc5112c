"""Pure functions from a program to frozen facts."""
