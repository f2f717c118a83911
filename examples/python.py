"""Generate images in this process, without a server.

    python python.py

Writes cat.png and image-1.png to image-4.png to the current directory.
"""

from sd35 import Generator

with Generator("sd35-mini") as generator:
    image = generator.generate("a cat on a blue background", seed=7)
    image.save("cat.png")

    prompts = ["a dog on a red background", "a castle above a star on a purple background"]
    for number, image in enumerate(generator.generate_many(prompts, count=2, seed=7), 1):
        image.save(f"image-{number}.png")
        print(f"image-{number}.png: seed {image.seed}, {image.width}x{image.height}")
