"""Stable Diffusion 3.5: a Python library, a command, and an HTTP service, with a small real model inside.

    from sd35 import Generator

    with Generator("sd35-mini") as generator:
        image = generator.generate("a cat on a blue background", seed=7)
        image.save("cat.png")

The names in `__all__` are the public interface. Every error is an `Sd35Error`, except for RuntimeError from a closed
generator, TypeError for an unknown argument, and OSError from saving a file.
"""

# Type checkers take a variable of this name as true, so they read the imports below. Importing `typing.TYPE_CHECKING`
# instead would take time, and the command `sd35` imports this module before it can handle Ctrl-C.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from sd35.errors import (
        BackendUnavailable,
        CheckpointError,
        DoesNotFit,
        DownloadFailed,
        GenerationFailed,
        InvalidRequest,
        InvalidSetting,
        NotCompiled,
        NumericalFailure,
        Overloaded,
        Sd35Error,
        UnknownModel,
    )
    from sd35.generator import Generator, Image, ImageParams
else:

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used: importing the generator and NumPy takes about a second."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from sd35 import errors

        if hasattr(errors, name):
            return getattr(errors, name)
        from sd35 import generator

        return getattr(generator, name)


__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "DoesNotFit",
    "DownloadFailed",
    "GenerationFailed",
    "Generator",
    "Image",
    "ImageParams",
    "InvalidRequest",
    "InvalidSetting",
    "NotCompiled",
    "NumericalFailure",
    "Overloaded",
    "Sd35Error",
    "UnknownModel",
]


def __dir__() -> list[str]:
    """List the names of this module, including public names that are not imported yet."""
    return sorted({*globals(), *__all__})
