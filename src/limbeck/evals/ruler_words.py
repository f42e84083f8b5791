"""Words that keys of needles are made of (`quiet-harbour`), and the filler that hides them.

Plain adjectives and nouns: some 7,500 pairs, so that a haystack of needles has no key twice.
"""

ADJECTIVES = tuple(
    """
    able ancient amber angry bitter black blue bold brave brief bright broad broken calm careful cheap clean clear clever cold
    common cool curious damp dark deep distant dry dusty early eager easy empty faint fair false fancy fast fine firm flat fond
    free fresh full gentle gold grand gray great green happy hard heavy hidden high honest hollow hot huge humble idle keen kind
    large lazy light little lively lonely long loose loud lucky mellow mild modest narrow neat noble odd old orange pale plain
    polite proud purple quick
    """.split()
)
NOUNS = tuple(
    """
    anchor apple arrow badge barrel basket beacon bell blanket bottle bridge bucket button cabin candle canyon carpet castle
    cellar chapel cherry circle cloud coffee compass copper corner cotton cradle curtain desert diamond dollar dragon drawer
    engine falcon feather fiddle finger forest fountain garden garlic glacier guitar hammer harbour harvest helmet island jacket
    jungle kettle ladder lantern lemon letter lizard magnet market meadow mirror monkey mountain needle novel orchard oyster
    paddle palace parrot pebble pencil pepper pigeon pillow planet pocket potato rabbit ribbon river rocket saddle
    """.split()
)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""RULER's filler: one unit of it."""
