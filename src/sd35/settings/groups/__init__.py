"""The settings by subject. Each class is a base of `Settings`, and its title heads a panel in the help of commands."""
