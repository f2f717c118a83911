"""The settings by subject. Each class is a base of `Settings`; its title heads its flags in the help of a command."""
