"""Photographs that scikit-image and scikit-learn ship under free licences, parts of them, and what is asked about each."""

from dataclasses import dataclass

NASA = "public domain, NASA"
CC0 = "CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/"
BY = "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/"


@dataclass(frozen=True)
class Photograph:
    """`file` in the package's folder of data; `box` in pixels (left, top, right, bottom), None: all of it."""

    name: str
    file: str
    credit: str
    licence: str
    questions: tuple[str, ...]
    box: tuple[int, int, int, int] | None = None


SKIMAGE, SKLEARN = "skimage/data", "sklearn/datasets/images"

PHOTOGRAPHS = (
    Photograph(
        "astronaut",
        f"{SKIMAGE}/astronaut.png",
        "NASA Great Images, portrait of Eileen Collins, https://flic.kr/p/r9qvLn",
        NASA,
        (
            "What is the woman wearing?",
            "Is the woman smiling?",
            "How many people are in the picture?",
            "What flag can be seen?",
            "Where is the helmet?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "shuttle",
        f"{SKIMAGE}/astronaut.png",
        "NASA Great Images, https://flic.kr/p/r9qvLn",
        NASA,
        (
            "What stands in the background?",
            "What color is the suit?",
            "Is there a helmet in the picture?",
            "Where is the model of the space shuttle?",
            "Write a caption for this picture.",
        ),
        (200, 0, 512, 512),
    ),
    Photograph(
        "wall",
        f"{SKIMAGE}/brick.png",
        "CC0Textures, Bricks25, https://cc0textures.com/view.php?tex=Bricks25",
        CC0,
        (
            "What is this surface made of?",
            "Are the bricks all of the same size?",
            "Is this picture in color?",
            "Do the lines run up and down or from left to right?",
            "Describe the pattern in a sentence.",
        ),
    ),
    Photograph(
        "cameraman",
        f"{SKIMAGE}/camera.png",
        "Lav Varshney",
        CC0,
        (
            "What is the man doing?",
            "How many legs does the tripod have?",
            "Is the man wearing a coat?",
            "What can be seen far away?",
            "On which side of the picture is the man?",
            "Describe the scene in a sentence.",
        ),
    ),
    Photograph(
        "skyline",
        f"{SKIMAGE}/camera.png",
        "Lav Varshney",
        CC0,
        (
            "Is there a tower in the background?",
            "What is in the foreground?",
            "What kind of weather is it?",
            "How many people can you see?",
            "What is the purpose of the object on the tripod?",
        ),
        (212, 60, 512, 360),
    ),
    Photograph(
        "cell",
        f"{SKIMAGE}/cell.png",
        "Paul Mueller and others, DOI 10.1364/OE.26.010729",
        CC0,
        (
            "What shape is the bright object?",
            "Where is the bright object?",
            "How many bright objects are there?",
            "Could this have been taken with a microscope?",
            "Describe what you see.",
        ),
    ),
    Photograph(
        "cat",
        f"{SKIMAGE}/chelsea.png",
        "Stefan van der Walt",
        CC0,
        (
            "What animal is this?",
            "What color are its eyes?",
            "Is the animal looking at the camera?",
            "How many eyes can be seen?",
            "What color is its fur?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "clock",
        f"{SKIMAGE}/clock_motion.png",
        "Stefan van der Walt",
        "public domain",
        (
            "Is this picture sharp or blurred?",
            "What might the object be?",
            "Where in the picture is the object?",
            "Which way did the camera move?",
            "Is there any text that can be read?",
        ),
    ),
    Photograph(
        "coffee",
        f"{SKIMAGE}/coffee.png",
        "Rachel Michetti",
        CC0,
        (
            "What is in the cup?",
            "What color is the saucer?",
            "How many cups are there?",
            "Where is the spoon?",
            "What is the table made of?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "spoon",
        f"{SKIMAGE}/coffee.png",
        "Rachel Michetti",
        CC0,
        (
            "What lies on the saucer?",
            "Is the cup full?",
            "What material is the spoon made of?",
            "What is to the left of the spoon?",
            "Which colors dominate the picture?",
        ),
        (190, 120, 490, 400),
    ),
    Photograph(
        "grass",
        f"{SKIMAGE}/grass.png",
        "linolafett, https://www.deviantart.com/linolafett/art/Grass-01-434853879",
        CC0,
        (
            "What covers the ground?",
            "Are there any animals in the picture?",
            "Was this taken from above or from the side?",
            "Is there a path?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "gravel",
        f"{SKIMAGE}/gravel.png",
        "CC0Textures, Gravel04, https://cc0textures.com/view.php?tex=Gravel04",
        CC0,
        (
            "What are these?",
            "Are the stones round or angular?",
            "About how large are the stones?",
            "Is anything growing between them?",
            "What could such a surface be used for?",
        ),
    ),
    Photograph(
        "horse",
        f"{SKIMAGE}/horse.png",
        "Andreas Preuss (marauder), http://openclipart.org/detail/158377/horse-by-marauder",
        CC0,
        (
            "What animal is shown?",
            "Which way is it facing?",
            "How many legs can be seen?",
            "Is this a photograph or a silhouette?",
            "What color is the background?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "vessels",
        f"{SKIMAGE}/microaneurysms.png",
        "Andreas Maier, High-Resolution Fundus Image Database",
        CC0,
        (
            "How many dark lines run through the picture?",
            "Is there a small dark spot?",
            "Where does a line branch?",
            "Is the picture in color?",
            "What could this be an image of?",
        ),
    ),
    Photograph(
        "rocket",
        f"{SKIMAGE}/rocket.jpg",
        "SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/",
        "public domain, SpaceX",
        (
            "What stands in the middle?",
            "Is it day or night?",
            "How many towers are around it?",
            "What color is the sky?",
            "Has the rocket taken off?",
            "Describe the scene in a sentence.",
        ),
    ),
    Photograph(
        "lights",
        f"{SKIMAGE}/rocket.jpg",
        "SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/",
        "public domain, SpaceX",
        (
            "How many bright lights can you count?",
            "What is lit by the lights?",
            "Where is the rocket?",
            "Are there people in the picture?",
            "What will happen here soon?",
        ),
        (60, 180, 460, 427),
    ),
    Photograph(
        "retina",
        f"{SKIMAGE}/retina.jpg",
        "Mikael Haggstrom, DOI 10.15347/wjm/2014.008",
        CC0,
        (
            "What part of the body is this?",
            "On which side is the bright spot?",
            "What color is it mostly?",
            "What are the dark red lines?",
            "Is the picture round or square?",
        ),
    ),
    Photograph(
        "formula",
        f"{SKIMAGE}/text.png",
        "https://en.wikipedia.org/wiki/File:Corner.png",
        "public domain",
        (
            "Is the text printed or written by hand?",
            "What kind of text is it?",
            "Is the paper flat or seen at an angle?",
            "Which letters or numbers can you read?",
            "Is there an equals sign?",
        ),
    ),
    Photograph(
        "galaxies",
        f"{SKIMAGE}/hubble_deep_field.jpg",
        "NASA, Hubble eXtreme Deep Field, hubblesite.org",
        NASA,
        (
            "What does this picture show?",
            "What color is the background?",
            "Are all of the dots of the same color?",
            "Could this have been taken by a telescope?",
            "Where is the brightest object?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "spirals",
        f"{SKIMAGE}/hubble_deep_field.jpg",
        "NASA, Hubble eXtreme Deep Field, hubblesite.org",
        NASA,
        (
            "How many large bright objects are there?",
            "Is there an orange one?",
            "What are the small dots?",
            "Is the sky empty anywhere?",
            "Write a caption for this picture.",
        ),
        (300, 300, 700, 700),
    ),
    Photograph(
        "pagoda",
        f"{SKLEARN}/china.jpg",
        "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
        BY,
        (
            "What kind of building is this?",
            "How many roofs are there, one above the other?",
            "What is behind the building?",
            "Is it by the water?",
            "What color are the roofs?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "roofs",
        f"{SKLEARN}/china.jpg",
        "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
        BY,
        (
            "What is on top of the roof?",
            "What color are the columns?",
            "Are there any people on the balconies?",
            "In which country could this be?",
            "Are there trees in the picture?",
        ),
        (80, 20, 360, 300),
    ),
    Photograph(
        "flower",
        f"{SKLEARN}/flower.jpg",
        "vultilion, https://www.flickr.com/photos/vultilion/6056698931/",
        BY,
        (
            "What is in the picture?",
            "What color are the petals?",
            "Is the background sharp or blurred?",
            "How many flowers can you see?",
            "Where is the second flower?",
            "Describe the picture in a sentence.",
        ),
    ),
    Photograph(
        "petals",
        f"{SKLEARN}/flower.jpg",
        "vultilion, https://www.flickr.com/photos/vultilion/6056698931/",
        BY,
        (
            "Is the center darker than the petals?",
            "What shape does the flower have?",
            "Are there leaves in the picture?",
            "Is there an insect on the flower?",
            "Which plant could it be?",
        ),
        (160, 70, 460, 370),
    ),
)
