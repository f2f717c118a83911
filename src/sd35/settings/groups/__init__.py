"""The settings by subject. Each class is a base of `Settings`. Its title is that of a panel in the help of commands."""
