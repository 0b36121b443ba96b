"""Sentences in the manner of software documentation, the same on every machine."""

import random

NOUNS = (
    "file directory array string table axis matrix method argument class dictionary index attention head layer weight "
    "token length shape dtype color figure font event thread process socket server request response password user "
    "date time probability distribution sample variance polynomial root integral gradient"
)
VERBS = "returns creates converts reads writes removes copies computes updates checks sorts compares"
KINDS = "given new empty first last default current hidden optional sparse nested random"
PLACES = (
    "in place",
    "from the {} of the {}",
    "if the {} is not None",
    "for each {} in the {}",
    "without changing the {}",
    "along the {} {}",
    "as a {} of {} values",
    "before the {} is closed",
)
SHAPES = (
    "This method {} the {} {} {} and raises an error otherwise.",
    "If True, the {1} {2} is used and the function {0} it {3}.",
    "The {1} {2}, which {0} a {4}, is called {3}.",
    "Note that it {} the {} {} {}, whatever the {} may be.",
)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences about files, arrays, models, networks and statistics."""
    rng, found = random.Random(seed), {}
    nouns, verbs, kinds = (words.split() for words in (NOUNS, VERBS, KINDS))
    while len(found) < count:
        place = rng.choice(PLACES)
        place = place.format(*rng.sample(nouns, place.count("{}")))
        words = rng.choice(verbs), rng.choice(kinds), rng.choice(nouns), place, rng.choice(nouns)
        found[rng.choice(SHAPES).format(*words)] = None
    return list(found)
